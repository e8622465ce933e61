"""The same blocks as one self-contained page, as Markdown, and as files: figures, tables, and every number with its origin."""

from __future__ import annotations

import csv
import html
import io
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cl_softcot.files import atomic_write_bytes, atomic_write_text, dump_json
from cl_softcot.printable import markdown as escaped
from cl_softcot.printable import visible
from cl_softcot.report.content import Block, Cell, Figure, Listing, Number, Section, Table, Text
from cl_softcot.report.drawing import INK, drawn
from cl_softcot.results.folder import ReportFolder

STYLE = """
:root { color-scheme: light dark; --ink: #1b1b1c; --paper: #ffffff; --faint: #6a6a6c; --line: #c8c8cc; --band: #f3f3f5 }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e4e4e6; --paper: #17181a; --faint: #a0a0a6; --line: #46474b; --band: #222327 }
}
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper); margin: 2em auto }
body { max-width: 76em; padding: 0 1em }
h1, h2, h3 { line-height: 1.2 } h2 { margin-top: 2em; border-top: 1px solid var(--line); padding-top: .8em }
nav a { margin-right: 1em; white-space: nowrap } a { color: inherit }
.wide { overflow-x: auto } table { border-collapse: collapse; font-size: 13px; margin: .4em 0 }
caption { text-align: left; font-weight: 600; padding: .3em 0; caption-side: top }
td, th { padding: .2em .6em; text-align: right; vertical-align: top; font-variant-numeric: tabular-nums }
table.many .ends { display: block; font-size: .88em; color: var(--faint) }
td { white-space: nowrap } td.long { white-space: normal; overflow-wrap: anywhere; min-width: 12em }
th { border-bottom: 2px solid var(--line); vertical-align: bottom } td.text, th.text { text-align: left }
tbody tr:nth-child(even) { background: var(--band) }
i.dot { display: inline-block; width: .7em; height: .7em; border-radius: 50%; margin-right: .45em; print-color-adjust: exact }
p.note, figcaption { color: var(--faint); font-size: 13px; margin: .3em 0 .9em } summary { color: var(--faint); font-size: 13px }
pre { background: var(--band); padding: .7em; overflow-x: auto; white-space: pre-wrap; font-size: 12.5px }
figure { margin: 1.2em 0 } figure svg { display: block; width: 100%; height: auto }
@media print {
  :root { --ink: #000; --paper: #fff; --faint: #444; --line: #999; --band: #f3f3f5 }
  @page { size: A4 landscape; margin: 12mm } body { margin: 0; max-width: none; font-size: 10.5pt } table { font-size: 8pt }
  table.many { font-size: 7pt } table.many td, table.many th { padding: .15em .35em }
  .wide { overflow: visible } figure, tr, pre, table.short { break-inside: avoid } thead, h2, h3, caption { break-after: avoid }
  figure svg { max-height: 160mm } nav, details { display: none }
}
"""


_LONG = 36  # letters; columns with longer words are broken into lines
_MANY = 6  # columns of numbers; where there are more, intervals stand below their number
_SHORT = 14  # rows; a table of fewer is not torn apart by the end of a page
_INKS = (INK, "#1b1b1b")  # of letters, and the black among the methods' colours: dark pages turn them light


@dataclass(frozen=True)
class Part:
    """The sections of one study, or of a comparison, under a heading (empty where there is one part only)."""

    title: str
    sections: Sequence[Section]

    def blocks(self) -> Iterator[Block]:
        return (block for section in self.sections for block in section.blocks)


