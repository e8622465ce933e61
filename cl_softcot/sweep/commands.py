"""What the sweep's commands share: a worker, the end of a sweep, what would run."""

from __future__ import annotations

import shlex
import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from cl_softcot.commands import ONE_CORE, guarded
from cl_softcot.printable import printable
from cl_softcot.sweep.folder import existing

if TYPE_CHECKING:
    from cl_softcot.sweep.config import SweepConfig


def say(text: str) -> None:
    print(printable(f"[{time.strftime('%H:%M:%S')}] {text}"), flush=True)


def finish_sweep(sweep: SweepConfig) -> int:
    from cl_softcot.sweep.finish import finish
    from cl_softcot.sweep.folder import find
    from cl_softcot.sweep.status import standing

    finish(sweep, say)
    print(printable(standing(find(sweep))))
    return 0


def describe(sweep: SweepConfig, plans: list[Any]) -> str:
    """What the sweep does, and the command of a trial."""
    from cl_softcot.sweep.samplers import at_once, chosen_pruner
    from cl_softcot.sweep.space import grid, samples
    from cl_softcot.sweep.storage import shown_address

    goals = ", ".join(f"{way} {name}" for name, way in sweep.objectives.items())
    seen = " (so settings were chosen knowing the whole stream)" if sweep.select_on.saw_the_future else ""
    wanted = (
        f"every combination ({len(grid(plans[0].space))})" if sweep.sampler.name == "grid" else f"{sweep.trials} complete trials"
    )
    together = max(map(at_once, plans))
    lines = [
        f"{sweep.title}: {goals}; {wanted}"
        + (f" for each of {len(plans)} methods" if len(plans) > 1 else "")
        + f", {len(sweep.seeds)} seed{'s' if len(sweep.seeds) > 1 else ''} each",
        f"  chosen on validation data of {sweep.select_on}{seen}; tested once, at the end",
        f"  sampler {sweep.sampler.name}, pruner {chosen_pruner(plans[0]).name}, launcher {sweep.launcher.name}"
        + (f", {together} trials side by side in a worker" if together > 1 else ""),
        f"  storage {shown_address(sweep.storage, sweep.folder)}; everything else in {sweep.folder}/",
    ]
    plan = plans[0]
    example = {key: samples(value)[0] for key, value in plan.space.items() if not value.when}
    command = ["python", "-m", "cl_softcot.run", plan.trial_experiment, *plan.trial_overrides(example)]
    lines.append(f"  a trial is, for example: {shlex.join(command)} output_dir={plan.folder}/trials/0")
    return "\n".join(lines)


def guarded_sweep(work: Callable[[], int]) -> int:
    """``guarded``, as all commands of sweeps are."""
    return guarded(work, environment=ONE_CORE, stopped="stopped; the same command goes on from here")


def worker(sweep_name: str, *, parent: int | None = None, workers: int | None = None, in_job: bool = False) -> int:
    """Runs trials until there are enough.

    Args:
        sweep_name: the sweep's folder, or its YAML file.
        parent: the process that supervises this one; it leaves the end of the sweep to it, and dies with it.
        workers: how many there are; None: as the launcher says.
        in_job: in a job of submitit, whose own handlers stand: who calls turns USR2 into ``Interrupted``, which is let through.
    """
    from contextlib import nullcontext

    from cl_softcot.sweep.worker import REQUEUE, Interrupted, interruptible, work

    sweep = existing(sweep_name)
    if parent:
        from cl_softcot.run.workers import die_with

        die_with(parent)
    try:
        with nullcontext() if in_job else interruptible():
            work(sweep, say, workers or getattr(sweep.launcher, "workers", None) or 1)
            if not parent:
                finish_sweep(sweep)
    except Interrupted as stop:
        if in_job:
            raise
        print(f"stopped by {stop}", file=sys.stderr)
        return REQUEUE
    return 0
