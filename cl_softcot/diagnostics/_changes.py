"""Accuracies, their changes and ratios of changes as diagnostics write them down: value, low and high (95 %), n."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from cl_softcot.diagnostics import _numbers
from cl_softcot.metrics.intervals import bootstrap_interval, paired_difference


def accuracy(right: Sequence[int], n_boot: int) -> dict[str, Any]:
    """A share of right answers with its 95 % interval and its n."""
    low, high = bootstrap_interval(right, n_boot)
    return {"value": sum(right) / len(right), "low": low, "high": high, "n": len(right)}


def change(after: ArrayLike, before: ArrayLike, n_boot: int) -> dict[str, Any]:
    """mean(after) - mean(before) over the same examples, with its interval and its n."""
    value, low, high = paired_difference(after, before, n_boot)
    return {"value": value, "low": low, "high": high, "n": len(np.asarray(after))}


def ratio(above: Sequence[float], below: Sequence[float], n_boot: int, seed: int = 0) -> dict[str, Any]:
    """mean(above) / mean(below), each the change of the same examples' outcomes, with its interval and its n.

    A share of something that may be nothing, or is below it, means nothing: ``value`` is None there, and ``why`` says so.
    """
    found = _numbers.ratio([np.asarray(above)], [np.asarray(below)], n_boot, seed)
    if found["value"] is not None and np.mean(below) < 0:
        found = {"value": None, "low": None, "high": None, "why": "what it is a share of is below 0"}
    return found | {"n": len(below)}
