"""What a model wrote before and after the stream, side by side, as a page and as a table that MLflow shows."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cl_softcot.files import atomic_write_json, atomic_write_text, read_jsonl
from cl_softcot.results.folder import RunFolder
from cl_softcot.results.record import RunRecord

PER_TASK = 30
TABLE = RunFolder(Path()).predictions_table.name
# MLflow lists a table under "Evaluation" if this tag says that there is one
TABLE_TAGS = {"mlflow.loggedArtifacts": f'[{{"path": "{TABLE}", "type": "table"}}]'}
_COLUMNS = ("task", "question", "right answer", "base wrote", "base", "model wrote", "model")

_STYLE = """body{font:14px system-ui,sans-serif;margin:16px;color:#222}table{border-collapse:collapse;width:100%;
table-layout:fixed}td,th{border-bottom:1px solid #ddd;padding:5px 8px;text-align:left;vertical-align:top;
overflow-wrap:anywhere}th{position:sticky;top:0;background:#fff}.right{background:#e3f4e6}.wrong{background:#fde4e1}
.unanswered{background:#f3f0d7}td.a{width:auto;font-weight:600}h2{font-size:16px;margin:22px 0 6px}
small{color:#666}col.q{width:32%}col.a{width:8%}"""


def write_predictions(run_folder: str | Path, result: RunRecord) -> list[Path]:
    """Writes `predictions.html` and `predictions.json` into the run folder, from its `predictions/`.

    Each has the first examples of every task and retention family, with the text written before the first
    experience (row 0, the base) and after the last. Right answers that were lost come first. Where the answers were
    read twice both verdicts are shown; the headline's gives the colour.

    Returns:
        The files; [] if there are no predictions.
    """
    folder = Path(run_folder)
    last = len(result.tasks)
    before, after = _read(folder, 0), _read(folder, last)
    if not after:
        return []
    groups: dict[tuple[str, str], list[tuple[dict[str, Any], dict[str, Any]]]] = {}
    for key, new in after.items():
        groups.setdefault(key[:2], []).append((before.get(key, {}), new))
    chosen = {key: sorted(pairs[:PER_TASK], key=_lost_first) for key, pairs in groups.items()}
    page, table = RunFolder(folder).predictions_page, RunFolder(folder).predictions_table
    atomic_write_text(page, _page(result, groups, chosen))
    others = sorted({reading for line in after.values() for reading in _otherwise(line)})
    rows = [_row(_label(*key), old, new, others) for key, pairs in chosen.items() for old, new in pairs]
    columns = [*_COLUMNS, *(f"{who}, {reading}" for reading in others for who in ("base", "model"))]
    atomic_write_json(table, {"columns": columns, "data": rows})
    return [page, table]


def _read(folder: Path, row: int) -> dict[tuple[str, str, str], dict[str, Any]]:
    lines = read_jsonl(RunFolder(folder).answers(row), missing_ok=True)
    return {(str(line.get("set", "task")), line["task"], str(line["id"])): line for line in lines}


def _otherwise(line: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """The verdicts of both readings, {reading: {"outcome", "answer"}}; empty where the answer was read once."""
    return dict(line.get("readings") or {})


def _lost_first(pair: tuple[dict[str, Any], dict[str, Any]]) -> int:
    """0: lost (right before, not right now), 1: won, 2: no change."""
    was, now = (p.get("outcome") == "right" for p in pair)
    return 2 if was == now else 0 if was else 1


def _label(kind: str, name: str) -> str:
    return f"retention: {name}" if kind == "retention" else name


def _row(name: str, old: Mapping[str, Any], new: Mapping[str, Any], readings: Sequence[str]) -> list[Any]:
    return [
        name, new.get("question", ""), new.get("gold", ""),
        old.get("text", ""), old.get("outcome", ""), new.get("text", ""), new.get("outcome", ""),
        *(_otherwise(line).get(reading, {}).get("outcome", "") for reading in readings for line in (old, new)),
    ]  # fmt: skip


def _page(result: RunRecord, groups: Mapping[Any, Any], chosen: Mapping[Any, Any]) -> str:
    title = f"{result.method}, seed {result.seed}: what it wrote before and after the stream"
    parts = [
        f"<!doctype html><meta charset=utf-8><title>{html.escape(title)}</title><style>{_STYLE}</style>",
        f"<h1 style='font-size:18px'>{html.escape(title)}</h1>",
        f"<small>Stream: {html.escape(' > '.join(result.tasks))}. The first {PER_TASK} examples of each set; "
        f"among them, right answers that were lost come first.{_headline(result)}</small>",
    ]
    for (kind, name), pairs in chosen.items():
        everything = groups[kind, name]
        lost = sum(_lost_first(pair) == 0 for pair in everything)
        won = sum(_lost_first(pair) == 1 for pair in everything)
        parts.append(
            f"<h2>{html.escape(_label(kind, name))} <small>{len(everything)} examples: {lost} lost, {won} won</small></h2>"
            "<table><col class=q><col class=a><col><col>"
            "<tr><th>question<th>right answer<th>the base wrote<th>the model wrote</tr>"
        )
        parts += [_html_row(old, new) for old, new in pairs]
        parts.append("</table>")
    return "\n".join(parts) + "\n"


def _headline(result: RunRecord) -> str:
    return f" Colours: the {html.escape(result.headline)} reading, the headline." if result.other_reading else ""


def _html_row(old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    def cell(value: Any, kind: str = "") -> str:
        return f"<td class='{html.escape(kind)}'>{html.escape(str(value))}"

    def written(line: Mapping[str, Any]) -> str:
        verdicts = html.escape("; ".join(_said(reading, verdict) for reading, verdict in _otherwise(line).items()))
        return cell(line.get("text", ""), line.get("outcome", "")) + (f"<br><small>{verdicts}</small>" if verdicts else "")

    return f"<tr>{cell(new.get('question', ''))}{cell(new.get('gold', ''), 'a')}{written(old)}{written(new)}</tr>"


def _said(reading: str, verdict: Mapping[str, Any]) -> str:
    answer = verdict.get("answer")
    return f"{reading}: {verdict['outcome']}" + ("" if answer is None else f" ({answer})")
