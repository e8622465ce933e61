"""Coconut (arXiv 2412.06769): the last hidden state is fed back as the next input.

    question <bot> <bol> <lat> x k <eol> | remaining steps, answer

    h_i   = the last hidden state after the final norm at position i
    e_i+1 = h_i                  at a <lat>
            embedding of x_i+1   everywhere else

At stage s the first s steps are dropped and k = c*s; the loss begins behind <eol>. Thoughts are evaluated as trained, never
by the number of steps of the gold chain.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from cl_softcot.models.decoding import State, forward
from cl_softcot.reasoning.base import Batch, Edit, Parts, Phase, Reasoning, ReasoningSettings, first_column

if TYPE_CHECKING:
    from cl_softcot.tasks.base import Example


class Coconut(Reasoning):
    """Thinks k continuous thoughts one after the other, then writes what remains of the steps, and the answer."""

    class Settings(ReasoningSettings):
        thoughts_per_step: int = Field(1, ge=0, description="c; 0 drops the steps all the same: the control without thoughts")
        max_stage: int = Field(3, ge=0, description="how many steps are replaced in the end")
        curriculum: Literal["stages", "none"] | list[int] = Field(
            "stages", description="'stages': 0 to the last; 'none': the last from the start; or the stages in order"
        )
        stage_steps: list[float] | None = Field(
            None, description="share of the steps for each stage of the curriculum; default: equal, and double for the last"
        )
        uniform_prob: float = Field(0.0, ge=0, le=1, description="share of examples that are drawn at another stage")
        drop_all_after_last: bool = Field(False, description="one more stage at the end, in which every step is dropped")

        @property
        def stages(self) -> list[int]:
            """The stages of the curriculum, in order; max_stage + 1 is the one without any step."""
            last = self.max_stage + self.drop_all_after_last
            if isinstance(self.curriculum, list):
                return self.curriculum
            return [last] if self.curriculum == "none" else list(range(last + 1))

        @model_validator(mode="after")
        def _consistent(self) -> Coconut.Settings:
            last = self.max_stage + self.drop_all_after_last
            if not self.stages or not all(0 <= stage <= last for stage in self.stages):
                raise ValueError(f"curriculum: stages from 0 to {last} are possible")
            if self.stage_steps is not None and len(self.stage_steps) != len(self.stages):
                raise ValueError(f"stage_steps: {len(self.stage_steps)} shares for {len(self.stages)} stages")
            if self.stage_steps is not None and (min(self.stage_steps) < 0 or self.stage_steps[-1] <= 0):
                raise ValueError("stage_steps: shares are positive")
            return self

    where = "after_turn"
    owns_parts = True

    def build(self, parts: Parts, seed: int) -> None:
        marks = [parts.backbone.special["latent-start"], parts.backbone.special["latent-end"]]
        rows = parts.backbone.embed(torch.tensor(marks, device=parts.backbone.device))
        self.markers_2D = nn.Parameter(rows.detach().float().clone())

    # ------------------------------------------------------------------------------------------------ curriculum
    def phases(self, steps: int) -> list[Phase]:
        stages = self.settings.stages
        shares = self.settings.stage_steps or [1.0] * (len(stages) - 1) + [2.0]
        ends = [round(steps * sum(shares[: i + 1]) / sum(shares)) for i in range(len(stages))]
        counts = [end - start for start, end in zip([0, *ends], ends, strict=False)]
        return [Phase(stage, count) for stage, count in zip(stages, counts, strict=True) if count]

    def final_phase(self) -> Phase:
        return Phase(self.settings.stages[-1], 0)

    def stage_of(self, phase: Phase, rng: random.Random) -> int:
        if self.settings.uniform_prob and rng.random() < self.settings.uniform_prob:
            return rng.randint(0, self.settings.max_stage)
        return phase.stage

    def thoughts(self, stage: int) -> list[str]:
        count = self.settings.thoughts_per_step * min(stage, self.settings.max_stage)
        return ["latent-start", *["latent"] * count, "latent-end"]

    def steps_written(self, example: Example, stage: int) -> Sequence[str]:
        return () if stage > self.settings.max_stage else example.steps[stage:]

    # --------------------------------------------------------------------------------------------------- thinking
    def embed(self, parts: Parts, ids_BT: Tensor) -> Tensor:
        embeddings_BTD = parts.backbone.embed(ids_BT)
        for name, row_D in zip(("latent-start", "latent-end"), self.markers_2D, strict=True):
            here_BT1 = (ids_BT == parts.backbone.special[name])[..., None]
            embeddings_BTD = torch.where(here_BT1, row_D.to(embeddings_BTD.dtype), embeddings_BTD)
        return embeddings_BTD

    def prefix(self, parts: Parts, batch: Batch, edit: Edit | None, room: int | None) -> tuple[State, Tensor, Tensor]:
        """One call up to the first latent column, then one a column; the last latent goes with what follows.

        Rows may have different numbers of latents: <eol> is the last column of all, and where one row has a latent another may
        still have a word of its question.
        """
        inputs_BTD, mask_BT = self.embed(parts, batch["prefix_BT"]), batch["prefix_mask_BT"]
        latent_BT = self.marked(parts, batch, "latent")
        state = self.empty_state(parts, batch, room)
        start = first_column(latent_BT)
        columns = latent_BT.any(0).nonzero()[:, 0].tolist()
        if not columns:
            return state, inputs_BTD, mask_BT
        hidden_BTD = forward(parts.backbone, state, inputs_BTD[:, :start], mask_BT[:, :start])
        for column in range(start, columns[-1] + 1):
            thought_B1D = hidden_BTD[:, -1:].to(inputs_BTD.dtype)
            thought_B1D = thought_B1D if edit is None else edit(thought_B1D)
            input_B1D = torch.where(latent_BT[:, column, None, None], thought_B1D, inputs_BTD[:, column : column + 1])
            if column < columns[-1]:
                hidden_BTD = forward(parts.backbone, state, input_B1D, mask_BT[:, column : column + 1])
        rest_BTD = torch.cat([input_B1D, inputs_BTD[:, columns[-1] + 1 :]], 1)
        return state, rest_BTD, mask_BT[:, columns[-1] :]

    def thoughts_per_answer(self) -> int:
        return self.thoughts(self.final_phase().stage).count("latent")
