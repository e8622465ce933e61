"""The law as a picture: forgetting against drift in both directions, with the fits, and against accuracy on the new task."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from cl_softcot.files import atomic_write_bytes
from cl_softcot.law.fit import DIRECTIONS
from cl_softcot.law.points import Point, moved
from cl_softcot.printable import plain_figure
from cl_softcot.results.colors import palette

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_MARKERS = "osD^vPXp*<>hdH8"
_STYLES = ("k-", "k--", "k-.")  # everything, then the unions
_TITLES = {"forward_kl": "KL(base ‖ model)", "reverse_kl": "KL(model ‖ base)"}


def draw_law(points: Sequence[Point], law: Mapping[str, Any], folder: str | Path, *, title: str = "") -> list[Path]:
    """``law.png`` and ``law.svg`` of the law's first group; the same numbers give the same bytes."""
    import matplotlib

    figure = plain_figure(law_figure(points, law["groups"][0], title=title))
    paths = []
    for kind, options in (("png", {"dpi": 120, "metadata": {"Software": None}}), ("svg", {"metadata": {"Date": None}})):
        buffer = io.BytesIO()
        with matplotlib.rc_context({"svg.hashsalt": "law"}):
            figure.savefig(buffer, format=kind, **options)
        paths.append(Path(folder) / f"law.{kind}")
        atomic_write_bytes(paths[-1], buffer.getvalue())
    return paths


def law_figure(
    points: Sequence[Point], group: Mapping[str, Any], *, title: str = "", colors: Mapping[str, str] | None = None
) -> Figure:
    """One group of ``fit_law`` with the points that it was made from (all points may be given: others are left out).

    Args:
        colors: a colour for each method, such as those of a report's other figures; default: the house's, in order of the points.
    """
    from matplotlib.figure import Figure

    points = [p for p in points if (p.view, p.inputs, p.outcome) == (group["view"], group["inputs"], group["outcome"])]
    fitted, still = moved(points)
    methods = list(dict.fromkeys(p.method for p in points))
    colors = colors or palette(methods)
    figure = Figure(figsize=(15, 5.4), layout="constrained")
    *drifts, last = figure.subplots(1, 3, sharey=True)
    for axes, direction in zip(drifts, DIRECTIONS, strict=True):
        _scatter(axes, fitted, methods, colors, direction)
        _curves(axes, group, fitted, direction)
        if still and direction == DIRECTIONS[0]:
            axes.plot(0, 0, "kx", markersize=9, label=f"never moved, not fitted ({len(still)} runs)", linestyle="none")
        axes.set_xlabel(
            f"{_TITLES[direction]}, {group['inputs'].replace('_', ' ')}, {group['view'].replace('_', ' ')} (nats per token)"
        )
    _scatter(last, fitted, methods, colors, "accuracy", trajectories=True)
    last.set_xlabel("accuracy on the new task (lines: one run's checkpoints)")
    drifts[0].set_ylabel(f"forgetting of {group['outcome'].replace('_', ' ')} (accuracy lost)")
    handles, labels = last.get_legend_handles_labels()
    last.legend(handles, labels, loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False, fontsize=9)
    for axes in (*drifts, last):
        axes.axhline(0, color="#9A9A9A", linewidth=0.8, zorder=0)
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    figure.suptitle(
        f"{title}: forgetting against drift, {group['points']} points of {group['runs']} runs".lstrip(": "), fontsize=11
    )
    return figure


def _scatter(
    axes: Axes, points: Sequence[Point], methods: Sequence[str], colors: Mapping[str, str], field: str, trajectories: bool = False
) -> None:
    for k, method in enumerate(methods):
        own = [p for p in points if p.method == method and getattr(p, field) is not None]
        style: dict[str, Any] = {
            "color": colors[method],
            "marker": _MARKERS[k % len(_MARKERS)],
            "linestyle": "none",
            "label": method,
        }
        axes.plot([getattr(p, field) for p in own], [p.forgetting for p in own], markersize=4, alpha=0.75, **style)
        if trajectories:
            for run in dict.fromkeys(p.run for p in own):
                path = sorted((p for p in own if p.run == run), key=lambda p: p.checkpoint)
                xs, ys = [getattr(p, field) for p in path], [p.forgetting for p in path]
                axes.plot(xs, ys, "-", color=colors[method], alpha=0.15, linewidth=0.8)


def _curves(axes: Axes, group: Mapping[str, Any], points: Sequence[Point], direction: str) -> None:
    """The fits to everything and to the unions, with what they explain."""
    lines = []
    for (label, both), style in zip([("everything", group["everything"]), *group["unions"].items()], _STYLES, strict=False):
        cloud = both[direction]
        known = [getattr(p, direction) for p in points if p.family in (both.get("of") or [p.family])]
        known = [x for x in known if x is not None]
        c = cloud["fits"]["quadratic"]["coefficients"] if "fits" in cloud else None
        if c:
            grid = np.linspace(0, max(known), 200)
            r2, left = _text(cloud["fits"]["quadratic"]["r2"]), cloud["leave_one_method_out"]["quadratic"]["r2"]
            text = f"quadratic, {label.replace('_', ' ')}: R² {r2},\nmethods left out {_text(left)}"
            lines += axes.plot(grid, c["a"] + c["b"] * grid + c["c"] * grid**2, style, linewidth=1.4, label=text)
    knots = group["everything"][direction].get("fits", {}).get("monotone", {}).get("knots")
    if knots:
        r2 = _text(group["everything"][direction]["fits"]["monotone"]["r2"])
        lines += axes.plot(*zip(*knots, strict=True), "k:", linewidth=1.2, label=f"monotone, everything: R² {r2}")
    axes.legend(handles=lines, loc="lower center", bbox_to_anchor=(0.5, 1.0), frameon=False, fontsize=8)


def _text(number: Mapping[str, Any]) -> str:
    if number["value"] is None:
        return "–"
    ends = number["interval"]
    return f"{number['value']:.2f}" + (f" [{ends[0]:.2f}, {ends[1]:.2f}]" if ends else "")
