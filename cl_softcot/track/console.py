"""What a person sees in the terminal: the progress of parallel runs, and one table at the end."""

from __future__ import annotations

import queue as queues
import textwrap
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypedDict

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Column
from rich.text import Text

from cl_softcot.printable import markdown, printable, visible
from cl_softcot.results.colors import GREYS, palette
from cl_softcot.results.headline import Means, drift_title, method_numbers, spread
from cl_softcot.results.reading import by_method
from cl_softcot.results.record import RunRecord, whole
from cl_softcot.results.two_readings import readings_of
from cl_softcot.results.unanswered import (
    Unanswered,
    base,
    final,
    of_the_base,
    own_turns,
    retention_base,
    retention_final,
    unanswered,
)
from cl_softcot.track.conclusion import sentence

__all__ = ["ProgressDisplay", "final_table", "print_results", "sentence", "table_markdown", "table_text"]

ENDINGS = ("finished", "failed", "kept", "stopped")
PLAIN_PULSE = 30.0  # seconds between two signs of life where there are no bars


# --- progress --------------------------------------------------------------------------------------------


class _Output(Console):
    """A terminal that may go away (``| head``, a full disk behind ``>``) without ending the work that is told of."""

    def on_broken_pipe(self) -> None:
        self.quiet = True

    def _check_buffer(self) -> None:
        try:
            super()._check_buffer()
        except (OSError, ValueError):
            self.quiet = True


