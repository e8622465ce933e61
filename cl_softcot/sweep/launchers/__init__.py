"""How workers are started, one file a way. Each has `launch(sweep, say, detach)`, and starts the same worker:

python -m cl_softcot.sweep worker sweeps/<name>
"""

from __future__ import annotations

import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from cl_softcot.registry import modules_of
from cl_softcot.sweep.config import SweepConfig


class LaunchModule(Protocol):
    def check(self, sweep: SweepConfig) -> None:
        """UserError if it cannot work here; called before anything is made."""

    def launch(self, sweep: SweepConfig, say: Callable[[str], None], detach: bool) -> bool:
        """Starts workers. True: they have ended; False: they work on by themselves."""


def launcher(sweep: SweepConfig) -> Any:
    """The module that the sweep's launcher names (a `LaunchModule`)."""
    return modules_of(__name__)[sweep.launcher.name]


def worker_command(sweep: SweepConfig, python: str = "python", folder: Path | None = None) -> list[str]:
    return [python, "-m", "cl_softcot.sweep", "worker", str(folder or sweep.folder)]


def shown_command(sweep: SweepConfig) -> str:
    return shlex.join(worker_command(sweep))
