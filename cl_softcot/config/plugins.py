"""A map of which some keys are ours, and the rest are settings of the class that it names."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializeAsAny,
    field_validator,
    model_serializer,
    model_validator,
)
from pydantic_core import PydanticCustomError

from cl_softcot import registry
from cl_softcot.config.problems import LABEL, Collected, located, read_model
from cl_softcot.config.yaml import Loc
from cl_softcot.errors import did_you_mean

if TYPE_CHECKING:
    from cl_softcot.reasoning.base import Reasoning
    from strategies.base import Strategy


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


class _Unread(BaseModel):
    """Stands for settings that could not be read, so that the rest is still looked at."""


class PlugIn(Strict):
    """A map of which some keys are ours, and the rest are settings that the named class itself describes."""

    not_in_yaml: ClassVar[tuple[str, ...]] = ("settings",)
    kind: ClassVar[str]
    selector: ClassVar[str] = "name"  # the key that names the class

    settings: SerializeAsAny[BaseModel] = Field(description="the class's own settings; in the YAML beside the name")

    @property
    def cls(self) -> Any:
        """The class that is meant (imported now, if it was not before)."""
        return registry.find(self.kind, getattr(self, self.selector))

    @property
    def classes(self) -> list[type]:
        """Somebody's own classes, named by path, that decide what this does. Ours are not imported to find out."""
        return [self.cls] if ":" in getattr(self, self.selector) else []

    @classmethod
    def spell_out(cls, data: Any) -> Any:
        """The map that a short form stands for; anything else as it is."""
        return {cls.selector: data} if isinstance(data, str) else data

    @model_validator(mode="wrap")
    @classmethod
    def _with_settings(cls, data: Any, handler: Callable[[Any], Self]) -> Self:
        data = cls.spell_out(data)
        if not isinstance(data, Mapping) or isinstance(data.get("settings"), BaseModel):
            return handler(data)
        own = {key: value for key, value in data.items() if key in cls.model_fields and key != "settings"}
        rest = {key: value for key, value in data.items() if key not in own}
        problems = Collected(cls)
        own["settings"] = _Unread()
        with problems.inside():
            own["settings"] = cls.read_settings(own, rest)
        result = None
        with problems.inside():
            result = handler(own)
        problems.raise_if_any()
        assert result is not None
        return result

    @classmethod
    def read_settings(cls, own: Mapping[str, Any], rest: Mapping[str, Any]) -> BaseModel:
        """`rest` as the settings of the class that `own` names."""
        name = own.get(cls.selector)
        if not isinstance(name, str) or not name:
            return _Unread()  # the frame reports that; nobody knows what the rest would mean
        with located((cls.selector,), name):
            settings = registry.find(cls.kind, name).Settings
        return read_model(settings, rest, also=[f for f in cls.model_fields if f != "settings"])

    @model_serializer(mode="wrap")
    def _flat(self, handler: Callable[[Any], dict[str, Any]]) -> dict[str, Any]:
        data = handler(self)
        settings = data.pop("settings")
        return {**data, **settings}


class TaskConfig(PlugIn):
    """A task of the stream: a label, the family that makes it, and that family's settings."""

    kind = "task"
    selector = "task"

    name: str = Field(pattern=LABEL, description="unique label of the task in tables, charts and orders")
    task: str = Field(description="a file in cl_softcot/tasks, or package.module:Class; the name, where it is left out")

    @classmethod
    def spell_out(cls, data: Any) -> Any:
        if isinstance(data, str):
            return {"name": data, "task": data}
        if isinstance(data, Mapping) and "task" not in data:
            # Without a usable name either, the name is what is told to be wrong: hence any task.
            name = data.get("name")
            return {**data, "task": name if isinstance(name, str) else ""}
        return data

    @field_validator("name")
    @classmethod
    def _free(cls, name: str) -> str:
        if name == "general":
            raise PydanticCustomError("said", "'general' is what drift calls general text; choose another label")
        return name

    @classmethod
    def read_settings(cls, own: Mapping[str, Any], rest: Mapping[str, Any]) -> BaseModel:
        settings = super().read_settings(own, rest)
        if isinstance(own.get("name"), str) and isinstance(own.get("task"), str) and own["task"]:
            # Tasks check when they are made what a type cannot say, such as the name of a convention.
            with located((), dict(rest)):
                registry.find(cls.kind, own["task"])(settings, own["name"])
        return settings

    def make(self) -> Any:
        """The task itself (a `cl_softcot.tasks.base.Task`)."""
        return self.cls(self.settings, self.name)