class ProgressDisplay:
    """Shows how far the runs of an experiment are: bars in a terminal, plain lines elsewhere.

    Workers send dicts, `{"run", "phase", "done", "total", "text", "fraction"}`, of which only `run` is needed.
    `phase` names what the run does now ("learning facts"), `done` of `total` how far that is, and `fraction`
    (0 to 1) how far the whole run is, from which the time left is told. The phases "finished", "failed" (with
    the reason as `text`), "stopped" and "kept" (done by an earlier start) end a run. A `text` without a phase is
    printed. `aside` marks work that is no run, and is done before them: it has a time left of its own.

    The time left is told anew with everything that is new, and runs down in between.

    Use it as a context manager in the parent process; `listen(queue)` reads messages in a thread. `quiet` shows nothing.
    """

    def __init__(self, runs: Sequence[str], *, console: Console | None = None, quiet: bool = False):
        self.console = console or (_Output(quiet=True, force_terminal=False) if quiet else _Output())
        self.fancy = self.console.is_terminal and not self.console.is_dumb_terminal
        self._fractions: dict[str, float] = dict.fromkeys(runs, 0.0)
        self._phases: dict[str, str] = {}
        self._told: dict[str, str] = {}  # how far a phase is, in words
        self._aside: str | None = None
        self._left = _TimeLeft()  # of the runs
        self._left_aside = _TimeLeft()
        self._bars: dict[str, TaskID] = {}
        self._kept: set[str] = set()
        self._failed: set[str] = set()
        self._lock = threading.RLock()
        self._started = self._spoke = time.monotonic()
        self._name_width = max((len(run) for run in runs), default=10)
        self._listener: threading.Thread | None = None
        self._closing = threading.Event()
        self._progress: Progress | None = None
        self._overall: TaskID | None = None
        if self.fancy:
            self._progress, self._overall = self._make_bars()

    def _make_bars(self) -> tuple[Progress, TaskID]:
        # Names and phases share what is left of the line; the numbers and the time left are never cut.
        narrow = self.console.width < 100
        progress = Progress(
            TextColumn("{task.description}", table_column=_column(ratio=1)),
            BarColumn(bar_width=8 if narrow else 24),
            TextColumn("{task.fields[count]}", justify="right", table_column=_column(min_width=7)),
            *([] if narrow else [TimeElapsedColumn(table_column=_column(min_width=7))]),
            TextColumn("{task.fields[left]}", justify="right", table_column=_column(min_width=14)),
            console=self.console,
            expand=True,
            transient=True,
            get_time=time.monotonic,
        )
        total = max(len(self._fractions), 1)
        return progress, progress.add_task("[bold]all runs", total=total, count=f"0/{len(self._fractions)}", left="")

    def __enter__(self) -> ProgressDisplay:
        self._started = self._spoke = time.monotonic()
        if self._progress:
            self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._closing.set()
        if self._listener:
            self._listener.join(timeout=5)
        if self._progress:
            self._progress.stop()

    def listen(self, queue: Any) -> None:
        """Reads messages from a (multiprocessing) queue in a thread until the display is closed."""
        self._listener = threading.Thread(target=self._read, args=(queue,), name="progress", daemon=True)
        self._listener.start()

    def _read(self, queue: Any) -> None:
        while True:
            try:
                message = queue.get(timeout=0.2)
            except queues.Empty:
                if self._closing.is_set():
                    return
                self.pulse()
                continue
            except (EOFError, OSError, ValueError):  # the queue is gone with its processes
                return
            if isinstance(message, Mapping):
                self.update(message)

    def say(self, text: str, style: str | None = None) -> None:
        """Prints a line, above the bars if there are some."""
        with self._lock:
            # soft_wrap: a path or an address must stay in one piece to be copied
            self.console.print(Text(printable(text), style=style or ""), soft_wrap=True, highlight=False)

    def update(self, message: Mapping[str, Any]) -> None:
        """Takes one message of a worker."""
        with self._lock:
            run, phase = str(message.get("run", "")), message.get("phase")
            if phase is None:
                if message.get("text"):
                    self.say(f"{run}: {message['text']}" if run else str(message["text"]))
                return
            if message.get("aside"):
                self._aside = run
                self._left_aside.known(float(message.get("fraction") or 0.0))
            else:
                self._end_aside()
                self._fractions.setdefault(run, 0.0)
            if phase in ENDINGS:
                self._end(run, phase, message.get("text"))
            else:
                fraction = message.get("fraction")
                if fraction is not None and run in self._fractions:
                    self._fractions[run] = max(self._fractions[run], min(float(fraction), 1.0))
                self._know()
                (self._update_bar if self._progress else self._update_line)(run, str(phase), message)
            self._update_overall()

    def pulse(self) -> None:
        """A sign of life now and then where there are no bars."""
        with self._lock:
            now = time.monotonic()
            if self._progress:
                self._show_left()
            if self._progress or now - self._spoke < PLAIN_PULSE or not self._phases:
                return
            doing = "; ".join(f"{run}: {phase}{self._told.get(run, '')}" for run, phase in self._phases.items())
            self._line(f"{doing}{self._time_left()}" if self._aside else f"{self._counts()}{self._time_left()}; {doing}")

    def _end_aside(self) -> None:
        """The first word of a run: what was to be done before them is over."""
        if self._aside is None:
            return
        self._phases.pop(self._aside, None)
        if self._progress and self._aside in self._bars:
            self._progress.remove_task(self._bars.pop(self._aside))
        self._aside = None

    def _know(self) -> None:
        """Runs kept from an earlier start took no time now; counting them would promise too early an end."""
        active = [fraction for run, fraction in self._fractions.items() if run not in self._kept]
        if active and not self._aside:
            self._left.known(sum(active) / len(active))

    def _end(self, run: str, phase: str, text: str | None) -> None:
        self._fractions[run] = 1.0
        self._phases.pop(run, None)
        if phase == "kept":
            self._kept.add(run)
        if phase == "failed":
            self._failed.add(run)
        self._know()
        if self._progress and run in self._bars:
            self._progress.remove_task(self._bars.pop(run))
        if phase == "failed":
            self.say(f"{run} failed: {text or 'no reason was given'}", style="red")
        elif not self._progress:
            told = "was finished before" if phase == "kept" else phase
            self._line(f"{run} {told}{f': {text}' if text else ''} ({self._counts()}{self._time_left()})")

    def _update_bar(self, run: str, phase: str, message: Mapping[str, Any]) -> None:
        assert self._progress is not None, "without bars there are lines"
        total, done = message.get("total"), message.get("done") or 0
        description = f"{escape(visible(run)):<{min(self._name_width, 30)}} [dim]{escape(visible(phase))}[/]"
        if run not in self._bars:
            self._bars[run] = self._progress.add_task(description, total=total, count="", left="")
        elif self._phases.get(run) != phase:
            self._progress.reset(self._bars[run], total=total)  # it begins anew
        self._phases[run] = phase
        count = f"{done:g}/{total:g}" if total else ""
        self._progress.update(self._bars[run], description=description, total=total, completed=done, count=count)

    def _update_line(self, run: str, phase: str, message: Mapping[str, Any]) -> None:
        total, done = message.get("total"), message.get("done") or 0
        self._told[run] = f", {done:g} of {total:g}" if total else ""
        if self._phases.get(run) != phase:
            self._phases[run] = phase
            text, left = message.get("text"), self._time_left() if self._aside else ""
            self._line(f"{run}: {phase}{self._told[run] if done else ''}{f', {text}' if text else ''}{left}")
        else:
            self.pulse()

    def _update_overall(self) -> None:
        if self._progress and self._overall is not None:
            total = len(self._fractions) - len(self._kept)
            done = sum(f for run, f in self._fractions.items() if run not in self._kept)
            self._progress.update(self._overall, total=max(total, 1e-9), completed=done, count=self._counts(short=True))
            self._show_left()

    def _show_left(self) -> None:
        """Of all runs in their line; of what is done before them in its own."""
        assert self._progress is not None, "without bars there are lines"
        left = self._time_left().removeprefix(", about ")
        shown = self._bars.get(self._aside) if self._aside else self._overall
        if shown is not None:
            self._progress.update(shown, left=left)

    def _counts(self, short: bool = False) -> str:
        done = sum(1 for f in self._fractions.values() if f >= 1) - len(self._failed)
        failed = f", {len(self._failed)} failed" if self._failed and not short else ""
        return f"{done}/{len(self._fractions)}" + ("" if short else f" runs done{failed}")

    def _time_left(self) -> str:
        left = (self._left_aside if self._aside else self._left).seconds()
        return "" if left is None else f", about {_duration(left)} left"

    def _line(self, text: str) -> None:
        self._spoke = time.monotonic()
        self.say(f"[{_duration(self._spoke - self._started):>7}] {text}")


