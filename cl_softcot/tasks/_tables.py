"""A user's own file as records, with the place of each: .jsonl, .json (a list), .csv, .tsv, .parquet, each also .gz.

Nothing is guessed: cells of a table are text as it is written (``007``, ``NA`` and ``null`` stay), and whatever cannot be read is
a `Fault` with its line. Reading goes on behind it, so that all that is wrong with a file is told at once.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cl_softcot.errors import UserError

MAX_DATA_BYTES = 1 << 32  # of a file of examples, unpacked
LISTED = 20  # problems that are told one by one; the others are counted


@dataclass(frozen=True)
class Fault:
    """What is wrong, where (``file:line``, ``file: row n``), and the way out. ``line``: what a file's problems are sorted by."""

    text: str
    where: str
    fix: str | None = None
    line: int = 0


@dataclass(frozen=True)
class DataRow:
    """A row. ``number``: its line in JSON lines, otherwise its place among the rows, from 1 on; ``line``: where it begins.
    ``twice``: fields that it has more than once."""

    fields: Mapping[str, Any]
    number: int
    where: str
    line: int
    twice: frozenset[str] = frozenset()


@dataclass
class DataRows:
    """What a file holds. ``columns``: the fields that all its rows have, and ``head`` where they are named; None where each row
    names its own."""

    found: list[DataRow] = field(default_factory=list)
    problems: list[Fault] = field(default_factory=list)
    columns: Sequence[str] | None = None
    head: str = ""


def refuse(problems: Sequence[Fault], name: str) -> None:
    """One UserError for all problems of a task's data, the first of them in front; nothing where there are none."""
    if not problems:
        return
    first, *others = problems
    lines = [f"task {name!r}: {first.text}", *(f"{p.where}: {p.text}" for p in others[: LISTED - 1])]
    if len(problems) > LISTED:
        lines.append(f"... and {len(problems) - LISTED} more: {len(problems)} problems in all")
    fixes = dict.fromkeys(p.fix for p in problems[:LISTED] if p.fix)
    raise UserError("\n".join(lines), where=first.where, fix="\n  ".join(fixes) or None)


def shown(value: object) -> str:
    """A value from a file as it can be printed anywhere: in one line, cut short."""
    text = ascii(value) if isinstance(value, str) and not value.isprintable() else repr(value)
    return f"{text[:60]}..." if len(text) > 60 else text


def read_records(path: str) -> DataRows:
    """All rows of a file, and all that is wrong with it. A kind that is not known is read as JSON lines if it looks so."""
    place = path if path.isprintable() else ascii(path)
    records = DataRows(head=place)
    try:
        data = _content(path)
        _reader(path, data)(place, data, records)
    except _Unreadable as error:
        records.problems.append(Fault(error.text, place, error.fix))
    return records


class _Unreadable(Exception):
    """Of a file of which nothing can be read."""

    def __init__(self, text: str, fix: str | None = None):
        super().__init__(text)
        self.text, self.fix = text, fix


_Reader = Callable[[str, bytes, DataRows], None]


def _reader(path: str, data: bytes) -> _Reader:
    kind = Path(path.casefold().removesuffix(".gz")).suffix
    if kind in READERS:
        return READERS[kind]
    if data.lstrip(b"\xef\xbb\xbf \t\r\n")[:1] in (b"{", b""):
        return _json_lines
    raise _Unreadable(f"cannot read files of kind {kind or 'unknown'!r}", f"known, each also with .gz: {' '.join(READERS)}")


def _content(name: str) -> bytes:
    try:
        path = Path(name).expanduser()
        if path.exists() and not path.is_file():
            raise _Unreadable("cannot read the file (it is a folder, or no regular file)", "name one file")
        data = path.read_bytes()
    except FileNotFoundError:
        raise _Unreadable("no such file", "paths are relative to where the command runs") from None
    except (OSError, ValueError, RuntimeError) as error:  # a NUL in its name; ~ of somebody who is not known
        raise _Unreadable(f"cannot read the file ({getattr(error, 'strerror', None) or error})") from None
    if path.name.casefold().endswith(".gz"):
        try:
            with gzip.GzipFile(fileobj=io.BytesIO(data)) as file:
                unpacked = file.read(MAX_DATA_BYTES + 1)
        except (OSError, EOFError, zlib.error) as error:
            raise _Unreadable(f"cannot read the file (it is not a whole gzip file: {error})") from None
        if len(unpacked) > MAX_DATA_BYTES:
            raise _Unreadable(f"cannot read the file (it unpacks to more than {MAX_DATA_BYTES >> 30} GiB)", "split it")
        return unpacked
    if data.startswith(b"\x1f\x8b"):
        raise _Unreadable("cannot read the file (it is packed by gzip)", "let its name end in .gz")
    return data


