"""``result.json`` as one model: what a run writes is made here, read here, documented here, and made up here for tests.

Schema 2 is what is written now; it adds ``routing_accuracy`` and ``metrics``. Schema 1 is read as it is: what an older record
lacks is None (or an empty section), and reports say 'not measured'. Keys that a record has and this file does not know are kept.

A new number of a run is a field here, with what it means, and whatever computes it; tables of fields follow by themselves.
"""

from __future__ import annotations

import types
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar, Union, get_args, get_origin

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from cl_softcot.errors import UserError
from cl_softcot.printable import visible

SCHEMA = 2
VIEWS = ("as_used", "weights_alone")

_T = TypeVar("_T")
# A whole number stays one and a fraction keeps every bit: what was read is written again as it was.
Real = int | float
Interval = list[Real | None] | None


class RecordPart(BaseModel):
    """A section of the record. It never changes; ``as_dict`` holds what was given and nothing else."""

    model_config = ConfigDict(extra="allow", frozen=True, populate_by_name=True, protected_namespaces=(), allow_inf_nan=False)

    def as_dict(self) -> dict[str, Any]:
        """Plain data, as ``result.json`` holds it."""
        return self.model_dump(exclude_unset=True, by_alias=True)


class Chosen(RecordPart):
    """A plug-in by its name, and its settings beside it."""

    name: str = Field(description="which one; its settings stand beside the name")


def _by_name(value: Any) -> Any:
    return {"name": value} if isinstance(value, str) else value


Plugin = Annotated[Chosen, BeforeValidator(_by_name)]


class PerTask(RecordPart):
    routing: str = Field("oracle", description="`oracle`: the task is told; `nearest`: it is found from the assistant's states")
    unseen: str = Field("base", description="who answers a question that no copy claims")


class Accuracy(RecordPart):
    """On the stream's tasks, as used. Row i is after experience i, row 0 the base; column j is the task of experience j + 1."""

    matrix: list[list[Real | None]] = Field(
        description="R[i][j], fraction, higher is better: accuracy on task j after experience i; row 0: the base's zero-shot CoT"
    )
    n: list[int] | None = Field(None, description="test questions of each task")
    intervals: list[list[Interval]] | None = Field(
        None, description="95 % bootstrap interval of each entry of R, [low, high], over test questions"
    )
    unanswered: list[list[int | None]] | None = Field(
        None, description="questions of each entry of R whose text holds no answer (counted wrong); lower is better"
    )
    untrained: list[Real | None] | None = Field(
        None, description="fraction: the base on each task in the method's own mode, nothing learned; compare with row 0"
    )
    by: list[dict[str, dict[str, list[Real]]]] | None = Field(
        None, description="each entry of R by what the task breaks down by: {task: {`hops=2`: [accuracy, questions]}}"
    )
    untrained_unanswered: list[int | None] | None = Field(
        None, description="questions of each entry of `untrained` whose text holds no answer"
    )
    asked: list[list[int]] | None = Field(
        None,
        description="questions of each entry of R, where rows before the last were asked fewer than `n` (`evaluate.between`)",
    )


class RetentionRow(RecordPart):
    """Accuracy on the base's own abilities after one experience."""

    families: dict[str, Real | None] = Field({}, description="fraction, higher is better: accuracy on each family")
    n: dict[str, int] = Field({}, description="questions of each family")
    intervals: dict[str, Interval] | None = Field(None, description="95 % bootstrap interval of each family's accuracy")
    all: Real | None = Field(None, description="fraction, higher is better: mean over all families")
    all_interval: Interval = Field(None, description="95 % interval of `all`, questions resampled inside each family")
    same_family: Real | None = Field(None, description="the same over families that the stream trains on")
    same_family_interval: Interval = Field(None, description="95 % interval of `same_family`")
    unrelated: Real | None = Field(None, description="the same over families that the stream never touches")
    unrelated_interval: Interval = Field(None, description="95 % interval of `unrelated`")
    unanswered: dict[str, int] | None = Field(
        None, description="questions of each family whose text holds no answer (counted wrong); lower is better"
    )


