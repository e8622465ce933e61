"""Writes kept results (see ``kept.py``), and makes run folders of them again: ``python -m cl_softcot.results``.

    keep runs/sequence_a_seeds              -> experiments/results/sequence_a_seeds
    unpack experiments/results/layers       -> runs/layers

A study that is not finished can be kept too: what has finished is packed, and what is missing is named. Nothing that was kept
is lost by it: kept runs that the folder has not finished are only replaced when that is asked for.
"""

from __future__ import annotations

import argparse
import gzip
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from cl_softcot.commands import called, guarded
from cl_softcot.errors import UserError
from cl_softcot.files import atomic_write_bytes, atomic_write_json, dump_json, read_json, sha256_of, unpacked
from cl_softcot.results import kept
from cl_softcot.results.folder import PACKED, PACKED_SWEEP, RESULT, ExperimentFolder, ReportFolder, RunFolder

HOME = Path("experiments/results")
SWEEP_FILES = ("**/winner.json", "**/trials/*/trial.json", f"**/test/*/runs/*/{RESULT}")
LAW_FILES = ("config.yaml", "experiment.json", "law.json", "points.csv")
_PICTURE = re.compile(r'<img[^>]*src="data:[^"]*"[^>]*>')


def write_lines(path: Path, values: Iterable[Any]) -> None:
    """A packed file: the same values give the same bytes, so that keeping something again changes nothing."""
    text = "".join(dump_json(value) + "\n" for value in values)
    atomic_write_bytes(path, gzip.compress(text.encode("utf-8"), compresslevel=9, mtime=0))


# ----------------------------------------------------------------------------------------------------------------- studies


def keep(folder: Path, home: Path = HOME, *, replace: bool = False) -> Path:
    """Keeps an experiment's folder, or whatever of it has finished.

    Args:
        home: the kept folder is made in it, under the name of the experiment's.
        replace: also when kept runs are lost by it.

    Raises:
        UserError: if nothing has finished, or kept runs would be lost.
    """
    runs = sorted(path.parent for path in ExperimentFolder(folder).runs.glob(f"*/{RESULT}"))
    if not runs:
        raise UserError("no run in this folder has finished", where=str(folder))
    target = home / folder.resolve().name
    lines = [_packed(run) for run in runs]
    if not replace:
        _refuse_loss(target, {line["run"] for line in lines}, folder)
    place, there = ExperimentFolder(folder), ExperimentFolder(target)
    base = place.shared.base
    head = {
        "kept": 1,
        "base": kept.base_record(folder) or None,
        "base_sha256": sha256_of(base) if base.exists() else None,
        "questions": _questions(runs),
        "unfinished": unfinished(folder),
    }
    for path in (place.config, place.record):
        if path.exists():
            atomic_write_bytes(target / path.name, path.read_bytes())
    write_lines(there.packed, [head, *lines])
    there.kept_report.unlink(missing_ok=True)  # of other runs
    if place.report.numbers.exists():
        atomic_write_bytes(there.kept_report, _moved_report(place.report).encode("utf-8"))
    return target


def _packed(run: Path) -> dict[str, Any]:
    found = kept.outcomes(run)
    path = RunFolder(run).result
    other = kept.other_outcomes(run)
    line = {"run": run.name, "result": read_json(path), "sha256": sha256_of(path), "outcomes": found and found[1]}
    return {**line, **({"other": other} if other else {})}


def _questions(runs: Iterable[Path]) -> kept.Questions | None:
    """The names of the test questions, once: all runs answer the same."""
    names = None
    for run in runs:
        found = kept.outcomes(run)
        if found is None:
            continue
        if names not in (None, found[0]):
            raise UserError("this run was not asked the same questions as the runs before it", where=str(run))
        names = found[0]
    return names