def _text_of(path: str, data: bytes, records: DataRows) -> str:
    """The file as text. Bytes that are none are problems, each line once; what they are replaced by goes nowhere."""
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise _Unreadable("cannot read the file (it is UTF-16 text)", "save it as UTF-8")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        pass
    for number, line in enumerate(data.split(b"\n"), 1):
        try:
            line.decode("utf-8")
        except UnicodeDecodeError as error:
            text = f"cannot read the line as UTF-8 text (byte 0x{line[error.start]:02x} at column {error.start + 1})"
            records.problems.append(Fault(text, f"{path}:{number}", "save the file as UTF-8", number))
    return data.decode("utf-8-sig", "replace")


# ---------------------------------------------------------------------------------------------------------------- JSON


class _Object(dict[str, Any]):
    """A JSON object that remembers which of its fields stand in it more than once."""

    twice: frozenset[str] = frozenset()


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = _Object(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        found.twice = frozenset(name for name in names if names.count(name) > 1)
    return found


_DECODER = json.JSONDecoder(object_pairs_hook=_object)
_ONE_A_LINE = "one JSON object a line"


def _json_lines(path: str, data: bytes, records: DataRows) -> None:
    _add_lines(path, _text_of(path, data, records), records)


def _add_lines(path: str, text: str, records: DataRows) -> None:
    unread = {problem.where for problem in records.problems}
    for number, line in enumerate(text.split("\n"), 1):  # not splitlines(): a JSON string may hold U+2028 and the like
        where = f"{path}:{number}"
        if not line.strip() or where in unread:
            continue
        try:
            value = _DECODER.decode(line)
        except json.JSONDecodeError as error:
            if not records.found and line.lstrip().startswith("["):
                fix = "a JSON list of objects is a .json file; here it is one JSON object a line"
                records.problems.append(Fault(f"not JSON ({error.msg})", f"{where}:{error.colno}", fix, number))
                return
            records.problems.append(Fault(f"not JSON ({error.msg})", f"{where}:{error.colno}", _ONE_A_LINE, number))
        except (ValueError, RecursionError) as error:
            records.problems.append(Fault(f"cannot read the line ({_why(error)})", where, line=number))
        else:
            _add(records, value, number, where, number, "a line")


def _add(records: DataRows, value: Any, number: int, where: str, line: int, what: str) -> None:
    if isinstance(value, _Object):
        records.found.append(DataRow(value, number, where, line, value.twice))
    else:
        records.problems.append(Fault(f"{what} holds {type(value).__name__}, not an object", where, line=line))


def _why(error: Exception) -> str:
    return "it is nested too deeply" if isinstance(error, RecursionError) else str(error).partition(";")[0]


def _json(path: str, data: bytes, records: DataRows) -> None:
    """A list of objects; JSON lines in spite of the name are read too."""
    text = _text_of(path, data, records)
    start = text.lstrip()[:1]
    if start == "[":
        _add_list(path, text, records)
    elif start == "{" and not _is_one_object(text):
        _add_lines(path, text, records)
    elif start:
        what = "one object" if start == "{" else "no list"
        fix = "a .json file holds a list of objects, and nothing around it; one object a line is a .jsonl file"
        records.problems.append(Fault(f"holds {what}, not a list of objects", path, fix))


def _is_one_object(text: str) -> bool:
    """Whether a text that begins with an object is no JSON lines: its first line is not whole."""
    first = next(line for line in text.split("\n") if line.strip())
    try:
        _DECODER.decode(first)
    except json.JSONDecodeError:
        try:
            _DECODER.raw_decode(text.lstrip())
        except (ValueError, RecursionError):
            return False  # broken: the lines say where
        return True
    except (ValueError, RecursionError):
        return False
    return False


def _add_list(path: str, text: str, records: DataRows) -> None:
    """The elements one after the other, so that each has its line."""
    at, line, number, counted = _blank(text, text.index("[") + 1), 1, 0, 0
    while text[at : at + 1] != "]" or number:
        line, counted = line + text.count("\n", counted, at), at
        number += 1
        where = f"{path}:{line} (row {number})"
        try:
            value, end = _DECODER.raw_decode(text, at)
        except json.JSONDecodeError as error:
            return _not_json(path, error, records)
        except (ValueError, RecursionError) as error:
            records.problems.append(Fault(f"cannot read the row ({_why(error)})", where, line=line))
            return
        _add(records, value, number, where, line, "a row")
        at = _blank(text, end)
        if text[at : at + 1] == "]":
            break
        if text[at : at + 1] != ",":
            return _not_json(path, json.JSONDecodeError("Expecting ',' delimiter", text, at), records)
        at = _blank(text, at + 1)
    if text[at + 1 :].strip():
        _not_json(path, json.JSONDecodeError("Extra data", text, _blank(text, at + 1)), records)


def _blank(text: str, at: int) -> int:
    """The place of the first character from ``at`` on that is no blank."""
    while at < len(text) and text[at] in " \t\r\n":
        at += 1
    return at


def _not_json(path: str, error: json.JSONDecodeError, records: DataRows) -> None:
    where = f"{path}:{error.lineno}:{error.colno}"
    records.problems.append(Fault(f"not JSON ({error.msg})", where, "a .json file holds a list of objects", error.lineno))


# -------------------------------------------------------------------------------------------------------------- tables


def _commas(path: str, data: bytes, records: DataRows) -> None:
    _add_table(path, _text_of(path, data, records), ",", records)


def _tabs(path: str, data: bytes, records: DataRows) -> None:
    _add_table(path, _text_of(path, data, records), "\t", records)


def _add_table(path: str, text: str, delimiter: str, records: DataRows) -> None:
    """The first line names the columns. A cell that begins with a quote is quoted whole, line ends and doubled quotes inside."""
    before = csv.field_size_limit(max(len(text), 1))
    try:
        _add_cells(path, _cells(path, text, delimiter, records), delimiter, records)
    finally:
        csv.field_size_limit(before)


def _add_cells(path: str, rows: Iterator[tuple[int, list[str]]], delimiter: str, records: DataRows) -> None:
    unread = {problem.where for problem in records.problems}
    number = 0
    for line, cells in rows:
        if records.columns is None:
            records.columns, records.head = _header(path, line, cells, delimiter, records), f"{path}:{line}"
            if records.columns is None:
                return
            continue
        number += 1
        where, names = f"{path}:{line}", records.columns
        if len(cells) != len(names):
            if any(cell.strip() for cell in cells) and where not in unread:
                text = f"has {len(cells)} cells where {len(names)} are expected ({', '.join(map(shown, names[:8]))})"
                fix = f"a cell that holds a {'comma' if delimiter == ',' else 'tab'} or a line end stands in quotes"
                records.problems.append(Fault(text, f"{where} (row {number})", fix, line))
            continue
        records.found.append(DataRow(dict(zip(names, cells, strict=True)), number, f"{where} (row {number})", line))


def _cells(path: str, text: str, delimiter: str, records: DataRows) -> Iterator[tuple[int, list[str]]]:
    """(line on which it begins, cells) of each row that is not blank."""
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    while True:
        line = reader.line_num + 1
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            text = f"broken table ({error})"
            fix = 'a cell that begins with a quote is quoted whole, and a quote inside it is doubled: "say ""hi"""'
            records.problems.append(Fault(text, f"{path}:{line}", fix, line))
        else:
            if cells:
                yield line, cells


def _header(path: str, line: int, cells: list[str], delimiter: str, records: DataRows) -> list[str] | None:
    """The columns' names; None where they are parted by something else."""
    names = [cell.strip() for cell in cells]
    for name in dict.fromkeys(name for name in names if name and names.count(name) > 1):
        records.problems.append(Fault(f"two columns are called {shown(name)}", f"{path}:{line}", "rename one of them"))
    other = next((sign for sign in ";\t|," if sign != delimiter and sign in names[0]), None) if len(names) == 1 else None
    if other:
        text = f"the columns are not parted by {delimiter!r} (there is only one, called {shown(names[0])})"
        fix = "let its name end in .tsv" if other == "\t" else "part them by commas, or by tabs and let its name end in .tsv"
        records.problems.append(Fault(text, f"{path}:{line}", fix))
        return None
    return names


def _parquet(path: str, data: bytes, records: DataRows) -> None:
    import pyarrow
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.read_table(pyarrow.BufferReader(data))
        records.columns = list(table.column_names)
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        reason = (str(error).splitlines() or [""])[0]
        raise _Unreadable(f"cannot read the file (it is not a whole parquet file: {reason:.200})") from None
    start = 0
    for batch in table.to_batches():
        try:
            rows = batch.to_pylist()
        except (pyarrow.ArrowException, ValueError, OverflowError):
            rows = [_value(path, batch.slice(i, 1), start + i + 1, records) for i in range(batch.num_rows)]
        for number, fields in enumerate(rows, start + 1):
            if fields is not None:
                records.found.append(DataRow(fields, number, f"{path}: row {number}", number))
        start += batch.num_rows


def _value(path: str, row: Any, number: int, records: DataRows) -> dict[str, Any] | None:
    try:
        return row.to_pylist()[0]
    except Exception as error:  # pyarrow's own kinds, UnicodeDecodeError, ValueError, OverflowError
        records.problems.append(Fault(f"cannot read the row ({error!s:.100})", f"{path}: row {number}", line=number))
        return None


READERS: Mapping[str, _Reader] = {
    ".jsonl": _json_lines,
    ".json": _json,
    ".csv": _commas,
    ".tsv": _tabs,
    ".parquet": _parquet,
}
