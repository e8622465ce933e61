"""Finished studies made of random outcomes: folders as ``run`` leaves them, without a model. The numbers in them agree."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from cl_softcot.files import atomic_write_json
from cl_softcot.metrics.flips import flips_of_run
from cl_softcot.metrics.intervals import stratified_interval, summary_intervals
from cl_softcot.metrics.matrix import summary
from cl_softcot.results.record import SCHEMA, RunRecord, read_record

TASKS = ("deduce", "recall", "fees")
FAMILIES = ("arithmetic", "dates")
QUESTIONS, KEPT = 24, 12
BASE = {"deduce": 0.7, "recall": 0.4, "fees": 0.3}  # row 0, by the share of questions that the base knows

# name -> (reasoning, strategy, per task, learned, share forgotten at each later turn, drift at each turn)
METHODS: dict[str, tuple[str, str, bool, float, float, float]] = {
    "zero_shot_cot": ("cot", "zero_shot", False, 0.0, 0.0, 0.0),
    "full_coconut": ("coconut", "full_finetune", False, 0.7, 0.4, 0.6),
    "full_cot": ("cot", "full_finetune", False, 0.95, 0.05, 0.1),
    "softcot_oracle": ("softcot", "frozen_backbone", True, 0.8, 0.0, 0.0),
}
REFERENCE = {"joint_cot": ("cot", "joint", False, 0.95, 0.0, 0.2)}


def write_study(
    folder: Path,
    methods: Mapping[str, tuple] | None = None,
    *,
    seeds: Sequence[int] = (0, 1, 2),
    orders: Mapping[str, Sequence[str]] | None = None,
    predictions: bool = True,
    data_seed: int = 0,
    settings: Mapping[str, Any] | None = None,
    split: str = "test",
    luck: int = 0,
) -> Path:
    """Writes an experiment's folder with all its runs finished.

    Args:
        predictions: False leaves folders as those that are kept in the repository.
        data_seed: another one gives other test and training data; luck: other outcomes on the same data.
        settings: replaces parts of the experiment, one level deep.
    """
    methods = {**METHODS, **REFERENCE} if methods is None else dict(methods)
    orders = orders or {"given": TASKS, "reverse": TASKS[::-1]}
    experiment: dict[str, Any] = {
        "name": folder.name,
        "backbone": {"path": "builtin:tiny", "revision": None, "quantization": None, "chat": "auto", "dtype": "float32"},
        "assistant": None,
        "tasks": [{"name": task, "task": "arithmetic"} for task in TASKS],
        "train": {"examples": 100, "steps": 10},
        "evaluate": {"test": QUESTIONS, "retention": KEPT, "drift": 4, "split": split, "max_new_tokens": 64},
    }
    for key, value in (settings or {}).items():
        experiment[key] = {**experiment[key], **value} if isinstance(value, dict) else value
    listed = [_method(name, *spec[:3]) for name, spec in methods.items()]
    whole = {**experiment, "methods": listed, "orders": {k: list(v) for k, v in orders.items()}, "seeds": list(seeds)}
    whole |= {"tracking": {"mlflow": False, "experiment": folder.name}, "output_dir": str(folder)}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(whole, sort_keys=False))
    versions = {"python": "3.11.7", "torch": "2.13.0"}
    atomic_write_json(
        folder / "experiment.json", {"name": folder.name, "config_fingerprint": "f00d", "versions": versions, "revision": "abc"}
    )
    for place, (name, spec) in enumerate(methods.items()):
        for order, tasks in orders.items():
            for seed in seeds:
                rng = np.random.default_rng([data_seed, luck, place, seed, len(order)])
                run = folder / "runs" / f"{name}.{order}.seed{seed}"
                result, rows = _run(experiment, listed[place], spec, order, tuple(tasks), seed, rng, data_seed)
                method = listed[place]
                if predictions:
                    config = {
                        "fingerprint": "f00d",
                        "method": method,
                        "order": order,
                        "tasks_in_order": list(tasks),
                        "seed": seed,
                    }
                    atomic_write_json(run / "config.json", {**config, "experiment": experiment})
                    _write_predictions(run, rows, tasks)
                atomic_write_json(run / "result.json", result)
    return folder


def _method(name: str, reasoning: str, strategy: str, per_task: bool) -> dict[str, Any]:
    rate = {} if strategy == "zero_shot" else {"learning_rate": 0.001}
    routing = {"routing": "oracle", "unseen": "base"} if per_task else None
    return {"name": name, "reasoning": {"name": reasoning}, "strategy": {"name": strategy, **rate}, "per_task": routing}


def _run(
    experiment: dict[str, Any], method: dict[str, Any], spec: tuple, order: str, tasks: tuple[str, ...], seed: int,
    rng: np.random.Generator, data_seed: int,
) -> tuple[dict[str, Any], list[dict[tuple[str, str], np.ndarray]]]:  # fmt: skip
    _, strategy, per_task, learned, lost, drifted = spec
    trains = strategy != "zero_shot"
    rows = [_base(data_seed)]
    for i, task in enumerate(tasks, start=1):
        row = {key: right.copy() for key, right in rows[-1].items()}
        for key in row:
            if trains and key != ("task", task) and not per_task:
                row[key] &= rng.random(len(row[key])) >= lost
        if trains:
            row["task", task] = rng.random(QUESTIONS) < learned
        if strategy == "joint":
            row = rows[-1] if i > 1 else {k: (rng.random(len(v)) < learned if k[0] == "task" else v) for k, v in row.items()}
        rows.append(row)
    outcomes = [[row["task", task].astype(float).tolist() for task in tasks] for row in rows]
    matrix = [[float(np.mean(right)) for right in row] for row in outcomes]
    values: dict[str, Any] = dict(summary(matrix))
    intervals = {f"{k}_interval": v and list(v) for k, v in summary_intervals(outcomes, 100).items()}
    flips = flips_of_run(outcomes, list(tasks), dict.fromkeys(tasks))
    drift = [_drift(i, drifted, tasks, rng) for i in range(len(rows))]
    sha = f"base{experiment['backbone']['path']}"
    result = RunRecord.model_validate({
        "schema": SCHEMA, "experiment": experiment["name"], "method": method["name"], "order": order, "seed": seed,
        "tasks": list(tasks),
        "families": dict.fromkeys(tasks, "arithmetic"), "reasoning": method["reasoning"], "strategy": method["strategy"],
        "reference": "joint" if strategy == "joint" else None, "per_task": method["per_task"], "plugins": [],
        "split": experiment["evaluate"]["split"],
        "accuracy": {"matrix": matrix, "n": [QUESTIONS] * len(tasks), "intervals": [[[0.0, 1.0]] * len(tasks)] * len(rows)},
        "summary": {**values, **intervals, **flips["summary"]}, "flips": flips["tasks"],
        "retention": {
            "families": list(FAMILIES), "same_family": ["arithmetic"],
            "as_used": [_kept(row) for row in rows],
            "weights_alone": [_kept(rows[0] if strategy == "frozen_backbone" else row) for row in rows],
        },
        "drift": {"as_used": drift, "weights_alone": drift},
        "cost": {
            "trained_parameters": 626_000 if trains else 0, "tokens_per_answer": 15.5, "forward_passes_per_answer": 16.5,
            "train_seconds": 1.0, "evaluate_seconds": 1.0, "optimiser_steps": 30 if trains else 0,
            "examples_per_task": 100 if trains else 0,
        },
        "frozen": {"backbone_sha256_before": sha, "backbone_sha256_after": sha, "unchanged": True},
        "train_fingerprints": [f"{task}{data_seed}{seed}" for task in tasks] if trains else [],
        "config_fingerprint": f"{method['name']}{order}{seed}",
        "machine": {"processor": "x86_64", "device": "cpu", "processes": 1},
        "versions": {"python": "3.11.7", "torch": "2.13.0"}, "revision": "abc", "finished": "2026-01-01T00:00:00Z",
    })  # fmt: skip
    return result.as_dict(), rows


def _base(data_seed: int) -> dict[tuple[str, str], np.ndarray]:
    """What the base answers, of no run's seed."""
    rng = np.random.default_rng([data_seed, 99])
    known = {("task", task): rng.random(QUESTIONS) < BASE[task] for task in TASKS}
    return known | {("retention", family): rng.random(KEPT) < 0.95 for family in FAMILIES}


