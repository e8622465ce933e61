"""Rows of a public data set: from local files, or from the hub. Nothing is read before the first row is asked for.

Local files are .json, .jsonl, .csv, .tsv, .txt and .parquet, each also with .gz behind it. What is read is kept for the
whole process, so that several tasks (or several experiments of a sweep) share one copy.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import Field

from cl_softcot.errors import UserError, did_you_mean
from cl_softcot.files import read_bytes, unpacked
from cl_softcot.machine.hub import fetched
from cl_softcot.tasks._tables import MAX_DATA_BYTES, DataRow, DataRows
from cl_softcot.tasks.base import Split, TaskSettings

SUFFIXES = (".json", ".jsonl", ".csv", ".tsv", ".txt", ".parquet")
_ABSENT = object()


def hub_id(default: str) -> Any:
    """The setting ``hub`` with a data set's own default."""
    return Field(default, description="id of the data set on the hub, used where `path` is null")


class SourceSettings(TaskSettings):
    """Where the rows of a public data set come from. Subclasses give ``hub`` its default (``hub_id``)."""

    path: str | None = Field(None, description="local file or folder, relative to where the command runs (null: the hub)")
    hub: str = hub_id("")
    revision: str | None = Field(None, description="commit or tag of the data set on the hub (null: the newest)")

    def is_here(self) -> bool:
        return self.path is not None or not self.hub


@dataclass(frozen=True)
class Row:
    """One record with its place (``file:line``, ``file: row n``, ``hub id (split): row n``), for what has to be said about it."""

    fields: Mapping[str, Any]
    where: str

    def take(self, field: str, default: Any = _ABSENT) -> Any:
        """A field's value. UserError with the place and the nearest name where there is none and no ``default``."""
        if field in self.fields:
            return self.fields[field]
        if default is not _ABSENT:
            return default
        near = did_you_mean(field, self.fields)
        raise UserError(f"no field {field!r}{near}", where=self.where, fix="check that this is the file that the task reads")

    def text(self, field: str) -> str:
        """A field that must hold a text or a number, without spaces around. UserError otherwise."""
        value = self.take(field)
        if isinstance(value, str | int | float) and not isinstance(value, bool) and str(value).strip():
            return str(value).strip()
        raise UserError(f"field {field!r} should be a text or a number (got {value!r:.60})", where=self.where)

    def texts(self, field: str) -> list[str]:
        """A field that must hold a list of texts; spaces around them and empty ones are dropped. UserError otherwise."""
        value = self.take(field)
        if not isinstance(value, Sequence) or isinstance(value, str | bytes) or not all(isinstance(v, str) for v in value):
            raise UserError(f"field {field!r} should be a list of texts (got {value!r:.60})", where=self.where)
        return [v.strip() for v in value if v.strip()]

    def wrong(self, problem: str, fix: str | None = None) -> UserError:
        """The error that says what is wrong with this row."""
        return UserError(problem, where=self.where, fix=fix)


# ------------------------------------------------------------------------------------------------------ local files


def find_file(path: str | Path, names: Sequence[str], *, missing_ok: bool = False) -> Path | None:
    """The file that ``path`` means: itself, or in a folder the first of ``names`` that is there (as such or with .gz).

    Args:
        path: a file or a folder.
        names: file names that hold what is wanted, the preferred one first; ``sub/name`` is allowed.
        missing_ok: None instead of an error where a folder has none of them.

    Raises:
        UserError: if there is neither a file nor a folder, or none of the names in it.
    """
    path = Path(path).expanduser()
    if path.is_file():
        return path
    if not path.is_dir():
        raise UserError("there is no such file or folder", where=str(path), fix="`path:` is relative to where the command runs")
    for name in names:
        for candidate in (path / name, path / f"{name}.gz"):
            if candidate.is_file():
                return candidate
    if missing_ok:
        return None
    wanted = " or ".join(names)
    raise UserError(f"the folder has no {wanted} (nor the same with .gz)", where=str(path))


