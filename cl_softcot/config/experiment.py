"""One YAML file as a whole: `Experiment`, and the defaults that follow from other settings."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import Field, model_validator

from cl_softcot.additions import ADDED_LATER
from cl_softcot.config.checks import WellFormed, cross_checks
from cl_softcot.config.plugins import DiagnosticConfig, Strict, TaskConfig
from cl_softcot.config.problems import Collected
from cl_softcot.config.settings import EvaluateConfig, MethodConfig, ModelConfig, TrackingConfig, TrainConfig, merged, name_of
from cl_softcot.errors import UserError, did_you_mean


class Experiment(Strict):
    """One YAML file: methods, each over every order of the tasks and every seed."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", description="name (left out: that of the file)")
    backbone: ModelConfig = Field(description="the model that answers")
    assistant: ModelConfig | None = Field(None, description="the small frozen model that thinks for it")
    tasks: list[TaskConfig] = Field(min_length=1, description="the tasks, in the order called `given`")
    orders: dict[str, list[str]] = Field({}, description="orders in which the tasks are learned, by label (left out: `given`)")
    seeds: list[int] = Field([0], min_length=1, description="seeds; each is one run a method and order")
    train: TrainConfig = Field(TrainConfig(), description="the training budget of one task")
    evaluate: EvaluateConfig = Field(EvaluateConfig(), description="what is measured")
    methods: list[MethodConfig] = Field(min_length=1, description="the rows of the table")
    diagnostics: Annotated[list[DiagnosticConfig], ADDED_LATER] = Field([], description="what else is measured after each row")
    tracking: TrackingConfig = Field(TrackingConfig(), description="where numbers are sent")
    output_dir: str | None = Field(None, min_length=1, description="the folder of the results (left out: runs/<name>)")

    @model_validator(mode="wrap")
    @classmethod
    def _whole(cls, data: Any, handler: Callable[[Any], Self]) -> Self:
        if not isinstance(data, Mapping):
            return handler(data)
        problems = Collected(cls)
        parts = WellFormed(data)
        problems.extend(cross_checks(parts))
        result = None
        with problems.inside():
            result = handler(_with_defaults(data))
        problems.raise_if_any()
        assert result is not None
        return result

    def train_for(self, method: MethodConfig | str) -> TrainConfig:
        """The training budget of a method: the experiment's, with what the method says otherwise."""
        if isinstance(method, str):
            method = self.method(method)
        return merged(self.train, method.train)

    def method(self, name: str) -> MethodConfig:
        """A method by its name. UserError where there is none."""
        return _by_name("method", name, self.methods)

    @property
    def measured(self) -> list[DiagnosticConfig]:
        """The diagnostics that are switched on."""
        return [diagnostic for diagnostic in self.diagnostics if diagnostic.enabled]

    @property
    def folder(self) -> Path:
        """The folder of the results."""
        assert self.output_dir is not None, "filled in where it is left out"
        return Path(self.output_dir)

    def task(self, name: str) -> TaskConfig:
        """A task of the stream by its name. UserError where there is none."""
        return _by_name("task", name, self.tasks)

    def tasks_in(self, order: str) -> list[TaskConfig]:
        """The tasks in an order, by the order's label. UserError where there is none."""
        if order not in self.orders:
            raise UserError(f"unknown order {order!r}{did_you_mean(order, self.orders)}")
        return [self.task(name) for name in self.orders[order]]


def _by_name(what: str, name: str, entries: Sequence[Any]) -> Any:
    for entry in entries:
        if entry.name == name:
            return entry
    raise UserError(f"unknown {what} {name!r}{did_you_mean(name, [entry.name for entry in entries])}")


def _with_defaults(data: Mapping[str, Any]) -> dict[str, Any]:
    """Fills in what follows from other settings, so that the resolved config says it."""
    filled = dict(data)
    if filled.get("orders", {}) in ({}, None) and isinstance(filled.get("tasks"), list):
        names = [name_of(task) for task in filled["tasks"]]
        filled["orders"] = {"given": [name for name in names if isinstance(name, str)]}
    if filled.get("output_dir") is None and isinstance(filled.get("name"), str):
        filled["output_dir"] = f"runs/{filled['name']}"
    tracking = filled.get("tracking", {})
    if isinstance(tracking, Mapping) and tracking.get("experiment") is None and isinstance(filled.get("name"), str):
        filled["tracking"] = {**tracking, "experiment": filled["name"]}
    return filled
