"""``python -m cl_softcot.track RUN_FOLDER...``: sends finished or unfinished runs to MLflow, as often as you like.

Runs that are there already are left as they are, so the command may be repeated after any failure.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from cl_softcot.commands import called, guarded
from cl_softcot.errors import UserError
from cl_softcot.printable import printable


def main(argv: Sequence[str] | None = None) -> int:
    """The command. Returns its exit status: 0 all sent, 1 something could not be sent, 2 a user's mistake."""
    parser = argparse.ArgumentParser(
        prog=called("track"),
        description="Send runs to MLflow from their folders. Sending twice changes nothing.",
    )
    parser.add_argument("folders", nargs="+", metavar="RUN_FOLDER", help="an experiment's folder or a single run's")
    parser.add_argument("--uri", help="MLflow's address (default: MLFLOW_TRACKING_URI, or the store that `mlflow ui` opens here)")
    parser.add_argument("--experiment", help="MLflow's experiment (default: the one that the run was made for)")
    options = parser.parse_args(argv)
    return guarded(lambda: _send(options.folders, options.uri, options.experiment))


def _send(folders: Sequence[str], uri: str | None, experiment: str | None) -> int:
    from cl_softcot.results.reading import run_folders
    from cl_softcot.track import mlflow
    from cl_softcot.track.finishing import reconcile_alone

    runs = {folder: run_folders(folder) for folder in folders}  # a wrong path is told before anything is sent
    failed, last = 0, None
    for folder, places in runs.items():
        ids = set()
        for place in places:
            try:
                reconcile_alone(place)
            except UserError as error:
                failed += 1
                print(f"{place.name}: not sent: {error}", file=sys.stderr)
                continue
            report = mlflow.sync(place, uri, experiment)
            if report.ok:
                print(printable(f"{place.name}: {report.sent} new points" + (f" ({report.message})" if report.message else "")))
            else:
                failed += 1
                print(printable(f"{place.name}: {report.message}"), file=sys.stderr)
                if report.experiment_id is None and len(places) > 1:
                    # A store that cannot be reached will not be reached for the other runs either.
                    print("Not sent. The runs are unchanged; repeat the command later.", file=sys.stderr)
                    return 1
            if report.experiment_id:
                last = report
                ids.add(report.experiment_id)
        if len(ids) == 1 and len(places) > 1:
            _note(Path(folder), ids.pop(), uri)
    if last and last.experiment_id:
        # <method>.<order>.seed<n>: several runs of a method are easier to compare as means
        names = [place.name for places in runs.values() for place in places]
        several = len({name.rsplit(".", 2)[0] for name in names}) < len(set(names))
        view = mlflow.METHODS_VIEW if several else mlflow.RUNS_VIEW
        print(mlflow.how_to_look(last.uri, last.experiment_id, view))
    return 1 if failed else 0


def _note(folder: Path, experiment_id: str, uri: str | None) -> None:
    """The experiment's table on its page in MLflow."""
    from cl_softcot.results.reading import load_results
    from cl_softcot.track import mlflow
    from cl_softcot.track.console import experiment_note

    results = load_results(folder)
    if results:
        report = mlflow.send_note(experiment_note(results), experiment_id, uri)
        if not report.ok:
            print(printable(report.message), file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
