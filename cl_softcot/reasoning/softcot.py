"""SoftCoT (arXiv 2502.12134): a small frozen assistant thinks for the backbone, a projector translates.

    assistant   instruction, question, <slot> x N       ->  s_1 ... s_N, its last hidden states AT the slots
    backbone    instruction, question, t_1 ... t_N <bot> | steps, answer          with t_k = W s_k + b

Only W and b are trained (with ``frozen_backbone``). Two controls take the place of the assistant: one with random weights, and
N free vectors t_k that are the same for every question.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from cl_softcot.errors import UserError
from cl_softcot.models.assistant import AssistantStates
from cl_softcot.models.batch import Batch, Edit
from cl_softcot.models.projector import Projector
from cl_softcot.models.running import State
from cl_softcot.reasoning.base import AssistantUse, Parts, Reasoning, ReasoningSettings

if TYPE_CHECKING:
    from cl_softcot.tasks.base import Example


class Softcot(Reasoning):
    """Reads the question and N soft thoughts at the end of the user's turn, writes all steps and the answer."""

    class Settings(ReasoningSettings):
        soft_thoughts: int = Field(4, ge=1, description="N, slots for soft thoughts")
        projector: Literal["linear", "mlp"] = Field("linear", description="the map from the assistant's width to the backbone's")
        hidden: int | None = Field(None, ge=1, description="hidden size of the mlp; default: the backbone's width")
        source: Literal["assistant", "random", "free"] = Field(
            "assistant", description="'random': the assistant with random weights; 'free': trained vectors without an assistant"
        )

        @model_validator(mode="after")
        def _consistent(self) -> Softcot.Settings:
            if self.hidden is not None and self.projector != "mlp":
                raise ValueError("hidden: only with projector: mlp")
            return self

    settings: Settings
    thought = "slot"
    tokens = ("slot",)
    owns_parts = True

    @classmethod
    def needs_assistant(cls, settings: Settings) -> bool:
        return settings.source != "free"

    @classmethod
    def assistant_use(cls, settings: Settings) -> AssistantUse:
        return AssistantUse(slots=settings.soft_thoughts, models=2 if settings.source == "random" else 1)

    @classmethod
    def owned_numbers(cls, settings: Settings, width: int, assistant_width: int | None) -> int:
        if settings.source == "free" or assistant_width is None:
            return settings.soft_thoughts * width
        if settings.projector == "linear":
            return assistant_width * width + width
        hidden = settings.hidden or width
        return (assistant_width + 1) * hidden + (hidden + 1) * width

    def build(self, parts: Parts, seed: int) -> None:
        settings, backbone = self.settings, parts.backbone
        std = backbone.embedding_std()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            if settings.source == "free":
                self.free_KD = nn.Parameter((torch.randn(settings.soft_thoughts, backbone.width) * std).to(backbone.device))
                return
            states = self._build_states(parts, seed)
            hidden = (settings.hidden or backbone.width) if settings.projector == "mlp" else None
            self.projector = Projector(states.assistant.width, backbone.width, hidden).to(backbone.device)
        # Thoughts start out at the scale of what the backbone is used to read.
        self.projector.calibrate(states.typical().to(backbone.device), std)

    def _build_states(self, parts: Parts, seed: int) -> AssistantStates:
        if parts.assistant is None:
            raise UserError(
                f"softcot with source: {self.settings.source} needs an assistant",
                fix="give 'assistant: builtin:tiny-assistant' in the experiment, or set source: free",
            )
        if self.settings.source == "random":
            self._states = AssistantStates(parts.assistant.randomised(seed), self.settings.soft_thoughts)
        else:
            assert parts.states is not None, "Parts makes them of its assistant"
            self._states = parts.states
            self._states.reserve(self.settings.soft_thoughts)
        return self._states

    def register(self, parts: Parts, examples: Sequence[Example]) -> None:
        if self.settings.source != "free":
            self._states.register(self._states.prompt_ids(e.question, self.instruction) for e in examples)

    def thoughts(self, stage: int) -> list[str]:
        return ["slot"] * self.settings.soft_thoughts

    def soft_thoughts(self, batch: Batch) -> Tensor:
        """The thoughts of a batch, [B, K, D] in fp32."""
        if self.settings.source == "free":
            return self.free_KD.expand(len(batch), -1, -1)
        prompts = [self._states.prompt_ids(e.example.question, self.instruction) for e in batch["encoded"]]
        states_BKA = self._states.states(prompts, self.settings.soft_thoughts)
        return self.projector(states_BKA.to(self.projector.outer.weight.device))

    def prefix(self, parts: Parts, batch: Batch, edit: Edit | None, room: int | None) -> tuple[State, Tensor, Tensor]:
        thoughts_BKD = self.soft_thoughts(batch)
        if edit is not None:
            thoughts_BKD = self.edited(parts, batch, thoughts_BKD, edit)
        slots_BT = self.marked(parts, batch, "slot")
        state, first = self.read_frozen(parts, batch, slots_BT, room)
        inputs_BTD = self.embed(parts, batch["prefix_BT"][:, first:])
        # Every row has K slots, in order (an edit's result is flat, and may be shorter): filled row after row.
        inputs_BTD = inputs_BTD.masked_scatter(slots_BT[:, first:, None], thoughts_BKD.to(inputs_BTD.dtype))
        return state, inputs_BTD, batch["prefix_mask_BT"][:, first:]
