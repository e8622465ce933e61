"""The YAML of an experiment as typed models: strict, explained, overridable, with a fingerprint.

`load_experiment("experiments/sequence_a.yaml", ["train.steps=60"])` reads a file with its `base`, applies overrides
and validates everything, the settings of each task, reasoning and strategy included. Whatever is wrong is told at
once, each with file, line and column. `python -m cl_softcot.config` prints the JSON schema for editors.
"""

from __future__ import annotations

import copy
import hashlib
import inspect
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializeAsAny,
    TypeAdapter,
    ValidationError,
    field_serializer,
    field_validator,
    model_serializer,
    model_validator,
)
from pydantic_core import PydanticCustomError

from cl_softcot import _yaml, registry
from cl_softcot._fingerprint import ADDED_LATER, identity_of
from cl_softcot._validation import LABEL, SLUG, Collected, alternatives, located, read_model, told, worded
from cl_softcot._yaml import Loc, Mark, Problem, Tree
from cl_softcot.errors import UserError, did_you_mean
from cl_softcot.files import dump_json

# A text that stands for a map, and the keys of that map which it fills.
_SHORT_FORMS = {
    "backbone": ("path",),
    "assistant": ("path",),
    "reasoning": ("name",),
    "strategy": ("name",),
    "plugins": ("name",),
    "diagnostics": ("name",),
    "tasks": ("name", "task"),
    "retention_tasks": ("name", "task"),
}
_APPENDABLE = ("methods", "tasks", "diagnostics")


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


# --- plug-ins with settings of their own -----------------------------------------------------------


class _Unread(BaseModel):
    """Stands for settings that could not be read, so that the rest is still looked at."""


class _PlugIn(_Strict):
    """A map of which some keys are ours, and the rest are settings that the named class itself describes."""

    not_in_yaml: ClassVar[tuple[str, ...]] = ("settings",)
    kind: ClassVar[str]
    selector: ClassVar[str] = "name"  # the key that names the class

    settings: SerializeAsAny[BaseModel] = Field(description="the class's own settings; in the YAML beside the name")

    @property
    def cls(self) -> type:
        """The class that is meant (imported now, if it was not before)."""
        return registry.find(self.kind, getattr(self, self.selector))

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


class TaskConfig(_PlugIn):
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
                registry.find("task", own["task"])(settings, own["name"])
        return settings

    def make(self) -> Any:
        """The task itself (a `cl_softcot.tasks.base.Task`)."""
        return self.cls(self.settings, self.name)


class ReasoningConfig(_PlugIn):
    """How a method thinks."""

    kind = "reasoning"
    name: str = Field(description="a file in cl_softcot/reasoning, or package.module:Class")


class StrategyConfig(_PlugIn):
    """What learns, and what is protected."""

    kind = "strategy"
    name: str = Field(description="a file in strategies, or package.module:Class")

    @property
    def learns_as(self) -> type:
        """The class that says which weights are trained; for a reference that of the strategy that it is a reference of."""
        return getattr(self.cls, "learns_as", lambda _settings: self.cls)(self.settings)


class DiagnosticConfig(_PlugIn):
    """What is measured beside the accuracy matrix, with its settings beside the name."""

    kind = "diagnostic"
    name: str = Field(description="a file in cl_softcot/diagnostics, or package.module:Class")
    enabled: bool = Field(True, description="false: not measured in this experiment")

    def make(self) -> Any:
        """The diagnostic itself (a `cl_softcot.diagnostics.base.Diagnostic`)."""
        return self.cls(self.settings)


class PluginConfig(_Strict):
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


# --- the parts of an experiment --------------------------------------------------------------------


