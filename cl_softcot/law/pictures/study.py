"""The controlled study: its YAML, its folder, and what comes out of it.

    <output_dir>/  config.yaml  experiment.json  bases/seed<n>.safetensors  trials/<trial>.json  points.csv  law.json  table.txt
                   law.png  law.svg

A trial is written when it is finished; a later start takes it over and does the rest.
"""

from __future__ import annotations

import csv
import io
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cl_softcot.config import yaml
from cl_softcot.config.loading import validated
from cl_softcot.errors import UserError
from cl_softcot.files import FolderLock, atomic_write_json, atomic_write_text, dump_json, read_json, sha256_of, unpacked
from cl_softcot.law.pictures.config import Labels, LawConfig, Oracle, PolicyGradient


def load_law(path: str | Path, overrides: Sequence[str] = ()) -> LawConfig:
    """Reads and checks the YAML of a study; ``overrides`` are ``dotted.key=value``.

    Raises:
        UserError: with everything that is wrong, one problem a line: ``file:line:col: key: what``.
    """
    path = Path(path).expanduser()
    tree, files = yaml.read_file(path)
    tree.data.setdefault("name", path.stem)
    for text in overrides:
        yaml.override(tree, text, {}, source=len(files))
    config, problems = validated(tree, LawConfig)
    if problems:
        raise UserError(yaml.told(problems))
    return config


# ------------------------------------------------------------------------------------------------------------ the study


@dataclass(frozen=True)
class Trial:
    """Which trial of a study."""

    method: Labels | Oracle | PolicyGradient
    learning_rate: float
    seed: int

    @property
    def key(self) -> str:
        return f"{self.method.name}.lr{self.learning_rate:g}.seed{self.seed}"


def plan(config: LawConfig) -> list[Trial]:
    """Every trial, seeds outside, so that what is finished is balanced at any time."""
    return [
        Trial(method, rate, seed)
        for seed in config.seeds
        for method in config.methods
        for rate in method.learning_rates or config.learning_rates
    ]


def fingerprint(config: LawConfig, trial: Trial) -> str:
    """SHA-256, in hex, of all that can change a trial's numbers."""
    data = config.model_dump(mode="json")
    shared = {key: data[key] for key in ("pictures", "pretraining", "train")}
    method = trial.method.model_dump(mode="json", exclude={"learning_rates", "family"})
    return sha256_of(dump_json({**shared, "method": method, "rate": trial.learning_rate, "seed": trial.seed}).encode())


def run_study(config: LawConfig, *, restart: bool = False, report: Callable[[str], None] = lambda _: None) -> dict[str, Any]:
    """Runs what is not finished, analyses everything, writes the folder, and returns what ``law.json`` holds.

    Raises:
        UserError: if another process writes the folder, or it holds trials with other settings.
    """
    with FolderLock(config.folder):
        if restart:
            _clear(config.folder)
        trials = _run_trials(config, report)
        return _conclude(config, trials)


def _clear(folder: Path) -> None:
    for name in ("trials", "bases"):
        shutil.rmtree(folder / name, ignore_errors=True)


def _finished(config: LawConfig, trial: Trial) -> dict[str, Any] | None:
    path = config.folder / "trials" / f"{trial.key}.json"
    if not path.exists():
        return None
    found = read_json(path)
    if not isinstance(found, dict) or found.get("fingerprint") != fingerprint(config, trial):
        raise UserError(
            "this trial was made with other settings",
            where=str(path),
            fix="keep both with output_dir=ANOTHER, or throw the earlier ones away with --restart",
        )
    return {**found, "family": trial.method.family}


def _run_trials(config: LawConfig, report: Callable[[str], None]) -> list[dict[str, Any]]:
    from cl_softcot.law.pictures.trials import World, make_exact, run_trial

    make_exact()
    trials = plan(config)
    finished = {trial.key: _finished(config, trial) for trial in trials}  # all of them first: a clash is told before any work
    known = {key: found for key, found in finished.items() if found}
    atomic_write_text(config.folder / "config.yaml", yaml.dump(config.model_dump(mode="json")))
    world: World | None = None
    for number, trial in enumerate(trials, start=1):
        if trial.key in known:
            continue
        if world is None or world.seed != trial.seed:
            world = World(config, trial.seed, _base_path(config, trial.seed))
            report(f"seed {trial.seed}: the base is right on {world.start['accuracy']:.3f} of the digits (parity) and "
                   f"{world.start['old_accuracy']:.3f} of the garments")  # fmt: skip
        identity = {"key": trial.key, "method": trial.method.name, "family": trial.method.family, "seed": trial.seed}
        done = {**identity, "learning_rate": trial.learning_rate, **run_trial(world, trial.method, trial.learning_rate)}
        done["fingerprint"] = fingerprint(config, trial)
        atomic_write_json(config.folder / "trials" / f"{trial.key}.json", done)
        known[trial.key] = done
        last = (done["checkpoints"] or [done["start"]])[-1]
        report(f"{number}/{len(trials)} {trial.key}: parity {last['accuracy']:.3f}, garments {last['old_accuracy']:.3f}, "
               f"KL(base‖model) {last['forward_kl']:.3f}" + (f"; {done['diverged']}" if done["diverged"] else ""))  # fmt: skip
    return [known[trial.key] for trial in trials]


