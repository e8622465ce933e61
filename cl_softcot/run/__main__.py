"""``python -m cl_softcot.run EXPERIMENT.yaml [key=value ...]``: runs every method of an experiment, or goes on with it."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from cl_softcot.commands import REPEATABLE, called, guarded
from cl_softcot.config.plan import plan
from cl_softcot.run.api import default_jobs

if TYPE_CHECKING:
    from cl_softcot.config.experiment import Experiment
    from cl_softcot.config.plan import RunSpec

EPILOG = """examples:
  python -m cl_softcot.run experiments/sequence_a.yaml
  python -m cl_softcot.run experiments/sequence_a.yaml output_dir=/scratch/a train.steps=60 seeds=[0,1]
  python -m cl_softcot.run experiments/sequence_a.yaml methods.lora_coconut.strategy.rank=8
  python -m cl_softcot.run experiments/sequence_a.yaml --kept experiments/results/sequence_a
  torchrun --nproc_per_node 4 -m cl_softcot.run experiments/coconut_gpt2_prosqa.yaml

Run the same command again after an interruption: finished work is kept, the rest is done.
Exit status: 0 all runs finished, 1 a run failed, 2 a mistake in the command or a file.
Of --dry-run: 0 it can start and, as far as can be told, fits; 3 a method does not fit into the memory; 4 a model is missing,
or is of a kind that cannot be run."""


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(
        prog=called("run"),
        description="Runs a sequence of tasks through every method of an experiment, and measures what each learned and forgot.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    p.add_argument("experiment", help="YAML file of the experiment")
    p.add_argument(
        "overrides", nargs="*", metavar="key=value", help="settings that replace the file's (output_dir=PATH moves the folder)"
    )
    p.add_argument("--jobs", type=int, metavar="N", help="methods side by side, one core each (default: the cores; 1 on a GPU)")
    p.add_argument("--dry-run", action="store_true", help="show what would run, how long it takes and whether it fits, and stop")
    p.add_argument("--gpu-memory", type=float, metavar="GB", help="what --dry-run holds memory against (default: what is here)")
    p.add_argument("--gpus", type=int, default=1, metavar="N", help="how many GPUs --dry-run takes a run to have (default: 1)")
    p.add_argument("--restart", action="store_true", help="throw away what an earlier start left in the folder")
    p.add_argument("--kept", metavar="KEPT_FOLDER", help="take its runs of exactly these settings as finished (default: none)")
    return p


def main(argv: list[str] | None = None) -> int:
    args = parser().parse_intermixed_args(argv)
    stopped = "stopped; the same command goes on from here"
    return guarded(lambda: run(args), environment=REPEATABLE, stopped=stopped, tells=_is_first)


def _is_first() -> bool:
    """Of the processes of a launch, as they are told before torch is there. What all of them find is said once."""
    return os.environ.get("RANK", "0") == "0"


def run(args: argparse.Namespace) -> int:
    from cl_softcot.config.loading import load_experiment
    from cl_softcot.errors import UserError

    if args.jobs is not None and args.jobs < 1:
        raise UserError(f"--jobs {args.jobs}: at least one")
    if args.gpus < 1 or (args.gpu_memory is not None and not args.gpu_memory > 0):
        raise UserError("--gpus and --gpu-memory: above zero")
    config = load_experiment(args.experiment, args.overrides).config
    specs = plan(config)
    from cl_softcot.machine import processes

    launched = processes.launched()
    if launched and (args.jobs or 1) > 1:
        raise UserError(
            f"--jobs {args.jobs}: under torchrun all processes do one run after the other together",
            fix="Leave --jobs out, or start without torchrun for runs side by side.",
        )
    if launched and any(model and model.device_map for model in (config.backbone, config.assistant)):
        raise UserError(
            "device_map spreads one model over several GPUs, and under torchrun every process has one GPU",
            fix="Leave device_map out (train.sharding: full splits a model that learns), or start without torchrun.",
        )
    if not launched and "ACCELERATE_MIXED_PRECISION" in os.environ and _is_first():
        # `accelerate launch --cpu --num_processes 2` does this without a word.
        print(f"note: accelerate started one process; for several: {processes.COMMAND}", file=sys.stderr)
    jobs = 1 if launched else min(args.jobs or default_jobs(), len(specs))
    if args.dry_run:
        if _is_first():
            from cl_softcot.estimate.words import forecast

            found = forecast(config, specs, jobs, gpu_memory=args.gpu_memory, gpus=args.gpus)
            print(found.text)
            return found.status
        return 0
    if _is_first() and not config.backbone.path.startswith("builtin:"):
        from cl_softcot.estimate.words import warnings_before_loading

        for line in warnings_before_loading(config, jobs, int(os.environ.get("WORLD_SIZE", "1"))):
            print(line, file=sys.stderr)
    if not args.kept and _is_first():
        _tell_of_kept(Path(args.experiment).parent / "results" / config.name)
    if not launched:
        return _start(config, specs, jobs, args)
    # Before the processes are joined: Avalanche makes a logger when it is imported, which it then forbids all but the first.
    from cl_softcot.run.together import follow

    with processes.started():
        if processes.is_main():
            return _start(config, specs, None, args)
        return follow(config, config.folder)


def _tell_of_kept(folder: Path) -> None:
    """Of a study that was kept before it was finished. Nothing is taken unasked: who runs an experiment wants it done."""
    from cl_softcot.results import kept

    found = kept.read(folder)
    if found and found.unfinished:
        print(
            f"note: {len(found.runs)} finished runs are in {folder}; --kept {folder} takes those of the same settings",
            file=sys.stderr,
        )


def _start(config: Experiment, specs: list[RunSpec], jobs: int | None, args: argparse.Namespace) -> int:
    from cl_softcot.files import FolderLock
    from cl_softcot.run.experiment import Orchestration

    folder = config.folder
    with FolderLock(folder):
        orchestration = Orchestration(config, specs, folder, jobs, restart=args.restart, kept_in=args.kept)
        orchestration.go()
    return 1 if orchestration.failed else 0


if __name__ == "__main__":
    sys.exit(main())
