"""Figures: one size of letters, the house's colours, and ink that the page can turn light in the dark."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from cl_softcot.printable import plain_figure

if TYPE_CHECKING:
    from matplotlib.typing import RcKeyType

COLUMN, PAGE = 3.4, 7.1  # widths in inches: one column of a paper, and both
INK, FAINT = "#1a1a1b", "#8a8a8b"  # the page replaces INK by its own colour
MARKERS = "osD^vPXp*<>hdH8"

_STYLE: dict[RcKeyType, Any] = {
    "font.size": 8,
    "axes.titlesize": 8,
    "axes.labelsize": 8,
    "legend.fontsize": 7,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "axes.linewidth": 0.6,
    "lines.linewidth": 1.3,
    "lines.markersize": 3.5,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.facecolor": "none",
    "figure.facecolor": "none",
    "savefig.facecolor": "none",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "grid.color": FAINT,
    "grid.alpha": 0.3,
    "grid.linewidth": 0.5,
    "legend.frameon": False,
    "pdf.fonttype": 42,
    "svg.fonttype": "path",
}


@contextmanager
def _styled(name: str) -> Iterator[None]:
    import matplotlib

    # A salt for each figure: names inside a drawing must differ between drawings of one page, but not from run to run.
    with matplotlib.rc_context({**_STYLE, "svg.hashsalt": name}):
        yield


def drawn(name: str, draw: Callable[[], Any]) -> dict[str, bytes]:
    """A figure as ``{"svg": ..., "pdf": ...}``; the same numbers give the same bytes."""
    with _styled(name):
        figure = plain_figure(draw())
        made = {}
        for kind, metadata in (("svg", {"Date": None, "Creator": None}), ("pdf", {"CreationDate": None, "Creator": None})):
            buffer = io.BytesIO()
            figure.savefig(buffer, format=kind, metadata=metadata, bbox_inches="tight", pad_inches=0.03)
            made[kind] = buffer.getvalue()
    return made


def panels(rows: int, columns: int, *, width: float = PAGE, height: float = 2.2, **options: Any) -> tuple[Any, Any]:
    """(figure, [rows, columns] axes); ``height``: of one row, in inches."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height * rows), layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False, **options)


def legend_below(figure: Any, handles: Sequence[Any], labels: Sequence[str], columns: int = 4) -> None:
    figure.legend(handles, labels, loc="outside lower center", ncols=min(columns, len(labels)))


def style_of(method: str, methods: Sequence[str], colors: Mapping[str, str]) -> dict[str, Any]:
    """Colour and marker of a method: the same in every figure, and never told by colour alone."""
    return {"color": colors[method], "marker": MARKERS[list(methods).index(method) % len(MARKERS)]}


def arms(value: float, low: float | None, high: float | None) -> list[list[float]] | None:
    """Distances to the ends of an interval, in matplotlib's shape [2, 1]."""
    return None if low is None or high is None else [[max(0.0, value - low)], [max(0.0, high - value)]]


def heat(axes: Any, values: Sequence[Sequence[float | None]], frames: Sequence[tuple[int, int]] = ()) -> Any:
    """Accuracies as a heat map with their numbers; ``frames``: cells (row, column) that are outlined."""
    import numpy as np
    from matplotlib.patches import Rectangle

    table = np.array([[np.nan if x is None else x for x in row] for row in values], dtype=float)
    image = axes.imshow(table, vmin=0, vmax=1, cmap="viridis", aspect="auto")
    for (i, j), value in np.ndenumerate(table):
        if np.isfinite(value):
            text = f"{value:.2f}".removeprefix("0") if value < 0.995 else "1"
            axes.text(j, i, text, ha="center", va="center", fontsize=6.5, color="white" if value < 0.6 else "black")
    for i, j in frames:
        axes.add_patch(Rectangle((j - 0.46, i - 0.44), 0.92, 0.88, fill=False, edgecolor="white", linewidth=1.2))
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    return image
