"""The event log of a run: every number goes to `events.jsonl` on the disk before it goes anywhere else.

One JSON line an event: `{"time": ms, "kind": ..., "step": ..., "data": ...}`. Kinds are `log` (the first line:
the log's own id), `params`, `tags`, `metrics`, `artifact` and `status`. Each line is on the disk when the call
returns, so that a killed run loses nothing, and what the log already holds is not logged again, so that a
resumed run may simply repeat itself.

The functions at the end are the one home of the names under which trackers show a run's numbers.
"""

from __future__ import annotations

import hashlib
import math
import os
import secrets
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from cl_softcot.errors import UserError
from cl_softcot.files import append_jsonl, read_jsonl
from cl_softcot.results.folder import RunFolder
from cl_softcot.results.record import Accuracy, RetentionRow, Rows, RunRecord, whole

GROUPS = ("all", "same_family", "unrelated")
# What is shown of the summary in the reading that is not the headline.
OF_BOTH_READINGS = ("acc", "learning_accuracy", "bwt/gem", "unanswered/base", "unanswered/final")
# The columns of the table of runs: what the terminal's table has, by the names that trackers show.
HEADLINE = (
    "final/learning_accuracy", "final/acc", "final/bwt gem", "final/forgetting chaudhry", "final/retention as used",
    "final/drift as used",
)  # fmt: skip
_DIRECTIONS = ("forward_kl/", "reverse_kl/")  # not the numbers of tokens that they are means over
_GIVEN = ("trained_parameters_per_copy", "optimiser_steps", "examples_per_task")
STATUSES = ("RUNNING", "FINISHED", "FAILED", "KILLED")  # MLflow's words


class EventLog:
    """Appends events to `run_folder/events.jsonl`.

    Opening a folder that has a log goes on with it: a (step, key) pair, a parameter, a tag or an artifact that
    the log already holds is skipped. One process at a time writes a log.

    Raises:
        UserError: if the disk is full or the folder cannot be written.
    """

    def __init__(self, run_folder: str | Path):
        self.folder = Path(run_folder)
        self.path = RunFolder(self.folder).events
        self._metrics: set[tuple[int, str]] = set()
        self._params: dict[str, str] = {}
        self._tags: dict[str, str] = {}
        self._artifacts: set[str] = set()
        self._status: str | None = None
        events = read_events(self.folder)
        for event in events:
            self._remember(event)
        if not events:
            # The id tells this log from one that an earlier start wrote into the same folder, or that the same
            # configuration wrote into another: their numbers must not be mixed in one line of a chart.
            self._append("log", {"schema": 1, "id": secrets.token_hex(6)})

    def params(self, params: Mapping[str, Any]) -> None:
        """Settings, flattened to dotted keys. The first value of a key stays: parameters never change."""
        new = {k: v for k, v in flatten(params).items() if k not in self._params}
        self._append("params", new)

    def tags(self, tags: Mapping[str, Any]) -> None:
        """Labels to search and group by; a new value replaces the old one."""
        texts = {str(k): _text(v) for k, v in tags.items() if v is not None}
        self._append("tags", {k: v for k, v in texts.items() if self._tags.get(k) != v})

    def metrics(self, step: int, values: Mapping[str, float | None], time_ms: int | None = None) -> None:
        """Numbers at a step. What is missing or not finite is left out (a chart cannot show it)."""
        new = {
            str(key): float(value)
            for key, value in values.items()
            if value is not None and math.isfinite(value) and (int(step), str(key)) not in self._metrics
        }
        self._append("metrics", new, step=int(step), time_ms=time_ms)

    def artifact(self, path: str | Path) -> None:
        """A file inside the run folder that trackers should keep, by its path relative to the folder.

        A file that is written again later needs no second event: trackers compare contents.
        """
        relative = Path(path)
        if relative.is_absolute() or ".." in relative.parts:
            raise ValueError(f"an artifact's path is relative to the run folder, and inside it: {path}")
        if relative.as_posix() not in self._artifacts:
            self._append("artifact", relative.as_posix())

    @property
    def finished(self) -> bool:
        """Whether the log says so of its run."""
        return self._status == "FINISHED"

    def status(self, status: str, time_ms: int | None = None) -> None:
        """How the run stands: RUNNING, FINISHED, FAILED or KILLED."""
        if status not in STATUSES:
            raise ValueError(f"status must be one of {STATUSES}, not {status!r}")
        if status != self._status:
            self._append("status", status, time_ms=time_ms)

    def _append(self, kind: str, data: Any, *, step: int | None = None, time_ms: int | None = None) -> None:
        if not data:
            return
        event = {"time": int(time.time() * 1000) if time_ms is None else int(time_ms), "kind": kind}
        if step is not None:
            event["step"] = step
        event["data"] = data
        append_jsonl(self.path, event)
        self._remember(event)  # after the write: what failed to reach the disk may be tried again

    def _remember(self, event: Mapping[str, Any]) -> None:
        kind, data = event["kind"], event["data"]
        if kind == "metrics":
            self._metrics.update((event["step"], key) for key in data)
        elif kind == "params":
            self._params.update(data)
        elif kind == "tags":
            self._tags.update(data)
        elif kind == "artifact":
            self._artifacts.add(data)
        elif kind == "status":
            self._status = data


