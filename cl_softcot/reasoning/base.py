"""What every way of thinking has in common: text in, a decoding state and a loss out.

A sequence is a prefix (the prompt with its thoughts) and a target (what is written)::

    prefix_BT, left padded            target_BT, right padded
    .  .  question  thoughts  <bot>  | step ; answer A <eos>  .
                             predicts  ^ the first target token
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn

from cl_softcot.models.assistant import AssistantStates
from cl_softcot.models.decoding import State, forward, new_state
from cl_softcot.models.language_model import LanguageModel
from cl_softcot.models.text import TextFormat, Where

if TYPE_CHECKING:
    from cl_softcot.tasks.base import Example

Edit = Callable[[Tensor], Tensor]  # thoughts [B, K, D] -> thoughts [B, K, D]
IGNORED = -100


@dataclass(frozen=True)
class Phase:
    """A stretch of training: Coconut's stage (0 elsewhere) and its number of optimiser steps."""

    stage: int
    steps: int


@dataclass
class Encoded:
    """An example as token ids; the prefix holds the tokens that thoughts stand at."""

    example: Example
    prefix_ids: list[int]
    target_ids: list[int]
    task_id: int = 0


@dataclass
class Parts:
    """Everything that answers together. ``states`` are those of the real assistant, also where a control ignores them."""

    backbone: LanguageModel
    assistant: LanguageModel | None
    reasoning: Reasoning
    states: AssistantStates | None = None

    def __post_init__(self) -> None:
        if self.states is None and self.assistant is not None:
            self.states = AssistantStates(self.assistant)


@dataclass(frozen=True)
class Loss:
    """Summed cross-entropy in nats, the number of tokens in the sum, and the sums per example. Division is the loop's."""

    loss_sum: Tensor
    n_tokens: int
    per_example_B: Tensor


class Batch(dict):
    """Padded tensors of a batch, under names: prefix_BT, prefix_mask_BT, target_BT, labels, task_ids; and the ``encoded``.

    It also answers to Avalanche's (x, y, ..., t): ``batch[0]`` is itself, ``batch[1]`` the labels, ``batch[-1]`` the task ids.
    """

    def __getitem__(self, key: Any) -> Any:
        if key == 0:
            return self
        if key == 1:
            return super().__getitem__("labels")
        return super().__getitem__("task_ids" if key == -1 else key)

    def __len__(self) -> int:
        """B, the number of examples."""
        return len(super().__getitem__("encoded"))

    def to(self, device: Any, non_blocking: bool = False) -> Batch:
        """The batch on a device."""
        moved = {k: v.to(device, non_blocking=non_blocking) if torch.is_tensor(v) else v for k, v in self.items()}
        return Batch(moved)

    def split(self, n: int | None) -> Iterator[Batch]:
        """Micro-batches of at most ``n`` examples, in order; None: the whole batch."""
        for start in range(0, len(self), n or len(self)):
            rows = slice(start, start + (n or len(self)))
            yield Batch({k: v[rows] for k, v in self.items()})