class Retention(RecordPart):
    families: list[str] = Field([], description="the base's own families that are measured")
    same_family: list[str] | None = Field(None, description="those of them that a task of the stream belongs to")
    as_used: list[RetentionRow | None] = Field(
        [], description="a row an experience, with everything that the method brings; null: not measured after this one"
    )
    weights_alone: list[RetentionRow | None] = Field(
        [], description="the same of the bare weights in plain CoT: an integrity check, the base's own where these are frozen"
    )


class OtherReading(RecordPart):
    """The same answers in the reading that is not the headline; sections like those of the record."""

    reading: str = Field(description="`flexible` (what a person would read), or `strict` (the format was followed)")
    accuracy: Accuracy = Field(description="accuracy on the stream's tasks in this reading")
    summary: dict[str, Any] = Field({}, description="the numbers of `summary` in this reading, without flips")
    retention: Retention = Field(default_factory=Retention, description="accuracy on the base's own abilities in this reading")

    def retention_row(self, view: str, row: int) -> RetentionRow | None:
        """Retention after an experience (-1: the last); None where it was not measured."""
        return _at_row(getattr(self.retention, view), row)


class Drift(RecordPart):
    as_used: list[dict[str, Any] | None] = Field(
        [],
        description="a row an experience: `forward_kl/<set>` = KL(base‖model) on the base's text, `reverse_kl/<set>` = "
        "KL(model‖base) on the model's samples; nats per token, 0 is no drift; sets: `general` text, and each task's prompts",
    )
    weights_alone: list[dict[str, Any] | None] = Field([], description="the same of the bare weights in plain CoT")


class Cost(RecordPart):
    trained_parameters: Real | None = Field(None, description="count: numbers that are trained, of all copies together")
    trained_parameters_per_copy: Real | None = Field(None, description="count: the same of one copy")
    tokens_per_answer: Real | None = Field(None, description="written tokens and end of text of an answer, mean at the end")
    forward_passes_per_answer: Real | None = Field(
        None, description="sequential forward passes of an answer, thoughts included, mean at the end"
    )
    train_seconds: Real | None = Field(None, description="seconds of training, all turns")
    evaluate_seconds: Real | None = Field(None, description="seconds of measuring, all rows")
    assistant_seconds: Real | None = Field(
        None, description="seconds, a part of both: reading the assistant's states from the cache, or computing them"
    )
    optimiser_steps: int | None = Field(None, description="count: optimiser steps of all turns")
    examples_per_task: int | None = Field(None, description="count: training examples of a task")
    peak_memory_mb: Real | None = Field(None, description="largest memory of the process, MB (of the GPU's where it has one)")


class Flips(RecordPart):
    """A task's questions that changed sides; fractions, see the metrics `flips/*`."""

    since_own: dict[str, dict[str, Real]] | None = Field(
        None, description="later row -> `forgotten`, `gained`, `chance`, ... since the task's own turn (arXiv 2510.17776)"
    )
    since_base: dict[str, dict[str, Real]] | None = Field(None, description="the same since the base")
    n_options: int | list[int | None] | None = Field(
        None, description="answers to choose from, one number where all questions have as many; null: open answers"
    )


class Frozen(RecordPart):
    backbone_sha256_before: str | None = Field(None, description="SHA-256 of the backbone's weights before the first turn")
    backbone_sha256_after: str | None = Field(None, description="and after the last")
    unchanged: bool | None = Field(None, description="whether they are the same to the bit")


class Machine(RecordPart):
    processor: str | None = Field(None, description="kind of processor")
    system: str | None = Field(None, description="operating system")
    device: str | None = Field(None, description="where the backbone was: `cpu`, `cuda:0`, ...")
    processes: int | None = Field(None, description="processes that did the run together")
    processes_before: list[int] | None = Field(None, description="earlier numbers of them, where a run went on with others")


class MetricMeaning(RecordPart):
    """What a metric of the experiment's own says, so that a reader needs not its code."""

    formula: str = Field(description="how it is computed")
    source: str = Field(description="where that comes from")
    unit: str = Field(description="its unit")
    direction: str = Field(description="which way is better")
    function: str | None = Field(None, description="`package.module:function` that computes it")