class ModelConfig(_Strict):
    """A language model. A mere text is its `path`."""

    path: str = Field(min_length=1, description="builtin:tiny, builtin:tiny@25, a local folder, or a model hub's id")
    dtype: Literal["float32", "bfloat16", "float16"] = Field("float32", description="type of the frozen weights")
    trust_remote_code: bool = Field(False, description="run code that comes with the model")
    attention: Literal["eager", "sdpa", "flash_attention_2"] | None = Field(
        None, description="attention implementation (null: the library chooses)"
    )
    revision: Annotated[str | None, ADDED_LATER] = Field(None, min_length=1, description="branch, tag or commit of a hub id")
    device: Annotated[str | None, ADDED_LATER] = Field(
        None, pattern=r"^(cpu|mps|(cuda|xpu)(:\d+)?)$", description="cpu, cuda, cuda:1, ... (null: this process's GPU, else cpu)"
    )
    device_map: Annotated[Literal["auto", "balanced", "sequential"] | dict[str, int | str] | None, ADDED_LATER] = Field(
        None, description="spread the layers over several GPUs, in place of `device`"
    )
    quantization: Annotated[Literal["8bit", "4bit"] | None, ADDED_LATER] = Field(
        None, description="store the frozen weights in 8 or 4 bits (bitsandbytes)"
    )
    gradient_checkpointing: Annotated[bool, ADDED_LATER] = Field(
        False, description="compute activations again in the backward pass: less memory, about a third more time"
    )
    chat: Annotated[Literal["auto", "never"], ADDED_LATER] = Field(
        "auto", description="auto: with the chat template, if the tokenizer has one; never: plain text"
    )
    chat_template_args: Annotated[dict[str, Any], ADDED_LATER] = Field(
        {}, description="variables for the chat template, such as {enable_thinking: false}"
    )
    init: Annotated[Literal["pretrained", "random"], ADDED_LATER] = Field(
        "pretrained", description="random: architecture and tokenizer of the path, with weights that are drawn"
    )
    init_seed: Annotated[int, ADDED_LATER] = Field(0, ge=0, description="what `init: random` draws from")

    @model_validator(mode="before")
    @classmethod
    def _from_text(cls, data: Any) -> Any:
        return {"path": data} if isinstance(data, str) else data

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.device is not None and self.device_map is not None:
            raise PydanticCustomError("said", "device and device_map exclude each other")
        if self.init == "random" and (self.quantization or self.device_map):
            raise PydanticCustomError("said", "init: random draws whole weights on one device: no quantization or device_map")
        if self.attention == "flash_attention_2" and self.dtype == "float32":
            raise PydanticCustomError("said", "flash_attention_2 computes in half precision only: set dtype: bfloat16")
        return self


class TrainConfig(_Strict):
    """The budget of one turn, the same for every method of a table. The learning rate is the strategy's own."""

    examples: int = Field(1000, ge=1, description="training examples a task")
    steps: int = Field(120, ge=1, description="optimiser steps a task")
    global_batch_size: int = Field(32, ge=1, description="examples an optimiser step")
    micro_batch_size: int | None = Field(
        None, ge=1, description="examples that a process computes at a time; divides global_batch_size (null: all)"
    )
    warmup_fraction: float = Field(0.05, ge=0, le=1, description="share of the steps with a rising learning rate")
    decay_fraction: float = Field(0.5, ge=0, le=1, description="share of the steps, the last ones, with a falling one")
    gradient_clip: float | None = Field(1.0, gt=0, description="largest norm of the whole gradient (null: any)")
    checkpoint_every_steps: int = Field(0, ge=0, description="checkpoints inside a turn (0: only between turns)")
    optimizer: Annotated[Literal["adamw", "adamw_8bit"], ADDED_LATER] = Field(
        "adamw", description="adamw_8bit: its states take a quarter of the memory (needs bitsandbytes)"
    )
    betas: Annotated[list[Annotated[float, Field(ge=0, lt=1)]], ADDED_LATER] = Field(
        [0.9, 0.99], min_length=2, max_length=2, description="AdamW's decay rates of its two means (torch's own: [0.9, 0.999])"
    )
    reset_optimizer: Annotated[Literal["turn", "stage", "epoch"], ADDED_LATER] = Field(
        "turn",
        description="when AdamW forgets its means: with every task; also with every stage of a curriculum; or with every pass "
        "through the task's examples, as Coconut's published code does, which loses the warm means again and again",
    )
    sharding: Annotated[Literal["none", "full"], ADDED_LATER] = Field(
        "none", description="full: weights, gradients and optimiser states are split over the processes (full_finetune only)"
    )

    def clashes(self) -> Iterator[tuple[str, str]]:
        """Fields that do not go together: (field, what is wrong)."""
        if self.micro_batch_size and self.global_batch_size % self.micro_batch_size:
            yield (
                "micro_batch_size",
                f"{self.micro_batch_size} does not divide global_batch_size ({self.global_batch_size})",
            )
        if self.sharding == "full" and self.optimizer == "adamw_8bit":
            yield "optimizer", "adamw_8bit does not work on weights that are split over processes (sharding: full)"
        if self.warmup_fraction + self.decay_fraction > 1:
            yield (
                "warmup_fraction" if "warmup_fraction" in self.model_fields_set else "decay_fraction",
                f"warmup_fraction ({self.warmup_fraction}) and decay_fraction ({self.decay_fraction}) are over 1 together",
            )


