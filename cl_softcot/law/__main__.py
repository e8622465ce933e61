"""``python -m cl_softcot.law STUDY.yaml [key=value ...]``: is forgetting a function of drift? A small study, or finished runs."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from cl_softcot.commands import ONE_THREAD, called, guarded
from cl_softcot.printable import printable

EPILOG = """examples:
  python -m cl_softcot.law experiments/kl_law.yaml
  python -m cl_softcot.law experiments/kl_law.yaml seeds=[0] output_dir=/scratch/law
  python -m cl_softcot.law runs/sequence_a_seeds
  python -m cl_softcot.law experiments/results/kl_law --output law   (kept: table, figure and points of a finished study)

Run the same command again after an interruption: finished trials are kept, the rest is done.
Exit status: 0 finished, 2 a mistake in the command or a file."""


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(
        prog=called("law"),
        description="Fits forgetting against KL drift: in a small controlled study, or over the finished runs of experiments.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    p.add_argument(
        "source", help="YAML file of a study, the folder of a finished one, or of an experiment that has finished runs"
    )
    p.add_argument("overrides", nargs="*", metavar="key=value", help="settings that replace the file's; or further folders")
    p.add_argument("--restart", action="store_true", help="throw away what an earlier start left in the study's folder")
    p.add_argument("--bootstrap", type=int, metavar="N", help="resamples of finished runs for the intervals (default: 1000)")
    p.add_argument("--output", metavar="DIR", help="where files about finished ones go (runs: FOLDER/law; study: reports/NAME)")
    return p


def main(argv: list[str] | None = None) -> int:
    args = parser().parse_intermixed_args(argv)
    source = Path(args.source)
    work = _of_finished_study if (source / "law.json").is_file() else _of_runs if source.is_dir() else _of_study
    return guarded(lambda: work(args), environment=ONE_THREAD, stopped="stopped; the same command goes on from here")


def _of_study(args: argparse.Namespace) -> int:
    from cl_softcot.errors import UserError
    from cl_softcot.law.pictures.study import load_law, run_study

    if args.output or args.bootstrap is not None:
        raise UserError("--output and --bootstrap are for finished runs", fix="a study has settings: output_dir=DIR bootstrap=N")
    config = load_law(args.source, args.overrides)
    run_study(config, restart=args.restart, report=lambda text: print(text, flush=True))
    print(printable((config.folder / "table.txt").read_text(encoding="utf-8")), end="")
    print(f"everything is in {config.folder}")
    return 0


def _of_finished_study(args: argparse.Namespace) -> int:
    from cl_softcot.errors import UserError
    from cl_softcot.law.pictures.study import show_again

    if args.overrides or args.restart or args.bootstrap is not None:
        raise UserError("a finished study is only shown again", fix="to measure anew, give its YAML file; here: --output DIR")
    output = Path(args.output or Path("reports") / Path(args.source).resolve().name)
    show_again(Path(args.source), output)
    print(printable((output / "table.txt").read_text(encoding="utf-8")), end="")
    print(f"everything is in {output}")
    return 0


def _of_runs(args: argparse.Namespace) -> int:
    from cl_softcot.errors import UserError
    from cl_softcot.files import atomic_write_json, atomic_write_text
    from cl_softcot.law.figure import draw_law
    from cl_softcot.law.fit import fit_law, law_table
    from cl_softcot.law.points import points_from

    if args.restart:
        raise UserError("--restart is for studies", fix="finished runs are only read; leave it out")
    bootstrap = 1000 if args.bootstrap is None else args.bootstrap
    if bootstrap < 0:
        raise UserError(f"--bootstrap {bootstrap}: 0 (no intervals) or more")
    folders = [args.source, *args.overrides]
    points = [point for folder in folders for point in points_from(folder)]
    if not points:
        raise UserError(
            "no finished run in which a method learned something and drift and forgetting were measured",
            where=", ".join(folders),
            fix="finish the runs, with evaluate.drift above 0 and retention or several tasks",
        )
    law, output = fit_law(points, bootstrap=bootstrap), Path(args.output or Path(args.source) / "law")
    atomic_write_text(output / "table.txt", law_table(law))
    draw_law(points, law, output, title=", ".join(Path(folder).name for folder in folders))
    atomic_write_json(output / "law.json", law)
    print(printable((output / "table.txt").read_text(encoding="utf-8")), end="")
    print(f"everything is in {output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
