"""What a run knows of itself becomes its record: the rows so far, and at the end ``result.json``."""

from __future__ import annotations

import platform
import time
from collections.abc import Mapping, Sequence
from typing import Any

from cl_softcot.config.experiment import Experiment
from cl_softcot.config.fingerprint import run_fingerprint
from cl_softcot.config.plan import RunSpec
from cl_softcot.files import jsonable, read_jsonl
from cl_softcot.machine import processes
from cl_softcot.metrics.cost import count_parameters, peak_memory_mb
from cl_softcot.metrics.flips import flips_of_run
from cl_softcot.metrics.intervals import summary_intervals
from cl_softcot.metrics.matrix import summary
from cl_softcot.metrics.own import find_metrics
from cl_softcot.metrics.routing import routing_accuracy
from cl_softcot.results.folder import RunFolder
from cl_softcot.results.own_metrics import with_metrics
from cl_softcot.results.record import SCHEMA, PartialRecord, RunRecord

Row = Mapping[str, Any]  # what ``Evaluator.row`` measured after one experience
Outcomes = list[list[list[float]]]  # 1 right, 0 not: [row][task][example]


def partial_record(evaluator: Any, rows: Sequence[Row]) -> PartialRecord:
    """The record of a run that goes on."""
    return PartialRecord.model_validate(jsonable(_sections(evaluator, rows)))