class EvaluateConfig(_Strict):
    """What is measured after every experience, and on how many examples."""

    test: int = Field(300, ge=1, description="examples a task for the accuracy matrix")
    retention: int = Field(100, ge=0, description="examples a family of the base's own abilities (0: none)")
    drift: int = Field(64, ge=0, description="prompts in each prompt set of the drift (0: none)")
    batch_size: int = Field(256, ge=1, description="answers that are written side by side")
    max_new_tokens: int = Field(96, ge=1, description="longest answer, in tokens")
    split: Literal["test", "valid"] = Field("test", description="valid while choosing settings, test for results")
    bootstrap: int = Field(1000, ge=1, description="resamples behind every interval")
    retention_tasks: list[TaskConfig] | None = Field(
        None, description="what retention is measured on (null: the families that the backbone was made with)"
    )
    general_text: bool = Field(True, description="measure drift on general text too, besides the tasks' own")
    every: Annotated[int, ADDED_LATER] = Field(
        1, ge=1, description="retention and drift are measured after every so many experiences, and after the last"
    )
    between: Annotated[int | None, ADDED_LATER] = Field(
        None,
        ge=1,
        description="examples a task after experiences before the last, for all but the task just learned and the next one: "
        "the first ones of `test` (null: all). A stream of T tasks is answered T times: this is what makes it T^2",
    )


class PerTaskConfig(_Strict):
    """One copy of the trained parts for each task."""

    routing: Literal["oracle", "nearest"] = Field(
        description="oracle: the task is told; nearest: it is found from the assistant's states"
    )
    unseen: Literal["base"] = Field("base", description="who answers a task that has no copy yet: the base")


class MethodConfig(_Strict):
    """One row of every table: how it thinks, what learns, and what is protected."""

    name: str = Field(pattern=SLUG, description="unique label of the method in tables, charts and folders")
    reasoning: ReasoningConfig = Field(description="how it thinks: direct, cot, pause, coconut, softcot, ...")
    strategy: StrategyConfig = Field(description="what learns: zero_shot, full_finetune, lora, frozen_backbone, ...")
    per_task: PerTaskConfig | None = Field(None, description="one copy of the trained parts a task (null: one for all)")
    plugins: list[PluginConfig] = Field([], description="plug-ins of Avalanche, such as {name: replay, mem_size: 200}")
    train: TrainConfig | None = Field(None, description="what differs from the experiment's `train` for this method")

    @field_serializer("train")
    def _only_what_differs(self, train: TrainConfig | None) -> dict[str, Any] | None:
        return None if train is None else train.model_dump(mode="json", exclude_unset=True)


class TrackingConfig(_Strict):
    """Where numbers are sent besides the run folder."""

    mlflow: bool = Field(True, description="send numbers to MLflow (MLFLOW_TRACKING_URI, or ./mlflow.db)")
    experiment: str | None = Field(None, min_length=1, description="MLflow's experiment (null: the name)")


