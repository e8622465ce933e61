"""The figures of a run and of an experiment, as PNG files. The same numbers give the same bytes.

Matplotlib's `Figure` is used without pyplot, so that figures may be drawn in any thread and need no display.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from cl_softcot.files import atomic_write_bytes
from cl_softcot.printable import plain_figure
from cl_softcot.results.colors import COLORS, palette
from cl_softcot.results.folder import ExperimentFolder
from cl_softcot.results.headline import drift_title, numbers
from cl_softcot.results.reading import by_method
from cl_softcot.results.record import RunRecord, whole

FAINT = "#9A9A9A"
MARKERS = "osD^vPXp*<>hdH8"


def draw_run(result: RunRecord, folder: str | Path) -> list[Path]:
    """The figures of one run: the accuracy matrix, accuracy and drift over the experiences.

    Returns:
        The files, of which those that the result has no numbers for are left out.
    """
    folder = Path(folder)
    drawn = [(folder / "accuracy_matrix.png", accuracy_matrix(result)), (folder / "accuracy.png", accuracy(result))]
    if any(result.drift.as_used):
        drawn.append((folder / "drift.png", drift(result)))
    return [save(figure, path) for path, figure in drawn]


def draw_experiment(results: Sequence[RunRecord], folder: str | Path) -> list[Path]:
    """The figure of an experiment, in which its methods are compared."""
    return [save(comparison(results), ExperimentFolder(Path(folder)).comparison)] if results else []


def save(figure: Figure, path: Path) -> Path:
    """A figure as PNG; the same numbers give the same bytes."""
    buffer = io.BytesIO()
    plain_figure(figure).savefig(buffer, format="png", dpi=120, metadata={"Software": None})
    atomic_write_bytes(path, buffer.getvalue())
    return path


def _title(result: RunRecord) -> str:
    return f"{result.method}, seed {result.seed}" + ("" if result.order == "given" else f", order {result.order}")


def _steps(result: RunRecord, rows: int) -> list[str]:
    return ["base", *(f"{i}: {name}" for i, name in enumerate(result.tasks, start=1))][:rows]


# --- one run ---------------------------------------------------------------------------------------------


def accuracy_matrix(result: RunRecord) -> Figure:
    """R as a heat map: row i after experience i, column j task j, with the half-width of the interval below.

    A frame marks each task's own turn; below and left of it stands what became of it later.
    """
    tasks, scores = result.tasks, result.accuracy.matrix
    intervals = result.accuracy.intervals
    names = ["base (zero-shot CoT)", *(f"after {i}: {name}" for i, name in enumerate(tasks, start=1))][: len(scores)]
    table = [list(map(_nan, row)) for row in scores]
    untrained = result.accuracy.untrained
    extra = 1 if untrained and any(x is not None for x in untrained) else 0
    if untrained and extra:
        names.insert(1, "base (as this method thinks)")
        table.insert(1, list(map(_nan, untrained)))
    values = np.array(table)
    figure = Figure(figsize=(2.6 + 1.15 * len(tasks), 1.5 + 0.62 * len(names)), layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(values, vmin=0, vmax=1, cmap="viridis", aspect="auto")
    for (i, j), value in np.ndenumerate(values):
        if np.isnan(value):
            continue
        row = i if i == 0 else i - extra  # the extra row has no interval
        half = None if extra and i == 1 else _half_width(intervals, row, j)
        text = f"{value:.3f}" + (f"\n±{half:.3f}".replace("±0", "±") if half is not None else "")
        axes.text(j, i, text, ha="center", va="center", fontsize=9, color="white" if value < 0.6 else "black")
    for j in range(min(len(tasks), len(names) - 1 - extra)):
        corner = (j - 0.47, j + 1 + extra - 0.46)
        axes.add_patch(Rectangle(corner, 0.94, 0.92, fill=False, edgecolor="white", linewidth=2))
    axes.set_xticks(range(len(tasks)), tasks)
    axes.set_yticks(range(len(names)), names)
    axes.set_xlabel("accuracy on task (frame: its own turn; ±: half of the 95 % interval)", fontsize=9)
    axes.set_title(_title(result), fontsize=11)
    axes.spines[:].set_visible(False)
    figure.colorbar(image, ax=axes, fraction=0.05, pad=0.02)
    return figure


def accuracy(result: RunRecord) -> Figure:
    """Accuracy per task and retention of the base's abilities over the experiences, with intervals."""
    tasks, scores = result.tasks, np.array([list(map(_nan, r)) for r in result.accuracy.matrix])
    intervals = result.accuracy.intervals
    steps = _steps(result, len(scores))
    figure = Figure(figsize=(2.5 + 1.5 * len(steps), 4.2), layout="constrained")
    axes = figure.subplots()
    for j, name in enumerate(tasks):
        color = COLORS[j % len(COLORS)]
        if intervals:
            bounds = np.array([[_nan(x) for x in _cell(intervals, i, j) or (None, None)] for i in range(len(steps))])
            axes.fill_between(range(len(steps)), bounds[:, 0], bounds[:, 1], color=color, alpha=0.12, linewidth=0)
        axes.plot(range(len(steps)), scores[:, j], color=color, marker="o", markersize=4, label=name)
        if j + 1 < len(steps):  # its own turn
            axes.plot([j + 1], [scores[j + 1, j]], "o", color=color, markersize=11, fillstyle="none")
    for key, style, label in (
        ("all", "-", "retention"), ("same_family", "--", "retention, same family"), ("unrelated", ":", "retention, unrelated"),
    ):  # fmt: skip
        values = [_nan(getattr(row, key) if row else None) for row in result.retention.as_used]
        if not np.all(np.isnan(values)):
            axes.plot(range(len(values)), values, "k" + style, linewidth=1.6, label=label)
    _experience_axis(axes, steps)
    axes.set_ylim(-0.02, 1.02)
    axes.set_ylabel("accuracy, as used")
    axes.set_title(f"{_title(result)}: accuracy (ring: a task's own turn)", fontsize=11)
    axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False, fontsize=9)
    return figure


