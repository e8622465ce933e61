"""A written report against the run folders that it was made from: every table of its CSV, LaTeX, Markdown and HTML files.

Values come from ``plain_numbers`` (loops and NumPy over the results and the kept outcomes), intervals from
``cl_softcot.statistics`` with the report's own number of resamples; nothing of ``cl_softcot.report`` is called. ``problems``
returns a line for everything that is not as it should be.
"""

from __future__ import annotations

import csv
import functools
import math
import re
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

from plain_numbers import Plain, read_report

from cl_softcot.law.fit import fit_law
from cl_softcot.law.points import Point
from cl_softcot.statistics.aggregate import aggregate, performance_profile
from cl_softcot.statistics.many import compare
from cl_softcot.statistics.paired import Unit

SMALLEST = "smallest difference that would have been shown"
# What a column of these tables must be made of, whatever report.json says of it.
COLUMNS = {
    "ACC ↑": ["summary", "acc"], "IQM ↑": ["accuracy", "matrix", -1], "learning accuracy ↑": ["summary", "learning_accuracy"],
    "BWT (GEM) ↑": ["summary", "bwt/gem"], "forgetting since learned ↓": ["summary", "forgetting/chaudhry_from_learned"],
    "retention, as used ↑": ["retention", "as_used", -1, "all"],
    "retention, weights alone ↑": ["retention", "weights_alone", -1, "all"],
    "trained parameters": ["cost", "trained_parameters"], "tokens an answer": ["cost", "tokens_per_answer"],
    "passes an answer": ["cost", "forward_passes_per_answer"],
    "since learned ↓": ["summary", "forgetting/chaudhry_from_learned"],
    "Chaudhry et al. 2018 ↓": ["summary", "forgetting/chaudhry"],
    "Avalanche ↓": ["summary", "forgetting/avalanche"], "mammoth ↓": ["summary", "forgetting/mammoth"],
    "BWT (TRACE) ↑": ["summary", "bwt/trace"], "BWT (Continuum) ↑": ["summary", "bwt/continuum"],
}  # fmt: skip


@dataclass
class Found:
    """A number once more; ``low`` and ``high`` are None where it has no interval."""

    value: float
    low: float | None = None
    high: float | None = None


def problems(report: Path) -> list[str]:
    """Everything in a report's folder that does not follow from the runs that it was made from."""
    return list(_Check(report).all())


def wrong_numbers(report: Path) -> list[str]:
    """The same of ``report.json`` alone, where nothing else was kept of a report."""
    return list(_Check(report).data())