class Experiment(_Strict):
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
        parts = _Parts(data)
        problems.extend(_cross_checks(parts))
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
        return _merged(self.train, method.train)

    def method(self, name: str) -> MethodConfig:
        """A method by its name. UserError where there is none."""
        return _by_name("method", name, self.methods)

    @property
    def measured(self) -> list[DiagnosticConfig]:
        """The diagnostics that are switched on."""
        return [diagnostic for diagnostic in self.diagnostics if diagnostic.enabled]

    def task(self, name: str) -> TaskConfig:
        """A task of the stream by its name. UserError where there is none."""
        return _by_name("task", name, self.tasks)

    def tasks_in(self, order: str) -> list[TaskConfig]:
        """The tasks in an order, by the order's label. UserError where there is none."""
        if order not in self.orders:
            raise UserError(f"unknown order {order!r}{did_you_mean(order, self.orders)}")
        return [self.task(name) for name in self.orders[order]]


def _merged(train: TrainConfig, changes: TrainConfig | None) -> TrainConfig:
    said = {field: getattr(changes, field) for field in changes.model_fields_set} if changes else {}
    return train.model_copy(update=said)


def _by_name(what: str, name: str, entries: Sequence[Any]) -> Any:
    for entry in entries:
        if entry.name == name:
            return entry
    raise UserError(f"unknown {what} {name!r}{did_you_mean(name, [entry.name for entry in entries])}")


def _with_defaults(data: Mapping[str, Any]) -> dict[str, Any]:
    """Fills in what follows from other settings, so that the resolved config says it."""
    filled = dict(data)
    if filled.get("orders", {}) in ({}, None) and isinstance(filled.get("tasks"), list):
        names = [_name_of(task) for task in filled["tasks"]]
        filled["orders"] = {"given": [name for name in names if isinstance(name, str)]}
    if filled.get("output_dir") is None and isinstance(filled.get("name"), str):
        filled["output_dir"] = f"runs/{filled['name']}"
    tracking = filled.get("tracking", {})
    if isinstance(tracking, Mapping) and tracking.get("experiment") is None and isinstance(filled.get("name"), str):
        filled["tracking"] = {**tracking, "experiment": filled["name"]}
    return filled


def _name_of(entry: Any) -> Any:
    if isinstance(entry, Mapping):
        return entry.get("name")
    return entry if isinstance(entry, str) else getattr(entry, "name", None)


# --- what has to fit together ----------------------------------------------------------------------


class _Parts:
    """What of an experiment is well-formed by itself, so that what does not fit together is told along with the rest."""

    def __init__(self, data: Mapping[str, Any]):
        self.data = data
        self.train = self.part(TrainConfig, data.get("train", {}))
        self.assistant = data.get("assistant") is not None
        self.backbone = self.part(ModelConfig, data.get("backbone"))

    @staticmethod
    def part(model: Any, data: Any) -> Any:
        try:
            return _adapter(model).validate_python(data)
        except ValidationError:
            return None

    def entries(self, key: str) -> list[Any]:
        entries = self.data.get(key)
        return list(entries) if isinstance(entries, list) else []

    def named(self, key: str) -> list[Any]:
        return [_name_of(entry) for entry in self.entries(key)]

    def methods(self) -> Iterator[tuple[int, dict[str, Any]]]:
        """Each method's well-formed fields."""
        for i, raw in enumerate(self.entries("methods")):
            if isinstance(raw, MethodConfig):
                yield i, {field: getattr(raw, field) for field in MethodConfig.model_fields}
            elif isinstance(raw, Mapping):
                wanted = {field: info.annotation for field, info in MethodConfig.model_fields.items()}
                yield i, {f: self.part(kind, raw[f]) for f, kind in wanted.items() if raw.get(f) is not None}


@cache
def _adapter(model: Any) -> TypeAdapter[Any]:
    return TypeAdapter(model)