class _TimeLeft:
    """The time that work still takes, if it goes on as fast as so far. While nothing new is known it runs down."""

    def __init__(self) -> None:
        self._began: tuple[float, float] | None = None  # when, and what was done already
        self._done, self._end = 0.0, 0.0

    def known(self, done: float) -> None:
        """``done``: the share that is done now, 0 to 1; what is no more than before is nothing new."""
        now = time.monotonic()
        if self._began is None:
            self._began, self._done = (now, done), done
        elif done > self._done:
            began, before = self._began
            self._done, self._end = done, now + (now - began) * (1 - done) / (done - before)

    def seconds(self) -> float | None:
        """None where nothing is known, all is done, or it takes longer than was thought."""
        left = self._end - time.monotonic()
        return left if 0 < self._done < 1 and left > 0 else None


def _column(**kwargs: Any) -> Column:
    return Column(no_wrap=True, overflow="ellipsis", **kwargs)


def _duration(seconds: float) -> str:
    seconds = int(seconds + 0.5)
    if seconds < 60:
        return f"{seconds} s"
    minutes, seconds = divmod(seconds, 60)
    return f"{minutes}:{seconds:02d} min" if minutes < 60 else f"{minutes // 60}:{minutes % 60:02d} h"


# --- the table -------------------------------------------------------------------------------------------

# key, header (three short lines, so that the table fits into 100 columns), kind of number
COLUMNS = (
    ("learned", "learned\n\n↑", "share"),
    ("accuracy", "average\naccu-\nracy ↑", "share"),
    ("bwt", "BWT\n\n↑", "signed"),
    ("forgetting", "forget-\nting\n↓", "signed"),
    ("retention", "reten-\ntion as\nused ↑", "share"),
    ("drift", "drift\nas\nused ↓", "small"),
    ("parameters", "trained\npara-\nmeters", "count"),
    ("tokens", "tokens\nper\nanswer", "one"),
    ("seconds", "seconds\nlearn+\neval", "seconds"),
)
_ROUTING = ("routing", "routed\nright\n↑", "share")


def columns_of(results: Iterable[RunRecord]) -> list[tuple[str, str, str]]:
    """``COLUMNS``, and what only some experiments have: a second reading that says something else, routing, metrics of their
    own."""
    results = list(results)
    columns = [part for column in COLUMNS[:6] for part in (column, *_otherwise(results, column[0]))]
    routed = [_ROUTING] if any(r.routing_accuracy for r in results) else []
    meanings = {name: meaning for r in results for name, meaning in (r.metrics or {}).items()}
    own = [(f"summary/{name}", _own_header(name, meaning.direction), "share") for name, meaning in meanings.items()]
    return [*columns, *own, *routed, *COLUMNS[6:]]


