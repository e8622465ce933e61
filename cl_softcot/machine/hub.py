"""Whether the hub of models and data sets answers: asked once, in seconds, where its own clients try again for minutes."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

PROBE_SECONDS = 4.0  # for a connection and the first answer; HF_HUB_ETAG_TIMEOUT, if the user has set it, is taken instead
_AGAIN_SECONDS = 60.0  # a notebook may find its network later
_lock = threading.RLock()
_SILENT = "CL_SOFTCOT_SILENT_HUB"  # "address time": worker processes need not wait for it again
_answered: set[str] = set()  # addresses
_inside = 0
_before: list[tuple[object, bool]] = []


@contextmanager
def fetched(source: str | None = None) -> Iterator[None]:
    """What is fetched inside comes from the hub; where that does not answer, from its cache on this machine alone, at once.

    Args:
        source: a hub id; nothing is asked for a folder that is here.
    """
    if (source is not None and Path(source).exists()) or reachable():
        yield
        return
    with _lock:
        _enter()
    try:
        yield
    finally:
        with _lock:
            _leave()


def reachable() -> bool:
    """Whether the hub answers anything at all. A name server or a proxy that hangs counts as no."""
    from huggingface_hub import constants

    if constants.is_offline_mode() or os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE"):
        return False
    with _lock:
        address = constants.ENDPOINT
        if address in _answered:
            return True
        silent, _, when = os.environ.get(_SILENT, "").rpartition(" ")
        if silent == address and time.time() - float(when) < _AGAIN_SECONDS:
            return False
        if _answers(address):
            _answered.add(address)
            return True
        os.environ[_SILENT] = f"{address} {time.time()}"
        return False


def _answers(address: str) -> bool:
    from huggingface_hub import get_session

    seconds = float(os.environ.get("HF_HUB_ETAG_TIMEOUT") or PROBE_SECONDS)
    answered = threading.Event()

    def ask() -> None:
        try:
            get_session().head(address, timeout=seconds)  # the client that fetches: with its proxies and certificates
        except Exception:  # of whichever web client is behind it
            return
        answered.set()

    asking = threading.Thread(target=ask, daemon=True, name="hub")  # looking up a name knows no limit of time
    asking.start()
    asking.join(seconds)
    return answered.is_set()


def _enter() -> None:
    """The libraries' own offline mode, which they read when they are imported."""
    global _inside
    _inside += 1
    if _inside == 1:
        modules = (sys.modules.get(name) for name in ("huggingface_hub.constants", "datasets.config"))
        _before[:] = [(module, module.HF_HUB_OFFLINE) for module in modules if module is not None]
        for module, _ in _before:
            module.HF_HUB_OFFLINE = True  # type: ignore[attr-defined]


def _leave() -> None:
    global _inside
    _inside -= 1
    if _inside == 0:
        for module, offline in _before:
            module.HF_HUB_OFFLINE = offline  # type: ignore[attr-defined]
