"""Trials one after the other, in the process of the command."""

from __future__ import annotations

from collections.abc import Callable

from cl_softcot.errors import UserError
from cl_softcot.sweep.config import SweepConfig
from cl_softcot.sweep.worker import work


def check(sweep: SweepConfig) -> None:
    """Works everywhere."""


def launch(sweep: SweepConfig, say: Callable[[str], None], detach: bool) -> bool:
    if detach:
        raise UserError("--detach: trials in this process end with it", fix="launcher=local starts processes that go on.")
    work(sweep, say)
    return True
