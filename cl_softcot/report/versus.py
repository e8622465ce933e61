"""What changed between two studies, and whether it matters: settings, and the methods that both have."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from cl_softcot.report.content import Block, Cell, Listing, Section, Table, Text
from cl_softcot.report.contrasts import HEAD, Contrast, contrasts, measures, notes_of
from cl_softcot.report.studies import NotComparable, Result, Study, listed

_OF_THE_CLOCK = ("output_dir", "tracking")
_ABSENT = "–"


def compared(a: Study, b: Study) -> list[Section]:
    """The sections of a comparison; numbers of b minus those of a.

    Raises:
        NotComparable: if no method of both has a seed and task order in common, measured on the same data.
    """
    common = [method for method in a.methods if method in b.by_method]
    if not common:
        raise NotComparable(
            f"{a.name} and {b.name} have no method in common ({listed(a.methods)}; {listed(b.methods)})",
            where=f"{a.folder}, {b.folder}",
        )
    apart = _other_data(a, b)
    if apart:
        raise NotComparable(
            f"{a.name} and {b.name} were not measured on the same data: {'; '.join(apart)}",
            where=f"{a.folder}, {b.folder}",
            fix="Make one of them again with the tasks and `evaluate` of the other.",
        )
    found, alone = _contrasts(a, b, common)
    if not found:
        raise NotComparable(
            f"no method of {a.name} and {b.name} has a seed and task order in common",
            where=f"{a.folder}, {b.folder}",
            fix="Run one of them with the seeds and orders of the other.",
        )
    return [Section("What changed", _settings(a, b)), Section("Does it matter?", _results(a, b, found, alone))]


def _other_data(a: Study, b: Study) -> list[str]:
    """Measured on another split or other examples: a change of the model may matter, one of the test data is no comparison."""
    told = []
    if a.runs[0].split != b.runs[0].split:
        told.append(f"split {a.runs[0].split} against {b.runs[0].split}")
    if a.runs[0].headline != b.runs[0].headline:
        told.append(f"the {a.runs[0].headline} reading of the answers against the {b.runs[0].headline} one")
    tasks = [dict(zip(run.tasks, run.accuracy.n or [], strict=True)) for run in (a.runs[0], b.runs[0])]
    if set(tasks[0]) != set(tasks[1]):
        told.append(f"tasks {listed(tasks[0])} against {listed(tasks[1])}")
    told += [
        f"{n} against {tasks[1][task]} test examples of {task}" for task, n in tasks[0].items() if tasks[1].get(task, n) != n
    ]
    ids = [_questions(study) for study in (a, b)]
    if not all(text for study in ids for *_, text in study):  # of kept results without texts only the names can be compared
        ids = [{(task, name, "") for task, name, _ in study} for study in ids]
    if not told and all(ids) and ids[0] != ids[1]:
        told.append(f"{len(ids[0] ^ ids[1])} test questions that only one of them has")
    return told


def _questions(study: Study) -> set[tuple[str, str, str]]:
    run = study.runs[0]
    lines = study.predictions(run, run.last_row) or []
    return {(line["task"], line["id"], line.get("question", "")) for line in lines if line["set"] == "task"}


# ------------------------------------------------------------------------------------------------------------ settings


def _settings(a: Study, b: Study) -> list[Block]:
    rows = changes(a, b)
    blocks: list[Block] = []
    if rows:
        blocks.append(Table("compare-settings", "Settings that differ", ["setting", a.name, b.name], rows, 3))
    else:
        blocks.append(Text("No setting differs."))
    for mine, other in ((a, b), (b, a)):
        only = [method for method in mine.methods if method not in other.by_method]
        blocks += [Text(f"Only {mine.name} has: {', '.join(only)}.")] if only else []
        blocks += [Text(f"Note on {mine.name}: {told}.") for told in mine.told]
    return blocks


def changes(a: Study, b: Study) -> list[list[str]]:
    """Settings that differ, revision and versions of the packages among them, as (name, in a, in b)."""
    sides = [_flat_study(study) for study in (a, b)]
    keys = sorted({*sides[0], *sides[1]}, key=lambda key: (key.startswith("version of"), key))
    return [
        [key, sides[0].get(key, _ABSENT), sides[1].get(key, _ABSENT)] for key in keys if sides[0].get(key) != sides[1].get(key)
    ]


def _flat_study(study: Study) -> dict[str, str]:
    config = {key: value for key, value in study.config.items() if key not in _OF_THE_CLOCK}
    record = study.record or study.runs[0].data
    versions = {f"version of {name}": str(v) for name, v in (record.get("versions") or {}).items()}
    return dict(_flat(config)) | {"git revision": str(record.get("revision"))} | versions


def _flat(data: Any, prefix: str = "") -> Iterator[tuple[str, str]]:
    """Dotted keys; entries of lists by their name, where they have one."""
    if isinstance(data, Mapping):
        for key, value in data.items():
            if value is not None and not str(key).startswith("_"):
                yield from _flat(value, f"{prefix}.{key}".lstrip("."))
    elif isinstance(data, list) and any(isinstance(entry, Mapping) for entry in data):
        for i, entry in enumerate(data):
            name = entry.get("name", i) if isinstance(entry, Mapping) else i
            yield from _flat(entry, f"{prefix}.{name}".lstrip("."))
    else:
        yield prefix, str(data)


# ------------------------------------------------------------------------------------------------------------- results


def _contrasts(a: Study, b: Study, common: Sequence[str]) -> tuple[list[tuple[str, Contrast]], list[str]]:
    """(method, b - a) in every measure that both have; and measures that cannot be compared."""
    sides: dict[str, tuple[Study, Sequence[Result]]] = {}
    for method in common:
        runs = [[run for run in study.by_method[method]] for study in (b, a)]
        keys = [{(run.seed, run.order, tuple(run.tasks)) for run in some} for some in runs]
        both = keys[0] & keys[1]  # an order of the same name must be the same order
        for study, some in zip((b, a), runs, strict=True):
            sides[_side(method, study)] = (study, [r for r in some if (r.seed, r.order, tuple(r.tasks)) in both])
    pairs = [(_side(method, b), _side(method, a)) for method in common]
    found, alone = [], []
    for measure in measures(b):
        lines = contrasts(sides, [pair for pair in pairs if sides[pair[0]][1]], measure)
        found += [(line.a.split("\0")[0], line) for line in lines]
        alone += [] if lines else [measure.title]
    return found, alone


def _side(method: str, study: Study) -> str:
    return f"{method}\0{study.folder}"


def _results(a: Study, b: Study, found: Sequence[tuple[str, Contrast]], alone: Sequence[str]) -> list[Block]:
    rows: list[list[Cell]] = []
    for method, line in found:
        verdict = line.verdict
        if line.shown:
            verdict = f"{b.name if line.verdict == f'{line.a} better' else a.name} better"
        line.difference.more.update(a=b.name, b=a.name, method=method)
        rows.append([line.measure.head, method, line.difference, line.p, verdict, line.smallest, line.basis])
    shown = [row for row in rows if str(row[4]).endswith("better")]
    told = "No difference is shown in any measure." if not shown else ""
    if shown:
        told = f"Shown: {len(shown)} of {len(rows)} differences; the others may be smaller than these data can show."
    untold = sum(not line.compared for _, line in found)
    if untold:
        told += f" Not compared: {untold} of {len(rows)}, of which too many answers are unanswered."
    notes = notes_of([line for _, line in found])
    title = f"{b.name} minus {a.name}"
    blocks: list[Block] = [Text(told), Table("compare-differences", title, HEAD, rows, 2, notes)]
    if shown:
        blocks.append(Listing("\n".join(f"{row[1]}: {row[0]} {row[2]}, {row[4]}" for row in shown)))
    return [*blocks, *([Text(f"Not in both: {', '.join(alone)}.")] if alone else [])]
