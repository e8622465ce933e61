"""All that evaluation and metrics see of a method: it answers questions, and tells how it would continue given text."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import random
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from itertools import chain
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from cl_softcot.additions import unset_additions
from cl_softcot.machine import processes
from cl_softcot.machine.lanes import hand_on, undivided
from cl_softcot.models.batch import Encoded
from cl_softcot.models.frozen_states import GreedyTexts, ReferenceStates
from cl_softcot.models.language_model import LanguageModel
from cl_softcot.models.own_weights import kept_tensors
from cl_softcot.models.writing import Generation, alike, generate, random_numbers
from cl_softcot.reasoning.base import Parts, Reasoning
from cl_softcot.reasoning.cot import Cot

if TYPE_CHECKING:
    from cl_softcot.tasks.base import Example
    from strategies.base import Strategy


class Policy(ABC):
    """What answers: complete, so that whoever measures it asks for nothing else and never looks what is there.

    Attributes:
        keeps_states: ``generate`` takes ``read``, a text for each example, and may put into its answers ``states_TD`` and
            ``draft_states_TD``: what ``hidden_states`` would give for the answer and for that text, had in the same pass.
        routed: questions go to different copies, as ``routes`` says.
    """

    keeps_states: ClassVar[bool] = False
    routed: ClassVar[bool] = False

    @abstractmethod
    def generate(
        self,
        examples: Sequence[Example],
        max_new_tokens: int,
        sample_seed: int | None = None,
        *,
        read: Sequence[Sequence[int]] | None = None,
    ) -> list[Generation]:
        """Answers in the order of the examples; greedy, or sampled at temperature 1 from the given seed."""

    @abstractmethod
    def hidden_states(self, examples: Sequence[Example], continuations: Sequence[Sequence[int]]) -> list[Tensor]:
        """For each example the states [T_i, D] that predict each of the T_i tokens of its continuation; the first one sits at
        the end of the prompt. A policy that composes logits gives those, with the identity as its head."""

    @abstractmethod
    def head(self, hidden_ND: Tensor) -> Tensor:
        """The logits [N, V] of states that ``hidden_states`` returned."""

    def reference_states(self, examples: Sequence[Example], continuations: Sequence[Sequence[int]]) -> list[Tensor]:
        """``hidden_states`` at continuations that are the same for many policies: a base may keep them."""
        return self.hidden_states(examples, continuations)

    @property
    def eos_id(self) -> int | None:
        """The token that ended an answer of which its ``end_id`` does not say it."""
        return None

    @property
    def fingerprint(self) -> str | None:
        """Equal for equal weights and an equal way of answering; None: not known, so nothing is taken on trust."""
        return None

    def fingerprint_for(self, example: Example) -> str | None:
        """That of what answers an example; where all are answered alike ``fingerprint``."""
        return self.fingerprint

    def routes(self, examples: Sequence[Example]) -> list[str | None]:
        """The copy that answers each example; None: the base, or the only one that there is."""
        return [None] * len(examples)


class MethodPolicy(Policy):
    """A method as it is now. Make a new one after every turn: fingerprints are taken once.

    Args:
        strategy: whose adapters count; None: the backbone's weights as they are.
        weights_alone: the bare weights in plain chain of thought, without anything that the method brings.
    """

    keeps_states = True

    def __init__(self, parts: Parts, strategy: Strategy | None, *, batch_size: int = 256, weights_alone: bool = False):
        self.parts = dataclasses.replace(parts, reasoning=Cot()) if weights_alone else parts
        self.strategy = strategy
        self.batch_size = batch_size
        self.weights_alone = weights_alone
        self._fingerprint: str | None = None

    @torch.no_grad()
    def generate(
        self,
        examples: Sequence[Example],
        max_new_tokens: int,
        sample_seed: int | None = None,
        *,
        read: Sequence[Sequence[int]] | None = None,
    ) -> list[Generation]:
        """Answers in the order of the examples; greedy, or sampled at temperature 1 from the given seed.

        Several processes deal out the batches.

        Args:
            read: a text for each example, read beside: what ``hidden_states`` gives for it, and for the answer, is kept, where
                that can be had in the same pass.
        """
        encoded = self._encode(examples) if read is None else self._with_targets(examples, read)
        numbers_NT = None if sample_seed is None else random_numbers(len(encoded), max_new_tokens, sample_seed)

        def write(rows: Sequence[int]) -> list[Generation]:
            chosen, sample = [encoded[i] for i in rows], None if numbers_NT is None else numbers_NT[list(rows)]
            size, states = self.batch_size, read is not None and processes.size() == 1
            return generate(
                self.parts.reasoning, self.parts, chosen, max_new_tokens, sample=sample, batch_size=size, states=states
            )

        with self._answering():
            if processes.size() == 1:
                return write(range(len(encoded)))
            batches = alike([(len(e.prefix_ids),) for e in encoded], self.batch_size)
            shares = [list(chain(*batches[i :: processes.size()])) for i in range(processes.size())]
            written = [w for share in processes.dealt(shares, write) for w in share]
        found = dict(zip(chain(*shares), written, strict=True))
        return [found[i] for i in range(len(encoded))]

    @torch.no_grad()
    def hidden_states(self, examples: Sequence[Example], continuations: Sequence[Sequence[int]]) -> list[Tensor]:
        """For each example the states [T_i, D] that predict each of the T_i tokens of its continuation."""
        backbone, reasoning = self.parts.backbone, self.parts.reasoning
        encoded = self._with_targets(examples, continuations)
        batches = alike([(len(e.prefix_ids), len(e.target_ids)) for e in encoded], self.batch_size)

        def predict(rows: Sequence[int]) -> list[Tensor]:
            batch = reasoning.collate([encoded[i] for i in rows]).to(backbone.device)
            hidden_BTD = reasoning.predict(self.parts, batch)
            states = [h_TD[: len(continuations[i])].clone() for i, h_TD in zip(rows, hidden_BTD, strict=True)]
            hand_on()
            return states if processes.size() == 1 else [h_TD.cpu() for h_TD in states]

        with self._answering():
            states = [h_TD for batch in processes.dealt(batches, predict) for h_TD in batch]
        found = dict(zip(chain(*batches), states, strict=True))
        return [found[i].to(backbone.device) for i in range(len(encoded))]

    @torch.no_grad()
    def head(self, hidden_ND: Tensor) -> Tensor:
        """Logits [N, V]."""
        return self.parts.backbone.logits(hidden_ND.to(self.parts.backbone.device))

    @property
    def eos_id(self) -> int:
        """The end-of-text token: to stop is a choice too, and drift measures it."""
        return self.parts.backbone.eos_id

    @property
    def fingerprint(self) -> str:
        """Equal for equal weights and an equal way of answering."""
        if self._fingerprint is None:
            brought = {} if self.strategy is None or self.weights_alone else brought_along(self.parts, self.strategy)
            self._fingerprint = answering_fingerprint(_hash_of_own(self.parts, self.strategy), self.parts.reasoning, brought)
        return self._fingerprint

    def _encode(self, examples: Sequence[Example]) -> list[Encoded]:
        reasoning, text = self.parts.reasoning, self.parts.backbone.text
        reasoning.register(self.parts, examples)
        # Any draw among stages belongs to training: the stage that is evaluated is fixed.
        phase, rng = dataclasses.replace(reasoning.final_phase(), answering=True), random.Random(0)
        encoded = [reasoning.encode(text, example, phase, rng) for example in examples]
        return encoded

    def _with_targets(self, examples: Sequence[Example], texts: Sequence[Sequence[int]]) -> list[Encoded]:
        """The examples' prompts in front of other texts; of an empty one there is only the end of text."""
        backbone = self.parts.backbone
        encoded = [
            dataclasses.replace(e, target_ids=list(map(int, text)) or [backbone.eos_id])
            for e, text in zip(self._encode(examples), texts, strict=True)
        ]
        for e in encoded:
            backbone.text.check_fits(e.example.id, len(e.prefix_ids), len(e.target_ids))
        return encoded

    @contextlib.contextmanager
    def _answering(self) -> Iterator[None]:
        self.parts.backbone.model.eval()
        self.parts.reasoning.eval()
        context: contextlib.AbstractContextManager[Any] = contextlib.nullcontext()
        if self.strategy is not None:
            switch = self.strategy.weights_alone if self.weights_alone else self.strategy.as_used
            context = switch(self.parts)
        with processes.gathered(self.parts.backbone.model), context:
            yield


