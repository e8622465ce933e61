"""The event log, MLflow, the terminal and the figures, on made-up results of a realistic shape."""

from __future__ import annotations

import json
import math
import os
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from cl_softcot.errors import UserError
from cl_softcot.files import atomic_write_json, atomic_write_text, dump_json
from cl_softcot.trackers import event_log
from cl_softcot.trackers.event_log import EventLog, read_events

TASKS = ["dates", "graph", "facts", "lists"]
FAMILIES = ["dates", "graph", "facts", "lists", "deduction", "arithmetic", "tracking"]
BASE = {"dates": 0.96, "graph": 0.55, "facts": 0.30, "lists": 0.62}
BASE_FAMILIES = dict(zip(FAMILIES, (0.97, 0.95, 0.96, 0.94, 0.96, 0.95, 0.92), strict=True))

# name: (strategy, learned, forgetting of an earlier task a turn, loss of retention a turn, drift, parameters)
METHODS = {
    "zero_shot_cot": ("zero_shot", 0.0, 0.0, 0.0, 0.0, 0),
    "full_coconut": ("full_finetune", 0.88, 0.14, 0.16, 1.4, 893_312),
    "full_cot": ("full_finetune", 0.93, 0.10, 0.11, 0.8, 893_312),
    "lora_coconut": ("lora", 0.84, 0.06, 0.07, 0.35, 98_304),
    "softcot": ("frozen_backbone", 0.66, 0.01, 0.004, 0.02, 12_416),
    "softcot_per_task_oracle": ("frozen_backbone", 0.67, 0.0, 0.0, 0.0, 49_664),
}
MORE = [
    "zero_shot_direct", "full_direct", "full_pause", "lora_cot", "softcot_free_vectors", "softcot_random_assistant",
    "lora_per_task_oracle", "full_coconut_no_curriculum", "full_coconut_c0", "full_coconut_replay",
]  # fmt: skip


# --- results of a realistic shape -----------------------------------------------------------------------


