"""The processes of a launch (torchrun), which do every run together."""

from __future__ import annotations

import traceback
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cl_softcot.config.experiment import Experiment
from cl_softcot.config.plan import RunSpec
from cl_softcot.errors import StopRun, UserError
from cl_softcot.machine import exact, processes
from cl_softcot.results.folder import ExperimentFolder
from cl_softcot.run import base, one_run


def follow(config: Experiment, folder: Path) -> int:
    """What all processes but the first do: the same work, without files, display and trackers. Returns the exit status."""
    warnings.simplefilter("ignore")  # the first process says it
    silent = lambda _message: None  # noqa: E731
    todo: list[RunSpec] = processes.from_main(lambda: [])
    place, status = ExperimentFolder(folder), 0
    shared = place.shared.path
    if todo:
        with together():
            base.measure_base(config, shared, silent)
    for spec in todo:
        try:
            with together():
                one_run.run_one(config, spec, place.run(spec.key).path, shared, {}, silent)
        except processes.OutOfStep:
            raise
        except Exception as error:
            status = status if isinstance(error, StopRun) else 1
            let_go(error)
    return status


@contextmanager
def together() -> Iterator[None]:
    """An error of all processes passes; one of this process alone, which the others wait for, ends the launch."""
    try:
        yield
    except Exception as error:
        if processes.failed_together():
            raise
        story = str(error) if isinstance(error, UserError) else "".join(traceback.format_exception(error))
        raise processes.OutOfStep(
            f"process {processes.rank()} of {processes.size()} failed alone: {story}",
            fix="The same command goes on from what is finished.",
        ) from None


def let_go(error: BaseException | None) -> None:
    """Frees what the frames of an error hold: a model that did not fit must not stay in memory beside the next."""
    while error is not None:
        traceback.clear_frames(error.__traceback__)
        error = error.__cause__ or error.__context__
    exact.free_memory()