class BasePolicy(MethodPolicy):
    """Plain zero-shot chain of thought of a model as it is.

    Args:
        cached: greedy answers and ``reference_states`` are kept on disk, for all experiments with this base and these questions.
    """

    def __init__(
        self, backbone: LanguageModel, *, batch_size: int = 256, reasoning: Reasoning | None = None, cached: bool = False
    ):
        super().__init__(Parts(backbone, None, reasoning or Cot()), None, batch_size=batch_size)
        self.cached = cached

    def generate(
        self,
        examples: Sequence[Example],
        max_new_tokens: int,
        sample_seed: int | None = None,
        *,
        read: Sequence[Sequence[int]] | None = None,
    ) -> list[Generation]:
        """As ``MethodPolicy`` does; greedy answers from the cache where they are in it."""
        if not self.cached or sample_seed is not None or read is not None or not examples:
            return super().generate(examples, max_new_tokens, sample_seed, read=read)
        prompts = [e.prefix_ids for e in self._encode(examples)]
        kept = GreedyTexts(self.parts.backbone, self.fingerprint, prompts, max_new_tokens, self.batch_size)
        # One process looks, so that all compute or none does.
        found = processes.from_main(kept.read)
        if found is None:
            with undivided():
                found = super().generate(examples, max_new_tokens)
            processes.from_main(lambda: kept.write(found))
        return found

    def reference_states(self, examples: Sequence[Example], continuations: Sequence[Sequence[int]]) -> list[Tensor]:
        """``hidden_states`` at continuations that are the same for many policies; from the cache where they are in it."""
        if not self.cached:
            return self.hidden_states(examples, continuations)
        prompts = [e.prefix_ids for e in self._encode(examples)]
        kept = ReferenceStates(self.parts.backbone, self.fingerprint, prompts, continuations, self.batch_size)
        found = processes.from_main(kept.read)
        if found is None:
            with undivided():
                found = self.hidden_states(examples, continuations)
            processes.from_main(lambda: kept.write(found))
        return [h_TD.to(self.parts.backbone.device) for h_TD in found]


