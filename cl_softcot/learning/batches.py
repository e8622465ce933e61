"""Batches: which examples make up a step follows from (seed, turn, step) alone."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any

from cl_softcot.errors import UserError
from cl_softcot.learning.stream import Turn

# Avalanche comes after stream.py, which prepares its import.
# isort: split
from avalanche.benchmarks.utils.data_loader import MultiDatasetDataLoader


class Collate:
    """Rows of the stream -> batch, encoded for the stage that the turn has reached, replayed rows too."""

    def __init__(self, parts: Any, seed: int):
        self.parts = parts
        self.seed = seed
        self.phase: Any = None
        self._moment = (0, 0)

    def set_moment(self, turn: int, step: int, phase: Any) -> None:
        """Says for which step the next batch is."""
        self._moment, self.phase = (turn, step), phase

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> Any:
        reasoning, text = self.parts.reasoning, self.parts.backbone.text
        encoded = []
        for position, row in enumerate(rows):
            rng = random.Random("/".join(map(str, (self.seed, *self._moment, position))))
            one = reasoning.encode(text, row["example"], self.phase, rng)
            encoded.append(dataclasses.replace(one, task_id=int(row["targets_task_labels"])))
        return reasoning.collate(encoded)


class ExactSteps:
    """(step, phase, batch) for every step of a turn, each a pure function of seed, turn and step.

    A step takes ``batch_sizes[i]`` rows from ``datasets[i]``, which is gone through in a new order each time
    it is used up, so that no batch is ever short.
    """

    def __init__(
        self,
        datasets: Sequence[Any],
        batch_sizes: Sequence[int],
        phases: Sequence[Any],
        collate: Collate,
        seed: int,
        turn: Turn,
    ):
        self.datasets, self.batch_sizes = list(datasets), list(batch_sizes)
        self.phase_of_step = [phase for phase in phases for _ in range(phase.steps)]
        self.collate, self.seed, self.turn = collate, seed, turn
        self.start = 0

    @property
    def steps(self) -> int:
        return len(self.phase_of_step)

    def __len__(self) -> int:
        return self.steps - self.start

    def __iter__(self) -> Iterator[tuple[int, Any, Any]]:
        for step in range(self.start, self.steps):
            phase = self.phase_of_step[step]
            self.collate.set_moment(self.turn.index, step, phase)
            yield step, phase, self.collate(self.rows(step))

    def begins(self, step: int, what: str) -> bool:
        """Whether a ``stage`` of the curriculum, or an ``epoch`` of the turn's own data, begins with this step."""
        if what == "stage":
            return self.phase_of_step[step] is not self.phase_of_step[step - 1]
        if what == "epoch":
            size, n = self.batch_sizes[0], len(self.datasets[0])
            return step * size // n > (step - 1) * size // n
        return step == 0

    def rows(self, step: int) -> list[dict]:
        """The rows of a step."""
        rows = []
        for source, (dataset, size) in enumerate(zip(self.datasets, self.batch_sizes, strict=True)):
            for position in range(step * size, (step + 1) * size):
                epoch, offset = divmod(position, len(dataset))
                order = _order(len(dataset), f"{self.seed}/{self.turn.index}/{source}/{epoch}")
                rows.append(dataset[order[offset]])
        return rows


@lru_cache(maxsize=16)
def _order(n: int, key: str) -> tuple[int, ...]:
    order = list(range(n))
    random.Random(key).shuffle(order)
    return tuple(order)


def taken_from(loader: Any, global_batch_size: int) -> tuple[list[Any], list[int]]:
    """Datasets and batch sizes of a loader that a plugin put in place of ours."""
    if not isinstance(loader, MultiDatasetDataLoader):
        raise UserError(
            f"a plugin replaced the data loader by {type(loader).__name__}, which does not say what a step is made of",
            fix="Use a plugin whose loader is one of Avalanche's, or none.",
        )
    if sum(loader.batch_sizes) != global_batch_size:
        raise UserError(
            f"a plugin makes batches of {' + '.join(map(str, loader.batch_sizes))} examples where "
            f"train.global_batch_size is {global_batch_size}: budgets would no longer be equal",
            fix="Set its batch_size and batch_size_mem so that they add up to the global batch size.",
        )
    return loader.datasets, loader.batch_sizes