def read_file(path: str | Path, columns: Sequence[str] | None = None) -> tuple[Row, ...]:
    """All rows of a local file; read once per process, again only after the file has changed.

    JSON: a list of objects, JSON lines whatever the suffix, ``{"examples": [...]}``, or a map of objects (whose keys become
    the field ``_key``). Text: a row ``{"text": line}`` for each line that is not empty. CSV and TSV: the first line names
    the fields, unless ``columns`` does. A list of plain values gives rows ``{"value": v}``.

    Raises:
        UserError: if the file is missing, empty, broken or of an unknown kind.
    """
    path = Path(path).expanduser()
    try:
        changed = path.stat().st_mtime_ns
    except OSError as error:
        raise UserError(f"cannot be read: {error.strerror}", where=str(path)) from None
    return _read_file(path, changed, tuple(columns) if columns else None)


@lru_cache(maxsize=256)
def _read_file(path: Path, changed_ns: int, columns: tuple[str, ...] | None) -> tuple[Row, ...]:
    name = path.name.removesuffix(".gz")
    kind = Path(name).suffix.lower()
    if kind not in SUFFIXES:
        known = " ".join(SUFFIXES)
        raise UserError(f"cannot read files of kind {kind or name!r}", where=str(path), fix=f"known, each also with .gz: {known}")
    data = _bytes_of(path)
    if kind == ".parquet":
        rows = tuple(_parquet_rows(path, data))
    else:
        try:
            text = data.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise UserError(f"is not UTF-8 text: {error.reason} at byte {error.start}", where=str(path)) from None
        rows = tuple(_text_rows(path, kind, text, columns))
    if not rows:
        raise UserError("the file is empty", where=str(path))
    return rows


def _bytes_of(path: Path) -> bytes:
    return unpacked(path, MAX_DATA_BYTES) if path.name.endswith(".gz") else read_bytes(path, MAX_DATA_BYTES)


def _text_rows(path: Path, kind: str, text: str, columns: Sequence[str] | None) -> Iterator[Row]:
    if kind in (".csv", ".tsv"):
        return _table_rows(path, text, "," if kind == ".csv" else "\t", columns)
    if kind == ".txt":
        lines = enumerate(text.split("\n"), 1)  # not splitlines(): a text may hold U+2028 and the like
        return (Row({"text": line.removesuffix("\r")}, f"{path}:{number}") for number, line in lines if line.strip())
    return _json_rows(path, text, lines=kind == ".jsonl")


def _table_rows(path: Path, text: str, delimiter: str, columns: Sequence[str] | None) -> Iterator[Row]:
    # newline="" leaves line separators inside quoted cells alone. A tab-separated file has no quoting: quotes are text.
    quoting: Literal[0, 3] = csv.QUOTE_NONE if delimiter == "\t" else csv.QUOTE_MINIMAL
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, quoting=quoting, strict=delimiter == ",")
    names = list(columns) if columns else None
    try:
        for cells in reader:
            if not cells:
                continue
            if names is None:
                names = cells
                continue
            where = f"{path}:{reader.line_num}"
            if len(cells) != len(names):
                raise UserError(f"has {len(cells)} columns where {len(names)} are expected ({', '.join(names)})", where=where)
            yield Row(dict(zip(names, cells, strict=True)), where)
    except csv.Error as error:
        raise UserError(f"broken table: {error}", where=f"{path}:{reader.line_num}") from None


def _json_rows(path: Path, text: str, *, lines: bool) -> Iterator[Row]:
    if not lines:
        try:
            whole = json.loads(text)
        except json.JSONDecodeError as error:
            if error.msg != "Extra data":  # several values: JSON lines in spite of the name
                raise UserError(f"not JSON: {error.msg}", where=f"{path}:{error.lineno}:{error.colno}") from None
        else:
            return _rows_of_value(path, whole)
    return _json_lines(path, text)


def _json_lines(path: Path, text: str) -> Iterator[Row]:
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        where = f"{path}:{number}"
        try:
            value = json.loads(line)
        except json.JSONDecodeError as error:
            raise UserError(f"not JSON: {error.msg}", where=f"{where}:{error.colno}") from None
        if not isinstance(value, dict):
            raise UserError(f"a line holds {type(value).__name__}, not an object", where=where)
        yield Row(value, where)


