"""MLflow's store: which, whether it answers, and one writer at a time."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import sqlite3
import ssl
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from cl_softcot.errors import UserError
from cl_softcot.files import waiting_lock
from cl_softcot.printable import hide, without_user

PROBE_SECONDS = 3.0
LOCK_SECONDS = 600.0  # MLflow makes a new database in seconds, but in minutes on a machine that is busy
# By default one call to a dead server blocks for four minutes. What a user sets wins.
_ENVIRONMENT = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_DISABLE_TELEMETRY": "true",  # nothing leaves this machine that was not asked for
    "MLFLOW_DISABLE_AGENT_HINT": "true",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",  # across the progress bars
}


class SendingFailed(Exception):
    """Something about MLflow that a person should read; becomes a `Sent`."""


def default_uri() -> str:
    """The store that `mlflow ui` opens without arguments in this folder, unless MLFLOW_TRACKING_URI names one."""
    return mlflow_module().get_tracking_uri()


def shown(uri: str | None) -> str:
    """The address without user name and password, for messages."""
    return without_user(uri or "its default store")


def mlflow_module() -> Any:
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    import mlflow

    # Its tracebacks and migration notes would run across the progress bars. After the import, which sets levels.
    for logger in ("mlflow", "alembic"):
        logging.getLogger(logger).setLevel(logging.CRITICAL)
    return mlflow


def client_of(uri: str) -> Any:
    return mlflow_module().MlflowClient(tracking_uri=uri, registry_uri=uri)


def sqlite_path(uri: str) -> Path | None:
    match = re.match(r"sqlite(?:\+\w+)?:///([^?]*)", uri)
    return Path(unquote(match[1])).absolute() if match and match[1] else None


def store_key(uri: str, experiment: str | None = None) -> str:
    path = sqlite_path(uri)
    store = f"sqlite:///{path}" if path else shown(uri).rstrip("/")
    return store if experiment is None else f"{store} {experiment}"


def check_alive(uri: str) -> None:
    """Finds out in seconds, not minutes, that a store cannot be reached.

    Raises:
        SendingFailed: with a message for people.
    """
    if uri.startswith(("http://", "https://")):
        try:
            urllib.request.urlopen(f"{shown(uri).rstrip('/')}/health", timeout=PROBE_SECONDS).close()
        except urllib.error.HTTPError:
            return  # something answers; what it makes of us is the client's business
        except urllib.error.URLError as error:
            if not isinstance(error.reason, ssl.SSLError):
                raise SendingFailed(f"MLflow at {shown(uri)} does not answer ({first_line(error.reason)})") from None
        except TimeoutError:
            raise SendingFailed(f"MLflow at {shown(uri)} does not answer (nothing came for {PROBE_SECONDS:g} s)") from None
        except Exception as error:
            raise SendingFailed(f"MLflow at {shown(uri)} does not answer ({first_line(error)})") from None
    path = sqlite_path(uri)
    if path is not None:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            connection = sqlite3.connect(path, timeout=PROBE_SECONDS)
            try:
                connection.execute("PRAGMA schema_version")
            finally:
                connection.close()
        except (sqlite3.Error, OSError) as error:
            if "locked" in str(error):
                return  # by another writer, for whom the lock of the store waits
            raise SendingFailed(f"MLflow's database {path} cannot be opened ({first_line(error)})") from None


@contextmanager
def store_lock(uri: str) -> Iterator[None]:
    """One writer at a time on a local database: SQLite takes no more, and two that create its tables crash."""
    path = sqlite_path(uri)
    if path is None:
        yield
        return
    digest = hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:16]
    with file_lock(Path(tempfile.gettempdir()) / f"cl_softcot-{os.getuid()}-{digest}.lock"):
        yield


@contextmanager
def file_lock(path: Path) -> Iterator[None]:
    """Waits until nobody else sends."""
    with ExitStack() as stack:
        try:
            stack.enter_context(waiting_lock(path, LOCK_SECONDS))
        except UserError as error:
            raise SendingFailed(str(error)) from None
        yield


def retrying(call: Callable[[], Any], attempts: int = 5) -> Any:
    """Repeats a call that met a locked database (`mlflow ui` reads while we write)."""
    for attempt in range(attempts):
        try:
            return call()
        except Exception as error:
            if "locked" not in str(error).lower() or attempt == attempts - 1:
                raise
            time.sleep(0.2 * 2**attempt)


def no_answer(uri: str | None) -> str:
    """What is said where something answers that is not MLflow: ``{}``, a page for people, half a text."""
    return f"MLflow at {shown(uri)} gave an answer that is none of MLflow's (is a proxy or a login page in between?)"


def refusal(error: Exception, uri: str | None) -> str:
    """What became of a call that MLflow's client gave up, in a line."""
    no_json = isinstance(error, json.JSONDecodeError | UnicodeError | KeyError | IndexError | TypeError | AttributeError)
    if no_json or type(error).__name__ == "ParseError":  # protobuf's
        return no_answer(uri)
    return f"MLflow at {shown(uri)} refused: {first_line(error)}"


def first_line(error: object) -> str:
    """What an error says, in one line of bearable length."""
    text = hide(str(error).strip()) or type(error).__name__
    reason = re.search(r"\[Errno -?\d+\] ([^')]+)", text)  # the end of urllib3's long stories
    line = reason[1] if reason else text.splitlines()[0]
    return line if len(line) <= 200 else line[:197] + "..."
