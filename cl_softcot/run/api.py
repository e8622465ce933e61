"""Running an experiment from a program."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cl_softcot.config.plan import plan

if TYPE_CHECKING:
    from cl_softcot.config.experiment import Experiment
    from cl_softcot.config.plan import OnRow
    from cl_softcot.results.reading import Results


def run_experiment(
    config: Experiment,
    *,
    folder: str | Path | None = None,
    jobs: int = 1,
    on_row: OnRow | None = None,
    restart: bool = False,
    quiet: bool = True,
    tags: Mapping[str, Any] | None = None,
    kept_in: str | Path | None = None,
) -> Results:
    """What the command does, for programs: runs what is not finished in the folder, and returns all results.

    Running it again goes on where it was cut off; finished runs are not run again.

    Args:
        config: from ``load_experiment(path, overrides).config``.
        folder: where everything goes; default: ``config.output_dir``.
        jobs: 1 does the runs in this process, one after the other, and keeps the models loaded for the next call. It sets torch
            to one thread and deterministic algorithms, and draws on the global random generators. More are worker processes.
        on_row: called as ``on_row(spec, i, partial)`` with every row of a run, in order, rows that an earlier start measured
            included; ``partial`` is the record so far. Raising ``StopRun`` in it ends that run: nothing is lost, the run's
            status is KILLED, ``summary.json`` lists it under ``stopped``, and a later call goes on with it.
            Only with ``jobs=1``.
        restart: throw away what an earlier start left in the folder.
        quiet: print nothing.
        tags: further tags of every run, in its log and in MLflow.
        kept_in: a folder of kept results, whose runs of exactly these settings count as finished.

    Returns:
        The records of all finished runs; each knows its ``folder``.

    Raises:
        UserError: for what is wrong with the whole experiment.
        RunsFailed: if runs failed, after the others were finished.
    """
    from cl_softcot.errors import RunsFailed, in_sentences
    from cl_softcot.files import FolderLock
    from cl_softcot.run.experiment import Orchestration

    folder = Path(folder) if folder else config.folder
    workers = None if jobs == 1 else jobs
    with in_sentences(folder), FolderLock(folder):
        orchestration = Orchestration(
            config, plan(config), folder, workers, restart=restart, on_row=on_row, tags=tags, quiet=quiet, kept_in=kept_in
        )
        results = orchestration.go()
    if orchestration.failed:
        raise RunsFailed(orchestration.failed) from orchestration.first_error
    return results


def default_jobs() -> int:
    """One run a core; on a machine with a GPU one at a time."""
    import torch

    if torch.cuda.is_available():
        return 1
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
