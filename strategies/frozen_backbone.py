"""The backbone stays as it is; only what the reasoning itself owns learns (projector, free vectors, markers)."""

from __future__ import annotations

from contextlib import AbstractContextManager

from pydantic import Field

from cl_softcot.reasoning.base import Parts
from strategies.base import Strategy, TrainedSettings, reasoning_owns_parts


class FrozenBackbone(Strategy):
    """Trains the reasoning's own parts in front of a frozen backbone."""

    class Settings(TrainedSettings):
        learning_rate: float = Field(1e-2, gt=0, description="peak rate; the default suits the embedded models")

    settings: Settings

    writes_weights = False

    @classmethod
    def refuses(cls, settings: Settings, reasoning_name: str) -> str | None:
        if not reasoning_owns_parts(reasoning_name):
            return f"frozen_backbone trains what the reasoning owns, and {reasoning_name} owns nothing; use zero_shot"
        return None

    def in_plain_cot(self, parts: Parts) -> AbstractContextManager:
        """Nothing that is learned acts on the backbone itself: this is the base."""
        return self.weights_alone(parts)