def _rows_of_value(path: Path, whole: Any) -> Iterator[Row]:
    if isinstance(whole, dict) and isinstance(whole.get("examples"), list):
        whole = whole["examples"]
    if isinstance(whole, dict) and whole and all(isinstance(value, dict) for value in whole.values()):
        return (Row({"_key": key, **value}, f"{path}: {key}") for key, value in whole.items())
    if isinstance(whole, list):
        rows = (value if isinstance(value, dict) else {"value": value} for value in whole)
        return (Row(fields, f"{path}: row {number}") for number, fields in enumerate(rows, 1))
    if isinstance(whole, dict):  # JSON lines with a single line
        return iter([Row(whole, f"{path}: row 1")])
    raise UserError(f"holds {type(whole).__name__}, not a list of objects", where=str(path))


def _parquet_rows(path: Path, data: bytes) -> Iterator[Row]:
    import pyarrow
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.read_table(pyarrow.BufferReader(data))
    except pyarrow.ArrowException as error:
        raise UserError(f"is not a parquet file: {error}", where=str(path)) from None
    return (Row(fields, f"{path}: row {number}") for number, fields in enumerate(table.to_pylist(), 1))


# ---------------------------------------------------------------------------------------------------------- the hub


@lru_cache(maxsize=256)
def read_hub(hub: str, config: str | None, split: str, revision: str | None = None) -> tuple[Row, ...]:
    """All rows of one split of a data set on the hub (or of the hub library's own cache, which also works offline).

    Code that a data set brings is never run: only plain data files are read.

    Raises:
        UserError: if it cannot be had, whatever the reason: no network, no such set, split or revision, or a gated one.
    """
    import datasets

    builders = getattr(getattr(datasets, "packaged_modules", None), "_PACKAGED_DATASETS_MODULES", ())
    if hub in builders:  # would read whatever files lie in the working folder
        fix = "`path:` reads a file; a data set's id is OWNER/NAME"
        raise UserError(f"{hub!r} is no data set of the hub, but a kind of file", fix=fix)
    place = f"{hub}{f'/{config}' if config else ''} ({split})"
    try:
        with fetched(hub):
            table = datasets.load_dataset(hub, config, split=split, revision=revision)
    except Exception as error:  # the hub's libraries raise their own kinds, OSError, ValueError and those of three web clients
        reason = (str(error).strip().splitlines() or [""])[0]
        raise UserError(
            f"the data set {place} cannot be had from the hub: {type(error).__name__}: {reason:.200}",
            fix="give `path:` a local copy of it; for a gated set log in first; offline, only what was loaded before is there",
        ) from error
    _commits[hub, config, split, revision] = _commit_of(table)
    return tuple(Row(fields, f"{place}: row {number}") for number, fields in enumerate(table, 1))


_commits: dict[tuple[str, str | None, str, str | None], str | None] = {}


def hub_commit(hub: str, config: str | None, split: str, revision: str | None = None) -> str | None:
    """The commit of the data set that ``read_hub`` with the same arguments has read; None where it cannot be told."""
    read_hub(hub, config, split, revision)
    return _commits.get((hub, config, split, revision))


def _commit_of(table: Any) -> str | None:
    """From the place in the hub library's cache, which also says it offline: .../<version>/<commit>/<split>.arrow."""
    found = {Path(file["filename"]).parent.name for file in getattr(table, "cache_files", None) or ()}
    commits = sorted(name for name in found if re.fullmatch("[0-9a-f]{40}", name))
    return commits[0] if len(commits) == 1 else None


# What data sets call the splits that they have, the usual name first.
USUAL_SPLITS: Mapping[Split, tuple[str, ...]] = {
    "train": ("train",),
    "valid": ("validation", "valid", "val", "dev"),
    "test": ("test",),
}


def hub_splits(hub: str, config: str | None, revision: str | None = None) -> dict[Split, str]:
    """Which of a data set's splits are train, valid and test, by their usual names; without those that it has not.

    Raises:
        UserError: if it cannot be had, or has no split that is called train.
    """
    try:
        read_hub(hub, config, "train", revision)
    except UserError as error:
        fix = "say which splits it has: `hub_split: {train: NAME, test: NAME}`" if _has_no_such_split(error) else error.fix
        raise UserError(error.message, where=error.where, fix=fix) from error
    found: dict[Split, str] = {"train": "train"}
    for split in ("valid", "test"):
        for name in USUAL_SPLITS[split]:
            try:
                read_hub(hub, config, name, revision)
            except UserError as error:
                if not _has_no_such_split(error):
                    raise
            else:
                found[split] = name
                break
    return found


