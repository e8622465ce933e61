"""The answer at once, without steps: the 'no chain' control."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from cl_softcot.reasoning.base import Reasoning

if TYPE_CHECKING:
    from cl_softcot.tasks.base import Example


class Direct(Reasoning):
    """Reads the question and writes the answer."""

    instruction = "direct"

    def steps_written(self, example: Example, stage: int) -> Sequence[str]:
        return ()
