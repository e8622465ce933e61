"""What every way of thinking has in common: text in, a decoding state and a loss out.

A sequence is a prefix (the prompt with its thoughts) and a target (what is written)::

    prefix_BT, left padded            target_BT, right padded
    .  .  question  thoughts  <bot>  | step ; answer A <eos>  .
                             predicts  ^ the first target token
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn

from cl_softcot.models.assistant import AssistantStates
from cl_softcot.models.batch import Batch, Edit, Encoded, Place
from cl_softcot.models.frozen_prefix import can_keep, read_prefixes
from cl_softcot.models.head import token_losses
from cl_softcot.models.language_model import LanguageModel
from cl_softcot.models.running import IGNORED, State, forward, new_state
from cl_softcot.models.text import TextFormat, Where
from cl_softcot.tasks.base import Example, TextLengths


@dataclass(frozen=True)
class Phase:
    """A stretch of training: Coconut's stage (0 elsewhere) and its number of optimiser steps.

    ``answering`` is set while the policy is asked: nothing is drawn then, and nothing may depend on the gold chain.
    """

    stage: int
    steps: int
    answering: bool = False


@dataclass
class Parts:
    """Everything that answers together. ``states`` are those of the real assistant, also where a control ignores them."""

    backbone: LanguageModel
    assistant: LanguageModel | None
    reasoning: Reasoning
    states: AssistantStates | None = None

    def __post_init__(self) -> None:
        self.backbone.name_tokens(self.reasoning.tokens)
        if self.states is None and self.assistant is not None:
            self.states = AssistantStates(self.assistant)


@dataclass(frozen=True)
class Loss:
    """Summed cross-entropy in nats, the number of tokens in the sum, and the sums per example. Division is the loop's."""

    loss_sum: Tensor
    n_tokens: int
    per_example_B: Tensor


@dataclass(frozen=True)
class Passes:
    """How a sequence goes through the backbone.

    Attributes:
        frozen: columns before the first trained input of a frozen backbone: no gradient, nothing kept.
        pieces: columns of each further call of the backbone, in order.
        labels: tokens that the loss is taken over.
    """

    frozen: int
    pieces: tuple[int, ...]
    labels: int

    @property
    def columns(self) -> int:
        return self.frozen + sum(self.pieces)


@dataclass(frozen=True)
class AssistantUse:
    """What is asked of the assistant about a question.

    Attributes:
        slots: tokens that it reads behind its prompt.
        writes: tokens that it writes, at most.
        models: how many of its size are in memory; a control with other weights is one more.
    """

    slots: int = 0
    writes: int = 0
    models: int = 1