def make_run(folder: Path, method: str, seed: int = 0, order: str = "given", *, n: int = 300, predictions: bool = True):
    """Writes one finished run (result, predictions, event log) into `folder` and returns its result."""
    strategy, learned, forgets, loses, drifts, parameters = METHODS.get(method) or _settings_of(method)
    tasks = TASKS if order == "given" else TASKS[::-1]
    rng = np.random.default_rng([seed, sum(map(ord, method)), sum(map(ord, order))])
    # Whether an example is right before: the same test examples and the same base for every method and seed.
    base_rng = np.random.default_rng(7)
    base = {("task", t): base_rng.random(n) < BASE[t] for t in TASKS}
    base |= {("retention", f): base_rng.random(n // 3) < BASE_FAMILIES[f] for f in FAMILIES}
    outcomes = [dict(base)]
    shift = rng.normal(0, 0.015)
    for turn, task in enumerate(tasks, start=1):
        row = dict(outcomes[-1])
        for key, right in row.items():
            if strategy == "zero_shot":
                continue
            if key == ("task", task):
                row[key] = rng.random(n) < min(max(learned, BASE[task]) + shift, 1.0)
            elif key[0] == "retention":
                row[key] = right & (rng.random(len(right)) >= max(loses + shift / 4, 0) * (loses > 0))
            elif key[1] in tasks[:turn]:
                row[key] = right & (rng.random(len(right)) >= max(forgets + shift / 4, 0) * (forgets > 0))
        outcomes.append(row)
    result = _result(method, strategy, tasks, outcomes, seed, order, drifts, parameters, rng)
    folder.mkdir(parents=True, exist_ok=True)
    if predictions:
        for i, row in enumerate(outcomes):
            _write_predictions(folder, i, row)
    _log(folder, result)
    atomic_write_json(folder / "result.json", result)
    return result


def _settings_of(method: str):
    like = next((m for m in ("full_coconut", "lora_coconut", "softcot") if method.startswith(m[:4])), "zero_shot_cot")
    return METHODS[like]


def _result(method, strategy, tasks, outcomes, seed, order, drifts, parameters, rng):
    matrix = [[float(row["task", t].mean()) for t in tasks] for row in outcomes]
    T, R = len(tasks), np.array(matrix)
    n = len(outcomes[0]["task", tasks[0]])
    half = 1.96 * np.sqrt(np.clip(R * (1 - R), 0.001, None) / n)

    def retention(row):
        scores = {f: float(row["retention", f].mean()) for f in FAMILIES}
        everything = float(np.mean(list(scores.values())))
        return {
            "families": scores,
            "n": {f: len(row["retention", f]) for f in FAMILIES},
            "all": everything,
            "all_interval": [everything - 0.015, min(everything + 0.015, 1)],
            "same_family": float(np.mean([scores[f] for f in TASKS])),
            "unrelated": float(np.mean([scores[f] for f in FAMILIES if f not in TASKS])),
        }

    def drift(i, scale):
        values = {}
        for name in ["general", *tasks]:
            grown = scale * i / T * float(rng.uniform(0.9, 1.1)) * (1 if name == "general" else 1.3)
            values |= {f"forward_kl/{name}": grown, f"reverse_kl/{name}": 0.7 * grown}
        return values

    frozen = strategy != "full_finetune"
    return {
        "schema": 1, "experiment": "sequence_a", "method": method, "order": order, "seed": seed, "tasks": list(tasks),
        "reasoning": {"name": method.split("_")[-1]}, "strategy": {"name": strategy},
        "per_task": {"routing": "oracle", "unseen": "base"} if "per_task" in method else None,
        "accuracy": {
            "matrix": matrix, "n": [n] * T,
            "intervals": [[[max(a - h, 0), min(a + h, 1)] for a, h in zip(r, hs, strict=True)] for r, hs in zip(R, half, strict=True)],
            "unanswered": [[3] * T for _ in R], "untrained": [x * 0.8 for x in matrix[0]],
        },
        "summary": {
            "acc": float(R[-1].mean()), "acc_interval": [float(R[-1].mean()) - 0.02, float(R[-1].mean()) + 0.02],
            "bwt/gem": float(np.mean([R[-1, j] - R[j + 1, j] for j in range(T - 1)])),
            "fwt/gem": float(np.mean([R[i, i] - R[0, i] for i in range(1, T)])),
            "forgetting/chaudhry": float(np.mean([R[1:-1, j].max() - R[-1, j] for j in range(T - 1)])),
            "learning_accuracy": float(np.mean([R[j + 1, j] for j in range(T)])),
        },
        "retention": {
            "families": FAMILIES, "same_family": TASKS,
            "as_used": [retention(row) for row in outcomes],
            "weights_alone": [retention(outcomes[0] if frozen else row) for row in outcomes],
        },
        "drift": {
            "as_used": [drift(i, drifts) for i in range(T + 1)],
            "weights_alone": [drift(i, 0.0 if frozen else drifts) for i in range(T + 1)],
        },
        "cost": {
            "trained_parameters": parameters, "tokens_per_answer": 21.4 if "cot" in method else 4.2,
            "forward_passes_per_answer": 23.0, "train_seconds": 31.2 if parameters else 0.0,
            "evaluate_seconds": 22.6 + float(rng.random()), "peak_memory_mb": 1450.0, "optimiser_steps": 480 if parameters else 0,
        },
        "frozen": {"backbone_sha256_before": "ab", "backbone_sha256_after": "ab", "unchanged": frozen},
        "config_fingerprint": "f" * 64,
    }  # fmt: skip


def _write_predictions(folder: Path, i: int, row) -> None:
    lines = []
    for (kind, name), right in row.items():
        for k, ok in enumerate(right):
            text = f"dan sees {k} ; then {k + 1} ; answer {'yes' if ok else 'no'}"
            lines.append({
                "set": kind, "task": name, "id": f"{name}-{k}", "question": f"if {k} then what of <{name}> ?", "gold": "yes",
                "answer": "yes" if ok else "no", "outcome": "right" if ok else "wrong", "text": text, "tokens": 9,
            })  # fmt: skip
    atomic_write_text(folder / "predictions" / f"row_{i}.jsonl", "".join(dump_json(line) + "\n" for line in lines))


def _log(folder: Path, result) -> None:
    from cl_softcot.trackers import figures, predictions
    from cl_softcot.trackers.results import palette

    log = EventLog(folder)
    method, order, seed = result["method"], result["order"], result["seed"]
    log.tags(
        event_log.run_tags(
            experiment=result["experiment"], method=method, order=order, seed=seed, tasks=result["tasks"],
            identity=event_log.run_identity(result["config_fingerprint"], method, order, seed),
            color=palette([*METHODS, *MORE])[method], strategy=result["strategy"]["name"],
        )
    )  # fmt: skip
    log.params({"train": {"steps": 120, "examples": 1000}, "strategy": result["strategy"], "tasks": result["tasks"]})
    log.status("RUNNING")
    for i in range(len(result["tasks"]) + 1):
        log.metrics(i, event_log.row_metrics(result, i))
    log.metrics(0, event_log.final_metrics(result))
    for path in [*figures.draw_run(result, folder / "figures"), *predictions.write_predictions(folder, result)]:
        log.artifact(path.relative_to(folder))
    log.tags(predictions.TABLE_TAGS)
    log.status("FINISHED")


def make_experiment(folder: Path, methods=tuple(METHODS), seeds=(0,), orders=("given",), **settings):
    """An experiment's folder with runs of these methods; returns their results in the order of the methods."""
    from cl_softcot.trackers.results import load_results, order_like

    for method in methods:
        for order in orders:
            for seed in seeds:
                make_run(folder / "runs" / f"{method}.{order}.seed{seed}", method, seed, order, **settings)
    return order_like(load_results(folder), methods)