def _hash_of_own(parts: Parts, strategy: Strategy | None) -> str:
    """Hash of the backbone's own weights as they are. Those that a strategy promises to leave alone are hashed once: a large
    frozen backbone again and again would take minutes."""
    backbone = parts.backbone
    untouched = strategy is not None and not strategy.writes_weights and not strategy.trained_own(parts)
    return backbone.fingerprint if untouched else backbone.weights_sha256()


def brought_along(parts: Parts, strategy: Strategy) -> dict[str, Tensor]:
    """Everything that answers besides the backbone's own weights, trained or not: what was put into the backbone, what the
    reasoning owns, and what the strategy trains elsewhere."""
    own = {id(tensor) for tensor in parts.backbone.own_weights().values()}
    found = {f"backbone.{name}": tensor for name, tensor in parts.backbone.brought().items()}
    found |= {f"reasoning.{name}": tensor for name, tensor in kept_tensors(parts.reasoning).items()}
    return found | {name: tensor for name, tensor in strategy.tensors(parts).items() if id(tensor) not in own}


def policy_fingerprint(parts: Parts, strategy: Strategy) -> str:
    """That of a method as used, as its tensors are now."""
    return answering_fingerprint(_hash_of_own(parts, strategy), parts.reasoning, brought_along(parts, strategy))


def answering_fingerprint(weights_sha256: str, reasoning: Reasoning, brought: dict[str, Tensor]) -> str:
    """Hash of weights, way of thinking and everything that is brought along."""
    settings = reasoning.settings
    settings = settings.model_dump_json(exclude=unset_additions(settings)) if hasattr(settings, "model_dump_json") else "{}"
    digest = hashlib.sha256(f"{weights_sha256}|{type(reasoning).__name__}|{settings}".encode())
    digest.update(tensors_sha256(brought).encode())
    return digest.hexdigest()


def tensors_sha256(tensors: dict[str, Tensor]) -> str:
    """Hash of named tensors; the order of names does not count."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = processes.whole(tensors[name].detach()).contiguous().cpu()
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(tensor.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
