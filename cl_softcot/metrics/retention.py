"""Retention: how well the base's own abilities still work after an experience.

The families of tasks that the base can do are kept apart in two groups, since some forgetting is definitional
(two conventions under one prompt cannot both be kept): ``same_family`` are the families that the stream
trains on, ``unrelated`` are those that it never touches. Every group's number is the mean over its families
of their accuracies (families weigh equally).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from cl_softcot.metrics import Meaning
from cl_softcot.metrics.intervals import bootstrap_interval, stratified_interval

GROUPS = ("all", "same_family", "unrelated")


def groups(families: Collection[str], stream_families: Collection[str]) -> dict[str, list[str]]:
    """The measured families of each group, in the order given."""
    trained = set(stream_families)
    return {
        "all": list(families),
        "same_family": [family for family in families if family in trained],
        "unrelated": [family for family in families if family not in trained],
    }


def retention(
    outcomes: Mapping[str, ArrayLike],
    stream_families: Collection[str],
    n_boot: int = 1000,
    seed: int = 0,
    level: float = 0.95,
) -> dict[str, Any]:
    """Accuracies (fractions, higher is better) after one experience.

    ``outcomes``: family -> 0/1 outcomes of its examples; ``stream_families``: the families of the stream's
    tasks. Returns ``families``, ``n`` and ``intervals`` by family, and for each group ``all``,
    ``same_family``, ``unrelated`` its mean over families, with ``<group>_interval``: [low, high], examples
    resampled inside each family. A group without families has None.
    """
    right = {family: np.asarray(values, dtype=np.float64) for family, values in outcomes.items()}
    if not right or not all(values.size for values in right.values()):
        raise ValueError("retention needs at least one family, and outcomes of each")
    options = (n_boot, seed, level)
    row: dict[str, Any] = {
        "families": {family: float(values.mean()) for family, values in right.items()},
        "n": {family: int(values.size) for family, values in right.items()},
        "intervals": {family: list(bootstrap_interval(values, *options)) for family, values in right.items()},
    }
    for group, members in groups(list(right), stream_families).items():
        chosen = [right[family] for family in members]
        row[group] = float(np.mean([values.mean() for values in chosen])) if chosen else None
        row[f"{group}_interval"] = list(stratified_interval(chosen, *options)) if chosen else None
    return row


def _of_group(which: str) -> Meaning:
    return Meaning(f"mean accuracy over {which}", "ours", "fraction", "higher is better")


CATALOGUE: dict[str, Meaning] = {
    "retention/all": _of_group("all the base's families"),
    "retention/same_family": _of_group("the base's families that the stream trains on"),
    "retention/unrelated": _of_group("the base's families that the stream never touches"),
}