class Rows:
    """What a finished record and one that grows have in common: rows, one an experience."""

    if TYPE_CHECKING:
        tasks: list[str]
        accuracy: Accuracy
        retention: Retention
        drift: Drift
        other_reading: OtherReading | None

        def as_dict(self) -> dict[str, Any]: ...

    def retention_row(self, view: str, row: int) -> RetentionRow | None:
        """Retention after an experience (-1: the last); None where it was not measured."""
        return _at_row(getattr(self.retention, view), row)

    def drift_row(self, view: str, row: int) -> dict[str, Any]:
        """Drift after an experience (-1: the last); empty where it was not measured."""
        return _at_row(getattr(self.drift, view), row) or {}

    @cached_property
    def data(self) -> dict[str, Any]:
        """``as_dict``, made once; not to be changed."""
        return self.as_dict()

    def at(self, path: str) -> Any:
        """What stands at a dotted path, such as `summary.acc` or `retention.as_used.all`.

        Where the path meets a list of rows (one an experience), the last row counts. None where a row was not measured.

        Raises:
            KeyError: if the record holds nothing of that name.
        """
        here: Any = self.data
        for part in path.split("."):
            if isinstance(here, Sequence) and not isinstance(here, str):
                here = here[-1] if here else None
            if here is None:
                return None
            if not isinstance(here, Mapping) or part not in here:
                raise KeyError(path)
            here = here[part]
        return here


class PartialRecord(Rows, RecordPart):
    """What a run knows of itself while it goes on: every list holds the rows so far."""

    tasks: list[str] = Field([], description="the stream's tasks in the order in which they are learned")
    accuracy: Accuracy = Field(description="accuracy on the stream's tasks")
    retention: Retention = Field(default_factory=Retention, description="accuracy on the base's own abilities")
    drift: Drift = Field(default_factory=Drift, description="how far the model's answers moved from the base's")
    other_reading: OtherReading | None = Field(None, description="the rows so far in the reading that is not the headline")