def _cross_checks(parts: _Parts) -> Iterator[tuple[Loc, str, Any]]:
    for key in ("tasks", "methods", "diagnostics"):
        yield from _repeated_names((key,), parts.named(key))
    evaluate = parts.data.get("evaluate")
    if isinstance(evaluate, Mapping) and isinstance(evaluate.get("retention_tasks"), list):
        names = [_name_of(entry) for entry in evaluate["retention_tasks"]]
        yield from _repeated_names(("evaluate", "retention_tasks"), names)
    yield from _check_splits(parts)
    yield from _check_orders(parts.data.get("orders"), parts.named("tasks"))
    yield from _check_seeds(parts.entries("seeds"))
    if parts.train is not None:
        for field, wrong in parts.train.clashes():
            yield ("train", field), wrong, None
    for i, method in parts.methods():
        for loc, wrong in _check_method(method, parts):
            yield ("methods", i, *loc), wrong, None


def _repeated_names(loc: Loc, names: Sequence[Any]) -> Iterator[tuple[Loc, str, Any]]:
    for i, name in enumerate(names):
        if isinstance(name, str) and name in names[:i]:
            yield (
                (*loc, i, "name"),
                f"{name!r} is the name of an earlier entry too (number {names.index(name) + 1})",
                name,
            )


def _check_splits(parts: _Parts) -> Iterator[tuple[Loc, str, Any]]:
    """Tasks of the stream are trained on and tested; what is for evaluation only stands under `evaluate.retention_tasks`."""
    raw = parts.data.get("evaluate", {})
    evaluate = parts.part(EvaluateConfig, raw)
    if evaluate is None:
        return
    in_stream = ["train", evaluate.split, *(["valid"] if evaluate.drift else [])]
    listed = raw.get("retention_tasks") if isinstance(raw, Mapping) else evaluate.retention_tasks
    for loc, entries, needed in (
        (("tasks",), parts.entries("tasks"), in_stream),
        (("evaluate", "retention_tasks"), listed or [], [evaluate.split]),
    ):
        for i, entry in enumerate(entries):
            config = parts.part(TaskConfig, entry)
            task = config.make() if config else None
            lacks = [split for split in needed if split not in getattr(task, "splits", needed)]
            if lacks:
                has = " and ".join(task.splits)
                reason = f": {task.why_not(lacks[0])}" if hasattr(task, "why_not") else ""
                yield (
                    (*loc, i),
                    f"{config.name!r} has {has} examples only, and {lacks[0]} ones are needed here{reason}",
                    config.name,
                )


def _check_orders(orders: Any, tasks: Sequence[Any]) -> Iterator[tuple[Loc, str, Any]]:
    known = [name for name in tasks if isinstance(name, str)]
    for label, order in orders.items() if isinstance(orders, Mapping) else ():
        if not re.fullmatch(SLUG.strip("^$"), str(label)):
            yield ("orders", label), "a label consists of letters, digits, '_' and '-'", label
        if not isinstance(order, list):
            continue  # its type is reported
        if not order:
            yield ("orders", label), "an order names at least one task", order
        for i, name in enumerate(order):
            if isinstance(name, str) and known and name not in known:
                yield ("orders", label, i), f"unknown task {name!r}{did_you_mean(name, known)}", name
            elif name in order[:i]:
                yield ("orders", label, i), f"task {name!r} comes twice", name


def _check_seeds(seeds: Sequence[Any]) -> Iterator[tuple[Loc, str, Any]]:
    for i, seed in enumerate(seeds):
        if isinstance(seed, int) and not 0 <= seed < 2**32:
            yield ("seeds", i), "a seed is between 0 and 4294967295", seed
        elif seed in seeds[:i]:
            yield ("seeds", i), f"seed {seed} comes twice", seed


