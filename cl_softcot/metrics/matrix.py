"""Numbers made from the accuracy matrix, each under the name of its convention.

``R[i, j]`` is the accuracy (a fraction, 0 to 1) on task j after experience i. R has T+1 rows and T columns:
row 0 is the base model before any training, row i (1..T) comes after experience i, and column j (1..T in the
formulas, j-1 in the arrays) is the task of experience j. A value that was not measured is None or NaN; what
depends on it is None.

Every function takes R as nested lists or as an array and returns a float, or None where it is undefined
(transfer and forgetting with one task, for example).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from cl_softcot.metrics import Meaning, catalogue

Matrix = NDArray[np.float64]


Accuracies = ArrayLike | Sequence[Sequence[float | None]]


def as_matrix(R: Accuracies) -> Matrix:
    """R as a float array of shape [T+1, T], None as NaN. ValueError on another shape or values outside
    0..1.
    """
    try:
        matrix = np.asarray(R, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise ValueError(f"an accuracy matrix has rows of numbers, all equally long: {error}") from None
    if matrix.ndim != 2 or matrix.shape[1] == 0 or matrix.shape[0] != matrix.shape[1] + 1:
        raise ValueError(f"T tasks have T+1 rows (row 0 = the base) and T columns; got shape {matrix.shape}")
    measured = matrix[~np.isnan(matrix)]
    if measured.size and (measured.min() < 0 or measured.max() > 1):
        raise ValueError("accuracies are fractions between 0 and 1")
    return matrix


def after(rows: Sequence[Sequence[float | None]], experience: int) -> Matrix:
    """The matrix as it stood after an experience (1..T): its first rows, and the tasks learned by then.

    ``rows`` may be incomplete (a run in progress), but holds the base's row and those up to ``experience``.
    """
    if not 1 <= experience < len(rows):
        raise ValueError(f"experience {experience} is not among those measured (1 to {len(rows) - 1})")
    return as_matrix([list(row)[:experience] for row in rows[: experience + 1]])


def _number(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None


def _own(matrix: Matrix) -> Matrix:
    """R[j,j] for j = 1..T: each task right after its own experience."""
    return np.diagonal(matrix[1:])


def average_accuracy(R: ArrayLike) -> float | None:
    """ACC = 1/T Σ_j R[T,j] (Lopez-Paz & Ranzato 2017, eq. 2). Fraction; higher is better."""
    return _number(as_matrix(R)[-1].mean())


def learning_accuracy(R: ArrayLike) -> float | None:
    """LA = 1/T Σ_j R[j,j]: each task right after its own turn (Riemer et al. 2019, MER). Higher is better."""
    return _number(_own(as_matrix(R)).mean())


def own_task_change(R: ArrayLike) -> float | None:
    """1/T Σ_j (R[j,j] - R[0,j]): what learning a task did to it, against the base's zero-shot CoT.

    Below zero, training on a task made the base worse at that very task. Higher is better.
    """
    matrix = as_matrix(R)
    return _number((_own(matrix) - matrix[0]).mean())


def final_change(R: ArrayLike) -> float | None:
    """1/T Σ_j (R[T,j] - R[0,j]): what the whole sequence left over, against the base. Higher is better."""
    matrix = as_matrix(R)
    return _number((matrix[-1] - matrix[0]).mean())


def bwt_gem(R: ArrayLike) -> float | None:
    """BWT = 1/(T-1) Σ_{j<T} (R[T,j] - R[j,j]) (Lopez-Paz & Ranzato 2017, eq. 3; so in mammoth and Avalanche).

    Below zero is forgetting, above zero is backward transfer. None with one task.
    """
    matrix = as_matrix(R)
    T = matrix.shape[1]
    if T < 2:
        return None
    return _number((matrix[-1] - _own(matrix))[:-1].mean())


def bwt_trace(R: ArrayLike) -> float | None:
    """BWT = 1/T Σ_{j<=T} (R[T,j] - R[j,j]): GEM's sum divided by T, the last task counting as 0.

    TRACE (arXiv 2310.06762) and SAPT. It is (T-1)/T of :func:`bwt_gem`. None with one task.
    """
    matrix = as_matrix(R)
    if matrix.shape[1] < 2:
        return None
    return _number((matrix[-1] - _own(matrix)).mean())


def bwt_continuum(R: ArrayLike) -> float | None:
    """BWT = 2/(T(T-1)) Σ_{i=2..T} Σ_{j<i} (R[i,j] - R[j,j]): the mean over the triangle, not the last row
    alone.

    Díaz-Rodríguez et al. 2018 (arXiv 1810.13166), which Continuum cites. (Some of its versions leave the
    pairs j = i-1 out of the sum but not out of the divisor; the paper's formula is the one here.) None with
    one task.
    """
    matrix = as_matrix(R)
    T = matrix.shape[1]
    if T < 2:
        return None
    change_ij = matrix[1:] - _own(matrix)
    return _number(change_ij[np.tril_indices(T, k=-1)].mean())


def fwt_gem(R: ArrayLike) -> float | None:
    """FWT = 1/(T-1) Σ_{i=2..T} (R[i-1,i] - R[0,i]) (Lopez-Paz & Ranzato 2017, eq. 4).

    Each task just before its own turn against the base (GEM: a random initialisation, here the pretrained
    model). Above zero, what came before helped. None with one task or without row 0.
    """
    matrix = as_matrix(R)
    T = matrix.shape[1]
    if T < 2:
        return None
    later = np.arange(1, T)
    return _number((matrix[later, later] - matrix[0, later]).mean())


def forgetting_chaudhry(R: ArrayLike) -> float | None:
    """1/(T-1) Σ_{j<T} (max_{1<=l<=T-1} R[l,j] - R[T,j]) (Chaudhry et al. 2018, RWalk, arXiv 1801.10112, eq.
    3).

    The best that any earlier row reached, rows *before* the task's own turn included, less what is left.
    Lower is better, below zero the task improved. The maximum of noisy accuracies lies above their true
    maximum, so this is above zero on average even where nothing is forgotten: read it beside BWT. None with
    one task.
    """
    matrix = as_matrix(R)
    if matrix.shape[1] < 2:
        return None
    return _number((matrix[1:-1].max(axis=0) - matrix[-1])[:-1].mean())


def _best_since_learned(matrix: Matrix, last_row: int) -> Matrix:
    """max_{j<=l<=last_row} R[l,j] for j = 1..T-1."""
    T = matrix.shape[1]
    return np.array([matrix[j : last_row + 1, j - 1].max() for j in range(1, T)])


def forgetting_chaudhry_from_learned(R: ArrayLike) -> float | None:
    """1/(T-1) Σ_{j<T} (max_{j<=l<=T-1} R[l,j] - R[T,j]): the common variant of :func:`forgetting_chaudhry`.

    Only rows from the task's own turn on can be its best. Lower is better, below zero the task improved.
    None with one task.
    """
    matrix = as_matrix(R)
    T = matrix.shape[1]
    if T < 2:
        return None
    return _number((_best_since_learned(matrix, T - 1) - matrix[-1, :-1]).mean())


def forgetting_mammoth(R: ArrayLike) -> float | None:
    """1/(T-1) Σ_{j<T} (max_{j<=l<=T} R[l,j] - R[T,j]): the last row may be the best, so it is never below
    zero.

    mammoth (utils/metrics.py) and PyCIL (trainer.py), which both evaluate seen tasks only and fill the rest
    with zeros: hence l from j on. Lower is better. None with one task.
    """
    matrix = as_matrix(R)
    T = matrix.shape[1]
    if T < 2:
        return None
    return _number((_best_since_learned(matrix, T) - matrix[-1, :-1]).mean())


def forgetting_avalanche(R: ArrayLike) -> float | None:
    """1/(T-1) Σ_{j<T} (R[j,j] - R[T,j]): first minus last, exactly minus :func:`bwt_gem`.

    Avalanche 0.6 (evaluation/metrics/forgetting_bwt.py, StreamForgetting). Lower is better. None with one
    task.
    """
    bwt = bwt_gem(R)
    return None if bwt is None else 0.0 - bwt  # not -bwt: no negative zero in tables


def summary(R: Accuracies) -> dict[str, float | None]:
    """Every metric of the accuracy matrix in this folder by its full name, ``acc`` first; None where
    undefined.
    """
    matrix = as_matrix(R)
    values: dict[str, float | None] = {}
    for name, meaning in {**CATALOGUE, **catalogue()}.items():
        if meaning.of_matrix is not None:
            value = meaning.of_matrix(matrix)
            values[name] = None if value is None else _number(value)
    return values


def _fraction(formula: str, source: str, direction: str, of_matrix: Callable[..., float | None] | None) -> Meaning:
    return Meaning(formula, source, "fraction", direction, of_matrix)


_HIGHER, _LOWER = "higher is better", "lower is better"
_GEM = "Lopez-Paz & Ranzato 2017 (GEM, arXiv 1706.08840)"
_RWALK = "Chaudhry et al. 2018 (RWalk, arXiv 1801.10112)"

CATALOGUE: dict[str, Meaning] = {
    "acc": _fraction("1/T Σ_j R[T,j]", f"{_GEM}, eq. 2", _HIGHER, average_accuracy),
    "learning_accuracy": _fraction("1/T Σ_j R[j,j]", "Riemer et al. 2019 (MER, arXiv 1810.11910)", _HIGHER, learning_accuracy),
    "own_task_change": _fraction("1/T Σ_j (R[j,j] - R[0,j])", "ours", _HIGHER, own_task_change),
    "final_change": _fraction("1/T Σ_j (R[T,j] - R[0,j])", "ours", _HIGHER, final_change),
    "bwt/gem": _fraction("1/(T-1) Σ_{j<T} (R[T,j] - R[j,j])", f"{_GEM}, eq. 3", _HIGHER, bwt_gem),
    "bwt/trace": _fraction("1/T Σ_j (R[T,j] - R[j,j])", "TRACE (arXiv 2310.06762); SAPT (arXiv 2401.08295)", _HIGHER, bwt_trace),
    "bwt/continuum": _fraction(
        "2/(T(T-1)) Σ_{i=2..T} Σ_{j<i} (R[i,j] - R[j,j])",
        "Díaz-Rodríguez et al. 2018 (arXiv 1810.13166); Continuum",
        _HIGHER,
        bwt_continuum,
    ),
    "fwt/gem": _fraction("1/(T-1) Σ_{i=2..T} (R[i-1,i] - R[0,i])", f"{_GEM}, eq. 4", _HIGHER, fwt_gem),
    "forgetting/chaudhry": _fraction(
        "1/(T-1) Σ_{j<T} (max_{1<=l<=T-1} R[l,j] - R[T,j])", f"{_RWALK}, eq. 3", _LOWER, forgetting_chaudhry
    ),
    "forgetting/chaudhry_from_learned": _fraction(
        "1/(T-1) Σ_{j<T} (max_{j<=l<=T-1} R[l,j] - R[T,j])",
        f"common variant of {_RWALK}, eq. 3",
        _LOWER,
        forgetting_chaudhry_from_learned,
    ),
    "forgetting/mammoth": _fraction(
        "1/(T-1) Σ_{j<T} (max_{j<=l<=T} R[l,j] - R[T,j])",
        "mammoth utils/metrics.py; PyCIL trainer.py",
        _LOWER,
        forgetting_mammoth,
    ),
    "forgetting/avalanche": _fraction(
        "1/(T-1) Σ_{j<T} (R[j,j] - R[T,j])", "Avalanche 0.6 StreamForgetting", _LOWER, forgetting_avalanche
    ),
}