class ReasoningSettings(BaseModel):
    """Settings of a way of thinking; unknown keys are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Reasoning(nn.Module):
    """A way of thinking. It owns its trained parts as parameters, made in ``build``.

    A new one overrides ``thoughts``/``steps_written`` for what stands in the text, and ``embed`` or ``prefix`` for what stands
    in the model's input.
    """

    Settings: ClassVar[type[ReasoningSettings]] = ReasoningSettings
    instruction: ClassVar[str] = "cot"
    where: ClassVar[Where] = "before_turn"
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

    def stage_of(self, phase: Phase, rng: random.Random) -> int:
        """The stage that an example is encoded at."""
        return phase.stage

    def encode(self, text: TextFormat, example: Example, phase: Phase, rng: random.Random) -> Encoded:
        """Token ids of an example in a phase. UserError if it does not fit into the model's context."""
        stage = self.stage_of(phase, rng)
        prefix = text.prompt_ids(example.question, self.instruction, self.thoughts(stage), self.where)
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
            edit: changes the thoughts before the backbone reads them, for interventions.
            room: columns to set aside for what will be written, when decoding without gradients.
        """
        state, piece_BTD, mask_BT = self.prefix(parts, batch, edit, room)
        hidden_BTD = forward(parts.backbone, state, piece_BTD, mask_BT)
        state.logits_BV = parts.backbone.logits(hidden_BTD[:, -1])
        return state

    def extend(self, parts: Parts, state: State, ids_BT: Tensor) -> Tensor:
        """Append given tokens; the logits after each of them, [B, T, V]."""
        return parts.backbone.logits(forward(parts.backbone, state, parts.backbone.embed(ids_BT)))

    def step(self, parts: Parts, state: State, ids_B: Tensor) -> Tensor:
        """Append one token a row; the logits of the next, [B, V]."""
        return self.extend(parts, state, ids_B[:, None])[:, -1]

    def predict(self, parts: Parts, batch: Batch, edit: Edit | None = None) -> Tensor:
        """The hidden state, after the final norm, that predicts each target token, [B, T, D].

        The same as ``begin`` and ``extend`` with the target, in one call of the backbone less.
        """
        state, piece_BTD, mask_BT = self.prefix(parts, batch, edit, None)
        given_BT = batch["target_BT"][:, :-1]  # the last target token predicts nothing
        inputs_BTD = torch.cat([piece_BTD, parts.backbone.embed(given_BT).to(piece_BTD.dtype)], 1)
        mask_BT = torch.cat([mask_BT, batch["labels"][:, :-1] != IGNORED], 1)
        hidden_BTD = forward(parts.backbone, state, inputs_BTD, mask_BT)
        return hidden_BTD[:, piece_BTD.shape[1] - 1 :]

    def loss(self, parts: Parts, batch: Batch) -> Loss:
        """Cross-entropy of the target tokens; logits are made only where there is a label."""
        labels = batch["labels"]
        rows, columns = (labels != IGNORED).nonzero(as_tuple=True)
        logits_NV = parts.backbone.logits(self.predict(parts, batch)[rows, columns]).float()
        losses_N = nn.functional.cross_entropy(logits_NV, labels[rows, columns], reduction="none")
        per_example_B = losses_N.new_zeros(len(batch)).index_add(0, rows, losses_N)
        return Loss(losses_N.sum(), len(rows), per_example_B)

    def thoughts_per_answer(self) -> int:
        """Positions that an answer's thoughts take, beyond prompt and text."""
        return len(self.thoughts(self.final_phase().stage))

    # ------------------------------------------------------------------------------------------------- helpers
    def marked(self, parts: Parts, batch: Batch, name: str) -> Tensor:
        """Where a special token stands in the prefix, [B, T]: found by its id."""
        return (batch["prefix_BT"] == parts.backbone.special[name]) & batch["prefix_mask_BT"]

    def empty_state(self, parts: Parts, batch: Batch, room: int | None) -> State:
        """A new state with room for the prefix and what will be written."""
        total = None if room is None else batch["prefix_BT"].shape[1] + room
        return new_state(parts.backbone, len(batch), total)

    def skip_gradients(
        self, parts: Parts, state: State, inputs_BTD: Tensor, mask_BT: Tensor, first: int
    ) -> tuple[State, Tensor, Tensor]:
        """In a frozen backbone nothing before column ``first``, the first trained input, needs a gradient."""
        if first == 0 or not torch.is_grad_enabled() or not parts.backbone.frozen:
            return state, inputs_BTD, mask_BT
        with torch.no_grad():
            forward(parts.backbone, state, inputs_BTD[:, :first], mask_BT[:, :first])
        return state, inputs_BTD[:, first:], mask_BT[:, first:]


def first_column(marks_BT: Tensor) -> int:
    """The first column in which any row is marked; the number of columns if none is."""
    marked_T = marks_BT.any(0)
    return int(marked_T.long().argmax()) if bool(marked_T.any()) else marks_BT.shape[1]
