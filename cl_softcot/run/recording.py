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
from cl_softcot.metrics.unanswered import unanswered_shares
from cl_softcot.results.folder import RunFolder
from cl_softcot.results.own_metrics import with_metrics
from cl_softcot.results.record import SCHEMA, VIEWS, PartialRecord, RunRecord

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
    if "other_reading" in sections:
        sections["other_reading"]["summary"] = _summary_otherwise(sections, folder, config.evaluate.bootstrap)
    outcomes: Outcomes = processes.from_main(lambda: outcomes_of(folder, sections["tasks"], len(rows)))
    flips = _flips(evaluator, outcomes)
    accuracy, bootstrap = sections["accuracy"], config.evaluate.bootstrap
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
        "reading": config.evaluate.reading,
        "accuracy": accuracy,
        "summary": _summary(accuracy, outcomes, bootstrap) | flips["summary"],
        **({"other_reading": sections["other_reading"]} if "other_reading" in sections else {}),
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


def outcomes_of(folder: RunFolder, tasks: Sequence[str], rows: int, reading: str | None = None) -> Outcomes:
    """Right and wrong answers to the stream's questions, from the predictions, in one of the readings (None: the headline)."""
    outcomes = []
    for i in range(rows):
        found: dict[str, list[float]] = {task: [] for task in tasks}
        for p in read_jsonl(folder.answers(i)):
            if p["set"] == "task":
                judged = p if reading is None else p["readings"][reading]
                found[p["task"]].append(float(judged["outcome"] == "right"))
        outcomes.append(list(found.values()))
    return outcomes


def _sections(evaluator: Any, rows: Sequence[Row]) -> dict[str, Any]:
    unanswered = rows[0].get("untrained_unanswered")
    others = [r["other_reading"] for r in rows if "other_reading" in r]
    return {
        "tasks": [probe.task.name for probe in evaluator.tasks],
        "accuracy": {
            **_matrix([r["accuracy"] for r in rows]),
            "untrained": rows[0]["untrained"],
            "by": [r["accuracy"]["by"] for r in rows],
            **({} if unanswered is None else {"untrained_unanswered": unanswered}),
        },
        "retention": _retention(evaluator, rows),
        "drift": {view: [r["drift"][view] for r in rows] for view in VIEWS},
        # Rows of an earlier version were read once: then there is no whole second matrix.
        **({"other_reading": _otherwise(evaluator, rows[0], others)} if len(others) == len(rows) else {}),
    }


def _matrix(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    asked = [r["n"] for r in rows]
    return {
        "matrix": [r["values"] for r in rows],
        "n": rows[0]["n"],
        "intervals": [r["intervals"] for r in rows],
        "unanswered": [r["unanswered"] for r in rows],
        **({} if all(n == asked[0] for n in asked) else {"asked": asked}),
    }


def _retention(evaluator: Any, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    return {
        "families": [probe.name for probe in evaluator.families],
        "same_family": evaluator.same_family,
        **{view: [r["retention"][view] for r in rows] for view in VIEWS},
    }


def _otherwise(evaluator: Any, first: Row, others: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The rows in the reading that is not the headline."""
    untrained = {"untrained": first["untrained_otherwise"], "untrained_unanswered": first["untrained_unanswered_otherwise"]}
    return {
        "reading": others[0]["reading"],
        "accuracy": {**_matrix([other["accuracy"] for other in others]), **untrained},
        "retention": _retention(evaluator, others),
    }


def _summary(accuracy: Mapping[str, Any], outcomes: Outcomes, bootstrap: int) -> dict[str, Any]:
    intervals = summary_intervals(outcomes, bootstrap)
    return {
        **summary(accuracy["matrix"]),
        **{f"{name}_interval": list(interval) if interval else None for name, interval in intervals.items()},
        **unanswered_shares(accuracy["unanswered"], accuracy["n"]),
    }


def _summary_otherwise(sections: Mapping[str, Any], folder: RunFolder, bootstrap: int) -> dict[str, Any]:
    """The summary in the reading that is not the headline."""
    other, tasks = sections["other_reading"], sections["tasks"]
    rows = len(other["accuracy"]["matrix"])
    outcomes = processes.from_main(lambda: outcomes_of(folder, tasks, rows, other["reading"]))
    return _summary(other["accuracy"], outcomes, bootstrap)


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
