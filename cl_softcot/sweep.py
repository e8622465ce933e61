"""``python -m cl_softcot.sweep SWEEP.yaml``: searches settings of an experiment, or goes on with it.

``python -m cl_softcot.sweep status | report | finish FOLDER_OR_YAML`` looks at it; ``worker FOLDER`` is what launchers start;
``create SWEEP.yaml`` makes folder and storage and launches nothing.
"""

from __future__ import annotations

import argparse
import os
import shlex
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cl_softcot.sweeps.config import SweepConfig

EPILOG = """examples:
  python -m cl_softcot.sweep experiments/sweeps/projector.yaml
  python -m cl_softcot.sweep experiments/sweeps/projector.yaml trials=40 launcher=local
  python -m cl_softcot.sweep experiments/sweeps/projector_llama31_8b.yaml --dry-run > sweep.sbatch
  python -m cl_softcot.sweep status sweeps/projector
  python -m cl_softcot.sweep report sweeps/projector

Run the same command again after anything: what is finished is kept, and it tops up to the number of complete trials.
Exit status: 0 done (or jobs submitted), 1 trials failed, 2 a mistake in the command or a file; worker: 85 stopped by a signal."""


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(
        prog="python -m cl_softcot.sweep",
        description="Searches settings of an experiment with Optuna: here, in several processes, or over a cluster's jobs.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    p.add_argument("sweep", help="YAML file of the sweep")
    p.add_argument("overrides", nargs="*", metavar="key=value", help="settings that replace the file's, such as trials=40")
    p.add_argument(
        "--dry-run", action="store_true", help="check everything, show what would run (slurm: the sbatch script), stop"
    )
    p.add_argument("--detach", action="store_true", help="launcher=local: return at once, and let the workers go on")
    return p


def _looker(command: str) -> argparse.ArgumentParser:
    told = {
        "status": "How a sweep stands: trials, the best so far, failures and their logs, the time left.",
        "report": "Writes the HTML page of a sweep, and sends it to MLflow.",
        "finish": "Tests the winner on the test split (once), and writes the report. The sweep's command does it by itself.",
        "worker": "Runs trials until there are enough. Launchers start it; it may be started anywhere that sees the folder.",
    }[command]
    p = argparse.ArgumentParser(prog=f"python -m cl_softcot.sweep {command}", description=told)
    p.add_argument("sweep", help="the sweep's folder, or its YAML file")
    if command == "status":
        p.add_argument("--watch", action="store_true", help="show it again every few seconds until the sweep is done")
    if command == "worker":
        p.add_argument("--parent", type=int, help=argparse.SUPPRESS)
        p.add_argument("--workers", type=int, help=argparse.SUPPRESS)
        p.add_argument("--in-job", action="store_true", help=argparse.SUPPRESS)
    return p


def main(argv: list[str] | None = None) -> int:
    arguments = list(sys.argv[1:] if argv is None else argv)
    commands: dict[str, Callable[[argparse.Namespace], int]] = {
        "status": _status, "report": _report, "finish": _finish, "worker": _worker,
    }  # fmt: skip
    chosen = commands.get(arguments[0]) if arguments else None
    if arguments and arguments[0] == "create":
        chosen, args = _create, parser().parse_intermixed_args(arguments[1:])
    elif chosen:
        args = _looker(arguments[0]).parse_args(arguments[1:])
    else:
        chosen, args = _start, parser().parse_intermixed_args(arguments)
    # Before torch is imported: a worker is one core, and waiting threads must not take another's.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    from cl_softcot.errors import UserError

    try:
        return chosen(args)
    except UserError as error:
        from cl_softcot.sweeps.storage import hide

        print(f"error: {hide(str(error))}", file=sys.stderr)
        return error.exit_status
    except KeyboardInterrupt:
        print("\nstopped; the same command goes on from here", file=sys.stderr)
        return 130


def _say(text: str) -> None:
    print(f"[{time.strftime('%H:%M:%S')}] {text}", flush=True)


# --- starting ------------------------------------------------------------------------------------------------


def _start(args: argparse.Namespace) -> int:
    from cl_softcot.sweeps.config import load_sweep
    from cl_softcot.sweeps.launchers import launcher
    from cl_softcot.sweeps.study import create

    sweep = load_sweep(args.sweep, args.overrides)
    if args.dry_run:
        return _dry_run(sweep, args)
    chosen = launcher(sweep)
    chosen.check(sweep)
    searches = create(sweep)
    print(describe(sweep, [s.plan for s in searches]), flush=True)
    from cl_softcot.sweeps.worker import Interrupted, interruptible

    try:
        with interruptible():
            ended = chosen.launch(sweep, _say, args.detach)
            if not ended:
                print(f"watch it with: python -m cl_softcot.sweep status {sweep.folder} --watch")
                return 0
            return _finish_sweep(sweep)
    except Interrupted:
        raise KeyboardInterrupt from None


def _create(args: argparse.Namespace) -> int:
    from cl_softcot.sweeps.config import load_sweep
    from cl_softcot.sweeps.launchers import shown_command
    from cl_softcot.sweeps.study import create

    sweep = load_sweep(args.sweep, args.overrides)
    create(sweep)
    print(f"made {sweep.folder}/; a worker is: {shown_command(sweep)}")
    return 0


def _finish_sweep(sweep: SweepConfig) -> int:
    from cl_softcot.sweeps.finish import finish
    from cl_softcot.sweeps.status import describe as stands
    from cl_softcot.sweeps.study import find

    finish(sweep, _say)
    print(stands(find(sweep)))
    return 0


def _dry_run(sweep: SweepConfig, args: argparse.Namespace) -> int:
    if sweep.launcher.name == "slurm":
        from cl_softcot.sweeps.launchers.slurm import script
        from cl_softcot.sweeps.storage import shown_address

        print(script(sweep), end="")
        print(f"# storage: {shown_address(sweep.storage, sweep.folder)}")
        print(f"# first, once: {shlex.join(['python', '-m', 'cl_softcot.sweep', 'create', args.sweep, *args.overrides])}")
        return 0
    print(describe(sweep, sweep.plans()))
    return 0


def describe(sweep: SweepConfig, plans: list[Any]) -> str:
    """What the sweep does, and the command of a trial."""
    from cl_softcot.sweeps.space import grid, samples
    from cl_softcot.sweeps.storage import shown_address
    from cl_softcot.sweeps.study import at_once, chosen_pruner

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


# --- looking -------------------------------------------------------------------------------------------------


def _existing(name: str) -> SweepConfig:
    """A sweep that was started, by its folder or its file."""
    from cl_softcot import _yaml
    from cl_softcot.config import validated
    from cl_softcot.errors import UserError
    from cl_softcot.sweeps.config import SweepConfig, load_sweep, shown_path

    path = Path(name)
    if path.is_file():
        path = load_sweep(path).folder
    if not (path / "sweep.yaml").is_file():
        raise UserError(
            "no sweep was started here", where=str(path), fix="Give a sweep's folder, e.g. sweeps/projector, or its YAML file."
        )
    tree, _ = _yaml.read_file(path / "sweep.yaml")
    tree.data["output_dir"] = shown_path(path)
    sweep, problems = validated(tree, SweepConfig)
    if problems:
        raise UserError("\n".join(map(str, problems)))
    return sweep


def _status(args: argparse.Namespace) -> int:
    from cl_softcot.sweeps.status import describe as stands
    from cl_softcot.sweeps.status import is_done
    from cl_softcot.sweeps.study import find

    sweep = _existing(args.sweep)
    searches = find(sweep)
    while True:
        print(stands(searches), flush=True)
        _tell_jobs(sweep)
        done = all(is_done(search, search.records()) for search in searches)
        if done or not args.watch:
            break
        time.sleep(5)
    if done:
        print(f"done; the winner's test and the report: python -m cl_softcot.sweep finish {sweep.folder}")
    return 0


def _tell_jobs(sweep: SweepConfig) -> None:
    if sweep.launcher.name == "slurm":
        from cl_softcot.sweeps.launchers.slurm import alive

        jobs = alive(sweep)
        print(
            "jobs: "
            + (", ".join(f"{job} {state.lower()}" for job, state in jobs.items()) or "none; run the sweep's command again")
        )


def _report(args: argparse.Namespace) -> int:
    from cl_softcot.sweeps.report import write_report
    from cl_softcot.sweeps.study import find

    sweep = _existing(args.sweep)
    print(write_report(sweep, find(sweep)))
    return 0


def _finish(args: argparse.Namespace) -> int:
    return _finish_sweep(_existing(args.sweep))


def _worker(args: argparse.Namespace) -> int:
    from contextlib import nullcontext

    from cl_softcot.sweeps.worker import REQUEUE, Interrupted, interruptible, work

    sweep = _existing(args.sweep)
    if args.parent:
        from cl_softcot.orchestration import _die_with

        _die_with(args.parent)
    try:
        # In a job of submitit its own handlers stand, and who called us turns USR2 into `Interrupted`.
        with nullcontext() if args.in_job else interruptible():
            work(sweep, _say, args.workers or getattr(sweep.launcher, "workers", None) or 1)
            if not args.parent:  # a supervised worker leaves the end to the command that started it
                _finish_sweep(sweep)
    except Interrupted as stop:
        if args.in_job:
            raise
        print(f"stopped by {stop}", file=sys.stderr)
        return REQUEUE
    return 0


if __name__ == "__main__":
    sys.exit(main())
