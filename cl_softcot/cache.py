"""``python -m cl_softcot.cache list | prune | clear``: looks after what runs keep on disk for each other.

Work that is the same for many runs is done once::

    $CL_SOFTCOT_CACHE/<kind>/<key>.safetensors      kind: states (of assistants), texts (written by frozen models)

A key is a hash of everything that the bits of an entry depend on, so that an entry is never wrong and never changes a number:
without it the same bits would be computed again. Entries are written whole or not at all and carry a checksum of every byte; a
reader that finds none, or a damaged one, which it throws away, computes. Any number of processes and machines may share the
folder, and delete what they like.

Environment: CL_SOFTCOT_CACHE (a folder, or 'off'; default ~/.cache/cl_softcot), CL_SOFTCOT_CACHE_SIZE (default 20GB).
"""

from __future__ import annotations

import argparse
import functools
import hashlib
import json
import os
import re
import sys
import time
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cl_softcot.commands import called, guarded
from cl_softcot.errors import UserError
from cl_softcot.files import atomic_write_bytes, dump_json, is_abandoned, is_unfinished, sha256_of

if TYPE_CHECKING:
    from torch import Tensor

PLACE, SIZE = "CL_SOFTCOT_CACHE", "CL_SOFTCOT_CACHE_SIZE"
DEFAULT_SIZE = "20GB"
KINDS = ("states", "texts")

_ENTRY = re.compile(r"[0-9a-f]{64}\.safetensors")
FORMAT = 2  # 1: the checksum was of the tensors alone
_CHECKSUM = re.compile(rb'\{"__metadata__": \{"sha256": "([0-9a-f]{64})"')  # how the header of an entry begins
_UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}


@dataclass(frozen=True)
class Entry:
    """A file of the cache; ``about`` is what its writer said about it: model, weights, items."""

    path: Path
    kind: str
    size: int  # bytes
    used: float  # seconds since the epoch, when it was last read or written
    about: Mapping[str, str]


class Cache:
    """Tensors under keys, in a folder of at most about ``limit`` bytes: what was not used for longest goes first.

    Several processes that write at once may exceed the limit by a twentieth of it each.
    """

    def __init__(self, folder: Path, limit: int):
        self.folder = folder
        self.limit = limit
        self._unchecked = limit  # bytes written since the size was looked at; the first writer looks
        self._writable = True

    def path(self, kind: str, key: str) -> Path:
        return self.folder / kind / f"{key}.safetensors"

    def read(self, kind: str, key: str) -> dict[str, Tensor] | None:
        """The tensors of an entry, on the CPU; None if there is none that is whole.

        The file is read, not mapped: a mapped file that another machine deletes from a network folder ends the process.
        """
        import safetensors.torch

        path = self.path(kind, key)
        try:
            data = path.read_bytes()
        except OSError:
            return None
        if not _is_whole(data):
            with suppress(OSError):
                path.unlink()
            return None
        with suppress(OSError):  # the time of last use; not every file system keeps that of reading
            os.utime(path)
        return safetensors.torch.load(data)

    def write(self, kind: str, key: str, tensors: Mapping[str, Tensor], about: Mapping[str, Any]) -> None:
        """Keeps an entry. Where that is impossible (full disk, no permission) a run goes on without, and is told once."""
        import safetensors.torch

        if not self._writable:
            return
        data = _sealed(safetensors.torch.save(dict(tensors)), {name: str(value) for name, value in about.items()})
        if len(data) > self.limit:
            return
        try:
            atomic_write_bytes(self.path(kind, key), data, durable=False)  # the checksum tells
        except (UserError, OSError) as error:
            self._writable = False
            problem = error.message if isinstance(error, UserError) else str(error)
            warnings.warn(f"{self.folder}: nothing more is cached there: {problem}", stacklevel=2)
            return
        self._unchecked += len(data)
        if self._unchecked > self.limit / 20:
            self._unchecked = 0
            self.prune(self.limit)

    def entries(self) -> Iterator[Entry]:
        """All entries that can be read."""
        for kind, path in self._files(_ENTRY):
            with suppress(OSError, ValueError, KeyError, TypeError):
                status = path.stat()
                yield Entry(path, kind, status.st_size, status.st_mtime, _about(path))

    def prune(self, limit: int) -> tuple[int, int]:
        """Deletes what was not used for longest until ``limit`` bytes are left. Returns numbers of entries and bytes deleted."""
        self.sweep(everything=limit == 0)
        found = []
        for _, path in self._files(_ENTRY):
            with suppress(OSError):
                status = path.stat()
                found.append((status.st_mtime, status.st_size, path))
        left, deleted, freed = sum(size for _, size, _ in found), 0, 0
        for _, size, path in sorted(found):
            if left <= limit:
                break
            with suppress(FileNotFoundError):  # somebody else was faster
                path.unlink()
                deleted, freed = deleted + 1, freed + size
            left -= size
        return deleted, freed

    def sweep(self, *, everything: bool = False) -> None:
        """Deletes what killed writers have not finished; ``everything``: of writers that live too."""
        for path in self._inside():
            if is_unfinished(path) and _ENTRY.search(path.name):
                with suppress(OSError):
                    if everything or is_abandoned(path):
                        path.unlink()

    def _files(self, name: re.Pattern[str]) -> Iterator[tuple[str, Path]]:
        """(kind, file) of what looks like the cache's own: nothing else in the folder is ever touched."""
        for path in self._inside():
            if name.fullmatch(path.name):
                yield path.parent.name, path

    def _inside(self) -> Iterator[Path]:
        for kind in KINDS:
            with suppress(FileNotFoundError, NotADirectoryError):
                yield from (self.folder / kind).iterdir()