class ReasoningConfig(PlugIn):
    """How a method thinks."""

    if TYPE_CHECKING:

        @property
        def cls(self) -> type[Reasoning]: ...

    kind = "reasoning"
    name: str = Field(description="a file in cl_softcot/reasoning, or package.module:Class")


class StrategyConfig(PlugIn):
    """What learns, and what is protected."""

    if TYPE_CHECKING:

        @property
        def cls(self) -> type[Strategy]: ...

    kind = "strategy"
    name: str = Field(description="a file in strategies, or package.module:Class")

    @property
    def learns_as(self) -> type[Strategy]:
        """The class that says which weights are trained; for a reference that of the strategy that it is a reference of."""
        return self.cls.learns_as(self.settings)

    @property
    def classes(self) -> list[type]:
        named_inside = any(":" in text for text in _texts_in(self.settings.model_dump()))
        return [*super().classes, *([self.learns_as] if named_inside else [])]


def _texts_in(data: Any) -> Iterator[str]:
    if isinstance(data, Mapping):
        for value in data.values():
            yield from _texts_in(value)
    elif isinstance(data, str):
        yield data


class DiagnosticConfig(PlugIn):
    """What is measured beside the accuracy matrix, with its settings beside the name."""

    kind = "diagnostic"
    name: str = Field(description="a file in cl_softcot/diagnostics, or package.module:Class")
    enabled: bool = Field(True, description="false: not measured in this experiment")

    def make(self) -> Any:
        """The diagnostic itself (a `cl_softcot.diagnostics.base.Diagnostic`)."""
        return self.cls(self.settings)


class PluginConfig(Strict):
    """A plug-in of Avalanche, with the arguments of its constructor beside the name."""

    not_in_yaml: ClassVar[tuple[str, ...]] = ("settings",)

    name: str = Field(description="replay, or package.module:Class")
    settings: dict[str, Any] = Field({}, description="arguments of the constructor; in the YAML beside the name")

    @property
    def cls(self) -> type:
        """The class that is meant (imported now, if it was not before)."""
        return registry.find("plugin", self.name)

    @model_validator(mode="before")
    @classmethod
    def _with_settings(cls, data: Any) -> Any:
        if isinstance(data, str):
            data = {"name": data}
        if not isinstance(data, Mapping) or not isinstance(data.get("name"), str):
            return data
        rest = {key: value for key, value in data.items() if key not in ("name", "settings")}
        if isinstance(data.get("settings"), Mapping):  # one that was built by a program
            rest |= data["settings"]
        with located(("name",), data["name"]):
            found = registry.find("plugin", data["name"])
        problems = Collected(cls)
        problems.extend(_wrong_arguments(found, rest))
        problems.raise_if_any()
        return {"name": data["name"], "settings": rest}

    @model_serializer(mode="plain")
    def _flat(self) -> dict[str, Any]:
        return {"name": self.name, **self.settings}


def _wrong_arguments(cls: type, given: Mapping[str, Any]) -> Iterator[tuple[Loc, str, Any]]:
    parameters = inspect.signature(cls).parameters.values()
    names = [p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    if not any(p.kind is p.VAR_KEYWORD for p in parameters):
        for key in given:
            if key not in names:
                yield (key,), f"unknown key {key!r}{did_you_mean(key, names)}", given[key]
    for parameter in parameters:
        if parameter.name in names and parameter.default is parameter.empty and parameter.name not in given:
            yield (parameter.name,), "is missing", dict(given)
