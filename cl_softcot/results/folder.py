"""Every file name in the folders that runs, experiments and reports write, once.

<experiment>/  config.yaml  experiment.json  summary.json  table.txt  comparison.png  shared/  report/
               runs/<method>.<order>.seed<n>/  (a run's folder)
kept results:  config.yaml  experiment.json  runs.jsonl.gz  report.json
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

RESULT, CONFIG = "result.json", "config.json"
SUMS = "SHA256SUMS"
PACKED, PACKED_SWEEP = "runs.jsonl.gz", "sweep.jsonl.gz"


@dataclass(frozen=True)
class RunFolder:
    """A run's. None of its files needs to be there; with ``result``, which is written last, the run is finished."""

    path: Path

    @property
    def result(self) -> Path:
        return self.path / RESULT

    @property
    def sums(self) -> Path:
        """Checksums of result, rows, predictions and diagnostics."""
        return self.path / SUMS

    @property
    def config(self) -> Path:
        """The run's settings as it was started with them."""
        return self.path / CONFIG

    @property
    def events(self) -> Path:
        """Every number, as it was measured: what trackers are sent."""
        return self.path / "events.jsonl"

    @property
    def error(self) -> Path:
        """The whole story of a failure that was no user's mistake."""
        return self.path / "error.txt"

    @property
    def rows(self) -> Path:
        return self.path / "rows"

    def row(self, i: int) -> Path:
        """What was measured after experience i."""
        return self.rows / f"row_{i}.json"

    @property
    def predictions(self) -> Path:
        return self.path / "predictions"

    def answers(self, i: int) -> Path:
        """Every answer after experience i, as used."""
        return self.predictions / f"row_{i}.jsonl"

    def answers_alone(self, i: int) -> Path:
        """The answers of the bare weights."""
        return self.predictions / f"weights_alone_{i}.jsonl"

    @property
    def outcomes(self) -> Path:
        """Right and wrong without texts, in place of predictions, where the run was taken from kept results."""
        return self.path / "outcomes.json"

    @property
    def other_outcomes(self) -> Path:
        """The same in the reading that is not the headline: {"reading": ..., "outcomes": ...}."""
        return self.path / "other_outcomes.json"

    @property
    def predictions_page(self) -> Path:
        return self.path / "predictions.html"

    @property
    def predictions_table(self) -> Path:
        return self.path / "predictions.json"

    @property
    def diagnostics(self) -> Path:
        return self.path / "diagnostics"

    def diagnostic(self, name: str, i: int, step: int | None = None) -> Path:
        """What a diagnostic found after experience i, or at a step of the turn that leads there."""
        return self.diagnostics / (f"{name}_{i}.json" if step is None else f"{name}_{i}_step{step}.json")

    def changed_weights(self, i: int) -> Path:
        """Weights that a diagnostic keeps for later rows."""
        return self.diagnostics / f"weight_change_{i}.safetensors"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def figures(self) -> Path:
        return self.path / "figures"

    @property
    def sent(self) -> Path:
        """What MLflow was sent."""
        return self.path / "mlflow.json"

    @property
    def sending(self) -> Path:
        """The lock of whoever sends."""
        return self.path / ".mlflow.lock"

    def inside(self, name: str) -> Path | None:
        """A file of the run's by its path in the folder; None if it is none, or lies elsewhere, behind a link too."""
        try:
            found = (self.path / name).resolve(strict=True)
            return found if found.is_file() and found.is_relative_to(self.path.resolve()) else None
        except (OSError, ValueError, TypeError, RuntimeError):
            return None

    @property
    def experiment(self) -> ExperimentFolder | None:
        """The experiment's folder; None of a run that stands alone."""
        return ExperimentFolder(self.path.parent.parent) if self.path.parent.name == "runs" else None

    @property
    def root(self) -> Path:
        """The experiment's folder, or the run's own where it stands alone."""
        return self.experiment.path if self.experiment else self.path

    @property
    def is_run(self) -> bool:
        """Whether something of a run is there."""
        return self.events.is_file() or self.result.is_file()


@dataclass(frozen=True)
class SharedFolder:
    """What is the same for every run of an experiment: the base, measured once."""

    path: Path

    @property
    def base(self) -> Path:
        """Fingerprints of the base and of the test data; written last."""
        return self.path / "base.json"

    @property
    def answers(self) -> Path:
        return self.path / "base_predictions.jsonl"

    @property
    def continuations(self) -> Path:
        """Token ids that the base writes behind each prompt of the drift."""
        return self.path / "base_continuations.json"


@dataclass(frozen=True)
class ReportFolder:
    path: Path

    @property
    def page(self) -> Path:
        return self.path / "report.html"

    @property
    def text(self) -> Path:
        return self.path / "report.md"

    @property
    def numbers(self) -> Path:
        """Every number of the report with its origin."""
        return self.path / "report.json"

    @property
    def figures(self) -> Path:
        return self.path / "figures"

    @property
    def tables(self) -> Path:
        return self.path / "tables"


@dataclass(frozen=True)
class ExperimentFolder:
    """An experiment's, or what was kept of it."""

    path: Path

    @property
    def config(self) -> Path:
        """The resolved experiment."""
        return self.path / "config.yaml"

    @property
    def record(self) -> Path:
        """Versions, revision, fingerprint."""
        return self.path / "experiment.json"

    @property
    def summary(self) -> Path:
        return self.path / "summary.json"

    @property
    def table(self) -> Path:
        return self.path / "table.txt"

    @property
    def comparison(self) -> Path:
        return self.path / "comparison.png"

    @property
    def lock(self) -> Path:
        return self.path / ".lock"

    @property
    def runs(self) -> Path:
        return self.path / "runs"

    def run(self, key: str) -> RunFolder:
        """``key``: method.order.seed<n>."""
        return RunFolder(self.runs / key)

    @property
    def shared(self) -> SharedFolder:
        return SharedFolder(self.path / "shared")

    @property
    def report(self) -> ReportFolder:
        return ReportFolder(self.path / "report")

    @property
    def kept_report(self) -> Path:
        """The numbers of the report, beside packed runs."""
        return self.path / "report.json"

    @property
    def packed(self) -> Path:
        """Finished runs of kept results, packed."""
        return self.path / PACKED

    @property
    def questions(self) -> Path:
        """The test questions' names, where runs were taken from kept results."""
        return self.path / "questions.json"

    @property
    def written(self) -> tuple[Path, ...]:
        """All that a start writes here, runs included: what ``--restart`` throws away."""
        files = (self.record, self.config, self.summary, self.table, self.comparison, self.questions)
        return (self.runs, self.shared.path, *files)