def drift(result: RunRecord) -> Figure:
    """KL divergence from the base over the experiences, both directions, as used and with weights alone."""
    as_used, alone = result.drift.as_used, result.drift.weights_alone
    steps = _steps(result, max(len(as_used), len(alone)))
    keys = dict.fromkeys(key for row in [*as_used, *alone] for key in (row or {}))
    sets = list(dict.fromkeys(key.split("/", 1)[1] for key in keys if "kl/" in key))
    sets.sort(key=lambda name: name != "general")
    figure = Figure(figsize=(4 + 2 * len(steps), 4.2), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    for axes, direction, title in zip(
        panels, ("forward_kl", "reverse_kl"), ("KL(base ‖ model), base's text", "KL(model ‖ base), model's text"), strict=True
    ):
        for k, name in enumerate(sets):
            color = "black" if name == "general" else COLORS[_color_index(result, name, k)]
            for rows, style, label in ((as_used, "-", name), (alone, ":", None)):
                values = [_nan((row or {}).get(f"{direction}/{name}")) for row in rows]
                if values and not np.all(np.isnan(values)):
                    axes.plot(range(len(values)), values, style, color=color, marker="o", markersize=4, label=label)
        _experience_axis(axes, steps)
        axes.set_title(title, fontsize=10)
        # Drifts span orders of magnitude, and an exact zero must have its place on the axis.
        axes.set_yscale("symlog", linthresh=0.01)
        axes.set_ylim(-0.0005, 1.5 * max(axes.get_ylim()[1], 0.01))
        axes.grid(axis="y", alpha=0.3)
    panels[0].set_ylabel("nats per token")
    panels[-1].plot([], [], "-", color=FAINT, label="as used")
    panels[-1].plot([], [], ":", color=FAINT, label="weights alone")
    panels[-1].legend(loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False, fontsize=9)
    figure.suptitle(f"{_title(result)}: drift from the base", fontsize=11)
    return figure


def _color_index(result: RunRecord, name: str, fallback: int) -> int:
    """A task has one colour in all figures of a run."""
    return (result.tasks.index(name) if name in result.tasks else fallback) % len(COLORS)


# --- an experiment ---------------------------------------------------------------------------------------


def comparison(results: Sequence[RunRecord]) -> Figure:
    """All methods at the end: what they can do now against what is left of the base, and against the drift.

    Crosses are 95 % intervals over test examples for one run, standard deviations for several; small dots are
    the single runs.
    """
    groups = by_method(results)
    colors = palette(groups)
    figure = Figure(figsize=(12.5, max(4.8, 1.2 + 0.27 * len(groups))), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    for k, (method, runs) in enumerate(groups.items()):
        marker = MARKERS[k % len(MARKERS)] if any(run.trained for run in runs) else "s"
        style = {"color": colors[method], "marker": marker, "markersize": 8, "linestyle": "none", "elinewidth": 1, "alpha": 0.9}
        rows = [numbers(run) for run in runs]
        for axes, key in ((left, "accuracy"), (right, "drift")):
            x, y = _column(rows, key), _column(rows, "retention")
            if np.isnan(x).all() or np.isnan(y).all():
                continue
            if len(runs) > 1:
                axes.plot(x, y, ".", color=colors[method], alpha=0.35, markersize=5)
            errors = {"xerr": _error(runs, x, key), "yerr": _error(runs, y, "retention")}
            axes.errorbar([np.nanmean(x)], [np.nanmean(y)], **errors, **style, label=_legend(method, runs))
    base = next((numbers_of_base(r) for r in results), None)
    if base:
        left.axvline(base[0], color=FAINT, linewidth=0.8, linestyle="--", zorder=0)
        for axes in (left, right):
            axes.axhline(base[1], color=FAINT, linewidth=0.8, linestyle="--", zorder=0)
        left.annotate("base, zero-shot CoT", base, xytext=(4, 4), textcoords="offset points", fontsize=8, color="#666666")
    left.set_xlabel("average accuracy on the stream's tasks at the end")
    left.set_ylabel("retention of the base's abilities, as used")
    right.set_xlabel(f"drift as used: {drift_title(results)} (nats per token)", fontsize=9)
    right.set_xscale("symlog", linthresh=0.01)
    right.set_xlim(-0.0008, 1.5 * max(right.get_xlim()[1], 0.01))
    for axes in (left, right):
        axes.grid(alpha=0.25)
    handles, labels = left.get_legend_handles_labels()
    right.legend(handles, labels, loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False, fontsize=9)
    streams = {" > ".join(result.tasks) for result in results}
    when = f"after {streams.pop()}" if len(streams) == 1 else "at the end of the stream"
    figure.suptitle(f"{results[0].experiment}: methods compared {when}", fontsize=11)
    return figure


def numbers_of_base(result: RunRecord) -> tuple[float, float] | None:
    """(average accuracy, retention) of the base in zero-shot CoT, from row 0; None without retention."""
    row = result.retention_row("as_used", 0)
    kept = row.all if row else None
    return None if kept is None else (float(np.mean(whole(result.accuracy.matrix[0]))), float(kept))


def _legend(method: str, runs: Sequence[Any]) -> str:
    return method if len(runs) == 1 else f"{method} (n = {len(runs)})"


def _error(runs: Sequence[RunRecord], values: np.ndarray, key: str) -> list[list[float]] | None:
    """Distances below and above the mean, in matplotlib's shape [2, 1]; None where nothing is known."""
    if len(runs) > 1:
        deviation = float(np.nanstd(values, ddof=1))
        return [[deviation], [deviation]]
    run = runs[0]
    if key == "accuracy":
        interval = run.summary.get("acc_interval")
    elif key == "retention":
        row = run.retention_row("as_used", -1)
        interval = row.all_interval if row else None
    else:
        interval = None
    if not interval or None in interval:
        return None
    return [[max(0.0, values[0] - interval[0])], [max(0.0, interval[1] - values[0])]]


# --- small helpers ---------------------------------------------------------------------------------------


def _column(rows: Sequence[Mapping[str, float | None]], key: str) -> np.ndarray:
    return np.array([_nan(row[key]) for row in rows])


def _experience_axis(axes: Axes, steps: Iterable[str]) -> None:
    labels = list(steps)
    axes.set_xticks(range(len(labels)), labels, fontsize=9)
    axes.set_xlim(-0.15, len(labels) - 0.85)
    axes.set_xlabel("after experience")
    axes.spines[["top", "right"]].set_visible(False)


def _nan(value: float | None) -> float:
    return float("nan") if value is None else float(value)


def _cell(rows: Any, i: int, j: int) -> Any:
    try:
        return rows[i][j]
    except (IndexError, TypeError):
        return None


def _half_width(intervals: Any, i: int, j: int) -> float | None:
    interval = _cell(intervals, i, j)
    return None if not interval or None in interval else (interval[1] - interval[0]) / 2