def _kept(row: dict[tuple[str, str], np.ndarray]) -> dict[str, Any]:
    right = {family: row["retention", family].astype(float).tolist() for family in FAMILIES}
    means = {family: float(np.mean(outcomes)) for family, outcomes in right.items()}
    return {
        "families": means, "n": dict.fromkeys(FAMILIES, KEPT), "all": float(np.mean(list(means.values()))),
        "all_interval": list(stratified_interval(right, 100)), "same_family": means["arithmetic"], "unrelated": means["dates"],
    }  # fmt: skip


def _drift(i: int, size: float, tasks: Sequence[str], rng: np.random.Generator) -> dict[str, float]:
    sets = ("general", *tasks)
    noise = {name: rng.random(2) for name in sets}
    kl = {f"forward_kl/{name}": size * i * (0.5 + noise[name][0]) for name in sets}
    return kl | {f"reverse_kl/{name}": 2 * size * i * (0.5 + noise[name][1]) for name in sets}


def _write_predictions(run: Path, rows: Sequence[dict[tuple[str, str], np.ndarray]], tasks: Sequence[str]) -> None:
    (run / "predictions").mkdir(parents=True, exist_ok=True)
    for i, row in enumerate(rows):
        lines = []
        for (kind, name), right in row.items():
            for q, outcome in enumerate(right):
                line = {"set": kind, "task": name, "id": f"{name}/test/{q}", "question": f"{name} {q} ?", "gold": "1"}
                lines.append({**line, "outcome": "right" if outcome else "wrong", "meta": {}})
        (run / "predictions" / f"row_{i}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def edit_result(run: Path, **changes: Any) -> None:
    """Replaces parts of a run's result, one level deep."""
    result = json.loads((run / "result.json").read_text())
    for key, value in changes.items():
        result[key] = {**result[key], **value} if isinstance(value, dict) and isinstance(result.get(key), dict) else value
    atomic_write_json(run / "result.json", read_record(result).as_dict())
