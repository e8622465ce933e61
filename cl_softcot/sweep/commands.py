"""What the sweep's commands share: a worker, the end of a sweep, what would run."""

from __future__ import annotations

import argparse
import shlex
import sys
import time
from typing import TYPE_CHECKING, Any

from cl_softcot.sweep.folder import existing

if TYPE_CHECKING:
    from cl_softcot.sweep.config import SweepConfig


def say(text: str) -> None:
    print(f"[{time.strftime('%H:%M:%S')}] {text}", flush=True)


def finish_sweep(sweep: SweepConfig) -> int:
    from cl_softcot.sweep.finish import finish
    from cl_softcot.sweep.folder import find
    from cl_softcot.sweep.status import describe as stands

    finish(sweep, say)
    print(stands(find(sweep)))
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
        f"sweep {sweep.name}: {goals}; {wanted}"
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


def worker(args: argparse.Namespace) -> int:
    from contextlib import nullcontext

    from cl_softcot.sweep.worker import REQUEUE, Interrupted, interruptible, work

    sweep = existing(args.sweep)
    if args.parent:
        from cl_softcot.run.workers import die_with

        die_with(args.parent)
    try:
        # In a job of submitit its own handlers stand, and who called us turns USR2 into `Interrupted`.
        with nullcontext() if args.in_job else interruptible():
            work(sweep, say, args.workers or getattr(sweep.launcher, "workers", None) or 1)
            if not args.parent:  # a supervised worker leaves the end to the command that started it
                finish_sweep(sweep)
    except Interrupted as stop:
        if args.in_job:
            raise
        print(f"stopped by {stop}", file=sys.stderr)
        return REQUEUE
    return 0
