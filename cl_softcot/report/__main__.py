"""``python -m cl_softcot.report RUN_FOLDER...``: what finished runs say, as one page, and as Markdown, figures and tables."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from cl_softcot.commands import ONE_THREAD, called, guarded
from cl_softcot.printable import printable

EPILOG = """examples:
  python -m cl_softcot.report runs/sequence_a_seeds
  python -m cl_softcot.report runs/sequence_a_seeds --control full_cot --chosen-by sweeps/learning_rates
  python -m cl_softcot.report runs/layers runs/capability --output report
  python -m cl_softcot.report --compare runs/before runs/after
  python -m cl_softcot.report experiments/results/layers --output report   (kept results: all that they were kept without)

It reads folders only, and writes report.html (opens offline), report.md, figures/ (SVG, PDF), tables/ (LaTeX, CSV) and
report.json, which says of every number what it was made from. Only runs that all compared methods have finished count.
A kept folder (experiments/results/NAME) whose report was kept as report.json alone gives it again as it was made.
Exit status: 0 written, 1 nothing in the folders is comparable, 2 a mistake in the command or a file."""


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(
        prog=called("report"),
        description="Writes the report of finished runs: what each method learned, forgot and kept, with intervals.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    p.add_argument("folders", nargs="*", metavar="RUN_FOLDER", help="an experiment's folder, or single runs of it")
    p.add_argument("--compare", nargs=2, metavar=("A", "B"), help="what changed from study A to study B, and whether it matters")
    place = "where to write (default: report/ in the first folder, with --compare in B; of kept results ./reports/NAME)"
    p.add_argument("--output", metavar="DIR", help=place)
    p.add_argument("--methods", metavar="A,B", help="compare these methods only")
    p.add_argument("--control", metavar="METHOD", help="whom all are compared with (default: a method that trains nothing)")
    p.add_argument("--chosen-by", action="append", default=[], metavar="SWEEP_FOLDER", help="the sweep that chose learning rates")
    p.add_argument("--bootstrap", type=int, metavar="N", help="resamples behind the intervals (default: 2000)")
    p.add_argument(
        "--metric", action="append", default=[], metavar="MODULE:FUNCTION", help="a metric of your own, computed of finished runs"
    )
    p.add_argument("--no-mlflow", action="store_true", help="do not send the report to MLflow, even if the runs were")
    return p


def main(argv: list[str] | None = None) -> int:
    args = parser().parse_args(argv)
    return guarded(lambda: _report(args), environment=ONE_THREAD)


def _report(args: argparse.Namespace) -> int:
    from cl_softcot.errors import UserError

    if bool(args.folders) == bool(args.compare):
        raise UserError("give folders of runs, or two with --compare", fix="python -m cl_softcot.report --help shows examples")
    if len(args.folders) == 1:
        from cl_softcot.report.building import as_it_was_made

        args.folders, made = as_it_was_made(args.folders[0])
        for name, value in made.items():
            if not getattr(args, name):
                setattr(args, name, value)
    args.bootstrap = 2000 if args.bootstrap is None else args.bootstrap
    if args.bootstrap < 100:
        raise UserError(f"--bootstrap {args.bootstrap}: 100 or more, for intervals that mean something")
    methods = [name for name in (args.methods or "").split(",") if name]
    say = lambda text: print(printable(text), flush=True)  # noqa: E731
    if args.compare:
        if args.control or args.chosen_by or args.metric:
            raise UserError(
                "--control, --chosen-by and --metric are for the report of one study", fix="leave them out with --compare"
            )
        from cl_softcot.report.building import build_comparison

        page, studies = build_comparison(*args.compare, output=args.output, methods=methods, bootstrap=args.bootstrap, say=say)
    else:
        from cl_softcot.report.building import build

        page, studies = build(
            args.folders, output=args.output, methods=methods, control=args.control, chosen_by=args.chosen_by,
            bootstrap=args.bootstrap, metrics=args.metric, say=say,
        )  # fmt: skip
    if not args.no_mlflow:
        _send(page, studies)
    print(printable(f"report: {page}"))
    return 0


def _send(page: Path, studies: list[Any]) -> None:
    """The page and its data as one more run in MLflow, if the experiment's runs are there. Its being away changes nothing."""
    tracking = studies[0].config.get("tracking") or {}
    if not tracking.get("mlflow"):
        return
    from cl_softcot.report.sending import send

    told = send(page, [study.title for study in studies], studies[0].experiment, tracking.get("experiment"))
    if told:
        print(printable(told), file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