def _base_path(config: LawConfig, seed: int) -> Path:
    """Named after all that the base depends on: one that was made otherwise is not taken for it."""
    data = config.model_dump(mode="json")
    made_from = sha256_of(dump_json({key: data[key] for key in ("pictures", "pretraining")}).encode())[:12]
    return config.folder / "bases" / f"seed{seed}.{made_from}.safetensors"


def _conclude(config: LawConfig, trials: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    from cl_softcot.law.figure import draw_law
    from cl_softcot.law.fit import fit_law, law_table
    from cl_softcot.law.pictures.trials import points_of_trial
    from cl_softcot.law.points import Point
    from cl_softcot.provenance import revision, versions

    points = [Point(**fields) for trial in trials for fields in points_of_trial(trial)]
    law = fit_law(points, unions=config.unions, bootstrap=config.bootstrap)
    bases = {str(trial["seed"]): trial["start"] for trial in trials}
    diverged = {trial["key"]: trial["diverged"] for trial in trials if trial["diverged"]}
    conclusion = {"schema": 1, "name": config.name, "trials": len(trials), "diverged": diverged, "bases": bases, **law}
    folder = config.folder
    atomic_write_json(folder / "experiment.json", {"name": config.name, "revision": revision(), "versions": versions()})
    atomic_write_text(folder / "points.csv", _as_csv(trials))
    atomic_write_text(folder / "table.txt", _head(config, conclusion) + law_table(law))
    draw_law(points, law, folder, title=config.name)
    atomic_write_json(folder / "law.json", conclusion)  # last: without it the study is not finished
    return conclusion


def show_again(folder: Path, output: Path) -> None:
    """The table, the figure and the points of a finished study, made from its points (which may be packed) and its analysis.

    Raises:
        UserError: if the folder is none of a finished study.
    """
    from cl_softcot.law.figure import draw_law
    from cl_softcot.law.fit import law_table
    from cl_softcot.law.pictures.trials import points_of_trial
    from cl_softcot.law.points import Point

    config, conclusion = load_law(folder / "config.yaml"), read_json(folder / "law.json")
    text = points_csv(folder)
    points = [Point(**fields) for trial in trials_from(text) for fields in points_of_trial(trial)]
    atomic_write_text(output / "points.csv", text)
    atomic_write_text(output / "table.txt", _head(config, conclusion) + law_table(conclusion))
    draw_law(points, conclusion, output, title=config.name)


def points_csv(folder: Path) -> str:
    """What ``points.csv`` of a study holds, of a kept one too, where it is packed."""
    if (folder / "points.csv.gz").exists():
        return unpacked(folder / "points.csv.gz").decode("utf-8", errors="replace")
    try:
        return (folder / "points.csv").read_text(encoding="utf-8")
    except OSError:
        raise UserError("this study holds no points.csv", where=str(folder)) from None


def trials_from(text: str) -> list[dict[str, Any]]:
    """The trials that ``points.csv`` was written from, as far as it holds them."""
    found: dict[str, dict[str, Any]] = {}
    for row in csv.DictReader(text.splitlines()):
        key = f"{row['method']}.lr{float(row['learning_rate']):g}.seed{row['seed']}"
        numbers = {name: float(value) if value else None for name, value in list(row.items())[5:]}
        first: dict[str, Any] = {
            "key": key,
            "method": row["method"],
            "family": row["family"],
            "start": numbers,
            "checkpoints": [],
        }
        trial = found.setdefault(key, first)
        if int(row["step"]):
            trial["checkpoints"].append({"step": int(row["step"]), **numbers})
    return list(found.values())


def _head(config: LawConfig, conclusion: Mapping[str, Any]) -> str:
    bases = ", ".join(f"{b['accuracy']:.3f} and {b['old_accuracy']:.3f} (seed {s})" for s, b in conclusion["bases"].items())
    ended = "".join(f"diverged: {key} ({why})\n" for key, why in conclusion["diverged"].items())
    return f"{config.name}: {conclusion['trials']} trials. The base's accuracy on parity and on garments: {bases}.\n{ended}\n"


def _as_csv(trials: Sequence[Mapping[str, Any]]) -> str:
    """Every number that was measured, a row a checkpoint; step 0 is the base."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    numbers = list(trials[0]["start"])
    writer.writerow(["method", "family", "learning_rate", "seed", "step", *numbers])
    for trial in trials:
        for row in ({"step": 0, **trial["start"]}, *trial["checkpoints"]):
            identity = [trial[key] for key in ("method", "family", "learning_rate", "seed")]
            writer.writerow([*identity, row["step"], *(row[name] for name in numbers)])
    return text.getvalue()
