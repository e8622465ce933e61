"""What a number depends on besides its configuration: versions of packages, revision of the code."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any


def versions() -> dict[str, Any]:
    """Python and package versions behind a result."""
    from importlib.metadata import PackageNotFoundError, version

    found = {"python": sys.version.split()[0]}
    for name in ("cl-softcot", "torch", "transformers", "peft", "avalanche-lib", "numpy", "mlflow"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found


def revision() -> str | None:
    """Git revision of the code that runs, '+dirty' with local changes; None outside a checkout."""
    here = Path(__file__).parent
    try:
        git = lambda *a: subprocess.run(["git", "-C", here, *a], capture_output=True, text=True, timeout=10, check=True).stdout  # noqa: E731
        return git("rev-parse", "HEAD").strip() + (
            "+dirty" if git("status", "--porcelain", "--untracked-files=no").strip() else ""
        )
    except (OSError, subprocess.SubprocessError):
        return None
