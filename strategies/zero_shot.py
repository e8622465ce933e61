"""Nothing learns: the base model's own abilities on every task of the stream."""

from __future__ import annotations

from cl_softcot.reasoning.base import Parts
from strategies.base import Strategy, StrategySettings, freeze, reasoning_owns_parts


class ZeroShot(Strategy):
    """No training at all."""

    Settings = StrategySettings
    trains = False
    writes_weights = False

    @classmethod
    def refuses(cls, settings: StrategySettings, reasoning_name: str) -> str | None:
        if reasoning_owns_parts(reasoning_name):
            return f"zero_shot trains nothing, and {reasoning_name} has parts that mean nothing untrained; use direct or cot"
        return None

    def prepare(self, parts: Parts, seed: int) -> None:
        freeze(parts)

    def trainable(self, parts: Parts) -> list:
        return []