def write(parts: Sequence[Part], title: str, about: Mapping[str, Any], output: Path) -> Path:
    """Writes everything into ``output``; returns the page's path. The same content gives the same bytes.

    Args:
        about: what stands at the top of ``report.json``.
    """
    drawings = {}
    for figure in _figures(parts):
        drawings[figure.name] = drawn(figure.name, figure.draw)
        for kind, data in drawings[figure.name].items():
            atomic_write_bytes(ReportFolder(output).figures / f"{_file(figure.name)}.{kind}", data)
    for table in _tables(parts):
        atomic_write_text(ReportFolder(output).tables / f"{_file(table.name)}.tex", latex(table))
        atomic_write_text(ReportFolder(output).tables / f"{_file(table.name)}.csv", as_csv(table))
    atomic_write_text(ReportFolder(output).numbers, data_of(about, numbers(parts)))
    atomic_write_text(ReportFolder(output).text, markdown(parts, title))
    page = ReportFolder(output).page
    atomic_write_text(page, as_html(parts, title, {name: made["svg"].decode() for name, made in drawings.items()}))
    return page


def _figures(parts: Sequence[Part]) -> list[Figure]:
    return [block for part in parts for block in part.blocks() if isinstance(block, Figure)]


def _tables(parts: Sequence[Part]) -> list[Table]:
    """Every table once; a figure's data may be shown as a table as well."""
    found: dict[str, Table] = {}
    for part in parts:
        for block in part.blocks():
            table = block.data if isinstance(block, Figure) else block
            if isinstance(table, Table):
                if found.setdefault(table.name, table) is not table:
                    raise ValueError(f"two tables of one report are called {table.name}")
    return list(found.values())


def _file(name: str) -> str:
    return re.sub(r"[^\w.\-]+", "_", name)


# ---------------------------------------------------------------------------------------------------------------- data


def numbers(parts: Sequence[Part]) -> Iterator[dict[str, Any]]:
    """Every number of the report: where it stands, what it is, and what it was made from."""
    for table in _tables(parts):
        for row in table.rows:
            words = [str(cell) for cell in row[: table.text]]
            for head, cell in zip(table.head, row, strict=True):
                if isinstance(cell, Number) and cell.value is not None:
                    yield {
                        "table": table.name, "row": words, "column": head,
                        "value": cell.value, "low": cell.low, "high": cell.high, "n": cell.n, "covers": cell.covers,
                        "how": cell.how, "path": list(cell.path), "runs": list(cell.runs),
                        **({"more": cell.more} if cell.more else {}), **({"note": cell.note} if cell.note else {}),
                    }  # fmt: skip


def data_of(about: Mapping[str, Any], found: Iterable[dict[str, Any]]) -> str:
    """``report.json``: one number a line; which runs it was made from is a place in ``run_sets``, for most have the same."""
    sets: dict[tuple[str, ...], int] = {}
    lines = [dump_json({**entry, "runs": sets.setdefault(tuple(entry["runs"]), len(sets))}) for entry in found]
    head = dump_json({**about, "run_sets": [list(runs) for runs in sets]}, indent=2).rstrip().removesuffix("}").rstrip()
    return f'{head},\n  "numbers": [\n' + ",\n".join(lines) + "\n  ]\n}\n"


def as_csv(table: Table) -> str:
    """Numbers in full: value, ends of the interval and n in columns of their own."""
    numeric = [k for k in range(len(table.head)) if any(isinstance(row[k], Number) for row in table.rows)]
    head = [name for k, h in enumerate(table.head) for name in ([h, f"{h} low", f"{h} high", f"{h} n"] if k in numeric else [h])]
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(head)
    for row in table.rows:
        writer.writerow([value for k, cell in enumerate(row) for value in _csv_cells(cell, k in numeric)])
    return buffer.getvalue()


def _csv_cells(cell: Cell, numeric: bool) -> list[Any]:
    if isinstance(cell, Number):
        known = [cell.value, cell.low, cell.high, cell.n if cell.value is not None else None]
        return ["" if value is None else value for value in known]
    return [cell, "", "", ""] if numeric else [cell]


# --------------------------------------------------------------------------------------------------------------- LaTeX

_TEX = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": "$<$", ">": "$>$", "|": r"$|$", "–": "--", "…": r"\dots{}",
    "±": r"$\pm$", "↑": r"$\uparrow$", "↓": r"$\downarrow$", "→": r"$\to$", "−": "$-$", "‖": r"$\Vert$", "×": r"$\times$",
    "²": "$^2$", "τ": r"$\tau$", "·": r"$\cdot$",
}  # fmt: skip


