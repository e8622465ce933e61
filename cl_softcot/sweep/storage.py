"""Where workers agree on who runs which trial: PostgreSQL for clusters, SQLite for one machine, a journal file as a fallback.

What each can take, and what is done about it here:

    postgresql  many machines. A restart in mid-sweep is waited for (`Patience`).
    sqlite      one machine. It has one writer at a time: writers wait (60 s a statement, and `Patience` around that), reads go on
                beside them (WAL). Not for network disks.
    journal     an append-only file, for several machines that share a disk and have no database. Optuna's own leaves a trial
                RUNNING for ever whose worker was killed, and breaks for good when a line was cut off in the middle. Here dead
                workers are found for every storage (`alive.py`), and a cut line is removed before the next is written. It
                gets slow beyond some ten workers.

Tables and studies are created under a lock: at the same time Optuna's creation crashes, on PostgreSQL too.
Passwords come from the environment (PGPASSWORD, PGPASSFILE, or `url_env`) or from ~/.pgpass. They are in no file of the sweep,
no log and no message: `hide` takes them out of every text of a database's.
"""

from __future__ import annotations

import os
import random
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from cl_softcot.errors import UserError
from cl_softcot.files import append_jsonl_many
from cl_softcot.printable import hide
from cl_softcot.sweep.config import StorageConfig

T = TypeVar("T")


def address(config: StorageConfig, folder: Path) -> str:
    """The address of the storage, as SQLAlchemy takes it (for a journal: its path).

    Raises:
        UserError: if the environment does not hold it.
    """
    if config.kind == "sqlite":
        return f"sqlite:///{(folder / 'sweep.db').resolve()}"
    if config.kind == "journal":
        return str(folder / "sweep.journal")
    url = config.url
    if config.url_env:
        url = os.environ.get(config.url_env)
        if not url:
            raise UserError(
                f"the environment variable {config.url_env} is not set, which should hold the storage's address",
                fix=f"export {config.url_env}=postgresql://USER:PASSWORD@HOST:PORT/DATABASE",
            )
    assert url is not None
    return re.sub(r"^postgres(ql)?(\+\w+)?://", "postgresql+psycopg://", url)


def shown_address(config: StorageConfig, folder: Path) -> str:
    """The address for messages and commands: without a password."""
    try:
        return hide(address(config, folder)).replace("+psycopg", "")
    except UserError:
        return f"${config.url_env}"


def open_storage(config: StorageConfig, folder: Path, *, create: bool = False) -> Any:
    """An Optuna storage. `create` makes its tables; only one process at a time may do that (see `files.waiting_lock`).

    Raises:
        UserError: if it cannot be reached.
    """
    import optuna

    quiet()
    url = address(config, folder)
    if config.kind == "journal":
        return optuna.storages.JournalStorage(_journal_backend(url))
    if config.kind == "sqlite":
        if not create and not (folder / "sweep.db").exists():
            raise UserError("this sweep has no storage yet", where=str(folder / "sweep.db"), fix="Start it with its YAML file.")
        options: dict[str, Any] = {"connect_args": {"timeout": 60}}
    else:
        _need_psycopg()
        options = {"pool_pre_ping": True, "connect_args": {"connect_timeout": 10}}
    try:
        storage = _retrying_creation(
            lambda: optuna.storages.RDBStorage(
                url, engine_kwargs=options, skip_table_creation=not create, skip_compatibility_check=not create
            )
        )
        if config.kind == "sqlite" and create:
            _write_ahead(storage)
    except Exception as error:
        raise unreachable(config, folder, error) from None
    return storage


class StorageAway(UserError):
    """The storage does not answer. Nobody's trial failed because of it."""


def unreachable(config: StorageConfig, folder: Path, error: Exception) -> StorageAway:
    """What to tell about a storage that does not answer."""
    return StorageAway(
        f"the storage cannot be reached: {_first_line(error)}",
        where=shown_address(config, folder),
        fix="Check the address, and the password in PGPASSWORD, ~/.pgpass or the variable of url_env."
        if config.kind == "postgresql"
        else "Check that the folder can be written.",
    )


def _need_psycopg() -> None:
    try:
        import psycopg  # noqa: F401
    except ImportError:
        raise UserError("PostgreSQL needs psycopg", fix="pip install 'cl-softcot[postgres]'") from None


def _retrying_creation(call: Callable[[], T], attempts: int = 6) -> T:
    """Creation by another sweep, in another folder, on the same fresh database: one of two crashes, and finds all there later."""
    for attempt in range(attempts):
        try:
            return call()
        except Exception as error:
            already = re.search(r"already exists|duplicate key|UniqueViolation|locked|concurrently", str(error) + repr(error))
            if not already or attempt == attempts - 1:
                raise
            time.sleep(0.2 * 2**attempt * (0.5 + random.random()))
    raise AssertionError("unreachable")


def _write_ahead(storage: Any) -> None:
    from sqlalchemy import text

    with storage.engine.connect() as connection:
        connection.execute(text("PRAGMA journal_mode=WAL"))


def _journal_backend(path: str) -> Any:
    from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock
    from optuna.storages.journal._file import get_lock_file

    class Mended(JournalFileBackend):
        """Removes what a writer left of a line when it was killed, before the next is written: it was never read."""

        def append_logs(self, logs: list[dict[str, Any]]) -> None:
            with get_lock_file(self._lock):
                append_jsonl_many(self._file_path, logs)

    Path(path).parent.mkdir(parents=True, exist_ok=True)
    return Mended(path, lock_obj=JournalFileOpenLock(path))


def quiet() -> None:
    """Optuna tells every trial; our own lines say it better."""
    import warnings

    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
    warnings.filterwarnings("ignore", message="The constraint value is ignored")  # told again after a lost answer


def _first_line(error: BaseException) -> str:
    cause = error
    while cause.__cause__ is not None:
        cause = cause.__cause__
    return hide((str(cause).strip() or type(cause).__name__).splitlines()[0])


class Patience:
    """Repeats a call while the database is away, for `seconds`; then a `UserError` says so.

    Only for calls that may be made twice: a commit whose answer was lost may have happened.
    """

    def __init__(self, config: StorageConfig, folder: Path, say: Callable[[str], None] = lambda _: None):
        self.config, self.folder, self.say = config, folder, say

    def __call__(self, call: Callable[[], T], seconds: float | None = None) -> T:
        end = time.monotonic() + (self.config.patience_seconds if seconds is None else seconds)
        wait, told = 0.1, False
        while True:
            try:
                return call()
            except Exception as error:
                if not is_away(error):
                    raise
                if time.monotonic() > end:
                    raise unreachable(self.config, self.folder, error) from None
                if not told and wait > 1:
                    told = True
                    self.say(f"the storage is away ({_first_line(error)}); waiting")
            time.sleep(wait * (0.5 + random.SystemRandom().random()))  # not the generator that runs draw from
            from cl_softcot.machine.lanes import step_aside

            step_aside()  # other trials of this process can work meanwhile
            wait = min(2 * wait, 10.0)


def is_away(error: BaseException) -> bool:
    """Whether an error means that the database does not answer now, rather than that it refuses."""
    import optuna
    import sqlalchemy.exc as sql

    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, sql.OperationalError | sql.InterfaceError | sql.TimeoutError | sql.PendingRollbackError):
            return True
        if isinstance(seen, sql.DBAPIError) and seen.connection_invalidated:
            return True
        seen = seen.__cause__ or seen.__context__
    return isinstance(error, optuna.exceptions.StorageInternalError)