class RunRecord(Rows, RecordPart):
    """What a finished run leaves behind: ``result.json``, its fields in the order of the file."""

    schema_version: int = Field(1, alias="schema", description="2; 1 lacks what later records have")
    experiment: str = Field("", description="name of the experiment")
    method: str = Field(description="name of the method: with `order` and `seed`, which run of the experiment this is")
    order: str = Field("given", description="name of the task order")
    seed: int = Field(0, description="seed of the training data's order and of what is drawn")
    tasks: list[str] = Field([], description="the stream's tasks in the order in which they were learned")
    families: dict[str, str] | None = Field(None, description="the family of each task")
    reasoning: Plugin | None = Field(None, description="how it thinks: the way of thinking and its settings")
    strategy: Plugin | None = Field(None, description="what learns: the strategy and its settings")
    reference: str | None = Field(
        None,
        description="`joint` or `single_task` where the run is a reference, whose forgetting has no meaning; null: a method",
    )
    per_task: PerTask | None = Field(None, description="who finds the copy of a question; null: one copy for all tasks")
    plugins: list[Plugin] = Field([], description="Avalanche's plug-ins and their settings")
    split: str | None = Field(None, description="what was measured: `test`, or `valid` while settings were chosen")
    reading: str | None = Field(
        None, description="which reading of the answers all numbers stand on: `strict` (null too), or `flexible`"
    )
    accuracy: Accuracy = Field(description="accuracy on the stream's tasks")
    summary: dict[str, Any] = Field(
        {},
        description="one number a name that says its convention (`acc`, `bwt/gem`, `forgetting/chaudhry`, ...: `metrics` has "
        "formula, source, unit and direction), null where undefined; `<name>_interval`: 95 %, over test questions",
    )
    metrics: dict[str, MetricMeaning] | None = Field(
        None, description="what the experiment's own metrics (`evaluate.metrics`) in `summary` mean"
    )
    other_reading: OtherReading | None = Field(
        None, description="accuracy and retention in the reading that is not the headline; null: it was not made"
    )
    flips: dict[str, Flips] | None = Field(None, description="each task's questions that went from right to wrong and back")
    retention: Retention = Field(default_factory=Retention, description="accuracy on the base's own abilities")
    drift: Drift = Field(default_factory=Drift, description="how far the model's answers moved from the base's")
    routing: list[dict[str, dict[str, Real]] | None] | None = Field(
        None,
        description="a row an experience, of per-task methods: {set: {copy: share of its questions}}; `base`: no copy claims "
        "them; `retention/<family>` are sets of the base's own abilities",
    )
    routing_accuracy: list[Real | None] | None = Field(
        None,
        description="a row an experience, of per-task methods: share of the stream's questions that go to their own task's copy, "
        "or to none where their task has none yet; fraction, higher is better",
    )
    cost: Cost = Field(default_factory=Cost, description="what training and answering took")
    losses: list[list[Real | None]] | None = Field(
        None, description="a list a turn: mean training loss of every ten steps, nats per token"
    )
    diagnostics: dict[str, dict[str, Any]] | None = Field(
        None,
        description="what each diagnostic found, {name: {`rows`: {experience: numbers}, `seconds`}}, or why `skipped`",
    )
    frozen: Frozen = Field(default_factory=Frozen, description="the backbone's weights, hashed")
    train_fingerprints: list[str] | None = Field(None, description="fingerprint of each task's training data")
    task_data: dict[str, str] | None = Field(
        None,
        description="by task of the user's own data: how many rows each split has, what was left out, the hub's commit",
    )
    config_fingerprint: str | None = Field(None, description="SHA-256 of every setting that can move a number of this run")
    machine: Machine = Field(default_factory=Machine, description="what did the work")
    user_modules: dict[str, str] | None = Field(
        None, description="SHA-256 of each module of the user's own that the experiment names; from schema 2 on"
    )
    versions: dict[str, Any] | None = Field(None, description="versions of the packages that computed the numbers")
    revision: str | None = Field(None, description="git revision of the code; `+dirty`: with changes that were not committed")
    finished: str | None = Field(None, description="when, UTC")

    folder: Path | None = Field(None, exclude=True, description="where the record was read from; not in the file")

    @property
    def trained(self) -> bool:
        """Whether the method learned anything at all."""
        return bool(self.cost.trained_parameters) and self.strategy_name != "zero_shot"

    @property
    def headline(self) -> str:
        """The reading that all numbers stand on; before there were two it was the strict one."""
        return self.reading or "strict"

    @property
    def strategy_name(self) -> str:
        return self.strategy.name if self.strategy else ""

    @property
    def reasoning_name(self) -> str:
        return self.reasoning.name if self.reasoning else ""

    @property
    def last_row(self) -> int:
        """The number of the last row of R: its experiences."""
        return len(self.accuracy.matrix) - 1

    def in_folder(self, folder: str | Path) -> RunRecord:
        """The same record, which knows where it stands."""
        return self.model_copy(update={"folder": Path(folder)})

    def with_summary(self, values: Mapping[str, Any], metrics: Mapping[str, MetricMeaning]) -> RunRecord:
        """The same record with more numbers in its summary."""
        known = {**(self.metrics or {}), **metrics}
        return self.model_copy(update={"summary": {**self.summary, **values}, "metrics": known})

    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> RunRecord:
        made = super().model_copy(update=update, deep=deep)
        made.__dict__.pop("data", None)  # made from the old fields
        return made


def whole(row: Sequence[_T | None]) -> list[_T]:
    """A row of which every entry was measured."""
    found = [entry for entry in row if entry is not None]
    assert len(found) == len(row), "the rows of a run are measured whole"
    return found


def _at_row(rows: Sequence[Any], row: int) -> Any:
    try:
        return rows[row]
    except IndexError:
        return None


# ------------------------------------------------------------------------------------------------------------- reading


def read_record(data: Any, *, where: str | Path | None = None, folder: str | Path | None = None) -> RunRecord:
    """The record that ``result.json`` holds, of this schema or an earlier one.

    Raises:
        UserError: if it is none, or one of a later version of this package.
    """
    place = None if where is None else str(where)
    if not isinstance(data, Mapping) or "method" not in data:
        raise UserError("not the result of a run", where=place)
    if isinstance(data.get("schema", 1), int) and data.get("schema", 1) > SCHEMA:
        raise UserError(
            f"the result of a run by a later version of this package (schema {data['schema']}, known: {SCHEMA})", where=place
        )
    try:
        record = RunRecord.model_validate(_clean(dict(data)))
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(map(str, first["loc"]))
        raise UserError(f"not the result of a run: {field}: {first['msg'].lower()}", where=place) from None
    if wrong := next(_misshapen(record), None):
        raise UserError(f"not the result of a run: {wrong}", where=place)
    return record if folder is None else record.in_folder(folder)


