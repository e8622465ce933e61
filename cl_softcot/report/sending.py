"""A report in MLflow: one more run beside those that it is about."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

from cl_softcot.files import read_json
from cl_softcot.results.events import EventLog
from cl_softcot.track import mlflow

FILES = ("report.html", "report.md", "report.json")


def send(page: Path, studies: Sequence[str], experiment: str) -> str:
    """Logs the page, its text and its numbers; returns what went wrong in one line, or nothing."""
    folder = page.parent / "mlflow_run"
    shutil.rmtree(folder, ignore_errors=True)  # a new report is a new run: artifacts of a run never change
    folder.mkdir(parents=True)
    log = EventLog(folder)
    log.params({"studies": ", ".join(studies)})
    log.tags(
        {
            "report_of": ", ".join(studies),
            "experiment": studies[0],
            "cl_softcot.mlflow_experiment": experiment,
            "mlflow.runName": f"report {', '.join(studies)}",
            "mlflow.source.name": "cl_softcot",
        }
    )
    log.metrics(0, {"report/numbers": len(read_json(page.parent / "report.json")["numbers"])})
    for name in FILES:
        shutil.copy(page.parent / name, folder / name)
        log.artifact(name)
    log.status("FINISHED")
    return mlflow.sync(folder).message
