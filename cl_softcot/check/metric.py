"""The contract of a metric, a file of them or one function: every number has a meaning, and can be computed of a matrix."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import numpy as np

from cl_softcot.check.result import Broken, Line, place_of, told
from cl_softcot.metrics import Meaning, catalogue
from cl_softcot.metrics.own import OwnMetric, find_metrics
from cl_softcot.registry import find_function

MATRIX = np.array([[0.2, 0.1, 0.3], [0.9, 0.2, 0.3], [0.7, 0.8, 0.2], [0.6, 0.7, 0.9]])


def check(module: ModuleType) -> Iterator[Line]:
    """Every rule, over each name of its CATALOGUE."""
    offered: dict[str, Any] = vars(module).get("CATALOGUE", {})
    ours = {} if module.__name__.startswith("cl_softcot.") else catalogue()

    def has_names() -> None:
        if not offered:
            raise Broken("no CATALOGUE, or an empty one", "CATALOGUE = {'name': Meaning(...)}: see cl_softcot.metrics.")

    def means_something(name: str, meaning: Any) -> None:
        if not isinstance(meaning, Meaning):
            raise Broken("not a cl_softcot.metrics.Meaning")
        if not all((meaning.formula, meaning.source, meaning.unit, meaning.direction)):
            raise Broken("formula, source, unit or direction is empty")
        if name in ours:
            raise Broken("the name has a meaning already", "Choose another.")
        if meaning.of_matrix is not None:
            first, again = (meaning.of_matrix(MATRIX.copy()) for _ in range(2))
            if first != again and not (first is None or np.isnan(first)):
                raise Broken(f"the same matrix gives {first} and {again}")

    rules = {name: (lambda name=name, meaning=meaning: means_something(name, meaning)) for name, meaning in offered.items()}
    for line in told({"it has names": has_names, **rules}, type(module)):
        yield line if line.ok else Line(line.rule, line.what, module.__file__ or "", line.fix)


def check_function(path: str) -> Iterator[Line]:
    """Every rule, over a function ``package.module:function`` (see ``metrics.own``)."""
    found: list[OwnMetric] = []

    def means_something() -> None:
        found.extend(find_metrics([path]))

    def can_be_computed() -> None:
        for one in found:
            if one.of_record:
                continue  # what a record holds is the run's own: seen when it is computed
            first, again = (one.function(MATRIX.copy()) for _ in range(2))
            if not isinstance(first, int | float | np.number | None):
                raise Broken(f"it gave {type(first).__name__}", "It has to return a number or None.")
            if first != again and not (first is None or np.isnan(first)):
                raise Broken(f"the same matrix gives {first} and {again}")

    function = find_function("metric", path)
    for line in told({"it means something": means_something, "a matrix gives a number": can_be_computed}, OwnMetric):
        yield line if line.ok else dataclasses.replace(line, where=place_of(function))