def _has_no_such_split(error: UserError) -> bool:
    """Whether the data set is there, and has no split of that name."""
    cause = error.__cause__
    return isinstance(cause, KeyError) or (isinstance(cause, ValueError) and "split" in str(cause).lower())


def hub_records(hub: str, config: str | None, split: str, revision: str | None = None) -> DataRows:
    """The rows of ``read_hub`` as those of a file."""
    rows = read_hub(hub, config, split, revision)
    place = f"{hub}{f'/{config}' if config else ''} ({split})"
    found = [DataRow(row.fields, number, row.where, number) for number, row in enumerate(rows, 1)]
    return DataRows(found, columns=list(rows[0].fields) if rows else None, head=place)


@dataclass(frozen=True)
class Source:
    """What one split is called: the file names that hold it in a folder, and its configuration and split on the hub.

    ``names`` are tried in their order. ``hub_split`` None: the hub has no such split. ``whole``: one file holds everything
    that the task reads, so that ``path`` may be that file; otherwise it has to be a folder, or all splits were the same rows.
    """

    names: tuple[str, ...]
    hub_split: str | None
    config: str | None = None
    columns: tuple[str, ...] | None = None
    whole: bool = False


def read(settings: SourceSettings, source: Source) -> tuple[Row, ...]:
    """The rows of a split: from ``settings.path``, or from the hub where that is null.

    Raises:
        UserError: if they are not to be had, or the hub has no such split.
    """
    if settings.path is not None:
        if Path(settings.path).expanduser().is_file() and not source.whole:
            wanted = " or ".join(source.names)
            raise UserError(
                "is a file, but each split has its own", where=settings.path, fix=f"name the folder that holds {wanted}"
            )
        path = find_file(settings.path, source.names)
        assert path is not None
        return read_file(path, source.columns)
    if source.hub_split is None:
        raise UserError(
            f"the data set {settings.hub} has no such split on the hub",
            fix=f"give `path:` a folder with {' or '.join(source.names)}",
        )
    return read_hub(settings.hub, source.config, source.hub_split, settings.revision)


# --------------------------------------------------------------------------------------------- keeping splits apart

_T = TypeVar("_T")
_PUNCTUATION = re.compile(r"[^\w\s]|_")


def words_of(text: str) -> list[str]:
    """A text's words, without case and punctuation: what makes two questions the same one."""
    return _PUNCTUATION.sub("", text.casefold()).split()


def question_of(text: str) -> str:
    """``words_of`` as one text."""
    return " ".join(words_of(text))


def without_overlap(items: Iterable[_T], text_of: Callable[[_T], str], held_out: Iterable[str], run: int = 13) -> list[_T]:
    """The items that share no ``run`` consecutive words with a held-out text, and are none of them in full."""
    runs = {words for text in held_out for words in _runs(text, run)}
    return [item for item in items if runs.isdisjoint(_runs(text_of(item), run))]


def _runs(text: str, run: int) -> list[tuple[str, ...]]:
    words = words_of(text)
    return [tuple(words[i : i + run]) for i in range(len(words) - run + 1)] or [tuple(words)]


def distinct_items(items: Iterable[_T], key_of: Callable[[_T], str]) -> list[_T]:
    """The first item of each key."""
    found: dict[str, _T] = {}
    for item in items:
        found.setdefault(key_of(item), item)
    return list(found.values())


def carve(items: Sequence[_T], key_of: Callable[[_T], str], n: int) -> tuple[list[_T], list[_T]]:
    """(the rest, a validation part): of the keys, ``n`` (at most a tenth) whose hashes are the smallest.

    Neither the order of the items nor a seed moves an item from one part to the other; equal keys stay together.
    """
    ranked = sorted({key_of(item) for item in items}, key=lambda key: hashlib.sha256(key.encode()).digest())
    chosen = set(ranked[: min(n, len(ranked) // 10)])
    return [i for i in items if key_of(i) not in chosen], [i for i in items if key_of(i) in chosen]
