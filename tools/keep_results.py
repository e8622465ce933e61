"""Keeps results in the repository: ``python tools/keep_results.py keep runs/sequence_a_seeds`` (see reports/keeping.py)."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from cl_softcot.reports.keeping import main  # noqa: E402

if __name__ == "__main__":
    sys.exit(main())
