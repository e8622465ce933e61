"""Performance profiles: how many of a method's runs and tasks end above any accuracy one may ask for."""

from __future__ import annotations

from typing import Any

from cl_softcot.report import drawing
from cl_softcot.report.content import Cell, Figure, Missing, Number, Section, Table
from cl_softcot.report.measures import at, by_order
from cl_softcot.report.studies import Study
from cl_softcot.statistics.aggregate import performance_profile

THRESHOLDS = [round(0.05 * k, 2) for k in range(21)]
PATH = ("accuracy", "matrix", -1)


def section(study: Study) -> Section | None:
    if len(study.runs) == len(study.methods):
        return None
    rows: list[list[Cell]] = [_row(study, method) for method in study.methods]
    title = "Share of runs × tasks that end above an accuracy"
    head = ["method", *(f"> {t:g}" for t in THRESHOLDS)]
    data = Table(f"{study.name}-profiles", title, head, rows, colors=[study.colors.get(m) for m in study.methods])
    caption = (
        f"{title} (Agarwal et al. 2021); higher is better. Bands: 95 % percentile intervals over runs, each accuracy by itself."
    )
    return Section("Performance profiles", [Figure(f"{study.name}-profiles", caption, lambda: _draw(study, data), data)])


def _row(study: Study, method: str) -> list[Cell]:
    runs = study.by_method[method]
    profile = performance_profile(by_order([(run, at(run, PATH)) for run in runs]), THRESHOLDS, n_boot=study.bootstrap)
    names = tuple(study.relative(run) for run in runs)
    return [
        method,
        *(
            Number(
                share, low, high, len(runs), "share above", PATH, names, "runs" if low is not None else "", more={"above": above}
            )
            for above, share, low, high in zip(profile.thresholds, profile.share, profile.low, profile.high, strict=True)
        ),
    ]


def _draw(study: Study, data: Table) -> Any:
    figure, axes = drawing.panels(1, 1, width=drawing.COLUMN + 1.6, height=2.9)
    panel = axes[0][0]
    for row in data.rows:
        color, numbers = study.colors[str(row[0])], [c for c in row[1:] if isinstance(c, Number)]
        if all(n.low is not None for n in numbers):
            panel.fill_between(
                THRESHOLDS, [n.low for n in numbers], [n.high for n in numbers], step="post", color=color, alpha=0.12, linewidth=0
            )
        style = drawing.style_of(str(row[0]), study.methods, study.colors)
        panel.plot(THRESHOLDS, [n.value for n in numbers], drawstyle="steps-post", label=str(row[0]), markevery=4, **style)
    panel.set(xlabel="accuracy at the end, as used (τ)", ylabel="share of runs × tasks above τ", xlim=(0, 1), ylim=(-0.02, 1.02))
    panel.grid()
    panel.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
    return figure


def missing(study: Study) -> list[Missing]:
    return [Missing("performance profiles", "one run a method")] if len(study.runs) == len(study.methods) else []
