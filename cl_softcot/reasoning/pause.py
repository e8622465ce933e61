"""Pause tokens (arXiv 2310.02226): more positions to compute in, but nothing is carried over from one to the next.

<bot> <pause> x N | answer A <eos>
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from pydantic import Field
from torch import Tensor, nn

from cl_softcot.models.batch import Batch, Edit
from cl_softcot.models.running import State
from cl_softcot.reasoning.base import Parts, Reasoning, ReasoningSettings

if TYPE_CHECKING:
    from cl_softcot.tasks.base import Example


class Pause(Reasoning):
    """Reads the question and N trained pause tokens, and writes the answer."""

    class Settings(ReasoningSettings):
        pauses: int = Field(4, ge=0, description="N, pause tokens before the answer")

    settings: Settings
    instruction = "direct"
    where = "after_turn"
    thought = "pause"
    tokens = ("pause",)
    owns_parts = True

    @classmethod
    def owned_numbers(cls, settings: Settings, width: int, assistant_width: int | None) -> int:
        return width

    def build(self, parts: Parts, seed: int) -> None:
        row = parts.backbone.embed(torch.tensor(parts.backbone.special["pause"], device=parts.backbone.device))
        self.pause_D = nn.Parameter(row.detach().float().clone())

    def thoughts(self, stage: int) -> list[str]:
        return ["pause"] * self.settings.pauses

    def steps_written(self, example: Example, stage: int) -> Sequence[str]:
        return ()

    def prefix(self, parts: Parts, batch: Batch, edit: Edit | None, room: int | None) -> tuple[State, Tensor, Tensor]:
        state, first = self.read_frozen(parts, batch, self.marked(parts, batch, "pause"), room)
        inputs_BTD = self.embed(parts, batch["prefix_BT"][:, first:])
        inputs_BTD = self.one_thought(parts, batch, inputs_BTD, self.pause_D, edit)
        return state, inputs_BTD, batch["prefix_mask_BT"][:, first:]