class _Check:
    def __init__(self, report: Path):
        self.report = report
        self.about = read_report(report)
        self.entries = self.about["numbers"]
        self.studies = {study["name"]: study for study in self.about["studies"]}
        self.plain = Plain({name: (report / study["folder"]).resolve() for name, study in self.studies.items()})
        self.lines = defaultdict(list)  # entries of one call of a comparison, in their order
        for entry in self.entries:
            self.lines[entry["table"], entry["how"], str(entry["path"])].append(entry)
        self.by_table: dict[str, list[dict[str, Any]]] = defaultdict(list)
        for entry in self.entries:
            self.by_table[entry["table"]].append(entry)
        self.fitted = functools.cache(self.fitted)  # type: ignore[method-assign]

    def data(self) -> Iterator[str]:
        self.expected = {id(entry): self.again(entry) for entry in self.entries}
        for entry in self.entries:
            yield from self.entry(entry)

    def all(self) -> Iterator[str]:
        yield from self.data()
        tables: dict[str, list[list[str]]] = {}
        self.cells: dict[str, list[dict[str, str]]] = {}
        for path in sorted((self.report / "tables").glob("*.csv")):
            with open(path, newline="") as file:
                tables[path.stem] = list(csv.reader(file))
            yield from self.csv(path.stem, tables[path.stem])
            head, *rows = tables[path.stem]
            self.cells[path.stem] = [dict(zip(head, row, strict=True)) for row in rows]
        missing = {_file(name) for name in self.by_table} - set(tables)
        yield from (f"{name}: no file of this table" for name in missing)
        yield from self.texts()

    # ------------------------------------------------------------------------------------------------ report.json

    def entry(self, entry: dict[str, Any]) -> Iterator[str]:
        found, where = self.expected[id(entry)], f"report.json {entry['table']} {entry['row']} {entry['column']}"
        if not _close(entry["value"], found.value):
            yield f"{where}: {entry['value']} is {found.value}"
        for end in ("low", "high"):
            if not _close(entry[end], getattr(found, end)):
                yield f"{where}: {end} {entry[end]} is {getattr(found, end)}"
        runs = {run for study in self.studies.values() for run in (*study["runs"], *study["references"])}
        if not set(entry["runs"]) <= runs:
            yield f"{where}: made from runs that the report does not name"
        if (
            entry["column"] in COLUMNS
            and COLUMNS[entry["column"]] != entry["path"]
            and entry["table"].endswith(("-main", "-kept", "-conventions"))
        ):
            yield f"{where}: made from {entry['path']}"
        if entry["table"].endswith(("-main", "-retention", "-flips", "-profiles")) and entry["n"] != len(entry["runs"]):
            yield f"{where}: n {entry['n']} of {len(entry['runs'])} runs"

    def again(self, entry: dict[str, Any]) -> Found:
        how = entry["how"]
        if how == "law":
            return self.law(entry)
        if how in ("paired difference", SMALLEST, "p, Holm", "difference in a run"):
            return self.compared(entry)
        value = self.plain.again(entry, self.entries)["value"]
        if how == "point" or entry["covers"] == "":
            return Found(value)
        if entry["covers"] == "examples":
            return Found(value, *self.over_examples(entry))
        return Found(value, *self.over_runs(entry))

    def over_examples(self, entry: dict[str, Any]) -> list[float]:
        """Of a single run: the interval that stands beside the number."""
        result, path = self.plain.result(entry["runs"][0]), list(entry["path"])
        if path[-1] == "value":
            beside = self.plain.inside(result, path[:-1])
            return [beside["low"], beside["high"]]
        if path[0] == "accuracy":
            return self.plain.inside(result, ["accuracy", "intervals", *path[2:]])
        if path[0] in ("summary", "retention", "other_reading"):
            return self.plain.inside(result, [*path[:-1], f"{path[-1]}_interval"])
        beside = self.plain.inside(result, path)  # a {value, low, high} of a diagnostic
        return [beside["low"], beside["high"]]

    def over_runs(self, entry: dict[str, Any]) -> tuple[float | None, float | None]:
        """Bootstrap over runs, inside task orders of three runs or more."""
        if entry["how"] == "share above":
            row = [e for e in self.by_table[entry["table"]] if e["row"] == entry["row"]]
            thresholds = [e["more"]["above"] for e in row]
            runs = {run: self.plain.matrix(run)[-1] for run in entry["runs"]}
            profile = performance_profile(self.strata(runs), thresholds, n_boot=self.bootstrap(entry))
            place = thresholds.index(entry["more"]["above"])
            return profile.low[place], profile.high[place]
        if entry["how"] == "interquartile mean":
            values: dict[str, Any] = {run: self.plain.matrix(run)[-1] for run in entry["runs"]}
        elif entry["how"] == "intransigence":
            mine = [run for run in entry["runs"] if not self.plain.result(run)["reference"]]
            values = {run: self.plain.intransigence(run, entry["runs"]) for run in mine}
        else:
            values = {run: self.plain.of(run, entry) for run in entry["runs"]}
        kind = "iqm" if entry["how"] == "interquartile mean" else "mean"
        estimate = aggregate(self.strata(values), kind, n_boot=self.bootstrap(entry))
        return estimate.low, estimate.high

    def strata(self, values: dict[str, Any]) -> dict[str, list[Any]]:
        orders = defaultdict(list)
        for run, value in values.items():
            orders[self.plain.result(run)["order"]].append(value)
        return dict(orders) if min(map(len, orders.values())) >= 3 else {"all": list(values.values())}

    def bootstrap(self, entry: dict[str, Any]) -> int:
        return self.studies[entry["runs"][0].split("/")[0]]["bootstrap"]

    # ------------------------------------------------------------------------------------------------ differences

    def compared(self, entry: dict[str, Any]) -> Found:
        """A line of a comparison, from all of its lines."""
        kind = "paired difference" if "a" in entry["more"] else "difference in a run"
        lines = self.lines[entry["table"], kind, str(entry["path"])]
        scores, pairs = {}, []
        for k, line in enumerate(lines):
            scores[f"a{k}"], scores[f"b{k}"] = self.sides(line)
            pairs.append((f"a{k}", f"b{k}"))
        one = compare(scores, pairs)[next(k for k, line in enumerate(lines) if line["row"] == entry["row"])]
        if entry["how"] == "p, Holm":
            return Found(one.p_adjusted)
        if entry["how"] == SMALLEST:
            return Found(one.smallest_shown)
        value = self.plain.again(entry, self.entries)["value"]
        assert math.isclose(value, one.difference.value, abs_tol=1e-9), entry
        return Found(value, one.difference.low, one.difference.high)

    def sides(self, line: dict[str, Any]) -> tuple[dict[Unit, float], dict[Unit, float]]:
        if "a" not in line["more"]:  # two numbers of the same runs
            there = [{**line, "more": {}}, {**line, "more": {}, "path": line["more"]["minus"]}]
            a, b = ({self.unit(run): self.plain.of(run, place) for run in line["runs"]} for place in there)
            return a, b
        half = len(line["runs"]) // 2
        return self.side(line, line["runs"][:half]), self.side(line, line["runs"][half:])

    def side(self, line: dict[str, Any], runs: list[str]) -> dict[Unit, float]:
        if line["more"]["basis"] == "runs":
            return {self.unit(run): self.plain.of(run, line) for run in runs}
        kind, found = "task" if line["path"][0] == "summary" else "retention", {}
        for run in runs:
            key = self.unit(run).run
            clusters = self.plain.clusters(run, kind)
            for (task, question), score in self.plain.scores(run, kind, "minus" in line["more"]).items():
                found[Unit(key, task, question, clusters.get((task, question)))] = score
        return found

    def unit(self, run: str) -> Unit:
        result = self.plain.result(run)
        return Unit((result["seed"], result["order"]), "all")

    # --------------------------------------------------------------------------------------------------- the law

    def law(self, entry: dict[str, Any]) -> Found:
        _law, inputs, outcome, view, *what = entry["path"]
        study = entry["runs"][0].split("/")[0]
        group = self.fitted(study, inputs, outcome, view)
        value = self.plain.again(entry, self.entries)["value"]
        if what[0] == "accuracy_matched":
            pair = next(p for p in group["accuracy_matched"]["pairs"] if [p["a"], p["b"]] == what[1:3])
            beside = pair["difference"][what[3]]
        else:
            cloud = (group["everything"] if what[0] == "all methods" else group["families"][what[0]])[what[1]]
            places = {"spearman": lambda: cloud["spearman"], "r2": lambda: cloud["fits"][what[3]]["r2"]}
            beside = places.get(what[2], lambda: cloud["leave_one_method_out"][what[3]]["r2"])()
        return Found(value, *(beside["interval"] or (None, None)))

    def fitted(self, study: str, inputs: str, outcome: str, view: str) -> dict[str, Any]:
        points = []
        for run in self.studies[study]["runs"]:
            result = self.plain.result(run)
            if result["strategy"]["name"] == "zero_shot":
                continue
            for i in range(1, len(result["tasks"]) + 1):
                p = self.plain.point(run, inputs, outcome, view, i)
                name = ".".join(str(result[key]) for key in ("experiment", "method", "order", "seed"))
                points.append(
                    Point(
                        name, p["method"], self.plain.family(run), i, p["task"], i, view, inputs, outcome, p["forward_kl"],
                        p["reverse_kl"], p["forgetting"], p["accuracy"],
                    )
                )  # fmt: skip
        points = [p for p in points if not math.isnan(p.forgetting)]
        return fit_law(points, bootstrap=self.studies[study]["bootstrap"] // 4)["groups"][0]

    # ------------------------------------------------------------------------------------------------------- files

    def placed(self, name: str, head: list[str], rows: list[list[str]]) -> Iterator[tuple[int, int, dict[str, Any] | None]]:
        """(row, column, entry of report.json or None) of each cell; at the end (-1, -1, entry) of entries without a cell."""
        entries = next((own for table, own in self.by_table.items() if _file(table) == name), [])
        k = 0
        for r, row in enumerate(rows):
            for column, column_head in enumerate(head):
                entry = entries[k] if k < len(entries) else None
                words = len(entry["row"]) if entry else 0
                if entry and entry["row"] == row[:words] and entry["column"] == column_head and column >= words:
                    k += 1
                    yield r, column, entry
                else:
                    yield r, column, None
        yield from ((-1, -1, left) for left in entries[k:])

    def csv(self, name: str, lines: list[list[str]]) -> Iterator[str]:
        """Numbers in full: each has its entry, and each entry stands there; other cells that are numbers are explained."""
        head, *rows = lines
        numeric = [k for k, h in enumerate(head) if head[k + 1 : k + 4] == [f"{h} low", f"{h} high", f"{h} n"]]
        beside = {k + d for k in numeric for d in (1, 2, 3)}
        for r, k, entry in self.placed(name, head, rows):
            row = rows[r]
            where = f"{name}.csv {row[:2]} {head[k]}: {row[k]}"
            if k < 0:
                yield f"{name}.csv: {entry['row']} {entry['column']} of report.json is in no cell"
            elif entry is not None:
                want = self.expected[id(entry)]
                for text, value in zip(row[k : k + 3], (want.value, want.low, want.high), strict=True):
                    if not _close(float(text) if text else None, value):
                        yield f"{where}: {text} is {value}"
                if row[k + 3] != str(entry["n"]):
                    yield f"{where}: n {row[k + 3]} is {entry['n']}"
            elif k in numeric and row[k] not in ("", "–"):
                yield f"{where} is of no entry of report.json"
            elif k not in beside and re.fullmatch(r"[+−-]?\d+(\.\d+)?", row[k]):
                yield from self.word(name, head, row, k)

    def word(self, name: str, head: list[str], row: list[str], k: int) -> Iterator[str]:
        """A number that is a word of a table: counts, places, settings."""
        study = next((s for s in sorted(self.studies, key=len, reverse=True) if name.startswith(_file(s) + "-")), None)
        kind, where = name.removeprefix(_file(study or "") + "-"), f"{name}.csv {row[:2]} {head[k]}: {row[k]}"
        own = [
            e
            for e in self.by_table[next((t for t in self.by_table if _file(t) == name), name)]
            if e["row"] == row[: len(e["row"])]
        ]
        runs = [run for s in self.studies.values() for run in (*s["runs"], *s["references"]) if study in (None, s["name"])]
        results = {run: self.plain.result(run) for run in runs}
        method = [run for run, result in results.items() if result["method"] in row[:2]]
        allowed: set[Any] = set()
        if head[k] == "n":
            allowed = {len([run for run in method if study or self.studies[row[0]]["name"] == run.split("/")[0]])}
        elif kind == "setup":
            allowed = {len(self.studies[study]["seeds"]), *self.studies[study]["seeds"]}
        elif kind == "tasks":
            allowed = {
                result["accuracy"]["n"][result["tasks"].index(row[0])] for result in results.values() if row[0] in result["tasks"]
            }
        elif kind == "methods" and head[k] == "learning rate":
            allowed = {results[run]["strategy"].get("learning_rate") for run in method}
        elif head[k] == "points":
            allowed = {e["n"] for e in own}
        elif kind.startswith("during"):
            steps = [results[method[0]]["diagnostics"]["during"]["rows"][e["path"][3]]["steps"] for e in own]
            before = [
                sum(results[method[0]]["diagnostics"]["during"]["rows"][str(r)]["steps"][-1] for r in range(1, int(e["path"][3])))
                for e in own
            ]
            allowed = {b + s[e["path"][-1]] for e, s, b in zip(own, steps, before, strict=True)}
        elif head[k] == "layer":
            allowed = {int(next(step for step in reversed(e["path"]) if isinstance(step, int))) + 1 for e in own}
        elif kind == "frontier" and head[k] == "steps":
            allowed = {
                int(e["path"][e["path"].index(next(p for p in ("thoughts", "written") if p in e["path"])) + 1]) for e in own
            }
        elif kind == "curriculum":
            rows = results[method[0]]["diagnostics"]["curriculum"]["rows"]
            allowed = {rows[e["path"][3]]["trained"][e["path"][5]] for e in own}
        elif head[k] in ("experience", "after experience"):
            place = {"law": 4, "diagnostics": 3, "accuracy": 2, "retention": 2}
            allowed = {int(e["path"][place[e["path"][0]]]) for e in own if e["path"][0] != "drift"}
        elif kind in ("runs", "versions", "missing"):  # fingerprints of digits only
            return
        else:
            yield f"{where} is a number that nothing explains"
        if (
            allowed
            and (len(allowed) > 1 or float(row[k]) != float(next(iter(allowed))))
            and float(row[k]) not in map(float, allowed)
        ):
            yield f"{where} is {allowed}"

    def texts(self) -> Iterator[str]:
        """Tables of the three texts, cell by cell, at their printed precision."""
        tex = {path.stem: _tex_table(path.read_text()) for path in sorted((self.report / "tables").glob("*.tex"))}
        for name, (_, rows) in tex.items():
            yield from self.printed(name, rows)
        pages = {
            "report.md": _markdown_tables((self.report / "report.md").read_text()),
            "report.html": _html_tables((self.report / "report.html").read_text()),
        }
        for page, tables in pages.items():
            left = dict(tex)
            for title, rows in tables:  # the same cells as in LaTeX, which were held against the numbers
                name = next((n for n, own in left.items() if own == (title, rows)), None)
                left.pop(name or "", None)
                if name is None:
                    near = [own for t, own in tex.values() if t == title and len(own) == len(rows)]
                    yield f"{page}: '{title}' is not as in its LaTeX file: {_first_other(rows, near)}"

    def printed(self, name: str, rows: list[list[str]]) -> Iterator[str]:
        head, *rows = rows
        words = self.cells.get(name, [])
        if len(words) != len(rows):
            yield f"{name}: {len(rows)} rows in LaTeX, {len(words)} in CSV"
            return
        for r, k, entry in self.placed(name, head, rows):
            row = rows[r]
            if k < 0:
                yield f"{name}.tex: {entry['row']} {entry['column']} of report.json is in no cell"
            elif entry is not None:
                wrong = _printed_wrong(row[k], self.expected[id(entry)], entry)
                if wrong:
                    yield f"{name}.tex {row[:2]} {head[k]}: {row[k]} {wrong}"
                yield from self.verdict(name, row, head, entry)
            elif row[k].removeprefix("–") != _plain(words[r][head[k]]).removeprefix("–"):  # not measured: empty in CSV
                yield f"{name}.tex {row[:2]} {head[k]}: {row[k]}, but {words[r][head[k]]!r} in CSV"

    def verdict(self, name: str, row: list[str], head: list[str], entry: dict[str, Any]) -> Iterator[str]:
        """The words follow from the corrected p and the direction of the measure."""
        if entry["how"] != "p, Holm" or "verdict" not in head:
            return
        p, more = self.expected[id(entry)].value, entry["more"]
        difference = next(
            e for e in self.by_table[entry["table"]] if e["row"] == entry["row"] and e["how"] == "paired difference"
        )
        higher = row[0].endswith("↑") == (self.expected[id(difference)].value > 0)
        better, said = more["a"] if higher else more["b"], row[head.index("verdict")]
        if entry["table"] == "across-bases-differences":
            want = f"{more['a']} lost {'less' if higher else 'more'}"
        else:
            want = f"{better} better"
        if not said.startswith("not compared: ") and said != (want if p < 0.05 else "no difference shown"):
            yield f"{name} {row[:2]}: '{said}' with p {p}"


# --------------------------------------------------------------------------------------------------------- as printed


def _close(a: float | None, b: float | None) -> bool:
    return a is b or (a is not None and b is not None and math.isclose(a, b, rel_tol=1e-6, abs_tol=1e-8))


def _file(name: str) -> str:
    return re.sub(r"[^\w.\-]+", "_", name)


_NUMBER = r"<?[+−-]?[\d.]+[GMk]?"
_CELL = re.compile(
    rf"(?P<value>{_NUMBER})(?: ± (?P<half>{_NUMBER})| \[(?P<low>{_NUMBER}), (?P<high>{_NUMBER})\])?(?: \(n = (?P<n>\d+)\))?"
    r"(?: \(\d+ of \d+ unanswered\))?"
)


def _printed_wrong(text: str, found: Found, entry: dict[str, Any]) -> str:
    """What is wrong with a printed number; empty if it is right."""
    if text == "none could":
        return "" if found.value > 1 else f"is {found.value}"
    match = _CELL.fullmatch(text)
    if not match:
        return "cannot be read"
    wants = {"value": found.value, "low": found.low, "high": found.high}
    wants["half"] = None if found.low is None else (found.high - found.low) / 2
    for key, want in wants.items():
        if match[key] and (want is None or not _rounded(match[key], want)):
            return f"says {key} {match[key]}, which is {want}"
    if found.low is not None and not (match["half"] or match["low"]):
        return f"lacks its interval [{found.low}, {found.high}]"
    if match["n"] and int(match["n"]) != entry["n"]:
        return f"is of {entry['n']} runs"
    return ""


def _rounded(text: str, value: float) -> bool:
    """Whether a text is a number, rounded to the digits that it shows."""
    if text.startswith("<"):
        return value < float(text[1:])
    digits = text.replace("−", "-").rstrip("GMk")
    size = {"G": 1e9, "M": 1e6, "k": 1e3}.get(text[-1], 1.0)
    decimals = len(digits.partition(".")[2])
    unit = 10.0**-decimals
    if size > 1:  # three significant digits, zeros at the end left out
        unit = 10.0 ** (math.floor(math.log10(abs(value / size))) - 2)
    exact = text == "0" and abs(value) < 1e-9
    return exact or (text != "0" and abs(float(digits) - value / size) <= unit * 0.5000001 + 1e-9)


def _first_other(rows: list[list[str]], others: list[list[list[str]]]) -> str:
    for own in others:
        for a, b in zip(rows, own, strict=False):
            for x, y in zip(a, b, strict=False):
                if x != y:
                    return f"{a[:2]} {x!r} against {y!r}"
    return ""


_TEX = {r"\&": "&", r"\%": "%", r"\$": "$", r"\#": "#", r"\_": "_", r"\{": "{", r"\}": "}", r"\dots{}": "…", r"$\pm$": "±",
        r"$\uparrow$": "↑", r"$\downarrow$": "↓", r"$\to$": "→", "$-$": "−", r"$\Vert$": "‖", r"$\times$": "×", "$^2$": "²",
        r"$\tau$": "τ", r"$\cdot$": "·", "$<$": "<", "$>$": ">", "$|$": "|", "--": "–", r"\textasciitilde{}": "~",
        r"\textasciicircum{}": "^", r"\textbackslash{}": "\\"}  # fmt: skip
_TEX_WORDS = re.compile("|".join(map(re.escape, sorted(_TEX, key=len, reverse=True))))


def _tex_table(text: str) -> tuple[str, list[list[str]]]:
    """(title, rows with the head first)."""
    rows = [line.removesuffix(r" \\") for line in text.splitlines() if line.endswith(r" \\")]
    cells = [[_TEX_WORDS.sub(lambda m: _TEX[m[0]], cell) for cell in re.split(r"(?<!\\) & ", row)] for row in rows]
    return text.splitlines()[0].removeprefix("% "), [[_plain(cell) for cell in row] for row in cells]


def _plain(cell: str) -> str:
    return re.sub(r"\s+", " ", cell).strip()


_UNESCAPED = re.compile(r"\\([!-/:-@\[-`{-~])")


def _markdown_tables(text: str) -> list[tuple[str, list[list[str]]]]:
    found, title = [], ""
    for line in text.splitlines():
        if match := re.fullmatch(r"\*\*(.+)\*\*", line):
            title = match[1]
            found.append((title, []))
        elif line.startswith("| ") and found and not re.fullmatch(r"(\| -+:? )+\|", line):
            cells = re.split(r"(?<!\\) \| ", line.removeprefix("| ").removesuffix(" |"))
            found[-1][1].append([_plain(_UNESCAPED.sub(r"\1", cell)) for cell in cells])
    return [(title, rows) for title, rows in found if rows]


class _Tables(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tables: list[tuple[str, list[list[str]]]] = []
        self.into = ""

    def handle_starttag(self, tag: str, attributes: Any) -> None:
        if tag == "table":
            self.tables.append(("", []))
        elif tag == "tr":
            self.tables[-1][1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][1][-1].append("")
        self.into = tag if tag in ("td", "th", "caption") else self.into

    def handle_endtag(self, tag: str) -> None:
        self.into = "" if tag == self.into else self.into

    def handle_data(self, data: str) -> None:
        if self.into == "caption":
            self.tables[-1] = (self.tables[-1][0] + data, self.tables[-1][1])
        elif self.into:
            self.tables[-1][1][-1][-1] += data


def _html_tables(text: str) -> list[tuple[str, list[list[str]]]]:
    parser = _Tables()
    parser.feed(text)
    return [(title, [[_plain(cell.replace("\xa0", " ")) for cell in row] for row in rows]) for title, rows in parser.tables]