def unfinished(folder: Path) -> list[str]:
    """The runs that the experiment plans, or has begun, and that have not finished: a reader sees what is missing."""
    from cl_softcot.config import yaml

    place = ExperimentFolder(folder)
    planned = {run.name for run in place.runs.iterdir() if run.is_dir()}
    if place.config.exists():
        config = yaml.read_file(place.config)[0].data
        planned |= {
            f"{method['name']}.{order}.seed{seed}"
            for method in config.get("methods", [])
            for order in config.get("orders") or {"given": []}
            for seed in config.get("seeds", [])
        }
    return sorted(name for name in planned if not place.run(name).result.exists())


def _refuse_loss(target: Path, finished: set[str], folder: Path) -> None:
    before = kept.read(target)
    lost = sorted(set(before.runs) - finished) if before else []
    if lost:
        named = ", ".join(lost[:3]) + (", ..." if len(lost) > 3 else "")
        raise UserError(
            f"{len(lost)} runs that are kept here have not finished in {folder} ({named})",
            where=str(target),
            fix=f"Take them over first (python -m cl_softcot.run EXPERIMENT --kept {target}), or give them up with --replace.",
        )


def _moved_report(report: ReportFolder) -> str:
    """``report.json`` as it stands beside the packed runs: other studies and sweeps are where they are kept."""
    text, made = report.numbers.read_text(encoding="utf-8"), read_json(report.numbers)
    for study in made["studies"]:
        place = (report.path / study["folder"]).resolve()
        way = "." if place == report.path.resolve().parent else f"../{place.name}"
        text = text.replace(f'"folder": {dump_json(study["folder"])}', f'"folder": {dump_json(way)}', 1)
    for sweep in made.get("chosen_by", []):
        text = text.replace(dump_json(sweep), dump_json(f"../sweeps/{Path(sweep).name}"), 1)
    return text


# ------------------------------------------------------------------------------------------------------- sweeps and the law


def keep_sweep(folder: Path, home: Path = HOME) -> Path:
    """The settings, every trial's command and values, the winners, the results of their tests, and the words of the page."""
    if not sorted(folder.rglob("winner.json")):
        raise UserError("this sweep is not finished: it has no winner", where=str(folder))
    target = home / "sweeps" / folder.resolve().name
    for name in ("sweep.yaml", "sweep.json"):
        atomic_write_bytes(target / name, (folder / name).read_bytes())
    found = sorted({path for pattern in SWEEP_FILES for path in folder.glob(pattern)})
    lines = [{"file": path.relative_to(folder).as_posix(), "json": read_json(path)} for path in found]
    if (folder / "report.html").exists():  # rank correlations and importances need Optuna's storage, which is not kept
        page = _PICTURE.sub("", (folder / "report.html").read_text(encoding="utf-8"))
        lines.append({"file": "report.html", "text": page})
    write_lines(target / PACKED_SWEEP, lines)
    return target


def keep_law(folder: Path, home: Path = HOME) -> Path:
    """The settings, every number that was measured (points.csv holds what the trials do) and the analysis."""
    missing = [name for name in LAW_FILES if not (folder / name).exists()]
    if missing:
        raise UserError(f"this study is not finished: it has no {missing[0]}", where=str(folder))
    target = home / folder.resolve().name
    for name in LAW_FILES[:-1]:
        atomic_write_bytes(target / name, (folder / name).read_bytes())
    points = gzip.compress((folder / "points.csv").read_bytes(), compresslevel=9, mtime=0)
    atomic_write_bytes(target / "points.csv.gz", points)
    return target


def keep_any(folder: Path, home: Path = HOME, *, replace: bool = False) -> Path:
    """Whatever kind of result the folder holds."""
    if (folder / "sweep.yaml").exists():
        return keep_sweep(folder, home)
    return keep_law(folder, home) if (folder / "law.json").exists() else keep(folder, home, replace=replace)


# ---------------------------------------------------------------------------------------------------------------- unpacking


