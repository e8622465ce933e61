"""The last lines of a run's log, of a run that ends now or of one whose log was cut off behind its ``result.json``."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path

from cl_softcot.errors import UserError
from cl_softcot.files import FolderLock
from cl_softcot.results import kept
from cl_softcot.results.checksums import Checksums
from cl_softcot.results.events import EventLog, final_metrics, final_params, row_metrics
from cl_softcot.results.folder import RunFolder
from cl_softcot.results.record import RunRecord
from cl_softcot.track.predictions import TABLE_TAGS


def finish_log(log: EventLog, run: RunFolder, result: RunRecord, time_ms: int | None = None) -> None:
    """What a finished run's log has to hold and does not: its numbers, its pages, its end.

    Args:
        time_ms: when the run finished, in milliseconds since the epoch; None: now.
    """
    for i in range(len(result.accuracy.matrix)):
        log.metrics(i, row_metrics(result, i), time_ms)
    log.params(final_params(result))
    log.metrics(0, final_metrics(result), time_ms)  # MLflow draws a bar for a metric whose only step is 0
    if run.predictions_table.exists():
        log.tags(TABLE_TAGS)
    pages = [*sorted(run.figures.glob("*.png")), run.predictions_page, run.predictions_table]
    for page in pages:
        if page.exists():
            log.artifact(page.relative_to(run.path))
    log.artifact(run.result.name)
    log.status("FINISHED", time_ms)


def reconcile(folder: str | Path) -> None:
    """Puts the log of a run right that has its ``result.json``: a run that was killed right behind that is finished all the same.

    Whoever calls it holds the lock of the experiment's folder.

    Raises:
        UserError: if the result is not as the run wrote it.
    """
    run = RunFolder(Path(folder))
    log = EventLog(run.path)
    record = None if log.finished else kept.record(run.path)
    if record is not None:
        finish_log(log, run, record, milliseconds(record.finished))


def reconcile_alone(folder: str | Path) -> None:
    """``reconcile`` for who does not hold the lock; where a run is writing the folder, its log is left to that.

    Raises:
        UserError: if a file of the run is not as the run wrote it.
    """
    run = RunFolder(Path(folder))
    Checksums(run.path).check(*Checksums(run.path).all_changed())
    if not (run.result.exists() and run.events.exists()) or EventLog(run.path).finished:
        return
    lock = FolderLock(run.root)
    try:
        lock.__enter__()
    except UserError:
        return
    try:
        reconcile(run.path)
    finally:
        lock.__exit__()


def milliseconds(finished: str | None) -> int | None:
    """A record's time as the log has it."""
    return int(datetime.fromisoformat(finished).timestamp() * 1000) if finished else None
