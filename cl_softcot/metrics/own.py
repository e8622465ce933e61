"""Metrics of an experiment's own: any function that Python can import, named ``package.module:function``.

::

    from cl_softcot.metrics import metric

    @metric("min_j R[T,j]", "ours", "fraction", "higher is better")
    def worst_task(matrix):
        return float(matrix[-1].min())

A first parameter called ``record`` gets the run's whole record (``cl_softcot.results.RunRecord``); called anything else it gets
the accuracy matrix, a float array [T+1, T] like ``cl_softcot.metrics.matrix`` takes. The result is a number, or None where it is
not defined. It stands in ``summary`` under the function's name, or under ``name`` of the decorator.
"""

from __future__ import annotations

import inspect
import math
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from cl_softcot.errors import UserError
from cl_softcot.metrics import Meaning, catalogue
from cl_softcot.registry import find_function

if TYPE_CHECKING:
    from cl_softcot.results.record import RunRecord

_NAME = re.compile(r"[A-Za-z_]\w*(/\w+)*")
_FIX = 'Decorate it: @metric("formula", "source", "unit", "higher is better"), from cl_softcot.metrics.'


@dataclass(frozen=True)
class OwnMetric:
    """One function, under the name that its numbers have; ``path`` is ``package.module:function``."""

    name: str
    path: str
    meaning: Meaning
    function: Callable[[Any], float | None]
    of_record: bool

    def value(self, record: RunRecord) -> float | None:
        """The number of one run; None where it is not defined.

        Raises:
            UserError: if the function fails, or gives anything but a number or None.
        """
        from cl_softcot.metrics.matrix import as_matrix

        run = f"{record.method}.{record.order}.seed{record.seed}"
        try:
            value = self.function(record if self.of_record else as_matrix(record.accuracy.matrix))
        except Exception as error:
            raise UserError(f"the metric {self.path} fails on {run}: {type(error).__name__}: {error}") from error
        if value is None:
            return None
        try:
            number = float(value)
        except (TypeError, ValueError):
            raise UserError(
                f"the metric {self.path} gave {type(value).__name__} for {run}", fix="It has to return a number or None."
            ) from None
        return number if math.isfinite(number) else None


def find_metrics(paths: Iterable[str]) -> list[OwnMetric]:
    """The functions that are named.

    Raises:
        UserError: if one cannot be found, has no meaning, or two have one name.
    """
    found: dict[str, OwnMetric] = {}
    for path in dict.fromkeys(paths):
        one = _find(path)
        if one.name in found:
            raise UserError(f"the metrics {found[one.name].path} and {path} are both called {one.name!r}", fix=_RENAME)
        found[one.name] = one
    return list(found.values())


_RENAME = 'Give one another name: @metric(..., name="another").'


def _find(path: str) -> OwnMetric:
    function = find_function("metric", path)
    meaning = getattr(function, "meaning", None)
    if not isinstance(meaning, Meaning):
        raise UserError(f"the metric {path} does not say what it means", fix=_FIX)
    name = getattr(function, "metric_name", None) or path.rpartition(":")[2]
    if not _NAME.fullmatch(name) or name.endswith("_interval"):
        raise UserError(f"the metric {path} cannot be called {name!r}", fix="Letters, digits and _, with / between parts.")
    if name in catalogue():
        raise UserError(f"the metric {path} is called {name!r}, which already has a meaning", fix=_RENAME)
    try:
        parameters = list(inspect.signature(function).parameters)
    except (TypeError, ValueError):
        parameters = ["matrix"]
    if not parameters:
        raise UserError(f"the metric {path} takes nothing", fix="It gets the accuracy matrix, or the record of a run.")
    return OwnMetric(name, path, meaning, function, parameters[0] == "record")
