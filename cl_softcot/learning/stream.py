"""Tasks become a stream of Avalanche experiences, one turn each.

Of this room, the only one that imports avalanche, every file that needs it imports this one first: what the import of avalanche
needs is here.
"""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from cl_softcot.errors import UserError
from cl_softcot.machine.torchvision import ensure_torchvision

ensure_torchvision()  # avalanche imports torchvision
with warnings.catch_warnings():
    # Avalanche's GEM asks for a solver at import. Nothing here uses one; every other warning is let through.
    warnings.filterwarnings("ignore", message="no QP solver found", category=UserWarning)
    from avalanche.benchmarks import CLScenario, benchmark_from_datasets, with_task_labels
    from avalanche.benchmarks.utils import AvalancheDataset, ConstantSequence
    from avalanche.benchmarks.utils.data_attribute import TaskLabels
    from avalanche.benchmarks.utils.utils import TaskSet

if TYPE_CHECKING:
    from cl_softcot.tasks.base import Example


@dataclass(frozen=True)
class Turn:
    """One task's turn in the stream.

    Attributes:
        index: position in the stream, from 0.
        name: the task's label.
        examples: what the task offers for training.
        experience: the Avalanche experience over the same examples.
    """

    index: int
    name: str
    examples: tuple[Example, ...] = field(repr=False)
    experience: Any = field(repr=False, compare=False)


class Stream(Sequence):
    """The ordered turns; ``benchmark`` is Avalanche's view of the same (``benchmark.train_stream``)."""

    def __init__(self, turns: Sequence[Turn], benchmark: CLScenario):
        self.turns = tuple(turns)
        self.benchmark = benchmark

    @property
    def train_stream(self) -> Any:
        return self.benchmark.train_stream

    def __len__(self) -> int:
        return len(self.turns)

    def __getitem__(self, index):
        return self.turns[index]

    def __iter__(self) -> Iterator[Turn]:
        return iter(self.turns)


class ReasoningDataset(AvalancheDataset):
    """Rows ``{"turn", "index", "example", "targets_task_labels"}``, in Avalanche's keeping.

    Slice it with ``.subset(indices)``: ``dataset[2:5]`` is not a dataset. The two properties are what
    task-balanced replay asks for.
    """

    @property
    def task_pattern_indices(self) -> dict[int, Sequence[int]]:
        return self.targets_task_labels.val_to_idx

    @property
    def task_set(self) -> TaskSet:
        return TaskSet(self)


class _Rows(Sequence[dict[str, Any]]):
    def __init__(self, turn: int, examples: Sequence[Example]):
        self.turn = turn
        self.examples = examples

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, index: Any) -> Any:  # a whole number: nobody slices it
        # A new dict each time: Avalanche writes the task label into what it gets.
        return {"turn": self.turn, "index": index, "example": self.examples[index]}


def make_stream(tasks: Sequence[tuple[str, Sequence[Example]]], collate: Callable[[list[dict]], Any]) -> Stream:
    """A stream of one turn per task, in the given order. A task may come back in a later turn.

    Args:
        tasks: (label, training examples) of each turn.
        collate: rows -> batch; plugins that make their own loaders use it. ``Learner.collate`` is the one to
            give.

    Raises:
        UserError: if there is no task, or one without examples.
    """
    if not tasks:
        raise UserError("the stream has no tasks", fix="List at least one task under `tasks:`.")
    datasets = []
    for index, (name, examples) in enumerate(tasks):
        if not examples:
            raise UserError(f"task '{name}' has no training examples", fix="Check its settings, or leave it out.")
        labels = TaskLabels(ConstantSequence(index, len(examples)))
        rows = _Rows(index, tuple(examples))
        datasets.append(ReasoningDataset([rows], data_attributes=[labels], collate_fn=collate))
    benchmark = with_task_labels(benchmark_from_datasets(train=datasets))  # last: it copies the experiences
    turns = []
    for index, ((name, examples), experience) in enumerate(zip(tasks, benchmark.train_stream, strict=True)):
        experience.examples = tuple(examples)
        experience.fingerprint = data_fingerprint(name, examples)
        turns.append(Turn(index, name, tuple(examples), experience))
    return Stream(turns, benchmark)


def data_fingerprint(name: str, examples: Sequence[Example]) -> str:
    """SHA-256 of what a turn trains on; a checkpoint is refused when it has changed."""
    content = [name, [[e.id, e.question, list(e.steps), e.answer] for e in examples]]
    return hashlib.sha256(json.dumps(content, ensure_ascii=False).encode()).hexdigest()


def experiences_of(source: Stream | Turn) -> list[Any]:
    """All experiences of a stream, or of the stream that a turn belongs to."""
    return list(source.train_stream if isinstance(source, Stream) else source.experience.origin_stream)


def rows_to_indices(dataset: AvalancheDataset) -> list[list[int]]:
    """[turn, index in its examples] of every row, so that a replay buffer can be written as numbers."""
    rows = (dataset[i] for i in range(len(dataset)))
    return [[int(row["turn"]), int(row["index"])] for row in rows]


def indices_to_rows(experiences: Sequence[Any], indices: Sequence[Sequence[int]]) -> AvalancheDataset:
    """The inverse of ``rows_to_indices``: a dataset with these rows, in this order."""
    offsets, total = [], 0
    for experience in experiences:
        offsets.append(total)
        total += len(experience.dataset)
    everything = experiences[0].dataset
    for experience in experiences[1:]:
        everything = everything.concat(experience.dataset)
    return everything.subset([offsets[turn] + index for turn, index in indices])