def _otherwise(results: Sequence[RunRecord], key: str) -> list[tuple[str, str, str]]:
    """What stands beside a column of the headline where the two readings of the answers differ."""
    readings = readings_of(results)
    if not readings or not readings.differ:
        return []
    beside = {
        "accuracy": [
            ("accuracy_otherwise", f"accuracy,\n{readings.other}\n↑", "share"),
            ("unanswered", f"unanswered\n{readings.headline}/\n{readings.other} ↓", "unanswered"),
        ],
        "retention": [("retention_otherwise", f"retention\nas used,\n{readings.other} ↑", "share")],
    }
    return beside.get(key, [])


def _own_header(name: str, direction: str) -> str:
    arrow = "↑" if direction.startswith("higher") else "↓" if direction.startswith("lower") else ""
    lines = textwrap.wrap(name.replace("_", " "), 10, max_lines=2, placeholder="…")
    return "\n".join([*lines, arrow, ""][:3] if arrow else [*lines, "", ""][:3])


class _Layout(TypedDict):
    below: bool
    stacked: bool
    gap: int


_LAYOUTS: tuple[_Layout, ...] = (  # from wide to narrow
    {"below": False, "stacked": False, "gap": 2},
    {"below": False, "stacked": False, "gap": 1},
    {"below": True, "stacked": False, "gap": 2},
    {"below": True, "stacked": False, "gap": 1},
    {"below": True, "stacked": True, "gap": 1},
)


def final_table(results: Sequence[RunRecord], *, failed: Mapping[str, str] | None = None, width: int | None = None) -> Text:
    """One row a method: what it learned, what it kept, how far it drifted, and what it cost.

    Several runs of a method (seeds, task orders) become mean ± standard deviation, with their number. A base
    that is no method of its own gets the first row.

    Args:
        failed: {method: reason} for methods that have no result; they keep a row.
        width: of the place where it will be printed; None for as wide as it needs. The layout adapts: first the
            ± moves below its number, then the numbers move below the method's name.
    """
    rows = _rows(results, failed or {})
    several, headers = _several(results), [header for _, header, _ in columns_of(results)]
    for layout in _LAYOUTS:
        lines = _lay_out(rows, headers, several=several, **layout)
        if width is None or max(line.cell_len for line in lines) <= width:
            break
    return Text("\n").join(lines)


def table_text(results: Sequence[RunRecord], *, failed: Mapping[str, str] | None = None) -> str:
    """The table, its legend and the sentence as plain text, as wide as the table needs (for `table.txt`)."""
    table = final_table(results, failed=failed).plain
    width = max(len(line) for line in table.splitlines())
    notes = [legend(results), "", *sentence(results, full=True).splitlines()]
    wrapped = [part for line in notes for part in (textwrap.wrap(line, width, subsequent_indent="  ") or [""])]
    return "\n".join([table, "", *wrapped, ""])


def table_markdown(results: Sequence[RunRecord], *, failed: Mapping[str, str] | None = None) -> str:
    """The table as Markdown, for a README or an experiment's note."""
    several = ["n"] if _several(results) else []
    header = ["method", *several, *(_on_one_line(h) for _, h, _ in columns_of(results))]
    lines = ["| " + " | ".join(header) + " |", "|:---|" + "---:|" * (len(header) - 1)]
    for row in _rows(results, failed or {}):
        cells = [" ".join(part for part in cell if part) for cell in row.cells]
        if row.failed:
            cells = ["failed"] + [""] * (len(cells) - 1)
        lines.append("| " + " | ".join([markdown(row.name).replace("|", "\\|"), *([row.n] if several else []), *cells]) + " |")
    return "\n".join(lines) + "\n"


def _on_one_line(header: str) -> str:
    return " ".join(header.replace("-\n", "").replace("+\n", "+").split())


def print_results(
    results: Sequence[RunRecord],
    *,
    console: Console | None = None,
    failed: Mapping[str, str] | None = None,
) -> None:
    """Prints the table, its legend and the sentence that the numbers support."""
    console = console or _Output()
    if not console.is_terminal:
        # Nobody's window ends at 80 columns in a log file.
        console.print(Text(table_text(results, failed=failed)), soft_wrap=True)
        return
    console.print(final_table(results, failed=failed, width=console.width), soft_wrap=True)
    console.print()
    for line in (legend(results), *sentence(results).splitlines()):
        text = Text("\n".join(textwrap.wrap(line, console.width, subsequent_indent="  ")))
        title = line.find("): ") + 2  # the question that a sentence answers
        text.stylize("bold" if title > 1 else "dim", 0, title if title > 1 else len(text))
        console.print(text, soft_wrap=True)