class ReasoningSettings(BaseModel):
    """Settings of a way of thinking; unknown keys are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Reasoning(nn.Module):
    """A way of thinking. It owns its trained parts as parameters, made in ``build``.

    A new one overrides ``thoughts``/``steps_written`` for what stands in the text, and ``embed`` or ``prefix`` for what stands
    in the model's input; ``passes`` where that takes other calls of the backbone than one.
    """

    Settings: ClassVar[type[ReasoningSettings]] = ReasoningSettings
    instruction: ClassVar[str] = "cot"
    where: ClassVar[Where] = "before_turn"
    encodes_unbuilt: ClassVar[bool] = True  # ``encode`` needs nothing that ``build`` makes
    thought: ClassVar[str | None] = None  # name of the special token that an ``edit``'s thoughts stand at; None: there are none
    tokens: ClassVar[tuple[str, ...]] = ()  # names of the special tokens that it marks places with, any names
    owns_parts: ClassVar[bool] = False  # has parameters of its own, without which it is nothing but noise

    def __init__(self, settings: Any = None):
        super().__init__()
        self.settings = self.Settings() if settings is None else settings

    @classmethod
    def refuses(cls, settings: Any, strategy_name: str) -> str | None:
        """Why this cannot be combined with a strategy; None if it can."""
        return None

    @classmethod
    def needs_assistant(cls, settings: Any) -> bool:
        """True if ``backbone`` alone is not enough."""
        return False

    @classmethod
    def assistant_use(cls, settings: Any) -> AssistantUse:
        """What is asked of the assistant, where one is needed."""
        return AssistantUse()

    @classmethod
    def owned_numbers(cls, settings: Any, width: int, assistant_width: int | None) -> int:
        """How many numbers ``build`` makes that can be trained, for models of these widths (D and A); known without building."""
        return 0

    def build(self, parts: Parts, seed: int) -> None:
        """Make the trained parts, for these models and from this seed."""

    def register(self, parts: Parts, examples: Sequence[Example]) -> None:
        """Make examples known before they are used, so that what is computed once for them is computed in fixed company."""

    # ------------------------------------------------------------------------------------------ what is written
    def phases(self, steps: int) -> list[Phase]:
        """How ``steps`` optimiser steps of a turn are used."""
        return [Phase(0, steps)]

    def final_phase(self) -> Phase:
        """The phase that is evaluated."""
        return Phase(0, 0)

    def thoughts(self, stage: int) -> list[str]:
        """Names of the special tokens that stand in the prompt."""
        return []

    def steps_written(self, example: Example, stage: int) -> Sequence[str]:
        """The steps that remain text."""
        return example.steps

    def stage_of(self, phase: Phase, rng: random.Random, example: Example) -> int:
        """The stage that an example is encoded at."""
        return phase.stage

    def thoughts_of(self, example: Example, stage: int, answering: bool) -> list[str]:
        """Names of the special tokens that stand in this example's prompt."""
        return self.thoughts(stage)

    def encode(self, text: TextFormat, example: Example, phase: Phase, rng: random.Random) -> Encoded:
        """Token ids of an example in a phase. UserError if it does not fit into the model's context."""
        stage = self.stage_of(phase, rng, example)
        thoughts = self.thoughts_of(example, stage, phase.answering)
        prefix = text.prompt_ids(example.question, self.instruction, thoughts, self.where)
        target = text.target_ids(self.steps_written(example, stage), example.answer)
        text.check_fits(example.id, len(prefix), len(target))
        return Encoded(example, prefix, target)

    def collate(self, encoded: Sequence[Encoded]) -> Batch:
        """Pad: prefixes on the left, targets on the right."""
        P, T = max(len(e.prefix_ids) for e in encoded), max(len(e.target_ids) for e in encoded)
        targets = [(e.target_ids, T - len(e.target_ids)) for e in encoded]
        prefixes = [(e.prefix_ids, P - len(e.prefix_ids)) for e in encoded]
        return Batch(
            prefix_BT=torch.tensor([[0] * pad + ids for ids, pad in prefixes]),
            prefix_mask_BT=torch.tensor([[False] * pad + [True] * len(ids) for ids, pad in prefixes]),
            target_BT=torch.tensor([ids + [0] * pad for ids, pad in targets]),
            labels=torch.tensor([ids + [IGNORED] * pad for ids, pad in targets]),
            task_ids=torch.tensor([e.task_id for e in encoded]),
            encoded=list(encoded),
        )

    # ------------------------------------------------------------------------------------------ what is computed
    def embed(self, parts: Parts, ids_BT: Tensor) -> Tensor:
        """Input embeddings of prefix tokens, [B, T, D]."""
        return parts.backbone.embed(ids_BT)

    def prefix(self, parts: Parts, batch: Batch, edit: Edit | None, room: int | None) -> tuple[State, Tensor, Tensor]:
        """Run what has to run before the last piece of the prefix.

        Returns the state so far, and the last piece, [B, T, D] with its mask: it goes through the backbone in one call with
        whatever follows it.
        """
        state = self.empty_state(parts, batch, room)
        return state, self.embed(parts, batch["prefix_BT"]), batch["prefix_mask_BT"]

    def begin(self, parts: Parts, batch: Batch, edit: Edit | None = None, room: int | None = None) -> State:
        """Think. The state's logits predict the first target token.

        Args:
            edit: changes the thoughts before the backbone reads them, for interventions. With it, rows may have fewer
                thoughts than they would by themselves: the last ones are left out.
            room: columns to set aside for what will be written, when decoding without gradients.
        """
        state, piece_BTD, mask_BT = self.prefix(parts, batch, edit, room)
        state.hidden_BD = forward(parts.backbone, state, piece_BTD, mask_BT)[:, -1].clone()  # not all columns, for as long
        state.logits_BV = parts.backbone.logits(state.hidden_BD)
        return state

    def extend(self, parts: Parts, state: State, ids_BT: Tensor) -> Tensor:
        """Append given tokens; the logits after each of them, [B, T, V]."""
        hidden_BTD = forward(parts.backbone, state, parts.backbone.embed(ids_BT))
        state.hidden_BD = hidden_BTD[:, -1]
        return parts.backbone.logits(hidden_BTD)

    def step(self, parts: Parts, state: State, ids_B: Tensor) -> Tensor:
        """Append one token a row; the logits of the next, [B, V]."""
        return self.extend(parts, state, ids_B[:, None])[:, -1]

    def predict(self, parts: Parts, batch: Batch, edit: Edit | None = None) -> Tensor:
        """The hidden state, after the final norm, that predicts each target token, [B, T, D].

        The same as ``begin`` and ``extend`` with the target, in one call of the backbone less.
        """
        room = None if torch.is_grad_enabled() else batch["target_BT"].shape[1]
        state, piece_BTD, mask_BT = self.prefix(parts, batch, edit, room)
        given_BT = batch["target_BT"][:, :-1]  # the last target token predicts nothing
        inputs_BTD = torch.cat([piece_BTD, parts.backbone.embed(given_BT).to(piece_BTD.dtype)], 1)
        mask_BT = torch.cat([mask_BT, batch["labels"][:, :-1] != IGNORED], 1)
        hidden_BTD = forward(parts.backbone, state, inputs_BTD, mask_BT)
        return hidden_BTD[:, piece_BTD.shape[1] - 1 :]

    def loss(self, parts: Parts, batch: Batch) -> Loss:
        """Cross-entropy of the target tokens; logits are made only where there is a label, and of few places at a time."""
        labels = batch["labels"]
        rows, columns = (labels != IGNORED).nonzero(as_tuple=True)
        losses_N = token_losses(parts.backbone, self.predict(parts, batch)[rows, columns], labels[rows, columns])
        per_example_B = losses_N.new_zeros(len(batch)).index_add(0, rows, losses_N)
        return Loss(losses_N.sum(), len(rows), per_example_B)

    @classmethod
    def takes_drafts(cls) -> bool:
        """Whether decoding may read several tokens of a guess at once; not of one that writes in a way of its own."""
        return all(getattr(cls, name) is getattr(Reasoning, name) for name in ("extend", "step"))

    def thoughts_per_answer(self) -> int:
        """Positions that an answer's thoughts take, beyond prompt and text."""
        return len(self.thoughts(self.final_phase().stage))

    # ------------------------------------------------------------------------------------------ what it will cost
    def passes(self, lengths: TextLengths, phase: Phase, *, frozen_backbone: bool = False) -> Passes:
        """What an example of mean lengths costs in a phase, while training or (reading the text as given) answering.

        Default: one call, or behind a frozen backbone, for which thoughts are learned, one more without a gradient before them.
        """
        thoughts, target = len(self.thoughts(phase.stage)), self.target_length(lengths, phase)
        if frozen_backbone and thoughts:
            return Passes(lengths.prompt, (thoughts + target - 1,), target)
        return Passes(0, (lengths.prompt + thoughts + target - 1,), target)

    def target_length(self, lengths: TextLengths, phase: Phase) -> int:
        """Tokens that are written in a phase, for texts of mean lengths."""
        steps = ("",) * lengths.step_count
        written = len(self.steps_written(Example("", "", "", steps, ""), phase.stage))
        return round(lengths.steps * written / max(1, lengths.step_count)) + lengths.answer

    # ------------------------------------------------------------------------------------------------- helpers
    def marked(self, parts: Parts, batch: Batch, name: str) -> Tensor:
        """Where a special token stands in the prefix, [B, T]: found by its id."""
        return (batch["prefix_BT"] == parts.backbone.special[name]) & batch["prefix_mask_BT"]

    def edited(self, parts: Parts, batch: Batch, thoughts_BKD: Tensor, edit: Edit) -> Tensor:
        """Thoughts after an edit, [N, D]: one for each of the N places that are marked for them, row after row."""
        assert self.thought is not None, "only thoughts are edited"
        counts_B1 = self.marked(parts, batch, self.thought).sum(1, keepdim=True)
        index_BK = torch.arange(thoughts_BKD.shape[1], device=counts_B1.device).expand(len(batch), -1)
        index_BK = index_BK.where(index_BK < counts_B1, -1)
        return edit(thoughts_BKD, Place(batch, index_BK))[index_BK >= 0]

    def one_thought(self, parts: Parts, batch: Batch, inputs_BTD: Tensor, thought_D: Tensor, edit: Edit | None) -> Tensor:
        """The last T columns of the prefix with the same vector at every thought's place, before an edit."""
        assert self.thought is not None, "a thought stands at a token"
        places_BT = self.marked(parts, batch, self.thought)[:, -inputs_BTD.shape[1] :]
        inputs_BTD = torch.where(places_BT[..., None], thought_D.to(inputs_BTD.dtype), inputs_BTD)
        if edit is None:
            return inputs_BTD
        thoughts_BKD = thought_D.expand(len(batch), int(places_BT.sum(1).max()), -1)
        return inputs_BTD.masked_scatter(places_BT[..., None], self.edited(parts, batch, thoughts_BKD, edit).to(inputs_BTD.dtype))

    def empty_state(self, parts: Parts, batch: Batch, room: int | None) -> State:
        """A new state with room for the prefix and what will be written."""
        total = None if room is None else batch["prefix_BT"].shape[1] + room
        return new_state(parts.backbone, len(batch), total)

    def read_frozen(self, parts: Parts, batch: Batch, own_BT: Tensor, room: int | None) -> tuple[State, int]:
        """A new state that has read what a frozen backbone reads before every input of our own, and how many columns that is.

        Nothing there needs a gradient, and it is the same at every step (see ``models.frozen_prefix``). 0 columns where the
        backbone learns itself.

        Args:
            own_BT: the places of the prefix whose inputs are not plain tokens (trained, or edited), or whose hidden states are
                needed. The last column's always is.
        """
        state, first = self.empty_state(parts, batch, room), min(first_column(own_BT), own_BT.shape[1] - 1)
        if first == 0 or not parts.backbone.frozen:
            return state, 0
        ids_BT, mask_BT = batch["prefix_BT"], batch["prefix_mask_BT"]
        if can_keep(parts.backbone):
            # A row's own prefix may go on behind that column, where others have their first thought.
            plain_BT = mask_BT & (own_BT.cumsum(1) == 0)
            rows = zip(ids_BT.tolist(), plain_BT.tolist(), strict=True)
            prefixes = [tuple(i for i, plain in zip(ids, here, strict=True) if plain) for ids, here in rows]
            read_prefixes(parts.backbone, state, prefixes, mask_BT[:, :first].sum(1).tolist(), first)
            return state, first
        if not torch.is_grad_enabled():
            return state, 0
        with torch.no_grad():
            forward(parts.backbone, state, parts.backbone.embed(ids_BT[:, :first]), mask_BT[:, :first])
        return state, first


def first_column(marks_BT: Tensor) -> int:
    """The first column in which any row is marked; the number of columns if none is."""
    marked_T = marks_BT.any(0)
    return int(marked_T.long().argmax()) if bool(marked_T.any()) else marks_BT.shape[1]
