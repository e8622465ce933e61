"""``python -m cl_softcot.run EXPERIMENT.yaml [key=value ...]``: runs every method of an experiment, or goes on with it."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cl_softcot.config import Experiment
    from cl_softcot.one_run import RunSpec

EPILOG = """examples:
  python -m cl_softcot.run experiments/sequence_a.yaml
  python -m cl_softcot.run experiments/sequence_a.yaml output_dir=/scratch/a train.steps=60 seeds=[0,1]
  python -m cl_softcot.run experiments/sequence_a.yaml methods.lora_coconut.strategy.rank=8

Run the same command again after an interruption: finished work is kept, the rest is done.
Exit status: 0 all runs finished, 1 a run failed, 2 a mistake in the command or a file."""


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(
        prog="python -m cl_softcot.run",
        description="Runs a sequence of tasks through every method of an experiment, and measures what each learned and forgot.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    p.add_argument("experiment", help="YAML file of the experiment")
    p.add_argument(
        "overrides", nargs="*", metavar="key=value", help="settings that replace the file's (output_dir=PATH moves the folder)"
    )
    p.add_argument("--jobs", type=int, metavar="N", help="methods side by side, one core each (default: the cores; 1 on a GPU)")
    p.add_argument("--dry-run", action="store_true", help="show what would run and about how long it takes, and stop")
    p.add_argument("--restart", action="store_true", help="throw away what an earlier start left in the folder")
    return p


def main(argv: list[str] | None = None) -> int:
    args = parser().parse_intermixed_args(argv)
    # Before torch is imported: a worker is one core, and waiting threads must not take another's.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    from cl_softcot.errors import UserError

    try:
        return run(args)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_status
    except KeyboardInterrupt:
        print("\nstopped; the same command goes on from here", file=sys.stderr)
        return 130


def run(args: argparse.Namespace) -> int:
    from cl_softcot.config import load_experiment
    from cl_softcot.errors import UserError

    if args.jobs is not None and args.jobs < 1:
        raise UserError(f"--jobs {args.jobs}: at least one")
    config = load_experiment(args.experiment, args.overrides).config
    specs = plan(config)
    jobs = min(args.jobs or default_jobs(), len(specs))
    if args.dry_run:
        print(describe(config, specs, jobs))
        return 0
    from cl_softcot.files import FolderLock
    from cl_softcot.orchestration import Orchestration

    folder = Path(config.output_dir)
    with FolderLock(folder):
        return Orchestration(config, specs, folder, jobs, restart=args.restart).go()


def plan(config: Experiment) -> list[RunSpec]:
    """Every run of the experiment: methods within orders within seeds, so that what is finished is balanced at any time."""
    from cl_softcot.one_run import RunSpec

    return [RunSpec(m.name, order, seed) for seed in config.seeds for order in config.orders for m in config.methods]


def default_jobs() -> int:
    """One run a core; on a machine with a GPU one at a time."""
    import torch

    if torch.cuda.is_available():
        return 1
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def describe(config: Experiment, specs: list[RunSpec], jobs: int) -> str:
    """What would run and about how long."""
    from cl_softcot.estimate import estimate_seconds

    folder = Path(config.output_dir)
    lines = [f"{config.name}: {len(specs)} runs into {folder}/, {jobs} side by side", ""]
    for order, tasks in config.orders.items():
        lines.append(f"order {order}: {' -> '.join(tasks)}")
    lines += [f"backbone {config.backbone.path}, assistant {config.assistant.path if config.assistant else 'none'}", ""]
    seconds, left = estimate_seconds(config), 0.0
    width = max(len(m.name) for m in config.methods)
    for m in config.methods:
        train = config.train_for(m)
        done = sum((folder / "runs" / s.key / "result.json").exists() for s in specs if s.method == m.name)
        n = sum(s.method == m.name for s in specs)
        left += seconds[m.name] * (n - done)
        routed = f", per task ({m.per_task.routing})" if m.per_task else ""
        added = "".join(f" + {plugin.name}" for plugin in m.plugins)
        budget = f"{train.steps} steps of {train.global_batch_size} a task" if m.strategy.cls.trains else "no training"
        state = f", {done} of {n} finished" if done else ""
        lines.append(
            f"  {m.name:<{width}}  {m.strategy.name} x {m.reasoning.name}{routed}{added}: {budget}, about {seconds[m.name]:.0f} s"
            f"{f' x {n}' if n > 1 else ''}{state}"
        )
    total = left / jobs
    lines += ["", f"about {total / 60:.0f} minutes in all" if total >= 90 else f"about {total:.0f} seconds in all"]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
