"""``python -m cl_softcot.sweep SWEEP.yaml``: searches settings of an experiment, or goes on with it.

``python -m cl_softcot.sweep status | report | finish FOLDER_OR_YAML`` looks at it; ``worker FOLDER`` is what launchers start;
``create SWEEP.yaml`` makes folder and storage and launches nothing.
"""

from __future__ import annotations

import argparse
import shlex
import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from cl_softcot.commands import called
from cl_softcot.printable import printable
from cl_softcot.sweep.commands import describe, finish_sweep, guarded_sweep, say, worker
from cl_softcot.sweep.folder import existing

if TYPE_CHECKING:
    from cl_softcot.sweep.config import SweepConfig

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
        prog=called("sweep"),
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
    p = argparse.ArgumentParser(prog=f"{called('sweep')} {command}", description=told)
    p.add_argument("sweep", help="the sweep's folder, or its YAML file")
    if command == "status":
        p.add_argument("--watch", action="store_true", help="show it again every few seconds until the sweep is done")
    if command == "worker":
        p.add_argument("--parent", type=int, help=argparse.SUPPRESS)
        p.add_argument("--workers", type=int, help=argparse.SUPPRESS)
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
    return guarded_sweep(lambda: chosen(args))


def _start(args: argparse.Namespace) -> int:
    from cl_softcot.sweep.config import load_sweep
    from cl_softcot.sweep.folder import create
    from cl_softcot.sweep.launchers import launcher

    sweep = load_sweep(args.sweep, args.overrides)
    if args.dry_run:
        return _dry_run(sweep, args)
    chosen = launcher(sweep)
    chosen.check(sweep)
    searches = create(sweep)
    print(printable(describe(sweep, [s.plan for s in searches])), flush=True)
    from cl_softcot.sweep.worker import Interrupted, interruptible

    try:
        with interruptible():
            ended = chosen.launch(sweep, say, args.detach)
            if not ended:
                print(f"watch it with: python -m cl_softcot.sweep status {sweep.folder} --watch")
                return 0
            return finish_sweep(sweep)
    except Interrupted:
        raise KeyboardInterrupt from None


def _create(args: argparse.Namespace) -> int:
    from cl_softcot.sweep.config import load_sweep
    from cl_softcot.sweep.folder import create
    from cl_softcot.sweep.launchers import shown_command

    sweep = load_sweep(args.sweep, args.overrides)
    create(sweep)
    print(f"made {sweep.folder}/; a worker is: {shown_command(sweep)}")
    return 0


def _dry_run(sweep: SweepConfig, args: argparse.Namespace) -> int:
    if sweep.launcher.name == "slurm":
        from cl_softcot.sweep.launchers.slurm import script
        from cl_softcot.sweep.storage import shown_address

        print(script(sweep), end="")
        print(f"# storage: {shown_address(sweep.storage, sweep.folder)}")
        print(f"# first, once: {shlex.join(['python', '-m', 'cl_softcot.sweep', 'create', args.sweep, *args.overrides])}")
        return 0
    print(printable(describe(sweep, sweep.plans())))
    return 0


def _status(args: argparse.Namespace) -> int:
    from cl_softcot.sweep.folder import find
    from cl_softcot.sweep.status import is_done, is_finished, standing

    sweep = existing(args.sweep)
    searches = find(sweep)
    while True:
        print(printable(standing(searches)), flush=True)
        done = all(is_done(search, search.records()) for search in searches)
        if not done:
            _tell_jobs(sweep)
        if done or not args.watch:
            break
        time.sleep(5)
    page = sweep.folder / "report.html"
    if done and page.exists() and all(is_finished(search, search.records()) for search in searches):
        print(f"the sweep is over; its report: {page}")
    elif done:
        print(f"done; the winner's test and the report: python -m cl_softcot.sweep finish {sweep.folder}")
    return 0


def _tell_jobs(sweep: SweepConfig) -> None:
    if sweep.launcher.name == "slurm":
        from cl_softcot.sweep.launchers.slurm import alive

        jobs = alive(sweep)
        print(
            "jobs: "
            + (", ".join(f"{job} {state.lower()}" for job, state in jobs.items()) or "none; run the sweep's command again")
        )


def _report(args: argparse.Namespace) -> int:
    from cl_softcot.registry import only_builtin
    from cl_softcot.sweep.folder import find
    from cl_softcot.sweep.report import write_report

    with only_builtin("a sweep's folder"):
        sweep = existing(args.sweep)
        print(printable(str(write_report(sweep, find(sweep)))))
    return 0


def _finish(args: argparse.Namespace) -> int:
    return finish_sweep(existing(args.sweep))


def _worker(args: argparse.Namespace) -> int:
    return worker(args.sweep, parent=args.parent, workers=args.workers)


if __name__ == "__main__":
    sys.exit(main())
