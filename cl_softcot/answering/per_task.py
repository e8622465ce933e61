"""One copy of the trained parts a task, and the routers that choose the copy for a question.

Isolation never forgets by construction; what it costs is the routing. Questions that no route claims are answered as the base
would.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

from cl_softcot.answering.policy import MethodPolicy, Policy, policy_fingerprint
from cl_softcot.errors import UserError
from cl_softcot.machine import processes
from cl_softcot.models.assistant import AssistantStates
from cl_softcot.models.writing import Generation
from cl_softcot.reasoning.base import Parts

if TYPE_CHECKING:
    from cl_softcot.tasks.base import Example
    from strategies.base import Strategy


class TaskBank:
    """The copies. The tensors of ``strategy.tensors(parts)`` hold the active one; call after ``strategy.prepare``."""

    def __init__(self, strategy: Strategy, parts: Parts):
        self.strategy = strategy
        self.parts = parts
        self.initial = _clones(strategy.tensors(parts))
        self.copies: dict[str, dict[str, Tensor]] = {}

    @property
    def tasks(self) -> list[str]:
        """Tasks that have a copy, in the order in which they were kept."""
        return list(self.copies)

    def fresh(self) -> None:
        """Begin a new copy: the trained tensors get their initial values."""
        self.activate(None)

    def keep(self, task: str) -> None:
        """Keep the tensors as they are now as the copy of ``task``."""
        self.copies[task] = _clones(self.strategy.tensors(self.parts))

    @torch.no_grad()
    def activate(self, task: str | None) -> None:
        """Put the copy of a task in place, to the bit; None: the initial values."""
        values = self.initial if task is None else self.copies[task]
        for name, tensor in self.strategy.tensors(self.parts).items():
            tensor.copy_(values[name])

    @contextlib.contextmanager
    def active(self, task: str | None) -> Iterator[None]:
        """The copy of a task for a while; afterwards the tensors are as they were before."""
        before = _clones(self.strategy.tensors(self.parts))
        self.activate(task)
        try:
            yield
        finally:
            with torch.no_grad():
                for name, tensor in self.strategy.tensors(self.parts).items():
                    tensor.copy_(before[name])

    def tensors(self) -> dict[str, Tensor]:
        """All copies as one flat dict ``task/name``, for a checkpoint."""
        return {f"{task}/{name}": t for task, copy in self.copies.items() for name, t in copy.items()}

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """The copies from such a dict, in its order of tasks."""
        self.copies = {}
        for key, tensor in tensors.items():
            task, name = key.split("/", 1)
            self.copies.setdefault(task, {})[name] = tensor.clone()
        for task, copy in self.copies.items():
            if copy.keys() != self.initial.keys():
                raise UserError(f"the kept copy of task {task!r} does not fit this method", fix="start over with --restart")


def _clones(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in tensors.items()}


# ------------------------------------------------------------------------------------------------------- routers


class Router(Protocol):
    """Chooses the copy that answers a question."""

    def fit(self, task: str, examples: Sequence[Example]) -> None:
        """Learn to know a task from its training examples."""

    def routes(self, examples: Sequence[Example]) -> list[str | None]:
        """For each example a task that was fitted, or None: no route claims it."""


class OracleRouter:
    """Is told which task a question comes from."""

    def __init__(self) -> None:
        self.tasks: set[str] = set()

    def fit(self, task: str, examples: Sequence[Example]) -> None:
        self.tasks.add(task)

    def routes(self, examples: Sequence[Example]) -> list[str | None]:
        return [e.task if e.task in self.tasks else None for e in examples]


class NearestRouter:
    """Finds the task from the assistant's states, without being told.

    A prompt is its mean assistant state, scaled to length 1; a task is the mean of its training prompts, scaled likewise. The
    nearest task claims a prompt if the prompt is no farther than 99 % of the task's own training prompts.
    """

    QUANTILE = 0.99

    def __init__(self, states: AssistantStates | None):
        if states is None:
            raise UserError(
                "routing: nearest needs an assistant, whose states it compares",
                fix="give 'assistant: builtin:tiny-assistant' in the experiment, or use routing: oracle",
            )
        self.states = states
        self.centroids: dict[str, Tensor] = {}
        self.radii: dict[str, float] = {}

    def fit(self, task: str, examples: Sequence[Example]) -> None:
        if not examples:
            raise ValueError(f"no training examples of task {task!r}")
        points_NA = self._points(examples)
        centroid_A = torch.nn.functional.normalize(points_NA.mean(0), dim=0)
        distances_N = (points_NA - centroid_A).norm(dim=1)
        self.centroids[task] = centroid_A
        self.radii[task] = float(distances_N.quantile(self.QUANTILE))

    def routes(self, examples: Sequence[Example]) -> list[str | None]:
        if not self.centroids or not examples:
            return [None] * len(examples)
        tasks = list(self.centroids)
        distances_NT = torch.cdist(self._points(examples), torch.stack([self.centroids[t] for t in tasks]))
        nearest = distances_NT.min(1)
        found = zip(nearest.values.tolist(), nearest.indices.tolist(), strict=True)
        return [tasks[i] if distance <= self.radii[tasks[i]] else None for distance, i in found]

    def _points(self, examples: Sequence[Example]) -> Tensor:
        prompts = [self.states.prompt_ids(e.question) for e in examples]
        self.states.register(prompts)
        return torch.nn.functional.normalize(self.states.means(prompts).double(), dim=1)

    def tensors(self) -> dict[str, Tensor]:
        """``task/centroid`` and ``task/radius``, for a checkpoint."""
        radii = {f"{task}/radius": torch.tensor(radius, dtype=torch.float64) for task, radius in self.radii.items()}
        return {f"{task}/centroid": c for task, c in self.centroids.items()} | radii

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """What ``tensors`` gave."""
        self.centroids = {k.removesuffix("/centroid"): t for k, t in tensors.items() if k.endswith("/centroid")}
        self.radii = {task: float(tensors[f"{task}/radius"]) for task in self.centroids}


def make_router(routing: str, parts: Parts) -> OracleRouter | NearestRouter:
    """'oracle' or 'nearest'."""
    if routing not in ("oracle", "nearest"):
        raise UserError(f"unknown routing {routing!r}", fix="known: oracle, nearest")
    return OracleRouter() if routing == "oracle" else NearestRouter(parts.states)


# -------------------------------------------------------------------------------------------------------- policy


class PerTaskPolicy(Policy):
    """Every question goes to the copy that its route names, or to the base.

    Where the copies have heads of their own (all weights fine-tuned) ``hidden_states`` gives logits, and ``head`` is
    the identity.
    """

    keeps_states = True
    routed = True

    def __init__(self, bank: TaskBank, router: Router, base: MethodPolicy | None = None, *, batch_size: int = 256):
        self.bank = bank
        self.router = router
        self.method = MethodPolicy(bank.parts, bank.strategy, batch_size=batch_size)
        self.base = base or MethodPolicy(bank.parts, bank.strategy, batch_size=batch_size, weights_alone=True)
        self._fingerprints: dict[str | None, str] = {}
        self._routes: dict[tuple[str, str], str | None] = {}
        head = {id(p) for p in bank.parts.backbone.model.get_output_embeddings().parameters()}
        self._own_heads = any(id(t) in head for t in bank.strategy.tensors(bank.parts).values())

    @property
    def eos_id(self) -> int:
        """The end-of-text token."""
        return self.method.eos_id

    def routes(self, examples: Sequence[Example]) -> list[str | None]:
        """The copy that answers each example; None: the base."""
        keys = [(e.task, e.question) for e in examples]
        new = [e for key, e in zip(keys, examples, strict=True) if key not in self._routes]
        if new:  # one process decides: a tie that rounds differently in another must not part them
            routes = processes.from_main(lambda: self.router.routes(new))
            self._routes.update(((e.task, e.question), r) for e, r in zip(new, routes, strict=True))
        return [self._routes[key] for key in keys]

    def generate(
        self,
        examples: Sequence[Example],
        max_new_tokens: int,
        sample_seed: int | None = None,
        *,
        read: Sequence[Sequence[int]] | None = None,
    ) -> list[Generation]:
        """Answers in the order of the examples; ``read`` as in ``MethodPolicy``, but for copies with heads of their own: both
        sides' logits would take too much memory at once."""

        def answer(policy: MethodPolicy, rows: list[int]) -> list[Generation]:
            texts = None if read is None or self._own_heads else [read[i] for i in rows]
            return policy.generate([examples[i] for i in rows], max_new_tokens, sample_seed, read=texts)

        return self._by_route(examples, answer)

    def hidden_states(self, examples: Sequence[Example], continuations: Sequence[Sequence[int]]) -> list[Tensor]:
        """States, or logits, that predict each token of the continuations."""

        def states(policy: MethodPolicy, rows: list[int]) -> list[Tensor]:
            found = policy.hidden_states([examples[i] for i in rows], [continuations[i] for i in rows])
            return [policy.head(h) for h in found] if self._own_heads else found

        return self._by_route(examples, states)

    def head(self, hidden_ND: Tensor) -> Tensor:
        """Logits [N, V]."""
        return hidden_ND if self._own_heads else self.method.head(hidden_ND)

    def fingerprint_for(self, example: Example) -> str:
        """That of the copy that answers, or of the base."""
        route = self.routes([example])[0]
        if route not in self._fingerprints:
            self._fingerprints[route] = self._fingerprint_of(route)
        return self._fingerprints[route]

    def _fingerprint_of(self, route: str | None) -> str:
        bank = self.bank
        with bank.active(route):
            if route is None:
                return self.base.fingerprint
            return policy_fingerprint(bank.parts, bank.strategy)

    def _by_route(self, examples: Sequence[Example], work: Callable[[MethodPolicy, list[int]], list]) -> list:
        rows_of: dict[str | None, list[int]] = {}
        for i, route in enumerate(self.routes(examples)):
            rows_of.setdefault(route, []).append(i)
        results: dict[int, Any] = {}
        for route, rows in rows_of.items():
            with self.bank.active(route):
                results.update(zip(rows, work(self.base if route is None else self.method, rows), strict=True))
        return [results[i] for i in range(len(examples))]
