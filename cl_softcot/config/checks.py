"""What has to fit together in an experiment, told along with all that is wrong by itself."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from typing import Any

from pydantic import (
    TypeAdapter,
    ValidationError,
)

from cl_softcot import registry
from cl_softcot.config.plugins import TaskConfig
from cl_softcot.config.problems import SLUG, told
from cl_softcot.config.settings import EvaluateConfig, MethodConfig, ModelConfig, TrainConfig, merged, name_of
from cl_softcot.config.yaml import Loc
from cl_softcot.errors import UserError, did_you_mean


class WellFormed:
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
        return [name_of(entry) for entry in self.entries(key)]

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


def cross_checks(parts: WellFormed) -> Iterator[tuple[Loc, str, Any]]:
    for key in ("tasks", "methods", "diagnostics"):
        yield from _repeated_names((key,), parts.named(key))
    evaluate = parts.data.get("evaluate")
    if isinstance(evaluate, Mapping) and isinstance(evaluate.get("retention_tasks"), list):
        names = [name_of(entry) for entry in evaluate["retention_tasks"]]
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


def _check_splits(parts: WellFormed) -> Iterator[tuple[Loc, str, Any]]:
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
            if config is None:
                continue
            task = config.make()
            lacks = [split for split in needed if split not in task.splits]
            if lacks:
                has, reason = " and ".join(task.splits), task.why_not(lacks[0])
                yield (
                    (*loc, i),
                    f"{config.name!r} has {has} examples only, and {lacks[0]} ones are needed here: {reason}",
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


def _check_method(method: Mapping[str, Any], parts: WellFormed) -> Iterator[tuple[Loc, str]]:
    reasoning, strategy, per_task = (method.get(key) for key in ("reasoning", "strategy", "per_task"))
    if reasoning and strategy:
        for mine, other, key in ((reasoning, strategy, "reasoning"), (strategy, reasoning, "strategy")):
            reason = mine.cls.refuses(mine.settings, other.name)
            if reason:
                yield (key,), f"{reasoning.name} and {strategy.name} do not go together: {reason}"
                break  # one reason is enough for a pair
    if strategy and parts.backbone and parts.backbone.quantization and strategy.learns_as.writes_weights:
        others = " or ".join(names_that(lambda learns: not learns.writes_weights))
        yield (
            ("strategy",),
            f"{strategy.name} trains the backbone's own weights, which quantization: {parts.backbone.quantization} makes too "
            f"coarse to learn: use {others}",
        )
    if reasoning and not parts.assistant and reasoning.cls.needs_assistant(reasoning.settings):
        yield (
            ("reasoning",),
            f"{reasoning.name} with these settings needs an assistant: give `assistant:` a model",
        )
    if per_task and not parts.assistant and per_task.routing == "nearest":
        yield (
            ("per_task", "routing"),
            "nearest finds the task from an assistant's states: give `assistant:` a model",
        )
    if per_task and strategy and not strategy.cls.trains:
        yield ("per_task",), f"{strategy.name} trains nothing, so there is nothing to keep one copy a task of"
    if strategy and strategy.cls.reference:
        for key, what in (("per_task", "one copy a task"), ("plugins", "plug-ins")):
            if method.get(key):
                yield (key,), f"{strategy.name} is a reference without a sequence, where {what} would mean nothing"
    if method.get("plugins") and strategy and not strategy.cls.trains:
        yield ("plugins",), f"{strategy.name} trains nothing, so that plug-ins of the training have no effect"
    if parts.train is None:
        return
    train = merged(parts.train, method.get("train"))
    already = set(parts.train.clashes())  # told where they are
    yield from ((("train", field), wrong) for field, wrong in train.clashes() if (field, wrong) not in already)
    if train.sharding == "full" and strategy and strategy.cls.trains:
        if not strategy.learns_as.changes_backbone:
            yield ("strategy",), f"sharding: full splits the backbone's own weights, and {strategy.name} does not train them"
        elif per_task:
            yield ("per_task",), "sharding: full keeps one copy of the backbone's weights, not one a task"
    for i, plugin in enumerate(method.get("plugins") or ()):
        try:
            registry.build_plugin(plugin.model_dump(), train.global_batch_size)
        except UserError as error:
            yield ("plugins", i), told(error)


def names_that(fits: Callable[[Any], bool]) -> list[str]:
    """The names of our strategies that learn turn by turn and fit; imports them all."""
    found = {name: registry.find("strategy", name) for name in registry.known("strategy")}
    return [name for name, learns in found.items() if learns.trains and not learns.reference and fits(learns)]
