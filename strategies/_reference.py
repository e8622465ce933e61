"""What the two references share: they train as another strategy does, and differ in when and on what."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from typing import Any

from pydantic import Field, ValidationError, field_validator
from torch import Tensor, nn

from cl_softcot.errors import UserError
from cl_softcot.models.own_weights import Trained
from cl_softcot.reasoning.base import Parts
from cl_softcot.registry import find
from strategies.base import Strategy, StrategySettings


class ReferenceSettings(StrategySettings):
    """Whose reference it is."""

    of: dict[str, Any] = Field(
        {"name": "full_finetune"}, description="the strategy that it is a reference of: a name, or a map with its settings"
    )

    @field_validator("of", mode="before")
    @classmethod
    def _from_text(cls, of: Any) -> Any:
        return {"name": of} if isinstance(of, str) else of

    @field_validator("of")
    @classmethod
    def _exists(cls, of: dict[str, Any]) -> dict[str, Any]:
        try:
            kind, _ = _inner(of)
        except UserError as error:
            raise ValueError(str(error)) from None
        except ValidationError as error:
            wrong = [f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors(include_url=False)]
            raise ValueError("; ".join(wrong)) from None
        if not kind.trains or kind.reference:
            raise ValueError(f"{of['name']} does not learn turn by turn: take full_finetune, lora or frozen_backbone")
        return of


def _inner(of: dict[str, Any]) -> tuple[type[Strategy], Any]:
    if not isinstance(of.get("name"), str):
        raise UserError("`of` names a strategy, such as lora or {name: lora, rank: 8}")
    kind = find("strategy", of["name"])
    return kind, kind.Settings(**{key: value for key, value in of.items() if key != "name"})


class Reference(Strategy):
    """Trains what ``of`` trains, in its way; asked as it is asked."""

    settings: ReferenceSettings
    Settings = ReferenceSettings

    def __init__(self, settings: Any = None):
        super().__init__(settings)
        kind, inner = _inner(self.settings.of)
        self.inner = kind(inner)
        self.changes_backbone, self.writes_weights = kind.changes_backbone, kind.writes_weights

    @classmethod
    def learns_as(cls, settings: Any) -> type[Strategy]:
        return _inner(settings.of)[0]

    @classmethod
    def refuses(cls, settings: Any, reasoning_name: str) -> str | None:
        kind, inner = _inner(settings.of)
        return kind.refuses(inner, reasoning_name)

    def prepare(self, parts: Parts, seed: int) -> None:
        self.inner.prepare(parts, seed)

    def tensors(self, parts: Parts) -> dict[str, nn.Parameter]:
        return self.inner.tensors(parts)

    def trained(self, parts: Parts) -> Trained:
        return self.inner.trained(parts)

    def weight_changes(self, parts: Parts, initial: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor, Tensor]]:
        return self.inner.weight_changes(parts, initial)

    def trainable(self, parts: Parts) -> list[dict[str, Any]]:
        return self.inner.trainable(parts)

    def as_used(self, parts: Parts) -> AbstractContextManager:
        return self.inner.as_used(parts)

    def weights_alone(self, parts: Parts) -> AbstractContextManager:
        return self.inner.weights_alone(parts)

    def in_plain_cot(self, parts: Parts) -> AbstractContextManager:
        return self.inner.in_plain_cot(parts)
