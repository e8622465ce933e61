"""``python -m cl_softcot COMMAND ...``: the same as ``cl-softcot COMMAND ...``."""

from __future__ import annotations

import sys

from cl_softcot.commands import main

if __name__ == "__main__":
    sys.exit(main())