def current() -> Cache | None:
    """The cache that the environment names; None if it is switched off.

    Raises:
        UserError: if a variable makes no sense.
    """
    place = os.environ.get(PLACE, "").strip() or "~/.cache/cl_softcot"
    if place.lower() == "off":
        return None
    size = os.environ.get(SIZE, "").strip() or DEFAULT_SIZE
    return _cache(Path(place).expanduser().absolute(), parse_size(size, f"the environment variable {SIZE}"))


@functools.cache
def _cache(folder: Path, limit: int) -> Cache:
    """One a folder and process: it counts what was written."""
    if folder.exists() and not folder.is_dir():
        raise UserError(f"the cache's place is not a folder: {folder}", fix=f"Set {PLACE} to a folder, or to 'off'.")
    cache = Cache(folder, limit)
    with suppress(OSError):  # a folder that cannot be read holds nothing for us
        cache.sweep()
    return cache


def key_of(material: Any) -> str:
    """The key for everything that an entry depends on, given as JSON data."""
    return sha256_of(dump_json([FORMAT, material]).encode())


# ------------------------------------------------------------------------------------------------------ file format


def _sealed(data: bytes, about: Mapping[str, str]) -> bytes:
    """A safetensors file with a description in its header, and in front of that a checksum of the whole file."""
    header, body = _parts(data)
    described = {"__metadata__": {"sha256": "0" * 64, **about}} | {k: v for k, v in header.items() if k != "__metadata__"}
    text = dump_json(described).encode()
    text += b" " * (-len(text) % 8)  # as the format wants it
    whole = len(text).to_bytes(8, "little") + text + body
    start, end = _place_of_checksum(whole)
    return whole[:start] + _checksum(whole, start, end) + whole[end:]


def _is_whole(data: bytes) -> bool:
    try:
        start, end = _place_of_checksum(data)
    except ValueError:
        return False
    return data[start:end] == _checksum(data, start, end)


def _place_of_checksum(data: bytes) -> tuple[int, int]:
    found = _CHECKSUM.match(data, 8)  # behind the header's length
    if found is None:
        raise ValueError("not an entry of the cache")
    return found.span(1)


def _checksum(data: bytes, start: int, end: int) -> bytes:
    """Of every byte but its own, as hex."""
    view = memoryview(data)
    digest = hashlib.sha256(view[:start])
    digest.update(view[end:])
    return digest.hexdigest().encode()


def _parts(data: bytes) -> tuple[dict[str, Any], memoryview]:
    length = int.from_bytes(data[:8], "little")
    return json.loads(data[8 : 8 + length]), memoryview(data)[8 + length :]


