"""``python -m cl_softcot.results keep RUNS_FOLDER... | unpack KEPT_FOLDER``: packs results into a small file, and back."""

from __future__ import annotations

import sys

from cl_softcot.results.keeping import main

if __name__ == "__main__":
    sys.exit(main())