def legend(results: Sequence[RunRecord]) -> str:
    """What the columns mean, with the conventions that differ between papers."""
    parts = [
        "learned: mean accuracy right after each task's own turn",
        "average accuracy: over all tasks, at the end",
        "BWT: Lopez-Paz and Ranzato (GEM), above 0 is a gain",
        "forgetting: Chaudhry et al. 2018, best earlier accuracy minus the last",
        "retention: accuracy on the base's own abilities",
        f"drift: {drift_title(results)}, nats per token",
        "as used: with everything that the method brings",
        "tokens: written words and end of text, thoughts not among them",
    ]
    if any(r.routing_accuracy for r in results):
        parts.append("routed right: the stream's questions that go to their own task's copy, at the end")
    own = {name: meaning for r in results for name, meaning in (r.metrics or {}).items()}
    parts += [f"{name}: {m.formula} ({m.unit}, {m.direction}; {m.source})" for name, m in own.items()]
    readings = readings_of(results)
    if readings:
        parts.append(readings.in_words())
    if _several(results):
        parts.append("±: standard deviation over n runs (seeds and task orders)")
    return "; ".join(parts) + "."


def _several(results: Iterable[RunRecord]) -> bool:
    return any(len(runs) > 1 for runs in by_method(results).values())


@dataclass(frozen=True)
class _Row:
    name: str
    n: str
    cells: list[tuple[str, ...]]  # (number, ± deviation or "", and what is said beside it) per column
    color: str
    failed: bool = False


def _rows(results: Sequence[RunRecord], failed: Mapping[str, str]) -> list[_Row]:
    groups, columns = by_method(results), columns_of(results)
    colors = palette([*groups, *failed])
    rows = []
    if results and all(result.trained for result in results):
        rows.append(_base_row(results))
    for name, runs in groups.items():
        values = method_numbers(runs)
        remarks = {key: unanswered(runs, cells) for key, cells in _CELLS.items()}
        cells = [_with_remark(_format(values, key, kind), remarks.get(key)) for key, _, kind in columns]
        rows.append(_Row(name, str(len(runs)), cells, colors[name]))
    for name in failed:
        if name not in groups:
            rows.append(_Row(name, "", [("", "")] * len(columns), colors[name], failed=True))
    return rows


# Columns that are accuracies, and the answers that they are made of.
_CELLS = {"accuracy": final, "learned": own_turns, "retention": retention_final}


def _with_remark(cell: tuple[str, str], found: Unanswered | None) -> tuple[str, ...]:
    """A number, and beside it that too many of its answers are unanswered; in two parts, for narrow columns."""
    if found is None or not found.too_many or cell[0] == "–":
        return cell
    return *cell, f"({found.count} of {found.questions}", "unanswered)"


def _base_row(results: Sequence[RunRecord]) -> _Row:
    """The base's zero-shot CoT, from the first row of any result's matrix."""
    row, kept = whole(results[0].accuracy.matrix[0]), results[0].retention_row("as_used", 0)
    columns = columns_of(results)
    values: dict[str, Means | None] = dict.fromkeys(key for key, _, _ in columns)
    values["accuracy"] = spread([sum(row) / len(row)])
    values |= _base_otherwise(results[0])
    values["retention"] = spread([kept.all if kept else None])
    values["parameters"] = Means(0.0, None, 1)
    values["drift"] = Means(0.0, None, 1)
    remarks = {key: of_the_base(results, cells) for key, cells in (("accuracy", base), ("retention", retention_base))}
    cells = [_with_remark(_format(values, key, kind), remarks.get(key)) for key, _, kind in columns]
    return _Row("base, zero-shot CoT", "", cells, GREYS[0])


def _base_otherwise(result: RunRecord) -> dict[str, Means | None]:
    """The base's numbers in the reading that is not the headline."""
    other = result.other_reading
    if other is None:
        return {}
    row, kept = whole(other.accuracy.matrix[0]), other.retention_row("as_used", 0)
    return {
        "accuracy_otherwise": spread([sum(row) / len(row)]),
        "retention_otherwise": spread([kept.all if kept else None]),
        "unanswered": spread([result.summary.get("unanswered/base")]),
        "unanswered_otherwise": spread([other.summary.get("unanswered/base")]),
    }