def latex(table: Table) -> str:
    """A booktabs tabular, to be put into a table of one's own; notes as comments."""
    comments = [visible(text, lines=False) for text in (table.title, *table.notes)]  # a line break would end the comment
    lines = [*(f"% {text}" for text in comments), "% \\usepackage{booktabs}"]
    lines.append(f"\\begin{{tabular}}{{{'l' * table.text}{'r' * (len(table.head) - table.text)}}}")
    lines += [
        "\\toprule",
        _tex_row(table.head),
        "\\midrule",
        *(_tex_row(row) for row in table.rows),
        "\\bottomrule",
        "\\end{tabular}",
    ]
    return "\n".join(lines) + "\n"


def _tex_row(row: Iterable[Cell | str]) -> str:
    cells = ["".join(_TEX.get(letter, letter) for letter in visible(str(cell), lines=False)) for cell in row]
    if cells and cells[0][:1] in ("[", "*"):  # behind the end of a row it would be an option of that
        cells[0] = "{}" + cells[0]
    return " & ".join(cells) + r" \\"


# ------------------------------------------------------------------------------------------------------------ Markdown


def markdown(parts: Sequence[Part], title: str) -> str:
    lines = [f"# {escaped(title)}", ""]
    for part in parts:
        lines += [f"# {escaped(part.title)}", ""] if part.title else []
        for section in part.sections:
            lines += [f"## {escaped(section.title)}", ""]
            for block in section.blocks:
                lines += [*_markdown(block), ""]
    return "\n".join(lines).rstrip() + "\n"


def _markdown(block: Block) -> list[str]:
    if isinstance(block, Text):
        return [escaped(block.text)]
    if isinstance(block, Listing):
        fence = "`" * max(3, 1 + max(map(len, re.findall("`+", block.text)), default=0))
        return [fence, *visible(block.text).splitlines(), fence]
    if isinstance(block, Figure):
        return [f"![{escaped(block.data.title)}](figures/{_file(block.name)}.svg)", "", f"*{escaped(block.caption)}*"]
    marks = ["---" if k < block.text else "---:" for k in range(len(block.head))]
    rows = [_piped(block.head), _piped(marks), *(_piped(row) for row in block.rows)]
    return [f"**{escaped(block.title)}**", "", *rows, *(line for note in block.notes for line in ("", f"*{escaped(note)}*"))]


def _piped(row: Iterable[Any]) -> str:
    return "| " + " | ".join(_cell(cell) or " " for cell in row) + " |"


def _cell(cell: Any) -> str:
    text = str(cell)
    return text if set(text) <= {"-", ":"} else escaped(text).replace("|", "\\|")


# ---------------------------------------------------------------------------------------------------------------- HTML


def as_html(parts: Sequence[Part], title: str, drawings: Mapping[str, str]) -> str:
    tables = {block.name for part in parts for block in part.blocks() if isinstance(block, Table)}
    body, links = [f"<h1>{_text(title)}</h1>"], []
    for p, part in enumerate(parts):
        body += [f"<h1>{_text(part.title)}</h1>"] if part.title else []
        for s, section in enumerate(part.sections):
            mark = f"s{p}-{s}"
            links.append(f'<a href="#{mark}">{_text(section.title)}</a>')
            body.append(f'<section id="{mark}"><h2>{_text(section.title)}</h2>')
            body += [_html(block, drawings, tables) for block in section.blocks]
            body.append("</section>")
    body.insert(1, f"<nav>{' '.join(links)}</nav>")
    metas = '<meta charset="utf-8"><meta name="viewport" content="width=device-width">'
    head = f"{metas}<title>{_text(title)}</title><style>{STYLE}</style>"
    return f'<!doctype html>\n<html lang="en"><head>{head}</head><body>\n' + "\n".join(body) + "\n</body></html>\n"


