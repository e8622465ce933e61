"""A report in MLflow: one more run beside those that it is about."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

from cl_softcot.files import read_json
from cl_softcot.results.events import EventLog
from cl_softcot.results.folder import ReportFolder
from cl_softcot.track import mlflow


def send(page: Path, studies: Sequence[str], experiment: str, mlflow_experiment: str | None = None) -> str:
    """Logs the page, its text and its numbers; returns what went wrong in one line, or nothing.

    Args:
        experiment: the name of the first study's experiment; mlflow_experiment: where its runs are filed, if elsewhere.
    """
    folder = page.parent / "mlflow_run"
    shutil.rmtree(folder, ignore_errors=True)  # a new report is a new run: artifacts of a run never change
    folder.mkdir(parents=True)
    log = EventLog(folder)
    log.params({"studies": ", ".join(studies), "numbers": len(read_json(ReportFolder(page.parent).numbers)["numbers"])})
    log.tags(
        {
            "report_of": ", ".join(studies),
            "experiment": experiment,
            "cl_softcot.mlflow_experiment": mlflow_experiment or experiment,
            "mlflow.runName": f"report {', '.join(studies)}",
            "mlflow.source.name": "cl_softcot",
        }
    )
    report = ReportFolder(page.parent)
    for path in (report.page, report.text, report.numbers):
        shutil.copy(path, folder / path.name)
        log.artifact(path.name)
    log.status("FINISHED")
    return mlflow.sync(folder).message
