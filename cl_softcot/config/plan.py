"""Which runs an experiment has."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cl_softcot.config.experiment import Experiment

Tell = Callable[[dict[str, Any]], None]
OnRow = Callable[["RunSpec", int, Any], None]  # the last is a ``results.record.PartialRecord``


@dataclass(frozen=True)
class RunSpec:
    """Which run of an experiment."""

    method: str
    order: str
    seed: int

    @property
    def key(self) -> str:
        return f"{self.method}.{self.order}.seed{self.seed}"


def plan(config: Experiment) -> list[RunSpec]:
    """Every run of the experiment: methods within orders within seeds, so that what is finished is balanced at any time."""
    return [RunSpec(m.name, order, seed) for seed in config.seeds for order in config.orders for m in config.methods]
