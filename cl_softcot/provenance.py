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


_DIRTY = "+dirty"


def revision(root: Path | None = None) -> str | None:
    """Git revision of the code that runs, '+dirty' with local changes; None outside a checkout.

    A change is a change of a file that git knows, or a new file of code: a folder of results beside it is none.
    """
    root = root or Path(__file__).parents[1]
    try:
        head = _git(root, "rev-parse", "HEAD")
        changed = _git(root, "status", "--porcelain", "--untracked-files=no")
        new = _git(root, "ls-files", "--others", "--exclude-standard", "--", "cl_softcot/*.py", "strategies/*.py")
    except (OSError, subprocess.SubprocessError):
        return None
    return head + (_DIRTY if changed or new else "")


def is_dirty(revision: str | None) -> bool:
    """Whether a revision does not say what ran, because the code had been changed since."""
    return (revision or "").endswith(_DIRTY)


def _git(root: Path, *arguments: str) -> str:
    done = subprocess.run(["git", "-C", root, *arguments], capture_output=True, text=True, timeout=10, check=True)
    return done.stdout.strip()
