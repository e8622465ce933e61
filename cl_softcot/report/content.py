"""What a report is made of: numbers that know where they come from, in tables and figures, in sections.

No section writes markup: ``writing.py`` makes HTML, Markdown, LaTeX, CSV and JSON of the same blocks.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

Style = Literal["fraction", "change", "nats", "count", "tokens", "p", "ratio", "plain", "reach"]


@dataclass(frozen=True)
class Number:
    """A number of the report, and what is needed to compute it again.

    Attributes:
        low, high: its 95 % interval; None where nothing is known about it.
        n: what it was made from: runs, or points where ``how`` says so.
        how: what was done with the values of the runs, such as ``mean``.
        path: where these stand in each run's ``result.json``, keys and places; or the name of what was computed from the run.
        runs: folders of the runs, as the reader of the report finds them.
        covers: what the interval says: how far the number would move with other ``runs``, or with other test ``examples``.
        more: further inputs of the computation.
        remark: what a reader has to know of it at once, printed beside it.
    """

    value: float | None
    low: float | None = None
    high: float | None = None
    n: int = 0
    how: str = "mean"
    path: tuple[str | int, ...] = ()
    runs: tuple[str, ...] = ()
    covers: str = ""
    note: str = ""
    style: Style = "fraction"
    more: dict[str, Any] = field(default_factory=dict, compare=False)
    asked: int = 0  # runs of the method, where not all of them have the number
    remark: str = ""

    def __str__(self) -> str:
        if self.value is None:
            return "–"
        of = f" (n = {self.n})" if self.n < self.asked else ""
        return self._around(_said(self.value, self.style)) + of + (f" ({self.remark})" if self.remark else "")

    def _around(self, text: str) -> str:
        if self.value is None or self.low is None or self.high is None:
            return text
        below, above = self.value - self.low, self.high - self.value
        if abs(below) < 1e-12 and abs(above) < 1e-12:  # all runs are the same
            return f"{text} ± 0"
        if abs(below - above) < 1e-9 + 1e-6 * abs(above):
            return f"{text} ± {_said(above, _WIDTH.get(self.style, self.style))}"
        return f"{text} [{_said(self.low, self.style)}, {_said(self.high, self.style)}]"


_WIDTH: dict[str, Style] = {"change": "fraction"}


def _said(value: float, style: Style) -> str:
    if style == "count":
        return _count(value)
    if style == "p":
        return "<0.001" if value < 0.001 else f"{value:.3f}"
    if style == "tokens":
        return f"{value:.1f}"
    if style == "reach" and value > 1:  # more than accuracies can differ by
        return "none could"
    if style == "plain":
        return f"{value:g}"
    if style == "ratio" and abs(value) >= 100:
        return _count(value).replace("-", "−")
    decimals = 2 if style == "ratio" else 3
    text = f"{value:+.{decimals}f}" if style == "change" and round(value, decimals) else f"{abs(value):.{decimals}f}"
    if style != "change" and round(value, decimals) < 0:
        text = f"-{text}"
    return text.replace("-", "−")


def _count(value: float) -> str:
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:.3g}{letter}"
    return f"{value:.0f}"


Cell = Number | str


def is_known(cell: Cell) -> bool:
    """Whether a cell is a number that was measured."""
    return isinstance(cell, Number) and cell.value is not None


@dataclass(frozen=True)
class Text:
    """A paragraph."""

    text: str


@dataclass(frozen=True)
class Listing:
    """Lines that are kept as they are: commands, settings."""

    text: str


@dataclass(frozen=True)
class Table:
    """Attributes:
    name: of its files, unique in a report.
    head, rows: as many cells in each row as in the head; the first ``text`` columns are words.
    notes: what a reader must know, below it.
    colors: of the first cell of each row, ``#rrggbb``.
    """

    name: str
    title: str
    head: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    text: int = 1
    notes: Sequence[str] = ()
    colors: Sequence[str | None] = ()

    def __post_init__(self) -> None:
        wrong = [row for row in self.rows if len(row) != len(self.head)]
        if wrong:
            raise ValueError(f"table {self.name}: {len(self.head)} columns, but a row of {len(wrong[0])}: {wrong[0]}")


@dataclass(frozen=True)
class Figure:
    """A picture of the numbers of a table, and of nothing else.

    Attributes:
        draw: makes it; called when it is written.
        data: what is drawn.
    """

    name: str
    caption: str
    draw: Callable[[], Any]
    data: Table


Block = Text | Listing | Table | Figure


@dataclass(frozen=True)
class Section:
    title: str
    blocks: Sequence[Block]


@dataclass(frozen=True)
class Missing:
    """Something that was not measured, and why."""

    what: str
    why: str