def _format(values: Mapping[str, Means | None], key: str, kind: str) -> tuple[str, str]:
    if kind == "seconds":
        learn, evaluate = values.get("train_seconds"), values.get("evaluate_seconds")
        parts = [f"{x.mean:.0f}" if x else "–" for x in (learn, evaluate)]
        return ("–", "") if learn is None and evaluate is None else ("+".join(parts), "")
    if kind == "unanswered":
        shares = (values.get("unanswered"), values.get("unanswered_otherwise"))
        return "/".join(f"{x.mean:.2f}" if x else "–" for x in shares), ""
    value = values.get(key)
    if value is None:
        return "–", ""
    text = _number(value.mean, kind)
    # Counts and times are the same or uninteresting over seeds; a ± there would only be noise.
    if value.deviation is None or kind in ("count", "one"):
        return text, ""
    deviation = _number(value.deviation, "small" if kind == "small" else "share")
    return text, "±0" if value.deviation < 1e-9 else "±" + deviation.removeprefix("0")


def _number(value: float, kind: str) -> str:
    if kind == "count":
        for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
            if value >= size:
                return f"{value / size:.3g}{unit}"
        return f"{value:.0f}"
    if kind == "one":
        return f"{value:.1f}"
    if kind == "small":  # drifts span orders of magnitude, and an exact zero means something
        return "0" if value == 0 else f"{value:.3f}" if abs(value) >= 0.001 else f"{value:.0e}"
    if kind == "signed":
        return "0" if value == 0 else f"{value:+.3f}".replace("-", "−")
    return f"{value:.3f}"


def _lay_out(rows: Sequence[_Row], named: Sequence[str], *, several: bool, below: bool, stacked: bool, gap: int) -> list[Text]:
    """The table's lines. `below`: ± under its number; `stacked`: the numbers under the method's name."""
    headers = [header.split("\n") for header in named]
    blocks = [[list(cell) if below else [" ".join(p for p in cell if p)] for cell in row.cells] for row in rows]
    labels = [_label(row, several=several and stacked) for row in rows]
    if several and not stacked:
        headers = [["", "", "n"], *headers]
        blocks = [[[row.n, ""] if below else [row.n], *block] for row, block in zip(rows, blocks, strict=True)]
    widths = [
        max(len(text) for cell in (headers[i], *(block[i] for block in blocks)) for text in cell) for i in range(len(headers))
    ]
    indent = 1 if stacked else max([len("method"), *(label.cell_len for label in labels)])
    lines = [
        _line(Text("method" if i == 2 and not stacked else ""), [header[i] for header in headers], widths, indent, gap)
        for i in range(3)
    ]
    for line in lines:
        line.stylize("bold")
    lines.append(Text("─" * max(line.cell_len for line in lines), style="dim"))
    for row, block, label in zip(rows, blocks, labels, strict=True):
        if stacked:
            lines.append(label)
            label = Text("")
        if row.failed:
            lines += [] if stacked else [label]
            continue
        for i in range(max(len(cell) for cell in block)):
            parts = [cell[i] if i < len(cell) else "" for cell in block]
            if i == 0 or any(parts):
                lines.append(_line(label if i == 0 else Text(""), parts, widths, indent, gap))
    return lines


def _label(row: _Row, *, several: bool) -> Text:
    label = Text.assemble(("● ", row.color), row.name)
    if several and row.n:
        label.append(f"  n = {row.n}", style="dim")
    if row.failed:
        label.append("  failed", style="red")
    return label


def _line(label: Text, cells: Sequence[str], widths: Sequence[int], indent: int, gap: int) -> Text:
    line = label.copy()
    line.pad_right(indent - line.cell_len)
    for cell, width in zip(cells, widths, strict=True):
        line.append(" " * gap)
        number, mark, deviation = cell.rjust(width).partition("±")
        line.append(number)
        if mark:
            line.append(mark + deviation, style="dim")
    return line


def experiment_note(results: Sequence[RunRecord], *, failed: Mapping[str, str] | None = None) -> str:
    """The table and the sentences as Markdown, for the page of an experiment in MLflow."""
    sentences = "\n".join(f"* {markdown(line)}" for line in sentence(results, full=True).splitlines())
    return f"{table_markdown(results, failed=failed)}\n{sentences}\n\n{markdown(legend(results))}\n"