def _check_method(method: Mapping[str, Any], parts: _Parts) -> Iterator[tuple[Loc, str]]:
    reasoning, strategy, per_task = (method.get(key) for key in ("reasoning", "strategy", "per_task"))
    if reasoning and strategy:
        for mine, other, key in ((reasoning, strategy, "reasoning"), (strategy, reasoning, "strategy")):
            reason = getattr(mine.cls, "refuses", lambda *_: None)(mine.settings, other.name)
            if reason:
                yield (key,), f"{reasoning.name} and {strategy.name} do not go together: {reason}"
                break  # one reason is enough for a pair
    if strategy and parts.backbone and parts.backbone.quantization and getattr(strategy.learns_as, "writes_weights", True):
        yield (
            ("strategy",),
            f"{strategy.name} trains the backbone's own weights, which quantization: {parts.backbone.quantization} makes too "
            "coarse to learn: use lora or frozen_backbone",
        )
    if reasoning and not parts.assistant and _needs_assistant(reasoning):
        yield (
            ("reasoning",),
            f"{reasoning.name} with these settings needs an assistant: give `assistant:` a model",
        )
    if per_task and not parts.assistant and per_task.routing == "nearest":
        yield (
            ("per_task", "routing"),
            "nearest finds the task from an assistant's states: give `assistant:` a model",
        )
    if per_task and strategy and not getattr(strategy.cls, "trains", True):
        yield ("per_task",), f"{strategy.name} trains nothing, so there is nothing to keep one copy a task of"
    if strategy and getattr(strategy.cls, "reference", None):
        for key, what in (("per_task", "one copy a task"), ("plugins", "plug-ins")):
            if method.get(key):
                yield (key,), f"{strategy.name} is a reference without a sequence, where {what} would mean nothing"
    if method.get("plugins") and strategy and not getattr(strategy.cls, "trains", True):
        yield ("plugins",), f"{strategy.name} trains nothing, so that plug-ins of the training have no effect"
    if parts.train is None:
        return
    train = _merged(parts.train, method.get("train"))
    already = set(parts.train.clashes())  # told where they are
    yield from ((("train", field), wrong) for field, wrong in train.clashes() if (field, wrong) not in already)
    if train.sharding == "full" and strategy and getattr(strategy.cls, "trains", True):
        if not strategy.learns_as.changes_backbone:
            yield ("strategy",), f"sharding: full splits the backbone's own weights, and {strategy.name} does not train them"
        elif per_task:
            yield ("per_task",), "sharding: full keeps one copy of the backbone's weights, not one a task"
    for i, plugin in enumerate(method.get("plugins") or ()):
        try:
            registry.build_plugin(plugin.model_dump(), train.global_batch_size)
        except UserError as error:
            yield ("plugins", i), told(error)


def _needs_assistant(reasoning: ReasoningConfig) -> bool:
    """What the class says (`needs_assistant(settings)`); otherwise its `source`: only free vectors need none."""
    says = getattr(reasoning.cls, "needs_assistant", None)
    if callable(says):
        return bool(says(reasoning.settings))
    return getattr(reasoning.settings, "source", None) in ("assistant", "random")


# --- loading ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Loaded:
    """An experiment as it was asked for.

    Attributes:
        config: everything resolved.
        source_path: the file that was named.
        sources: every file that was read: `source_path`, then its bases.
        overrides: the `key=value` texts, in order.
    """

    config: Experiment
    source_path: Path
    sources: tuple[Path, ...]
    overrides: tuple[str, ...]


def load_experiment(path: str | Path, overrides: Sequence[str] = ()) -> Loaded:
    """Reads, overrides and validates an experiment.

    Args:
        path: the YAML file. `base: other.yaml` in it is read first (maps are merged, lists and everything else are
            replaced; `methods_add:` and `tasks_add:` append; `methods_only: [a, b]` keeps those methods). `name` and
            `output_dir` are not inherited, so that two files never share the folder of their results by accident.
        overrides: `dotted.key=value`, the value being YAML; entries of lists are addressed by index or by name:
            `methods.full_coconut.train.steps=60`.

    Raises:
        UserError: with everything that is wrong, one problem a line: `file:line:col: key: what`.
    """
    path = Path(path).expanduser()
    overrides = tuple(overrides)
    tree, files = _yaml.read_file(path, _APPENDABLE)
    for key in ("name", "output_dir"):
        if key in tree.data and tree.mark((key,), key=True).name != str(path):
            tree.forget((key,))
            del tree.data[key]
    tree.data.setdefault("name", path.stem)
    for text in overrides:
        _yaml.override(tree, text, _SHORT_FORMS, source=len(files))
    _choose_methods(tree)
    config, problems = validated(tree, Experiment)
    if problems:
        raise UserError("\n".join(map(str, problems)))
    assert config is not None
    return Loaded(config, path, tuple(files), overrides)


