"""What of a settings model counts in a fingerprint: everything but newer fields that are left at their defaults.

A setting that is added to a class whose results are kept somewhere is marked, and the old fingerprints stay valid::

    pad_to_max: Annotated[bool, ADDED_LATER] = Field(True, description="...")
"""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel


class _AddedLater:
    """The mark's own type, found by identity."""


ADDED_LATER = _AddedLater()


def unset_additions(model: BaseModel) -> set[str]:
    """Fields of a model that are marked as added later and have their default value."""
    return {
        name
        for name, info in type(model).model_fields.items()
        if ADDED_LATER in info.metadata and getattr(model, name) == info.get_default(call_default_factory=True)
    }


def identity_of(model: BaseModel) -> dict[str, Any]:
    """The model as plain data, without ``unset_additions``, those of models inside it included."""
    return _without_additions(model, model.model_dump(mode="json"))


def _without_additions(model: BaseModel, data: dict[str, Any]) -> dict[str, Any]:
    kept = {key: value for key, value in data.items() if key not in unset_additions(model)}
    for name in type(model).model_fields:
        value = getattr(model, name)
        if isinstance(value, BaseModel) and isinstance(kept.get(name), dict):
            kept[name] = _without_additions(value, kept[name])
        elif isinstance(value, BaseModel) and name not in kept and name not in unset_additions(model):
            kept = _without_additions(value, kept)  # settings that are written beside the name of their class
        elif isinstance(value, list) and isinstance(kept.get(name), list):
            pairs = zip(value, kept[name], strict=True)
            kept[name] = [_without_additions(v, d) if isinstance(v, BaseModel) and isinstance(d, dict) else d for v, d in pairs]
    return kept