def _about(path: Path) -> dict[str, str]:
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        return json.loads(file.read(min(length, 1 << 20)))["__metadata__"]


# ---------------------------------------------------------------------------------------------------------- command


def parse_size(text: str, what: str) -> int:
    """Bytes of '5GB', '200 MB', '1.5TB' (powers of ten).

    Raises:
        UserError: for anything else.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]?B|)", text.strip().upper())
    if match is None:
        raise UserError(f"{what}: {text!r} is no size", fix="Write it like 5GB or 200MB.")
    return int(float(match[1]) * _UNITS[match[2]])


def main(argv: list[str] | None = None) -> int:
    """The command. Returns its exit status: 0, or 2 for a user's mistake."""
    parser = argparse.ArgumentParser(
        prog=called("cache"),
        description="What runs keep for each other: states of frozen assistants, texts of frozen models. Deleting it costs "
        "time and changes no number.",
        epilog=f"The folder is ${PLACE} (default ~/.cache/cl_softcot; 'off': no cache), its bound ${SIZE} (default "
        f"{DEFAULT_SIZE}).",
    )
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("list", help="what is there")
    prune = commands.add_parser("prune", help="delete what was not used for longest")
    prune.add_argument("--max-size", metavar="SIZE", help="what may be left, such as 5GB (default: the bound)")
    commands.add_parser("clear", help="delete everything")
    options = parser.parse_args(argv)
    return guarded(lambda: _command(options))


def _command(options: argparse.Namespace) -> int:
    cache = current()
    if cache is None:
        raise UserError(f"the cache is switched off: {PLACE}=off", fix=f"Unset {PLACE}, or set it to the folder that you mean.")
    if options.command == "list":
        print(_table(cache))
        return 0
    limit = 0 if options.command == "clear" else cache.limit
    if options.command == "prune" and options.max_size is not None:
        limit = parse_size(options.max_size, "--max-size")
    deleted, freed = cache.prune(limit)
    print(f"{cache.folder}: {deleted} files deleted, {human_size(freed)} freed")
    return 0


def _table(cache: Cache) -> str:
    """A line for each kind of entry of each model."""
    groups: dict[tuple[str, str, str], list[Entry]] = {}
    for entry in cache.entries():
        about = entry.about
        groups.setdefault((entry.kind, about.get("model", "?"), about.get("weights", "?")[:8]), []).append(entry)
    total = sum(entry.size for entries in groups.values() for entry in entries)
    head = f"{cache.folder}: {human_size(total)} of at most {human_size(cache.limit)}"
    if not groups:
        return f"{head}, nothing is cached"
    rows = [("kind", "model", "weights", "items", "files", "size", "last used")]
    for (kind, model, weights), entries in sorted(groups.items()):
        items = sum(int(entry.about.get("items", 0)) for entry in entries)
        size, used = sum(entry.size for entry in entries), max(entry.used for entry in entries)
        rows.append((kind, model, weights, f"{items:,}", f"{len(entries):,}", human_size(size), _ago(time.time() - used)))
    return "\n".join([head, "", *_aligned(rows)])


def _aligned(rows: Iterable[tuple[str, ...]]) -> list[str]:
    """Columns of numbers to the right, others to the left."""
    rows = list(rows)
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    right = {3, 4, 5}
    lines = []
    for row in rows:
        cells = [f"{cell:>{w}}" if i in right else f"{cell:<{w}}" for i, (cell, w) in enumerate(zip(row, widths, strict=True))]
        lines.append("  ".join(cells).rstrip())
    return lines


def human_size(n: float) -> str:
    """Bytes for people: '512 B', '3.4 MB'."""
    units = ["B", "KB", "MB", "GB", "TB"]
    while n >= 1000 and len(units) > 1:
        n /= 1000
        units.pop(0)
    return f"{n:.0f} {units[0]}" if units[0] == "B" or n >= 100 else f"{n:.1f} {units[0]}"


def _ago(seconds: float) -> str:
    for size, name in ((86400, "day"), (3600, "hour"), (60, "minute")):
        if seconds >= size:
            n = int(seconds // size)
            return f"{n} {name}{'s' if n > 1 else ''} ago"
    return "just now"


if __name__ == "__main__":
    sys.exit(main())