def _choose_methods(tree: Tree) -> None:
    """`methods_only: [a, b]` keeps those methods, in the order of `methods`."""
    wanted = tree.data.pop("methods_only", None)
    if wanted is None:
        return
    mark, methods = tree.mark(("methods_only",)), tree.data.get("methods")
    if not isinstance(methods, list):
        return  # that is told by itself
    known = [_name_of(entry) for entry in methods]
    if not isinstance(wanted, list) or not wanted:
        tree.problems.append(Problem(mark, "methods_only: should be a list of methods, such as [full_coconut, softcot]"))
        return
    for name in wanted:
        if name not in known:
            tree.problems.append(Problem(mark, f"methods_only: unknown method {name!r}{did_you_mean(name, filter(None, known))}"))
    kept = [i for i, name in enumerate(known) if name in wanted]
    if kept:
        before = Tree(tree.data, dict(tree.keys), dict(tree.values))
        tree.forget(("methods",))
        tree.values["methods",] = before.mark(("methods",))
        for new, old in enumerate(kept):
            tree.adopt(before, ("methods", old), ("methods", new))
        tree.data["methods"] = [methods[i] for i in kept]


def validated(tree: Tree, model: type[Any]) -> tuple[Any, list[Problem]]:
    """The data of a tree as a model, and everything that is wrong with them, each with its place."""
    problems, config = set(tree.problems), None
    already = {problem.mark for problem in problems}  # what follows from those would only confuse
    try:
        # A copy: a validator of somebody's may change what it is given.
        config = model.model_validate(copy.deepcopy(tree.data))
    except ValidationError as error:
        texts: dict[tuple[Mark, str], list[str]] = {}
        for one in error.errors(include_url=False):
            mark, label = _place(tree, one)
            said = texts.setdefault((mark, label), [])
            text = worded(one, model)
            if text not in said:
                said.append(text)
        # Several errors about one value are the ways in which it could have been right.
        problems |= {
            Problem(mark, f"{label}: {alternatives(said)}" if label else alternatives(said))
            for (mark, label), said in texts.items()
            if mark not in already
        }
    return config, sorted(problems)


def _place(tree: Tree, error: Any) -> tuple[Mark, str]:
    """Where an error is, and how the command line would address that."""
    loc, here, found = tuple(error["loc"]), tree.data, 0
    for part in loc:
        if not _yaml.has(here, part):
            break
        here, found = here[part], found + 1
    known = loc[:found]  # without what is missing, and without pydantic's tags of unions
    if error["type"] == "missing":
        return tree.mark(known), tree.label(loc)
    return tree.mark(known, key=error["type"] == "extra_forbidden"), tree.label(known)


# --- writing ---------------------------------------------------------------------------------------


def to_data(config: Experiment) -> dict[str, Any]:
    """The resolved config as plain data; `Experiment.model_validate` takes it back."""
    return config.model_dump(mode="json")


def to_yaml(config: Experiment) -> str:
    """The resolved config as YAML that `load_experiment` reads back as the same."""
    return _yaml.dump(to_data(config))


def fingerprint(config: Experiment) -> str:
    """SHA-256, in hex, of all that can change a number: everything but `output_dir` and `tracking`."""
    return _hash({key: value for key, value in identity_of(config).items() if key not in ("output_dir", "tracking")})