def read_events(run_folder: str | Path) -> list[dict[str, Any]]:
    """The whole lines of a run's log, in order; [] if there is none.

    Raises:
        UserError: if a line before the last is damaged.
    """
    path = RunFolder(Path(run_folder)).events
    events = read_jsonl(path, missing_ok=True)
    for number, event in enumerate(events, start=1):
        if not (isinstance(event, dict) and {"time", "kind", "data"} <= event.keys()):
            raise UserError("not an event of a run", where=f"{path}:{number}")
    return events


# --- names -----------------------------------------------------------------------------------------


def run_identity(config_fingerprint: str, method: str, order: str, seed: int) -> str:
    """A short id of one run of an experiment: the same configuration, method, order and seed give the same."""
    text = "\0".join([config_fingerprint, method, order, str(seed)])
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def run_tags(
    *,
    experiment: str,
    method: str,
    order: str,
    seed: int,
    tasks: Iterable[str],
    identity: str,
    color: str,
    reasoning: str | None = None,
    strategy: str | None = None,
    per_task: str | None = None,
    mlflow_experiment: str | None = None,
    folder: Path | None = None,
) -> dict[str, str]:
    """The tags that tie the flat runs of an experiment together, and give a method its colour in charts.

    Args:
        tasks: names in the order in which they are learned.
        identity: from `run_identity`.
        color: `#rrggbb`, from `results.colors.palette`.
        mlflow_experiment: the name to file the runs under, if it is not the experiment's own.
        folder: of the experiment's results: part of the run's name where it is called otherwise than the experiment.
    """
    sequence = " > ".join(tasks)
    name = f"{method} · seed {seed}" if order == "given" else f"{method} · {order} · seed {seed}"
    place = _called(folder) if folder else experiment
    name += f" · {place}" if place != experiment else ""
    tags = {
        "experiment": experiment,
        "sequence": sequence,
        "method": method,
        "order": order,
        "seed": str(seed),
        "reasoning": reasoning,
        "strategy": strategy,
        "per_task": per_task,
        "cl_softcot.run": identity,
        "cl_softcot.mlflow_experiment": mlflow_experiment,
        "mlflow.runName": name,
        "mlflow.runColor": color,
        "mlflow.source.name": "cl_softcot",
        "mlflow.note.content": f"**{method}** learns {sequence}, seed {seed}.",
    }
    return {key: value for key, value in tags.items() if value}


def _called(folder: Path) -> str:
    """A folder's name; with its parent's where it is only a number, as those of a sweep's trials are."""
    folder = Path(os.path.abspath(folder))
    return f"{folder.parent.name} {folder.name}" if folder.name.isdigit() else folder.name


