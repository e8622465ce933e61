"""What the law is about, as tidy points: how far a model had moved from its base, and what it had forgotten by then."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

from cl_softcot.results.reading import load_results
from cl_softcot.results.record import VIEWS, RunRecord

INPUTS = ("new_task", "general")
OUTCOMES = ("base_abilities", "earlier_tasks")


@dataclass(frozen=True)
class Point:
    """One checkpoint of one run, seen in one way.

    Attributes:
        run: what was trained as one; its checkpoints are not independent of each other.
        method, family: a row of the tables, and the kind of method that it belongs to.
        experience, task: which turn, from 1, and what was learned in it.
        checkpoint: where on the run's way, rising: optimiser steps, or the row of R.
        view: ``as_used`` or ``weights_alone``: both sides of the law are measured in this view.
        inputs: what the divergence was measured on: the ``new_task``, or ``general`` text.
        outcome: what was forgotten: ``base_abilities`` (the base's mean accuracy on them minus today's), or ``earlier_tasks``
            (mean over the tasks before this one of R[j,j] - R[i,j]).
        forward_kl, reverse_kl: KL(base‖model) and KL(model‖base), nats per token; None: not measured.
        forgetting: a difference of accuracies, above 0 is a loss.
        accuracy: on the new task at this checkpoint; start_accuracy: before any training.
    """

    run: str
    method: str
    family: str
    experience: int
    task: str
    checkpoint: int
    view: str
    inputs: str
    outcome: str
    forward_kl: float | None
    reverse_kl: float | None
    forgetting: float
    accuracy: float | None
    start_accuracy: float | None = None


def points_from(folder: str | Path) -> list[Point]:
    """Points of all finished runs of an experiment's folder (or one run's).

    A run gives one point for each experience, view, prompt set and outcome that was measured. Methods that train nothing give
    none: what they lose they lose by their way of answering, and not by learning.

    Raises:
        UserError: if there is no such folder, or a result cannot be read.
    """
    return [point for result in load_results(folder) for point in points_of(result)]


def points_of(result: RunRecord) -> list[Point]:
    """The points of one run; see ``points_from``."""
    return list(_points(result)) if result.trained else []


def moved(points: Sequence[Point]) -> tuple[list[Point], list[str]]:
    """The points that are fitted, and the runs that did not move at all: no drift and no forgetting, exactly, anywhere."""
    still = {p.run for p in points} - {p.run for p in points if p.forgetting or p.forward_kl or p.reverse_kl}
    return [p for p in points if p.run not in still], sorted(still)


def family_of(result: RunRecord) -> str:
    """The kind of method: what learns, and whether each task has its own copy (``lora``, ``frozen_backbone per task``)."""
    return f"{result.strategy_name} per task" if result.per_task else result.strategy_name


def _points(result: RunRecord) -> Iterator[Point]:
    matrix = result.accuracy.matrix
    run = f"{result.experiment}.{result.method}.{result.order}.{result.seed}"
    for i, task in enumerate(result.tasks[: len(matrix) - 1], start=1):
        for view in VIEWS:
            for outcome, forgetting in _losses(result, view, i):
                for inputs, name in zip(INPUTS, (task, "general"), strict=True):
                    forward, reverse = (result.drift_row(view, i).get(f"{kl}_kl/{name}") for kl in ("forward", "reverse"))
                    if forgetting is None or (forward is None and reverse is None):
                        continue
                    yield Point(
                        run=run, method=result.method, family=family_of(result), experience=i, task=task, checkpoint=i,
                        view=view, inputs=inputs, outcome=outcome, forward_kl=forward, reverse_kl=reverse, forgetting=forgetting,
                        accuracy=matrix[i][i - 1], start_accuracy=matrix[0][i - 1],
                    )  # fmt: skip


def _losses(result: RunRecord, view: str, i: int) -> Iterator[tuple[str, float | None]]:
    """What was forgotten by row i, in each way that was measured in this view."""
    before, now = (row.all if row else None for row in (result.retention_row(view, 0), result.retention_row(view, i)))
    yield "base_abilities", None if before is None or now is None else before - now
    matrix = result.accuracy.matrix
    if view == "as_used" and i > 1 and not result.reference:  # R is as used; references do not go from task to task
        pairs = [(matrix[j][j - 1], matrix[i][j - 1]) for j in range(1, i)]
        lost = [then - later for then, later in pairs if then is not None and later is not None]
        yield "earlier_tasks", fmean(lost) if len(lost) == len(pairs) else None