def run_record(
    *,
    config: Experiment,
    spec: RunSpec,
    folder: RunFolder,
    evaluator: Any,
    parts: Any,
    strategy: Any,
    rows: Sequence[Row],
    turns: Sequence[Mapping[str, Any]],
    diagnosed: Mapping[str, Any],
    weights_before: str,
    train_fingerprints: Sequence[str],
    sizes: Sequence[int],
    provenance: Mapping[str, Any],
) -> RunRecord:
    """The record of a run that is finished.

    Args:
        weights_before: SHA-256 of the backbone's weights as they were loaded.
        sizes: numbers of processes that worked on the run, one after the other.
        provenance: versions and revision.
    """
    method = config.method(spec.method)
    sections, tasks = _sections(evaluator, rows), [probe.task for probe in evaluator.tasks]
    outcomes: Outcomes = processes.from_main(lambda: outcomes_of(folder, [task.name for task in tasks], len(rows)))
    flips = _flips(evaluator, outcomes)
    after = parts.backbone.weights_sha256()
    routing = [row.get("routing") for row in rows] if method.per_task else None
    record = {
        "schema": SCHEMA,
        "experiment": config.name,
        "method": method.name,
        "order": spec.order,
        "seed": spec.seed,
        "tasks": sections["tasks"],
        "families": {task.name: task.family for task in tasks},
        "reasoning": method.reasoning.model_dump(mode="json"),
        "strategy": method.strategy.model_dump(mode="json"),
        "reference": strategy.reference,
        "per_task": method.per_task.model_dump(mode="json") if method.per_task else None,
        "plugins": [plugin.model_dump(mode="json") for plugin in method.plugins],
        "split": config.evaluate.split,
        "accuracy": sections["accuracy"],
        "summary": _summary(sections["accuracy"]["matrix"], outcomes, config.evaluate.bootstrap) | flips["summary"],
        "flips": flips["tasks"],
        "retention": sections["retention"],
        "drift": sections["drift"],
        "routing": routing,
        "routing_accuracy": routing and _routed_right(routing, sections),
        "cost": _cost(config, spec, strategy, parts, rows, turns),
        "losses": [turn["losses"] for turn in turns],
        **({"diagnostics": diagnosed} if diagnosed else {}),
        "frozen": {
            "backbone_sha256_before": weights_before,
            "backbone_sha256_after": after,
            "unchanged": after == weights_before,
        },
        "train_fingerprints": train_fingerprints,
        "config_fingerprint": run_fingerprint(config, spec.method, spec.order, spec.seed),
        "machine": _machine(parts, sizes),
        **provenance,
        "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }
    return with_metrics(RunRecord.model_validate(jsonable(record)), find_metrics(config.evaluate.metrics))


def outcomes_of(folder: RunFolder, tasks: Sequence[str], rows: int) -> Outcomes:
    """Right and wrong answers to the stream's questions, from the predictions."""
    outcomes = []
    for i in range(rows):
        found: dict[str, list[float]] = {task: [] for task in tasks}
        for p in read_jsonl(folder.answers(i)):
            if p["set"] == "task":
                found[p["task"]].append(float(p["outcome"] == "right"))
        outcomes.append(list(found.values()))
    return outcomes


def _sections(evaluator: Any, rows: Sequence[Row]) -> dict[str, Any]:
    views = ("as_used", "weights_alone")
    return {
        "tasks": [probe.task.name for probe in evaluator.tasks],
        "accuracy": {
            "matrix": [r["accuracy"]["values"] for r in rows],
            "n": rows[0]["accuracy"]["n"],
            "intervals": [r["accuracy"]["intervals"] for r in rows],
            "unanswered": [r["accuracy"]["unanswered"] for r in rows],
            "untrained": rows[0]["untrained"],
            "by": [r["accuracy"]["by"] for r in rows],
        },
        "retention": {
            "families": [probe.name for probe in evaluator.families],
            "same_family": evaluator.same_family,
            **{view: [r["retention"][view] for r in rows] for view in views},
        },
        "drift": {view: [r["drift"][view] for r in rows] for view in views},
    }


def _summary(matrix: Sequence[Sequence[float]], outcomes: Outcomes, bootstrap: int) -> dict[str, Any]:
    intervals = summary_intervals(outcomes, bootstrap)
    return summary(matrix) | {f"{name}_interval": list(interval) if interval else None for name, interval in intervals.items()}


def _flips(evaluator: Any, outcomes: Outcomes) -> dict[str, Any]:
    options = {p.name: [p.task.n_options_of(example) for example in p.examples] for p in evaluator.tasks}
    found = flips_of_run(outcomes, list(options), options)
    for name, numbers in options.items():  # one number where all examples have the same
        found["tasks"][name]["n_options"] = numbers[0] if len(set(numbers)) == 1 else numbers
    return found


def _routed_right(routing: Sequence[Any], sections: Mapping[str, Any]) -> list[float | None]:
    tasks, n = sections["tasks"], sections["accuracy"]["n"]
    return [routing_accuracy(row, tasks, n, learned) for learned, row in enumerate(routing)]


def _cost(
    config: Experiment,
    spec: RunSpec,
    strategy: Any,
    parts: Any,
    rows: Sequence[Row],
    turns: Sequence[Mapping[str, Any]],
) -> dict[str, Any]:
    method = config.method(spec.method)
    trained = count_parameters(strategy.tensors(parts)) if strategy.trains else 0
    return {
        "trained_parameters": trained * (len(rows) - 1 if method.per_task else 1),
        "trained_parameters_per_copy": trained,
        "tokens_per_answer": rows[-1]["cost"]["tokens_per_answer"],
        "forward_passes_per_answer": rows[-1]["cost"]["forward_passes_per_answer"],
        "train_seconds": sum(row["train_seconds"] for row in rows),
        "evaluate_seconds": sum(row["evaluate_seconds"] for row in rows),
        "assistant_seconds": sum(row.get("assistant_seconds", 0.0) for row in rows),
        "optimiser_steps": sum(turn["steps"] for turn in turns),
        "examples_per_task": config.train_for(method).examples if strategy.trains else 0,
        "peak_memory_mb": peak_memory_mb(),
    }


def _machine(parts: Any, sizes: Sequence[int]) -> dict[str, Any]:
    now = {"device": str(parts.backbone.device), "processes": sizes[-1]}
    before = {"processes_before": list(sizes[:-1])} if sizes[:-1] else {}
    return {"processor": platform.machine(), "system": platform.system(), **now, **before}