def _misshapen(record: RunRecord) -> Iterator[str]:
    """What types cannot say: lists that do not belong together, and numbers that are none."""
    accuracy, tasks = record.accuracy, len(record.tasks)
    if not accuracy.matrix or None in accuracy.matrix[0]:
        yield "accuracy.matrix: has no first row"
    wide: dict[str, Sequence[Sequence[Any]]] = {
        "matrix": accuracy.matrix,
        "intervals": accuracy.intervals or [],
        "unanswered": accuracy.unanswered or [],
    }
    for name, rows in wide.items():
        if any(len(row) != (tasks or len(accuracy.matrix[0])) for row in rows):
            yield f"accuracy.{name}: a row is not as long as the list of tasks"
        if len(rows) not in (0, len(accuracy.matrix)):
            yield f"accuracy.{name}: not as many rows as accuracy.matrix"
    for name, entries in (("n", accuracy.n), ("untrained", accuracy.untrained)):
        if entries is not None and len(entries) != (tasks or len(entries)):
            yield f"accuracy.{name}: not as many entries as tasks"
    sections = [("summary", record.summary)]
    sections += [(f"drift.{view}", row or {}) for view in VIEWS for row in getattr(record.drift, view)]
    for section, values in sections:
        for key, value in values.items():
            if not key.endswith(("_interval", "_intervals")) and isinstance(value, str | bool):
                yield f"{section}.{key}: not a number"
            if key.endswith("_interval") and not (value is None or isinstance(value, list) and len(value) == 2):
                yield f"{section}.{key}: not two numbers"


_NAMES = ("experiment", "method", "order", "tasks")


def _clean(data: Any, *, lines: bool = True) -> Any:
    """The same without control characters and lone surrogates, which no record of ours has and a terminal would obey."""
    if isinstance(data, str):
        return visible(data, lines=lines)
    if isinstance(data, Mapping):
        return {
            visible(key, lines=False) if isinstance(key, str) else key: _clean(value, lines=lines and key not in _NAMES)
            for key, value in data.items()
        }
    return [_clean(value, lines=lines) for value in data] if isinstance(data, list) else data


# ---------------------------------------------------------------------------------------------------------- documented


def record_fields() -> str:
    """Every field of the record as a Markdown table: its dotted name, its type, what it means."""
    lines = ["| field | type | meaning |", "|:---|:---|:---|"]
    lines += [f"| `{name}` | {kind} | {meaning} |" for name, kind, meaning in fields_of(RunRecord)]
    return "\n".join(lines) + "\n"


def fields_of(model: type[RecordPart], prefix: str = "") -> Iterator[tuple[str, str, str]]:
    """(dotted name, type in words, meaning) of every field, of the sections' fields too; ``[i]`` and ``<name>`` stand for any."""
    for name, info in model.model_fields.items():
        if info.exclude:
            continue
        path = f"{prefix}{info.alias or name}"
        yield path, _words(info.annotation), (info.description or "").replace("|", "\\|")
        for place, inside in _sections(info.annotation):
            yield from fields_of(inside, f"{path}{place}.")


def _sections(kind: Any) -> Iterable[tuple[str, type[RecordPart]]]:
    """The models inside a field's type, and how a path goes on to them."""
    if isinstance(kind, type) and issubclass(kind, RecordPart):
        return [("", kind)]
    origin, inside = get_origin(kind), [a for a in get_args(kind) if a is not type(None)]
    if origin is Annotated:
        return _sections(inside[0])
    step = {list: "[i]", dict: ".<name>"}.get(origin, "")
    parts = inside[-1:] if step else inside  # of a map its values
    return [(step + place, model) for part in parts for place, model in _sections(part)]


def _words(kind: Any) -> str:
    """A type as a reader of JSON calls it."""
    origin, inside = get_origin(kind), get_args(kind)
    if origin is Annotated:
        return _words(inside[0])
    if origin in (Union, types.UnionType):
        named = dict.fromkeys(_words(part) for part in inside if part is not type(None))
        names = [name for name in named if name != "whole number" or "number" not in named]
        return " or ".join([*names, *(["null"] if type(None) in inside else [])])
    if origin is list:
        return f"list of {_words(inside[0]).removesuffix(' or null')}"
    if origin is dict:
        return f"map to {_words(inside[1]).removesuffix(' or null')}"
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        return "section"
    return {int: "whole number", float: "number", str: "text", bool: "true or false"}.get(kind, "any")
