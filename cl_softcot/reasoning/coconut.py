"""Coconut (arXiv 2412.06769): the last hidden state is fed back as the next input.

    question <bot> <bol> <lat> x k <eol> | remaining steps, answer

    h_i   = the last hidden state after the final norm at position i
    e_i+1 = h_i                  at a <lat>
            embedding of x_i+1   everywhere else

At stage s the first s steps are dropped and k = c*s; the loss begins behind <eol>. Thoughts are evaluated as trained, never
by the number of steps of the gold chain, unless ``leak_gold_steps`` says so.

What differs from the original on purpose, with the setting that brings the original back (checked against its numbers in
tests/reasoning): the markers' embeddings are parameters of their own and cannot be written (``markers``), drawn
stages do not depend on the example (``uniform_over``).
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from cl_softcot.additions import ADDED_LATER
from cl_softcot.models.batch import Batch, Edit, Place
from cl_softcot.models.head import at_least_fp32
from cl_softcot.models.running import State, forward
from cl_softcot.reasoning.base import Parts, Passes, Phase, Reasoning, ReasoningSettings, first_column

if TYPE_CHECKING:
    from cl_softcot.tasks.base import Example, TextLengths


_MARKERS = ("latent-start", "latent-end")


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
        pad_latent_to_max: Annotated[bool, ADDED_LATER] = Field(
            True,
            description="in that last stage every example has c * max_stage thoughts, as in the paper's runs; false: a chain "
            "that is shorter has c a step, while training (answers always get the full number)",
        )
        leak_gold_steps: Annotated[bool, ADDED_LATER] = Field(
            False,
            description="LEAK, only to reproduce the original with pad_latent_to_max: false: answers get as many thoughts as "
            "the gold chain has steps",
        )
        uniform_over: Annotated[Literal["stages", "chain"], ADDED_LATER] = Field(
            "stages",
            description="what uniform_prob draws from: 'stages' 0 to max_stage, so that every stage is kept alive alike; "
            "'chain', as the original: 0 to the number of the example's steps",
        )
        markers: Annotated[Literal["own", "table", "none"], ADDED_LATER] = Field(
            "own",
            description="where the embeddings of start and end are: 'own' parameters, which any strategy can train and which "
            "leave the model's distribution as it was; 'table', as the original: rows of the model's embedding table, in the "
            "softmax too; 'none': no markers (the original's run without thoughts)",
        )

        thought: Annotated[Literal["hidden", "pause"], ADDED_LATER] = Field(
            "hidden",
            description="what stands at a thought: 'hidden', the last hidden state; 'pause', one trained vector at all of them "
            "(the paper's 'pause as thought': the curriculum, with nothing carried on)",
        )

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
            if self.leak_gold_steps and self.pad_latent_to_max:
                raise ValueError("leak_gold_steps: only with pad_latent_to_max: false, where the original has that leak")
            return self

    settings: Settings
    where = "after_turn"
    thought = "latent"
    tokens = (*_MARKERS, "latent", "pause")
    owns_parts = True

    @classmethod
    def refuses(cls, settings: Settings, strategy_name: str) -> str | None:
        if settings.markers != "own" and settings.thought != "pause" and strategy_name == "frozen_backbone":
            return f"frozen_backbone trains coconut's own markers, and with markers: {settings.markers} there are none"
        if settings.markers == "table" and strategy_name == "lora":
            return "lora does not train the embedding table that markers: table are rows of; use markers: own"
        return None

    @classmethod
    def owned_numbers(cls, settings: Settings, width: int, assistant_width: int | None) -> int:
        return (len(_MARKERS) * (settings.markers == "own") + (settings.thought == "pause")) * width

    def build(self, parts: Parts, seed: int) -> None:
        if self.settings.markers == "table":
            parts.backbone.write_markers()
        if self.settings.markers == "own":
            marks = [parts.backbone.special[name] for name in _MARKERS]
            rows = parts.backbone.embed(torch.tensor(marks, device=parts.backbone.device))
            self.markers_2D = nn.Parameter(at_least_fp32(rows.detach()).clone())
        if self.settings.thought == "pause":
            row = parts.backbone.embed(torch.tensor(parts.backbone.special["pause"], device=parts.backbone.device))
            self.pause_D = nn.Parameter(at_least_fp32(row.detach()).clone())

    # ------------------------------------------------------------------------------------------------ curriculum
    def phases(self, steps: int) -> list[Phase]:
        stages = self.settings.stages
        shares = self.settings.stage_steps or [1.0] * (len(stages) - 1) + [2.0]
        ends = [round(steps * sum(shares[: i + 1]) / sum(shares)) for i in range(len(stages))]
        counts = [end - start for start, end in zip([0, *ends], ends, strict=False)]
        return [Phase(stage, count) for stage, count in zip(stages, counts, strict=True) if count]

    def final_phase(self) -> Phase:
        return Phase(self.settings.stages[-1], 0)

    def stage_of(self, phase: Phase, rng: random.Random, example: Example) -> int:
        settings = self.settings
        if settings.uniform_prob and not phase.answering and rng.random() < settings.uniform_prob:
            return rng.randint(0, settings.max_stage if settings.uniform_over == "stages" else len(example.steps))
        return phase.stage

    def thoughts(self, stage: int) -> list[str]:
        return self._thoughts(min(stage, self.settings.max_stage))

    def thoughts_of(self, example: Example, stage: int, answering: bool) -> list[str]:
        settings = self.settings
        steps = min(stage, settings.max_stage)
        by_chain = settings.leak_gold_steps if answering else stage > settings.max_stage and not settings.pad_latent_to_max
        return self._thoughts(min(steps, len(example.steps)) if by_chain else steps)

    def _thoughts(self, steps: int) -> list[str]:
        latents = ["latent"] * (self.settings.thoughts_per_step * steps)
        return latents if self.settings.markers == "none" else [_MARKERS[0], *latents, _MARKERS[1]]

    def steps_written(self, example: Example, stage: int) -> Sequence[str]:
        return () if stage > self.settings.max_stage else example.steps[stage:]

    # --------------------------------------------------------------------------------------------------- thinking
    def embed(self, parts: Parts, ids_BT: Tensor) -> Tensor:
        embeddings_BTD = parts.backbone.embed(ids_BT)
        if self.settings.markers != "own":
            return embeddings_BTD
        for name, row_D in zip(_MARKERS, self.markers_2D, strict=True):
            here_BT1 = (ids_BT == parts.backbone.special[name])[..., None]
            embeddings_BTD = torch.where(here_BT1, row_D.to(embeddings_BTD.dtype), embeddings_BTD)
        return embeddings_BTD

    def prefix(self, parts: Parts, batch: Batch, edit: Edit | None, room: int | None) -> tuple[State, Tensor, Tensor]:
        """One call up to the first latent column, then one a column; the last latent goes with what follows.

        Rows may have different numbers of latents: <eol> is the last column of all, and where one row has a latent another may
        still have a word of its question.
        """
        state, first = self.read_frozen(parts, batch, self._own(parts, batch), room)
        inputs_BTD, mask_BT = self.embed(parts, batch["prefix_BT"][:, first:]), batch["prefix_mask_BT"][:, first:]
        if self.settings.thought == "pause":
            return state, self.one_thought(parts, batch, inputs_BTD, self.pause_D, edit), mask_BT
        latent_BT = self.marked(parts, batch, "latent")
        index_BT = (latent_BT.cumsum(1) - 1).where(latent_BT, -1)[:, first:]
        latent_BT = latent_BT[:, first:]
        start = first_column(latent_BT)
        columns = latent_BT.any(0).nonzero()[:, 0].tolist()
        if not columns:
            return state, inputs_BTD, mask_BT
        hidden_BTD = forward(parts.backbone, state, inputs_BTD[:, :start], mask_BT[:, :start])
        for column in range(start, columns[-1] + 1):
            thought_B1D = hidden_BTD[:, -1:].to(inputs_BTD.dtype)
            if edit is not None:
                thought_B1D = edit(thought_B1D, Place(batch, index_BT[:, column, None]))
            input_B1D = torch.where(latent_BT[:, column, None, None], thought_B1D, inputs_BTD[:, column : column + 1])
            if column < columns[-1]:
                hidden_BTD = forward(parts.backbone, state, input_B1D, mask_BT[:, column : column + 1])
        rest_BTD = torch.cat([input_B1D, inputs_BTD[:, columns[-1] + 1 :]], 1)
        return state, rest_BTD, mask_BT[:, columns[-1] :]

    def _own(self, parts: Parts, batch: Batch) -> Tensor:
        """The places, [B, T], with an input of our own, and those whose hidden state is a thought."""
        latent_BT = self.marked(parts, batch, "latent")
        before_BT = nn.functional.pad(latent_BT[:, 1:], (0, 1))
        return latent_BT | before_BT | self.marked(parts, batch, _MARKERS[0]) | self.marked(parts, batch, _MARKERS[1])

    def passes(self, lengths: TextLengths, phase: Phase, *, frozen_backbone: bool = False) -> Passes:
        """One call up to the first latent, one for each but the last, and one for that with all that follows."""
        thoughts, target = self.thoughts(phase.stage), self.target_length(lengths, phase)
        latents = thoughts.count("latent")
        if not latents or self.settings.thought == "pause":
            return super().passes(lengths, phase, frozen_backbone=frozen_backbone)
        return Passes(0, (lengths.prompt + len(thoughts) - latents - 1, *[1] * (latents - 1), 2 + target - 1), target)

    def thoughts_per_answer(self) -> int:
        return self.thoughts(self.final_phase().stage).count("latent")
