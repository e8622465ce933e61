"""What was not measured, and why."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from cl_softcot import registry
from cl_softcot.registry import modules_of
from cl_softcot.report import sections
from cl_softcot.report.content import Missing, Section, Table
from cl_softcot.report.measures import at
from cl_softcot.report.sections._diagnostics import last, measured
from cl_softcot.report.studies import Result, Study


def section(study: Study) -> Section | None:
    found = [gap for module in _modules() if hasattr(module, "missing") for gap in module.missing(study)]
    found += _predictions(study) + _diagnostics(study)
    rows = [[gap.what, gap.why] for gap in found]
    return (
        Section("What was not measured", [Table(f"{study.name}-missing", "Not measured", ["what", "why"], rows, 2)])
        if rows
        else None
    )


def _modules() -> list:
    return [module for name, module in modules_of(sections.__name__).items() if name != "not_measured"]


def _predictions(study: Study) -> list[Missing]:
    without = [run for run in study.runs if study.predictions(run, run.last_row) is None]
    if not without:
        return []
    who = "any run" if len(without) == len(study.runs) else f"{len(without)} runs"
    return [
        Missing("differences question by question", f"the folder holds no predictions of {who}: they are compared as whole runs")
    ]


def _diagnostics(study: Study) -> list[Missing]:
    """Those that the experiment did not switch on, and the methods that one makes no sense for."""
    names = dict.fromkeys([*registry.known("diagnostic"), *(name for run in study.runs for name in run.diagnostics or {})])
    gaps = []
    for name in names:
        if not any(name in (run.diagnostics or {}) for run in study.runs):
            gaps.append(Missing(name.replace("_", " "), f"not switched on in the experiment (diagnostics: [{name}])"))
            continue
        have = measured(study, name)
        reasons: dict[str, list[str]] = {}
        for method, runs in study.by_method.items():
            if method not in have:
                told = (runs[0].diagnostics or {}).get(name) or {}
                reasons.setdefault(told.get("skipped") or "no numbers in its runs", []).append(method)
        gaps += [Missing(f"{name.replace('_', ' ')} of {', '.join(methods)}", why) for why, methods in reasons.items()]
        gaps += _parts(name, have)
    return gaps


def _parts(name: str, have: Mapping[str, Sequence[Result]]) -> list[Missing]:
    """What a diagnostic left out of a method that it measured: tasks, or kinds of an intervention."""
    found: dict[tuple[str, str], list[str]] = {}
    for method, runs in have.items():
        for run in runs:
            for where, why in _skipped(at(run, last(run, name))):
                methods = found.setdefault((where, why), [])
                methods += [] if method in methods else [method]
    words = name.replace("_", " ")
    return [
        Missing(f"{words}, {where} of {', '.join(methods)}".replace(",  of", " of"), why)
        for (where, why), methods in found.items()
    ]


def _skipped(numbers: Any, where: str = "") -> Iterator[tuple[str, str]]:
    """Places of all reasons in what a diagnostic found."""
    if not isinstance(numbers, Mapping):
        return
    for key in ("skipped", "unmeasured"):
        if isinstance(numbers.get(key), str):
            yield where, numbers[key]
    for key, inside in numbers.items():
        yield from _skipped(
            inside, f"{where} {key}".strip().removeprefix("tasks ").replace(" edits ", " ").replace(" tests ", " ")
        )
