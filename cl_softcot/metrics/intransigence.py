"""Intransigence: what a sequence of tasks keeps a method from learning (Chaudhry et al. 2018, RWalk, arXiv 1801.10112).

It compares a method's run with a reference that never had to learn in sequence: one trained on all tasks together (``joint``), or
on each task alone from the base (``single_task``). Both are strategies, so the reference is a run of its own, of the same kind
of method, with the same seed and the same budget a task.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike

from cl_softcot.errors import UserError
from cl_softcot.metrics import Meaning
from cl_softcot.metrics.matrix import Accuracies, as_matrix

if TYPE_CHECKING:
    from cl_softcot.results.record import RunRecord

REFERENCES = ("joint", "single_task")


def intransigence(R: Accuracies, a_star: ArrayLike | Sequence[float | None]) -> float | None:
    """1/T Σ_j (a*_j - R[j,j]). Lower is better; below zero the sequence helped. None where R[j,j] was not measured.

    ``a_star`` [T]: the accuracy of a reference on each task, in R's order of tasks.
    """
    matrix = as_matrix(R)
    reference = np.asarray(a_star, dtype=np.float64)
    if reference.shape != (matrix.shape[1],):
        raise ValueError(f"a_star has one value a task: expected {matrix.shape[1]}, got shape {reference.shape}")
    value = float((reference - np.diagonal(matrix[1:])).mean())
    return value if np.isfinite(value) else None


def reference_accuracy(reference: RunRecord) -> dict[str, float | None]:
    """a*_j by task, from the record of a reference run.

    Of ``joint``: the last row, after training on all tasks. Of ``single_task``: each task right after its own turn.

    Raises:
        UserError: if the run is not of a reference.
    """
    kind, matrix, tasks = reference.reference, reference.accuracy.matrix, reference.tasks
    if kind not in REFERENCES:
        fix = f"make a run with the strategy {' or '.join(REFERENCES)}"
        raise UserError(f"{reference.method} is a method, not a reference to compare one with", fix=fix)
    rows = [len(tasks)] * len(tasks) if kind == "joint" else range(1, len(tasks) + 1)
    return {task: matrix[i][j] for j, (i, task) in enumerate(zip(rows, tasks, strict=True))}


def against_reference(result: RunRecord, reference: RunRecord) -> dict[str, float | None]:
    """``{"intransigence/joint": x}`` or ``{"intransigence/single_task": x}`` of a run, from the two records.

    Tasks are matched by name, so the orders may differ.

    Raises:
        UserError: if the reference has not learned a task of the run, or was measured on another split or number of examples.
    """
    a_star, kind = reference_accuracy(reference), reference.reference
    missing = [task for task in result.tasks if task not in a_star]
    if missing or (kind == "joint" and set(a_star) != set(result.tasks)):
        raise UserError(
            f"the reference {reference.method} learned {', '.join(a_star)}, the run {', '.join(result.tasks)}",
            fix="compare runs over the same tasks",
        )
    n = dict(zip(reference.tasks, reference.accuracy.n or [], strict=True))
    if (reference.split, [n[task] for task in result.tasks]) != (result.split, result.accuracy.n):
        raise UserError(
            f"the reference {reference.method} was measured on other examples than {result.method}",
            fix="take both from one experiment, or set the same evaluate.split and evaluate.test",
        )
    value = intransigence(result.accuracy.matrix, [a_star[task] for task in result.tasks])
    return {f"intransigence/{kind}": value}


_SOURCE = "Chaudhry et al. 2018 (RWalk, arXiv 1801.10112)"
CATALOGUE: dict[str, Meaning] = {
    "intransigence/joint": Meaning(
        "1/T Σ_j (a*_j - R[j,j]), a* after learning all tasks together", _SOURCE, "fraction", "lower is better"
    ),
    "intransigence/single_task": Meaning(
        "1/T Σ_j (a*_j - R[j,j]), a* after learning task j alone from the base", f"after {_SOURCE}", "fraction", "lower is better"
    ),
}