def _html(block: Block, drawings: Mapping[str, str], tables: set[str]) -> str:
    if isinstance(block, Text):
        return f"<p>{_text(block.text)}</p>"
    if isinstance(block, Listing):
        return f"<pre>{_text(block.text)}</pre>"
    if isinstance(block, Table):
        return _html_table(block)
    # What is drawn can be read as well; where it stands as a table of its own, once is enough.
    data = (
        ""
        if block.data.name in tables
        else f"<details><summary>the numbers of this figure</summary>{_html_table(block.data)}</details>"
    )
    caption = f"<figcaption>{_text(block.caption)}</figcaption>"
    return f"<figure>{_inline(drawings[block.name], block.data.title)}{caption}{data}</figure>"


def _html_table(table: Table) -> str:
    heads = "".join(f"<th{_class(k, table)}>{_heading(head)}</th>" for k, head in enumerate(table.head))
    kinds = {"many": len(table.head) - table.text > _MANY, "short": len(table.rows) <= _SHORT}
    known = " ".join(kind for kind, so in kinds.items() if so)
    rows = []
    for r, row in enumerate(table.rows):
        color = table.colors[r] if r < len(table.colors) else None
        dot = f'<i class="dot" style="background:{_on_page(color)}"></i>' if color else ""
        cells = [f"<td{_class(k, table)}{_origin(cell)}>{dot if k == 0 else ''}{_shown(cell)}</td>" for k, cell in enumerate(row)]
        rows.append(f"<tr>{''.join(cells)}</tr>")
    notes = "".join(f'<p class="note">{_text(note)}</p>' for note in table.notes)
    caption = f"<caption>{_text(table.title)}</caption>"
    body = f"<thead><tr>{heads}</tr></thead><tbody>{''.join(rows)}</tbody>"
    return f'<div class="wide"><table class="{known}">{caption}{body}</table></div>{notes}'


def _heading(head: str) -> str:
    return re.sub(" ([↑↓])$", "&nbsp;\\1", _text(head))  # an arrow stays with its word


def _shown(cell: Cell) -> str:
    """A cell; of a number the interval apart, so that narrow columns can have it below."""
    value, *ends = re.split(r" (?=±|\[|\(n|\(\d)", str(cell), maxsplit=1) if isinstance(cell, Number) else [str(cell)]
    return _text(value) + "".join(f' <span class="ends">{_text(end)}</span>' for end in ends)


def _class(k: int, table: Table) -> str:
    if k >= table.text:
        return ""
    long = any(len(str(row[k])) > _LONG for row in table.rows)
    return ' class="text long"' if long else ' class="text"'


def _origin(cell: Cell) -> str:
    """What a number was made from, for those who point at it."""
    if not isinstance(cell, Number) or cell.value is None:
        return ""
    places = ["/".join(map(str, path)) for path in (cell.path, cell.more.get("minus"), cell.more.get("over")) if path]
    told = f"{cell.how} of {' − '.join(places[:2]) if cell.more.get('minus') else places[0]}"
    told += f", as a share of {places[-1]}" if cell.more.get("over") else ""
    told += f", n = {cell.n}" + (f"; {cell.note}" if cell.note else "")
    return f' title="{_text(told)}"'


def _inline(svg: str, title: str) -> str:
    """A drawing as a part of the page: its ink is the page's, so that it can be read in the dark."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    start, rest = svg.split(">", 1)
    width = float(re.search(r'width="([\d.]+)pt"', start)[1])  # type: ignore[index]
    start = re.sub(r' (width|height)="[\d.]+pt"', "", start)
    # Letters of 8 points look best at about a third more than their size on paper.
    sized = f'{start} role="img" style="max-width: {width * 1.75:.0f}px"><title>{_text(title)}</title>{rest}'
    return _on_page(sized).strip()


def _on_page(text: str) -> str:
    return re.sub("|".join(_INKS), "currentColor", text, flags=re.IGNORECASE)


def _text(text: str) -> str:
    return html.escape(visible(text), quote=True)