def run_fingerprint(config: Experiment, method: str, order: str, seed: int) -> str:
    """SHA-256, in hex, of all that can change the numbers of one run.

    Unlike `fingerprint` it stays the same when other methods, orders or seeds are added, so that their finished
    runs need not be done again.
    """
    data = identity_of(config)
    chosen = config.method(method)
    return _hash(
        {
            **{key: data[key] for key in ("backbone", "assistant", "evaluate")},
            "tasks": [identity_of(task) for task in config.tasks_in(order)],
            "train": identity_of(config.train_for(chosen)),
            "method": {k: v for k, v in identity_of(chosen).items() if k != "train"},
            "seed": seed,
            **({"diagnostics": [identity_of(d) for d in config.measured]} if config.measured else {}),
        }
    )


def _hash(data: Any) -> str:
    canonical = json.dumps(data, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return hashlib.sha256(canonical.encode("utf-8")).hexdigest()


def json_schema() -> dict[str, Any]:
    """The JSON schema of an experiment's YAML, the settings of every known plug-in included, for editors.

    Put `# yaml-language-server: $schema=FILE` on the first line of a YAML file. Imports every plug-in.
    """
    schema = Experiment.model_json_schema()
    definitions = schema["$defs"]
    for model in (TaskConfig, ReasoningConfig, StrategyConfig, DiagnosticConfig):
        definitions[model.__name__] = _plugin_schema(model, definitions)
    text = {"type": "string"}
    definitions.pop("BaseModel", None)  # stood for settings
    plain = {"properties": {"name": text}, "required": ["name"], "additionalProperties": True}
    definitions["PluginConfig"] = {
        "anyOf": [text, {"type": "object", **plain}],
        "description": PluginConfig.__doc__,
    }
    definitions["ModelConfig"] = {"anyOf": [text, definitions["ModelConfig"]]}
    properties = schema["properties"]
    properties["base"] = {
        **text,
        "description": "another YAML file, relative to this one, that is read first",
    }
    for key in _APPENDABLE:
        added = {"items": properties[key]["items"], "type": "array"}
        properties[f"{key}_add"] = {**added, "description": f"entries behind those of `{key}` in the base"}
    names = {"items": text, "type": "array", "minItems": 1}
    properties["methods_only"] = {**names, "description": "the methods to keep, by name (left out: all)"}
    schema.pop("required", None)  # a base may hold what is missing here
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}


def _plugin_schema(model: type[_PlugIn], definitions: dict[str, Any]) -> dict[str, Any]:
    fields = {name: info for name, info in model.model_fields.items() if name != "settings"}
    own = {
        name: {"type": "boolean" if info.annotation is bool else "string", "description": info.description}
        for name, info in fields.items()
    }
    required = [name for name, info in fields.items() if info.is_required()]
    own_class = {**own[model.selector], "pattern": ":"}
    names = registry.known(model.kind)
    choices: list[dict[str, Any]] = [
        {"enum": names},
        {
            "type": "object",
            "properties": {**own, model.selector: own_class},
            "required": required,
            "additionalProperties": True,
        },
    ]
    if model.selector == "name":
        choices.append(own_class)
    for name in names:
        settings = registry.find(model.kind, name).Settings
        prefix = f"{model.kind}-{name}-"
        described = settings.model_json_schema(ref_template=f"#/$defs/{prefix}{{model}}")
        definitions |= {prefix + key: value for key, value in described.pop("$defs", {}).items()}
        shared = {"type": "object", "additionalProperties": False}
        chosen = {model.selector: {"const": name}}
        options = described.get("properties", {})
        needed = [*required, *described.get("required", [])]
        choices.append({**shared, "properties": {**own, **chosen, **options}, "required": needed})
        if model.selector != "name":  # the label alone, where it is the name of the file too
            label = {"name": {"const": name}, **options}
            choices.append({**shared, "properties": label, "required": ["name", *described.get("required", [])]})
    return {"anyOf": choices, "description": inspect.getdoc(model)}


if __name__ == "__main__":
    print(dump_json(json_schema(), indent=2))
