"""Diagnostics that have no section of their own: every number that they found, so that none is hidden."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cl_softcot.registry import modules_of
from cl_softcot.report import sections
from cl_softcot.report.content import Block, Cell, Section, Style, Table
from cl_softcot.report.measures import at, leaves
from cl_softcot.report.sections._diagnostics import last, leaf, measured, whole
from cl_softcot.report.studies import Study


def section(study: Study) -> Section | None:
    names = dict.fromkeys(name for run in study.runs for name in run.diagnostics or {})
    blocks: list[Block] = [_table(study, name) for name in names if name not in _shown_elsewhere() and measured(study, name)]
    return Section("Further diagnostics", blocks) if blocks else None


def _shown_elsewhere() -> set[str]:
    return {getattr(module, "DIAGNOSTIC", "") for module in modules_of(sections.__name__).values()}


def _table(study: Study, name: str) -> Table:
    by_method = measured(study, name)
    found: dict[tuple, Style] = {}
    for run in (run for runs in by_method.values() for run in runs):  # other task orders have other places
        for inside, number in leaves(at(run, whole(run, name))):
            found[inside] = "change" if found.get(inside) == "change" else _style(number)
    rows: list[list[Cell]] = []
    for inside, style in found.items():
        cells = [leaf(study, runs, (*whole(runs[0], name), *inside), style) for runs in by_method.values()]
        rows.append([" / ".join(map(str, inside)), *cells])
    row = last(next(iter(by_method.values()))[0], name)[-1]
    title = f"{name.replace('_', ' ')}, after experience {row}"
    return Table(f"{study.name}-{name}", title, ["number", *by_method], rows)


def _style(number: Any) -> Style:
    if isinstance(number, int):
        return "count"
    low = number.get("low") if isinstance(number, Mapping) else number
    return "change" if (low or 0) < 0 else "fraction"
