"""What is measured, one file a measurement.

Forgetting, backward transfer and KL have rival definitions that differ even in sign, so every number that
leaves this package has a full name (``forgetting/chaudhry``, ``bwt/gem``, ``forward_kl/<set>``), and every
name has one :class:`Meaning` in the ``CATALOGUE`` of the file that computes it. Metrics are functions of data
(accuracy matrices, outcomes) or of a policy; they know nothing of training.

A new metric of the accuracy matrix is one new file in this folder::

    from cl_softcot.metrics import Meaning

    def worst_task(matrix):
        return float(matrix[-1].min())

    CATALOGUE = {"acc/worst": Meaning("min_j R[T,j]", "ours", "fraction", "higher is better", worst_task)}

and appears in :func:`cl_softcot.metrics.matrix.summary` by itself. One of an experiment's own stands anywhere on Python's path
and is named in the experiment, or to the report: see ``own.py``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from cl_softcot.registry import modules_of


@dataclass(frozen=True)
class Meaning:
    """What a named number says: its formula, where that comes from, its unit and which way is better.

    ``of_matrix`` computes it from the validated accuracy matrix (a float array of shape [T+1, T]) where the
    number is a function of that alone; None or NaN as its result means 'undefined here'.
    """

    formula: str
    source: str
    unit: str
    direction: str
    of_matrix: Callable[[Any], float | None] | None = None


def metric(
    formula: str, source: str, unit: str, direction: str, *, name: str | None = None
) -> Callable[[Callable[[Any], float | None]], Callable[[Any], float | None]]:
    """Says of a function what its number means; ``name``: what the number is called, if not like the function. See ``own.py``."""

    def give(function: Callable[[Any], float | None]) -> Callable[[Any], float | None]:
        function.meaning = Meaning(formula, source, unit, direction)  # type: ignore[attr-defined]
        if name:
            function.metric_name = name  # type: ignore[attr-defined]
        return function

    return give


def catalogue() -> dict[str, Meaning]:
    """Every named number of every file in this folder: name -> meaning."""
    meanings: dict[str, Meaning] = {}
    for name, module in modules_of(__name__).items():
        offered: Mapping[str, Meaning] = getattr(module, "CATALOGUE", {})
        twice = sorted(set(meanings) & set(offered))
        if twice:
            raise ValueError(f"metrics/{name}.py defines {twice[0]!r}, which already has a meaning")
        meanings.update(offered)
    return meanings


def describe(name: str) -> Meaning:
    """The meaning of one name; ``forward_kl/general`` finds the entry ``forward_kl/<set>``. KeyError if
    unknown.
    """
    meanings = catalogue()
    if name in meanings:
        return meanings[name]
    head = name.rpartition("/")[0]
    for pattern, meaning in meanings.items():
        prefix, _, last = pattern.rpartition("/")
        if head and prefix == head and last.startswith("<"):
            return meaning
    raise KeyError(f"no metric is called {name!r}")