def row_metrics(result: Rows, row: int) -> dict[str, float]:
    """The numbers of one row of a (possibly unfinished) record, by the names that trackers show.

    Log them with `step = row`: step 0 is the base model, step i is after experience i. The part before the
    first `/` becomes a section of MLflow's chart page, every name a chart in it with one line a run. Sections
    are sorted by name, which is why integrity checks with the weights alone are in a section of their own.
    """
    metrics: dict[str, float | None] = _accuracies(result.accuracy, result.tasks, row, "accuracy")
    used, bare = (result.retention_row(view, row) for view in ("as_used", "weights_alone"))
    metrics |= _retained(used, "retention/")
    metrics.update((f"weights alone/retention {key}", getattr(bare, key)) for key in GROUPS if bare)
    other = result.other_reading
    if other:
        metrics |= _accuracies(other.accuracy, result.tasks, row, f"accuracy {other.reading}")
        metrics |= _retained(other.retention_row("as_used", row), f"retention {other.reading}/")
    for view, prefix in (("as_used", "drift/"), ("weights_alone", "weights alone/drift ")):
        values = result.drift_row(view, row)
        # Names with a second slash would open a section for every direction.
        metrics.update((prefix + key.replace("/", " "), value) for key, value in values.items() if key.startswith(_DIRECTIONS))
    return {key: value for key, value in metrics.items() if value is not None}


def _accuracies(accuracy: Accuracy, tasks: Sequence[str], row: int, section: str) -> dict[str, float | None]:
    scores = accuracy.matrix[row] if row < len(accuracy.matrix) else []
    metrics: dict[str, float | None] = {f"{section}/{task}": score for task, score in zip(tasks, scores, strict=False)}
    metrics[f"{section}/mean of all tasks"] = _mean(scores)
    metrics[f"{section}/mean of learned tasks"] = _mean(scores[:row])
    asked = accuracy.asked[row] if accuracy.asked and row < len(accuracy.asked) else accuracy.n
    if accuracy.unanswered and asked and row < len(accuracy.unanswered):
        metrics[f"{section}/share unanswered"] = sum(whole(accuracy.unanswered[row])) / sum(asked)
    return metrics


def _retained(row: RetentionRow | None, prefix: str) -> dict[str, float | None]:
    if row is None:
        return {}
    metrics: dict[str, float | None] = {f"{prefix}{key}": getattr(row, key) for key in GROUPS}
    metrics.update((f"{prefix}family {family}", score) for family, score in row.families.items())
    if row.unanswered:
        metrics[f"{prefix}share unanswered"] = sum(row.unanswered.values()) / sum(row.n.values())
    return metrics


def final_metrics(result: RunRecord) -> dict[str, float]:
    """The numbers of a finished run that are one value each.

    Log them once, with `step = 0`: MLflow draws a metric that only has a step 0 as one bar a run, and any
    other as a line, even if it is a single point.
    """
    metrics = {f"final/{key.replace('/', ' ')}": value for key, value in result.summary.items() if _is_number(value)}
    other = result.other_reading
    if other:
        numbers = ((key, other.summary.get(key)) for key in OF_BOTH_READINGS)
        metrics |= {f"final {other.reading}/{key.replace('/', ' ')}": value for key, value in numbers if _is_number(value)}
    kept, drift = result.retention_row("as_used", -1), result.drift_row("as_used", -1)
    routing = (result.routing_accuracy or [None])[-1]
    named = (("retention as used", kept and kept.all), ("drift as used", drift.get("forward_kl/general")))
    for name, value in (*named, ("routing accuracy", routing)):
        if value is not None:
            metrics[f"final/{name}"] = value
    costs = result.cost.as_dict()
    return metrics | {f"resources/{key}": v for key, v in costs.items() if _is_number(v) and key not in _GIVEN}


def final_params(result: RunRecord) -> dict[str, Any]:
    """Numbers of a finished run that its settings fix, and that no chart is worth."""
    costs = result.cost.as_dict()
    return {f"cost.{key}": costs[key] for key in _GIVEN if costs.get(key) is not None}


def flatten(data: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Nested settings as dotted keys with text values: `{"train": {"steps": 3}}` -> `{"train.steps": "3"}`."""
    flat: dict[str, str] = {}
    for key, value in data.items():
        path = f"{prefix}{key}"
        if isinstance(value, Mapping):
            flat.update(flatten(value, f"{path}."))
        elif value is not None:
            flat[path] = _text(value)
    return flat


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _text(value: Any) -> str:
    if isinstance(value, list | tuple):
        return ", ".join(_text(v) for v in value)
    return str(value)


def _mean(values: Iterable[float | None]) -> float | None:
    known = [v for v in values if v is not None]
    return sum(known) / len(known) if known else None
