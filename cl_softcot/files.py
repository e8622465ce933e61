"""Files that survive crashes: atomic writes, append-only JSON lines, checksums and the lock of a folder.

What a reader finds is always whole: a file is written beside its place, forced to the disk and moved in;
a line that a crash cut off is dropped by the next reader and cleaned up by the next writer. What a killed
writer left beside says whose it is, and the next start throws it away (`sweep_unfinished`).
"""

from __future__ import annotations

import dataclasses
import errno
import fcntl
import functools
import gzip
import hashlib
import io
import json
import math
import os
import random
import re
import secrets
import shutil
import socket
import stat
import time
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from cl_softcot.errors import UserError, is_foreseen, of_system
from cl_softcot.printable import visible

# Bounds of what is read: far above what this package writes, far below what stops a machine.
MAX_BYTES = 1 << 30  # of a JSON file
MAX_UNPACKED = 1 << 28  # of what a packed file holds
MAX_DEPTH = 100  # of data in data
MAX_DIGITS = 40  # of a whole number
_LONG_NUMBER = re.compile(rf"\d{{{MAX_DIGITS + 1}}}")


# --- JSON ------------------------------------------------------------------------------------------


def jsonable(value: Any) -> Any:
    """`value` as plain JSON data: what is not finite becomes None, since JSON has no NaN.

    Takes mappings, sequences, sets (sorted), paths, dataclasses, pydantic models, and NumPy or torch scalars
    and arrays.

    Raises:
        TypeError: for anything else.
    """
    if value is None or isinstance(value, str | bool):
        return value
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {_json_key(k): jsonable(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [jsonable(v) for v in value]
    if isinstance(value, set | frozenset):
        return [jsonable(v) for v in sorted(value)]
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if hasattr(value, "model_dump"):
        return jsonable(value.model_dump(mode="json"))
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: jsonable(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if hasattr(value, "tolist"):  # NumPy and torch, scalars and arrays, without importing either
        return jsonable(value.tolist())
    raise TypeError(f"{type(value).__name__} is not JSON data: {value!r}")


def _json_key(key: Any) -> str:
    if isinstance(key, str):
        return key
    if isinstance(key, int | float) and not isinstance(key, bool):
        return str(key)
    raise TypeError(f"a JSON key must be text, not {type(key).__name__}: {key!r}")


def dump_json(value: Any, *, indent: int | None = None) -> str:
    """`value` as JSON text. Floats keep every bit (shortest form that reads back the same)."""
    return json.dumps(jsonable(value), ensure_ascii=False, allow_nan=False, indent=indent)


def read_json(path: str | Path) -> Any:
    """The content of a JSON file.

    Raises:
        UserError: if the file is missing, unreadable or not JSON (with line and column), or is larger or nested deeper than any
            file of ours.
    """
    return parse_json(read_text(path), str(path))


def parse_json(text: str, where: str) -> Any:
    """JSON text as data, within bounds; ``where`` names its source in messages.

    Raises:
        UserError: if it is none, is nested deeper than ``MAX_DEPTH``, or holds a whole number of more than ``MAX_DIGITS`` digits.
    """
    try:
        return _loads(text)
    except json.JSONDecodeError as error:
        raise UserError(f"not valid JSON: {error.msg}", where=f"{where}:{error.lineno}:{error.colno}") from None
    except _OutOfBounds as error:
        raise UserError(f"not data of ours: {error}", where=where) from None


class _OutOfBounds(ValueError):
    """JSON that is valid, and beyond what is read."""


def _loads(text: str) -> Any:
    try:
        value = json.loads(text, parse_int=_bounded_int) if _LONG_NUMBER.search(text) else json.loads(text)
    except RecursionError:
        raise _OutOfBounds(f"it is nested deeper than {MAX_DEPTH}") from None
    if text.count("[") + text.count("{") > MAX_DEPTH and _is_deep(value):
        raise _OutOfBounds(f"it is nested deeper than {MAX_DEPTH}")
    return value


def _bounded_int(text: str) -> int:
    if len(text) > MAX_DIGITS:
        raise _OutOfBounds(f"a whole number of {len(text)} digits")
    return int(text)


def _is_deep(value: Any) -> bool:
    level = [value] if isinstance(value, dict | list) else []
    for _ in range(MAX_DEPTH):
        inside = [part for one in level for part in (one.values() if isinstance(one, dict) else one)]
        level = [part for part in inside if isinstance(part, dict | list)]
        if not level:
            return False
    return True


def read_jsonl(path: str | Path, *, missing_ok: bool = False) -> list[Any]:
    """One value a line. A last line that a crash cut off is left out; empty lines are skipped.

    Raises:
        UserError: if the file is missing (unless `missing_ok`), or a line before the last is not JSON, or is out of bounds.
    """
    if missing_ok and not Path(path).exists():
        return []
    lines = read_text(path).split("\n")  # not splitlines(): a JSON string may hold U+2028 and the like
    values = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            values.append(_loads(line))
        except json.JSONDecodeError as error:
            if number == len(lines):  # no newline behind it: the writer was killed in the middle
                break
            raise UserError(f"not valid JSON: {error.msg}", where=f"{path}:{number}:{error.colno}") from None
        except _OutOfBounds as error:
            raise UserError(f"not data of ours: {error}", where=f"{path}:{number}") from None
    return values


def read_text(path: str | Path, limit: int = MAX_BYTES) -> str:
    """A file's text; bytes that are no UTF-8 become U+FFFD.

    Raises:
        UserError: see `read_bytes`.
    """
    # A cut may fall inside a character; JSON's own check finds what matters.
    return read_bytes(path, limit).decode("utf-8", errors="replace")


def read_bytes(path: str | Path, limit: int = MAX_BYTES) -> bytes:
    """A file's content, at most `limit` bytes. What would hang or never end (a pipe, a device) is refused unread.

    Raises:
        UserError: if it is missing, unreadable, no ordinary file, or larger.
    """
    shown = visible(str(path), lines=False)
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        with open(descriptor, "rb") as file:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                raise UserError(f"{_kind(status.st_mode)}, not a file", where=shown)
            data = file.read(limit + 1)
    except FileNotFoundError:
        raise UserError("there is no such file", where=shown) from None
    except OSError as error:
        kind = None
        with suppress(OSError):
            kind = _kind(os.stat(path).st_mode)  # a socket cannot even be opened
        told = f"{kind}, not a file" if kind else f"cannot be read: {error.strerror}"
        raise UserError(told, where=shown) from None
    except ValueError as error:  # a NUL, or a lone surrogate, in the path
        raise UserError(f"no path of a file: {error}", where=shown) from None
    if len(data) > limit:
        raise UserError(f"larger than {limit >> 20} MiB, which no file of this kind is", where=shown)
    return data


def _kind(mode: int) -> str | None:
    kinds = {stat.S_IFIFO: "a pipe", stat.S_IFCHR: "a device", stat.S_IFBLK: "a device", stat.S_IFSOCK: "a socket",
             stat.S_IFDIR: "a folder"}  # fmt: skip
    return kinds.get(stat.S_IFMT(mode))


def unpacked(path: str | Path, limit: int = MAX_UNPACKED) -> bytes:
    """What a gzip file holds, at most `limit` bytes: a small file may unpack to more than a machine has.

    Raises:
        UserError: if it is missing, damaged, or holds more.
    """
    packed = read_bytes(path, limit)
    try:
        with gzip.GzipFile(fileobj=io.BytesIO(packed)) as file:
            data = file.read(limit + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"a damaged file, not a whole gzip file: {error}", where=str(path)) from None
    if len(data) > limit:
        raise UserError(f"it unpacks to more than {limit >> 20} MiB, which no file of this kind does", where=str(path))
    return data


# --- writing ---------------------------------------------------------------------------------------


@contextmanager
def explained(path: str | Path) -> Iterator[None]:
    """Turns a full disk or a forbidden path inside the block into a `UserError`; other errors pass (see `commands.in_words`).

    For writers that cannot use the functions of this module, such as safetensors' own.
    """
    try:
        yield
    except OSError as error:
        if is_foreseen(error):
            raise of_system(error, path) from error
        error.filename = str(path)  # of a write the system says none, of a file beside it that one's
        raise
    except ValueError as error:
        if "null" not in str(error):
            raise
        raise UserError("a path must not hold a NUL character", where=repr(str(path))) from error


def atomic_write_bytes(path: str | Path, data: bytes, *, durable: bool = True) -> None:
    """Writes a whole file or nothing, and returns when it is on the disk. Makes the folder if needed.

    ``durable=False`` does not wait for the disk: after a power cut the file may be torn. For files whose readers would notice.

    Raises:
        UserError: if the disk is full or the place cannot be written; the old content is intact then.
    """
    atomic_write(path, lambda beside: beside.write_bytes(data), durable=durable)


def atomic_write(path: str | Path, write: Callable[[Path], Any], *, durable: bool = True, own_folder: bool = False) -> None:
    """`atomic_write_bytes` for what `write(path)` makes: it writes a file beside, which then takes its place.

    ``own_folder=True`` is for writers that make temporary files of their own (safetensors): they get a folder for it.
    """
    path = Path(path)
    with explained(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        # Not tempfile: its files are private (0600), and results are for others to read as well.
        unfinished = path.parent / _unfinished_name(path.name)
        beside = unfinished / path.name if own_folder else unfinished
        try:
            if own_folder:
                unfinished.mkdir()
            write(beside)
            if durable:
                with open(beside, "rb") as file:
                    os.fsync(file.fileno())
            os.replace(beside, path)
        finally:
            _remove_unfinished(unfinished)  # not there any more, where all went well
        if durable:
            sync_folder(path.parent)


def atomic_write_text(path: str | Path, text: str) -> None:
    """`atomic_write_bytes` for text, as UTF-8."""
    atomic_write_bytes(path, text.encode("utf-8"))


def atomic_write_json(path: str | Path, value: Any) -> None:
    """`atomic_write_bytes` for data, indented for people; NaN becomes null (see `jsonable`)."""
    atomic_write_text(path, dump_json(value, indent=2) + "\n")


# --- what killed writers left ----------------------------------------------------------------------

ABANDONED = 3600.0  # seconds after which an unfinished file that is not known to be anybody's has no writer any more
# Whose it is: host, when the process began, process. Versions before wrote the process alone.
_UNFINISHED = re.compile(r"\..+\.(?:(?P<host>[0-9a-f]{8})-(?P<began>\d+)-)?(?P<pid>\d+)\.[0-9a-f]{8}\.tmp", re.DOTALL)
_SAFETENSORS = re.compile(r"\.tmp[A-Za-z0-9]{6}")  # its own, beside the file that it writes


def is_unfinished(path: Path) -> bool:
    """Whether a file or folder is called as `atomic_write` calls what it has not finished."""
    return _UNFINISHED.fullmatch(path.name) is not None


def sweep_unfinished(folder: str | Path, *, alone: bool = False, deep: bool = True) -> list[Path]:
    """Removes what killed writers have left in a folder, and nothing of writers that live; what was removed.

    A writer is known by host, process and the time at which that began. Where nothing says whose a file is, or it is of another
    machine, its age decides (`ABANDONED`).

    Args:
        alone: this process holds the folder's lock: what no process here has open is nobody's, however new it is. Then
            safetensors' own temporary files are looked at too.
        deep: in the folders inside, too; links are not followed.
    """
    removed = []
    for place, folders, files in os.walk(folder):
        for name in (*folders, *files):
            path = Path(place, name)
            if not (is_unfinished(path) or (alone and name in files and _SAFETENSORS.fullmatch(name))):
                continue
            with suppress(OSError):
                if is_abandoned(path, alone=alone):
                    _remove_unfinished(path)
                    removed.append(path)
        folders[:] = [name for name in folders if deep and not is_unfinished(Path(place, name))]
    return removed


def is_abandoned(path: Path, *, alone: bool = False) -> bool:
    """Whether the writer of an unfinished file is dead (see `sweep_unfinished`).

    Raises:
        OSError: if it is not there any more.
    """
    age = time.time() - path.lstat().st_mtime
    found = _UNFINISHED.fullmatch(path.name)
    if found and found["host"]:
        if found["host"] == _this_host():
            return _began(int(found["pid"])) != found["began"]
        return age > ABANDONED
    opened = _is_open(path) if alone else None
    return age > ABANDONED if opened is None else not opened


def _unfinished_name(name: str) -> str:
    pid = os.getpid()
    short = name.encode()[:150].decode(errors="ignore")  # file systems take 255 bytes
    return f".{short}.{_this_host()}-{_began(pid) or 0}-{pid}.{secrets.token_hex(4)}.tmp"


def _remove_unfinished(path: Path) -> None:
    with suppress(OSError):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()


@functools.cache
def _this_host() -> str:
    """Machine and container: within it a process number is one process's."""
    try:
        container = os.readlink("/proc/self/ns/pid")
    except OSError:
        container = ""
    return hashlib.sha256(f"{socket.gethostname()} {container}".encode()).hexdigest()[:8]


def _began(pid: int) -> str | None:
    """When a process of this machine began, in the kernel's ticks; None if there is none (any more)."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
        return None if fields[0] in (b"Z", b"X") else fields[19].decode()
    except OSError:
        if Path("/proc/self/stat").exists():
            return None
    try:  # a system without /proc
        os.kill(pid, 0)
    except ProcessLookupError:
        return None
    except OSError:
        pass
    return "0"


def _is_open(path: Path) -> bool | None:
    """Whether a process of this machine has the file open; None if that cannot be told."""
    if not Path("/proc/self/fd").exists():
        return None
    wanted = str(path.absolute())
    for descriptor in Path("/proc").glob("[0-9]*/fd/*"):
        with suppress(OSError):
            if os.readlink(descriptor) == wanted:
                return True
    return False


def sync_folder(folder: str | Path) -> None:
    """Forces a folder's list of names to the disk, so that a file moved into it survives a power cut."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # some network file systems cannot
            raise
    finally:
        os.close(descriptor)


def append_jsonl(path: str | Path, value: Any) -> None:
    """Adds one line and returns when it is on the disk. A torn last line is removed first.

    Raises:
        UserError: if the disk is full or the place cannot be written; earlier lines are intact then.
    """
    append_jsonl_many(path, [value])


def append_jsonl_many(path: str | Path, values: Iterable[Any]) -> None:
    """Adds a line per value with a single write and a single fsync (see `append_jsonl`)."""
    data = "".join(dump_json(value) + "\n" for value in values).encode("utf-8")
    if not data:
        return
    path = Path(path)
    with explained(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        is_new = not path.exists()
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666)
        try:
            with suppress(OSError):  # two writers of one file; where there are no locks, there is one writer
                fcntl.flock(descriptor, fcntl.LOCK_EX)
            end = _mend_tail(descriptor)
            try:
                _write_all(descriptor, data)
            except OSError:
                os.ftruncate(descriptor, end)
                raise
            os.fsync(descriptor)
        finally:
            os.close(descriptor)  # and with it the lock
        if is_new:
            sync_folder(path.parent)


def _write_all(descriptor: int, data: bytes) -> None:
    view = memoryview(data)
    while view:  # the kernel may take less than it is given
        view = view[os.write(descriptor, view) :]


def _mend_tail(descriptor: int) -> int:
    """Makes the file end with a newline and returns its size.

    A last line without one is dropped when it was cut off, and completed when only the newline is missing
    (a file edited by hand).
    """
    size = os.fstat(descriptor).st_size
    if size == 0 or os.pread(descriptor, 1, size - 1) == b"\n":
        return size
    start, tail = size, b""
    while start > 0 and b"\n" not in tail:
        step = min(start, 65536)
        start -= step
        tail = os.pread(descriptor, step, start) + tail
    tail = tail[tail.rfind(b"\n") + 1 :]
    try:
        # Half a number is a number too; only a closed object or list is surely complete.
        complete = isinstance(json.loads(tail), dict | list)
    except ValueError:
        complete = False
    if complete:
        _write_all(descriptor, b"\n")
        return size + 1
    os.ftruncate(descriptor, size - len(tail))
    return size - len(tail)


# --- checksums and locks ---------------------------------------------------------------------------


def sha256_of(source: str | Path | bytes | bytearray | memoryview) -> str:
    """The SHA-256, in hex, of bytes or of a file's content (text is taken as a path).

    Raises:
        UserError: if the file is missing or unreadable.
    """
    if isinstance(source, bytes | bytearray | memoryview):
        return hashlib.sha256(source).hexdigest()
    try:
        with open(source, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except FileNotFoundError:
        raise UserError("there is no such file", where=str(source)) from None
    except OSError as error:
        raise UserError(f"cannot be read: {error.strerror}", where=str(source)) from None


@contextmanager
def waiting_lock(path: Path, seconds: float = 600.0) -> Iterator[None]:
    """One process at a time: waits for a kernel lock on a file, which the kernel frees when its holder dies.

    Where a disk has no locks (or none between machines) nobody waits: use it only where two at once lose nothing for good.

    Raises:
        UserError: if the file cannot be written, or another process holds it for longer than `seconds`.
    """
    with explained(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        end = time.monotonic() + seconds
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > end:
                    raise UserError(f"another process has held this lock for {seconds:g} s", where=str(path)) from None
                time.sleep(0.02 + 0.03 * random.random())  # so that those who wait do not all ask at once
            except OSError:
                break  # a file system without locks
        yield
    finally:
        with suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_UN)  # not by close alone: forked children hold copies
        os.close(descriptor)


class FolderLock:
    """Only one process writes a folder at a time.

    `with FolderLock(folder): ...` holds a kernel lock on `folder/.lock`. The kernel lets go of it when the
    process ends, `kill -9` included, so that no stale lock ever has to be removed by hand. The file stays:
    removing it would let two processes each lock their own. Forked children share their parent's lock.

    Raises:
        UserError: on entry, if another process (or another lock of this one) holds it.
    """

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        self._descriptor: int | None = None

    @property
    def path(self) -> Path:
        return self.folder / ".lock"

    def __enter__(self) -> FolderLock:
        if self._descriptor is not None:
            raise RuntimeError(f"this lock is already held: {self.path}")
        with explained(self.path):
            self.folder.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            self._take(descriptor)
            with suppress(OSError):  # a full disk must not make the lock fail: the note is for people
                note = {"pid": os.getpid(), "host": socket.gethostname()}
                os.ftruncate(descriptor, 0)
                os.pwrite(descriptor, (dump_json(note) + "\n").encode(), 0)
        except BaseException:
            os.close(descriptor)
            raise
        self._descriptor = descriptor
        return self

    def __exit__(self, *_: object) -> None:
        if self._descriptor is None:
            return
        descriptor, self._descriptor = self._descriptor, None
        with suppress(OSError):
            os.ftruncate(descriptor, 0)
        fcntl.flock(descriptor, fcntl.LOCK_UN)  # not by close alone: forked children hold copies
        os.close(descriptor)

    def _take(self, descriptor: int) -> None:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(
                f"another run is writing this folder{self._holder(descriptor)}",
                where=str(self.folder),
                fix="Wait for it or stop it, or write to another folder with output_dir=PATH.",
            ) from None
        except OSError as error:
            raise UserError(
                f"this file system has no file locks ({error.strerror}), so two runs could mix their files",
                where=str(self.folder),
                fix="Write to a local folder with output_dir=PATH.",
            ) from error

    @staticmethod
    def _holder(descriptor: int) -> str:
        try:
            note = json.loads(os.pread(descriptor, 4096, 0))
            return f" (pid {note['pid']} on {note['host']})"
        except (OSError, ValueError, KeyError, TypeError):
            return ""