def unpack(folder: Path, target: Path) -> Path:
    """Makes the files again that were packed: of a study its run folders, of a sweep its trials, of the law its points.

    Raises:
        UserError: if the folder holds nothing packed, or the target is not empty.
    """
    if target.exists() and any(target.iterdir()):
        raise UserError("this folder is not empty", where=str(target), fix="Give another one with --to.")
    packed = [name for name in (PACKED, PACKED_SWEEP, "points.csv.gz") if (folder / name).exists()]
    if not packed:
        raise UserError(f"nothing is packed here (there would be a {PACKED})", where=str(folder))
    for path in sorted(path for path in folder.iterdir() if path.is_file()):
        if path.name not in packed and path != ExperimentFolder(folder).kept_report:
            atomic_write_bytes(target / path.name, path.read_bytes())
    found = kept.read(folder)
    if found:
        restore_study(found, target)
        for name in found.runs:
            restore_run(found, name, target)
    for line in kept.read_lines(folder / PACKED_SWEEP) if PACKED_SWEEP in packed else []:
        text = line["text"] if "text" in line else dump_json(line["json"], indent=2) + "\n"
        atomic_write_bytes(target / line["file"], text.encode("utf-8"))
    if (folder / "points.csv.gz").exists():
        atomic_write_bytes(target / "points.csv", unpacked(folder / "points.csv.gz"))
    return target


def restore_study(found: kept.Kept, target: Path) -> None:
    """What the packed runs of a study share, into its folder; what is there already stays.

    Raises:
        UserError: if the runs there are asked other questions, or were measured against another base.
    """
    there = kept.base_record(target)
    differs = [name for name, value in (found.base or {}).items() if name in there and there[name] != value]
    if differs:
        raise UserError(
            f"the kept runs were made with other data or another base model (what differs: {', '.join(differs)})",
            where=str(target),
        )
    place = ExperimentFolder(target)
    path = place.questions
    if found.questions and path.exists() and read_json(path) != found.questions:
        raise UserError("the kept runs were asked other questions than the runs of this folder", where=str(path))
    if found.questions and not path.exists():
        atomic_write_json(path, found.questions)
    if found.base and not place.shared.base.exists():
        atomic_write_json(place.shared.base, found.base)


def restore_run(found: kept.Kept, name: str, target: Path) -> None:
    """A packed run as a folder of the study; ``result.json`` comes last, for with it the run is finished."""
    line, run = found.runs[name], ExperimentFolder(target).run(name)
    if line["outcomes"]:
        atomic_write_json(run.outcomes, line["outcomes"])
    if line.get("other"):
        atomic_write_json(run.other_outcomes, line["other"])
    atomic_write_json(run.result, line["result"])


# ------------------------------------------------------------------------------------------------------------- the command


def parser(prog: str) -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(prog=prog, description="Packs finished runs into a few small files, and unpacks them.")
    commands = p.add_subparsers(dest="command", required=True)
    one = commands.add_parser("keep", help="pack what has finished of an experiment, a sweep or a study of the law")
    one.add_argument("folders", nargs="+", type=Path, metavar="FOLDER", help="as the run printed it, e.g. runs/sequence_a")
    one.add_argument("--to", type=Path, default=HOME, metavar="DIR", help=f"where kept folders are (default: {HOME})")
    one.add_argument("--replace", action="store_true", help="also if kept runs are lost by it")
    two = commands.add_parser("unpack", help="make the run folders again that kept results were packed from")
    two.add_argument("folder", type=Path, metavar="KEPT_FOLDER", help=f"e.g. {HOME}/layers")
    two.add_argument("--to", type=Path, metavar="DIR", help="where to (default: runs/NAME)")
    return p


def main(argv: list[str] | None = None) -> int:
    args = parser(called("results")).parse_args(argv)
    return guarded(lambda: _unpack(args) if args.command == "unpack" else _keep(args))


def _unpack(args: argparse.Namespace) -> int:
    print(unpack(args.folder, args.to or Path("runs") / args.folder.resolve().name))
    return 0


def _keep(args: argparse.Namespace) -> int:
    for folder in args.folders:
        target = keep_any(folder, args.to, replace=args.replace)
        found = kept.read(target)
        if found:
            print(f"{target}: {len(found.runs)} runs")
            print("".join(f"  not finished: {name}\n" for name in found.unfinished), end="")
        else:
            print(target)
    return 0
