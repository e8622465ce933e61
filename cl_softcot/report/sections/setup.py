"""What was run: models, tasks, budgets, methods and where their learning rates come from."""

from __future__ import annotations

from typing import Any

from cl_softcot.errors import UserError
from cl_softcot.report.content import Block, Cell, Missing, Section, Table, Text
from cl_softcot.report.studies import Result, Study


def section(study: Study) -> Section:
    blocks: list[Block] = [_models(study), _tasks(study), _methods(study)]
    blocks += [Text(line) for line in _unequal(study)]
    return Section("The set-up", blocks)


def _models(study: Study) -> Table:
    config, run = study.config, study.runs[0]
    rows = []
    for role in ("backbone", "assistant"):
        model = config.get(role)
        if isinstance(model, dict):
            more = [f"{k} {model[k]}" for k in ("revision", "dtype", "quantization") if model.get(k) not in (None, "")]
            rows.append([role, str(model.get("path")), ", ".join(more)])
    sha = run.frozen.backbone_sha256_before
    rows.append(["weights of the backbone", "SHA-256", str(sha)])
    rows.append(["training seeds", ", ".join(map(str, study.seeds)), f"{len(study.seeds)}"])
    rows += [[f"task order {order}", " → ".join(tasks), f"{len(tasks)} tasks"] for order, tasks in study.orders.items()]
    rows.append(["measured on", f"{run.split} split", _evaluate(config)])
    return Table(f"{study.name}-setup", "Models, seeds and measurement", ["what", "", "details"], rows, text=3)


def _evaluate(config: dict[str, Any]) -> str:
    known = config.get("evaluate") or {}
    said = {
        "test": "test examples a task",
        "retention": "examples for each of the base's own families",
        "drift": "drift prompts a set",
    }
    parts = [f"{known[key]} {words}" for key, words in said.items() if known.get(key) is not None]
    parts += [f"at most {known['max_new_tokens']} new tokens"] if "max_new_tokens" in known else []
    parts += [f"{known['reading']} reading of the answers"] if "reading" in known else []
    return ", ".join(parts)


def _tasks(study: Study) -> Table:
    settings = {task.get("name", task.get("task")): task for task in study.config.get("tasks", [])}
    rows, first = [], study.runs[0]
    for name in dict.fromkeys(task for tasks in study.orders.values() for task in tasks):
        run = next(run for run in study.runs if name in run.tasks)
        own = settings.get(name, {})
        told = ", ".join(f"{k}: {v}" for k, v in own.items() if k not in ("name", "task") and v not in (None, False))
        family = (run.families or first.families or {}).get(name, "")
        rows.append([name, str(own.get("task", family)), told, str(_asked(run, name))])
    return Table(f"{study.name}-tasks", "The stream's tasks", ["task", "family", "settings", "test examples"], rows, text=3)


def _asked(run: Result, task: str) -> int | str:
    return run.accuracy.n[run.tasks.index(task)] if run.accuracy.n else "–"


def _methods(study: Study) -> Table:
    rows: list[list[Cell]] = []
    configs = {method["name"]: method for method in study.config.get("methods", [])}
    for method, runs in study.by_method.items():
        run = runs[0]
        strategy = run.strategy.as_dict() if run.strategy else {}
        rate, steps, examples = strategy.get("learning_rate"), run.cost.optimiser_steps or 0, run.cost.examples_per_task or 0
        budget = f"{steps} steps, {examples} examples a task" if run.trained else "none"
        thinks = _said("reasoning", run.reasoning.as_dict()) if run.reasoning else ""
        learns, copies = _said("strategy", strategy, "learning_rate"), _routing(run)
        rows.append(
            [method, thinks, learns, copies, "–" if rate is None else f"{rate:g}", _rate_from(configs.get(method)), budget]
        )
    notes = [
        "Learning rates are as the run folders hold them; these do not record how a rate was chosen. Where the folder of the "
        "sweep that chose them is given (--chosen-by), the table says so."
    ]
    head = ["method", "how it thinks", "what learns", "copies", "learning rate", "chosen by", "training in all"]
    colors = [study.colors.get(method) for method in study.methods]
    return Table(f"{study.name}-methods", "The methods", head, rows, text=7, notes=notes, colors=colors)


def _rate_from(config: dict[str, Any] | None) -> str:
    return str((config or {}).get("_chosen_by") or "the experiment's file")


def _routing(run: Result) -> str:
    return f"one a task, {run.per_task.routing}" if run.per_task else "one for all"


def _said(kind: str, part: dict[str, Any], *without: str) -> str:
    """A way of thinking or a strategy with what was chosen about it."""
    usual = _defaults(kind, part["name"])
    more = [
        f"{k} {v:g}" if isinstance(v, float) else f"{k} {v}"
        for k, v in part.items()
        if k not in ("name", *without) and v not in (None, False, 0.0) and v != usual.get(k)
    ]
    return part["name"] + (f" ({', '.join(more)})" if more else "")


def _defaults(kind: str, name: str) -> dict[str, Any]:
    """What a plug-in does by itself; nothing where it is not installed here."""
    from cl_softcot import registry

    try:
        fields = registry.find_builtin(kind, name).Settings.model_fields
    except UserError:
        return {}
    return {key: info.get_default(call_default_factory=True) for key, info in fields.items() if not info.is_required()}


def _unequal(study: Study) -> list[str]:
    """Budgets of the methods that learn, where they are not the same."""
    told = []
    for key, words in (("optimiser_steps", "optimiser steps in all"), ("examples_per_task", "training examples a task")):
        found: dict[Any, list[str]] = {}
        for run in study.runs:
            if run.trained:
                found.setdefault(getattr(run.cost, key), []).append(run.method)
        if len(found) > 1:
            parts = [f"{value}: {', '.join(dict.fromkeys(methods))}" for value, methods in found.items()]
            told.append(f"Unequal budgets, so differences are not of the methods alone. {words}: {'; '.join(parts)}.")
    return told


def missing(study: Study) -> list[Missing]:
    short = [] if len(study.seeds) > 1 else [Missing("the spread over training seeds", "one seed only")]
    return short + ([] if len(study.orders) > 1 else [Missing("the spread over task orders", "one task order only")])
