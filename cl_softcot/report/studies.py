"""Run folders as studies: which runs are finished, whether they may stand in one table, and who is compared.

Numbers are computed only over the seeds and task orders that every compared method has finished, and only over runs that were
measured alike. Everything else is told, not guessed.
"""

from __future__ import annotations

import fcntl
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

from cl_softcot.errors import UserError, did_you_mean
from cl_softcot.files import read_json
from cl_softcot.results import kept
from cl_softcot.results.colors import palette
from cl_softcot.results.folder import ExperimentFolder, RunFolder
from cl_softcot.results.reading import by_method, run_folders
from cl_softcot.results.record import RunRecord

Result = RunRecord
RunKey = tuple[str, int]  # task order and seed


class NotComparable(UserError):
    """The folders hold numbers, but none that may stand beside each other."""

    exit_status = 1


@dataclass
class Study:
    """One experiment's folder, or the part of it that was asked for.

    Attributes:
        folder: with its ``runs/``; shown: the same as it was given, for the reader.
        config: the resolved experiment (``config.yaml``); empty where the folder has none.
        record: ``experiment.json``: versions, revision, fingerprint.
        runs: finished and comparable, in the order of methods, task orders and seeds.
        references: finished runs of joint and single-task references, which have no forgetting of their own.
        told: what was left out and why, for the reader.
    """

    folder: Path
    name: str
    config: dict[str, Any]
    record: dict[str, Any]
    runs: list[Result]
    references: list[Result]
    told: list[str]
    colors: dict[str, str] = field(default_factory=dict)
    control: str = ""
    bootstrap: int = 2000

    @property
    def experiment(self) -> str:
        """The experiment's own name, wherever its folder was moved; that of the folder where nothing tells it."""
        return str(self.config.get("name") or self.record.get("name") or self.name)

    @property
    def title(self) -> str:
        """The experiment's name, with the folder's where that is another."""
        return self.name if self.experiment == self.name.rsplit("/", 1)[-1] else f"{self.experiment} ({self.name})"

    @cached_property
    def by_method(self) -> dict[str, list[Result]]:
        """Comparable runs of each method, in the one order that all tables and figures have."""
        return by_method(self.runs)

    @property
    def methods(self) -> list[str]:
        return list(self.by_method)

    @cached_property
    def orders(self) -> dict[str, list[str]]:
        """Names of the tasks in each task order."""
        return {run.order: list(run.tasks) for run in self.runs}

    @cached_property
    def seeds(self) -> list[int]:
        return sorted({run.seed for run in self.runs})

    @cached_property
    def measured_as(self) -> dict[str, Any]:
        """What must be the same for numbers to stand beside each other."""
        return dict(_measured(self.folder, self.runs[0]))

    def relative(self, run: Result) -> str:
        """A run's folder as the report names it."""
        place = folder_of(run)
        inside = (
            place.relative_to(self.folder) if place.is_relative_to(self.folder) and place != self.folder else Path(place.name)
        )
        return f"{self.name}/{inside.as_posix()}"

    def predictions(self, run: Result, row: int) -> list[dict[str, Any]] | None:
        """Answers of a run after an experience, of kept results without their texts; None where the folder holds none."""
        return kept.answers(folder_of(run), row)


# ------------------------------------------------------------------------------------------------------------- loading


def load_studies(folders: Sequence[str | Path], methods: Sequence[str] = ()) -> list[Study]:
    """One study for each experiment that the folders hold runs of.

    Args:
        methods: those that are compared; default: all that finished anything.

    Raises:
        UserError: if a folder is none of an experiment or run, or a method is unknown.
        NotComparable: if a study has no runs that may stand beside each other.
    """
    places: dict[Path, list[Path]] = {}
    whole: set[Path] = set()
    for folder in folders:
        for place in run_folders(folder):
            root = RunFolder(place).root
            whole |= {root} if place != Path(folder) else set()
            if place not in places.setdefault(root, []):
                places[root].append(place)
    names = _names(list(places))
    return [_study(root, names[root], found, methods, root in whole) for root, found in places.items()]


def _names(roots: Sequence[Path]) -> dict[Path, str]:
    """A short name for each folder; its parent in front where two have the same."""
    short = [root.resolve().name for root in roots]
    return {
        root: f"{root.resolve().parent.name}/{name}" if short.count(name) > 1 else name
        for root, name in zip(roots, short, strict=True)
    }


def _study(root: Path, name: str, places: Sequence[Path], chosen: Sequence[str], whole: bool) -> Study:
    config = _config(root, places)
    record = read_json(ExperimentFolder(root).record) if ExperimentFolder(root).record.exists() else {}
    finished, told = _finished(root, places, config, whole)
    listed = [m["name"] for m in config.get("methods", [])] or list(dict.fromkeys(run.method for run in finished))
    unknown = [m for m in chosen if m not in listed]
    if unknown:
        raise UserError(f"there is no method {unknown[0]!r} in this study{did_you_mean(unknown[0], listed)}", where=str(root))
    if chosen:
        left = [m for m in listed if m not in chosen]
        told += [f"left out as asked: {', '.join(left)}"] if left else []
        finished = [run for run in finished if run.method in chosen]
    place = {m: i for i, m in enumerate(listed)}
    orders = {order: i for i, order in enumerate(config.get("orders") or {})}
    finished.sort(key=lambda r: (place.get(r.method, len(place)), orders.get(r.order, 99), r.order, r.seed))
    if not finished:
        states = "; ".join(told) or "no run has a result.json"
        raise NotComparable(f"no run is finished here ({states})", where=str(root), fix="Run the experiment's command again.")
    _refuse_mixed(root, finished)
    references = [run for run in finished if run.reference]
    methods = [run for run in finished if not run.reference]
    if not methods:
        raise NotComparable("only references are finished here, and no method to hold against them", where=str(root))
    runs, more = _complete(methods, root)
    if len({tuple(sorted(run.tasks)) for run in runs}) > 1:
        more.append("the task orders hold different tasks: means over orders are means over different sets of tasks")
    return Study(root, name, config, record, runs, references, told + more, palette(listed))


def _config(root: Path, places: Sequence[Path]) -> dict[str, Any]:
    if ExperimentFolder(root).config.exists():
        from cl_softcot.config.yaml import read_file

        return dict(read_file(ExperimentFolder(root).config)[0].data)
    for place in places:
        if RunFolder(place).config.exists():  # a single run, without its experiment
            run = read_json(RunFolder(place).config)
            order = {run["order"]: run["tasks_in_order"]}
            return {**run["experiment"], "methods": [run["method"]], "orders": order, "seeds": [run["seed"]]}
    return {}


def _finished(root: Path, places: Sequence[Path], config: Mapping[str, Any], whole: bool) -> tuple[list[Result], list[str]]:
    """Results of the finished runs, and words about the others; ``whole``: all runs that the experiment plans were asked for."""
    results: list[Result] = []
    states: dict[str, list[str]] = {"still going": [], "not finished": [], "missing": []}
    going = _is_held(ExperimentFolder(root).lock)
    for place in places:
        result = kept.record(place)
        if result is None:
            states["still going" if going else "not finished"].append(place.name)
            continue
        results.append(result)
    if whole:
        seen = {place.name for place in places}
        planned = (
            f"{method['name']}.{order}.seed{seed}"
            for method in config.get("methods", [])
            for order in config.get("orders") or {"given": []}
            for seed in config.get("seeds", [])
        )
        states["missing"] = [name for name in planned if name not in seen]
    return results, [f"{len(names)} runs {state}: {listed(names)}" for state, names in states.items() if names]


def _is_held(path: Path) -> bool:
    """Whether a process holds the lock of an experiment's folder; it is not taken away from a later one."""
    with suppress(OSError), open(path, "rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


# --------------------------------------------------------------------------------------------------------- comparable


def _complete(runs: Sequence[Result], root: Path) -> tuple[list[Result], list[str]]:
    """The runs of the seeds and orders that all methods have finished."""
    have: dict[str, set[RunKey]] = {}
    for run in runs:
        have.setdefault(run.method, set()).add((run.order, run.seed))
    common = set.intersection(*have.values())
    if not common:
        counts = ", ".join(f"{method} {len(keys)}" for method, keys in have.items())
        raise NotComparable(
            f"no task order and seed was finished by all methods (finished runs: {counts})",
            where=str(root),
            fix="Finish the experiment, or compare fewer methods: --methods "
            + ",".join(_largest_common(have))
            + " have runs in common.",
        )
    chosen = [run for run in runs if (run.order, run.seed) in common]
    told = []
    if len(chosen) < len(runs):
        left = [folder_of(run).name for run in runs if (run.order, run.seed) not in common]
        short = [f"{method} ({len(keys)})" for method, keys in have.items() if keys == common]
        told.append(
            f"compared over the {len(common)} runs (seeds and task orders) that all methods have finished, "
            f"{listed(sorted(f'{order} seed {seed}' for order, seed in common))}; fewest has "
            f"{listed(short) or 'no single method'}; {len(left)} finished runs of others are left out: {listed(left)}"
        )
    return chosen, told


def _largest_common(have: Mapping[str, set[RunKey]]) -> list[str]:
    """Methods that share at least one run, the most that a single run has."""
    keys = {key for each in have.values() for key in each}
    return max(([m for m, own in have.items() if key in own] for key in sorted(keys)), key=len)


def _refuse_mixed(root: Path, runs: Sequence[Result]) -> None:
    """Raises NotComparable if the runs were not measured alike; says which were measured how."""
    problems = []
    for what in dict.fromkeys(what for run in runs for what, _ in _measured(root, run)):
        groups: dict[Hashable, list[str]] = {}
        for run in runs:
            value = dict(_measured(root, run)).get(what)
            if value is not None:
                groups.setdefault(value, []).append(folder_of(run).name)
        if len(groups) > 1:
            problems.append(f"{what} differs: " + "; ".join(f"{_short(v)} in {listed(names)}" for v, names in groups.items()))
    problems += _other_training_data(runs)
    if problems:
        raise NotComparable(
            "the runs of this folder were not measured alike, so no table may hold them all\n  " + "\n  ".join(problems),
            where=str(root),
            fix="Keep them in folders of their own, or name those that belong together: report FOLDER/runs/A FOLDER/runs/B",
        )


def _measured(root: Path, run: Result) -> Iterable[tuple[str, Hashable]]:
    """What must be the same in all runs of a table, as (name, value); None: not known."""
    yield "split", run.split
    yield "reading of the answers (evaluate.reading)", run.headline
    yield "base model", run.frozen.backbone_sha256_before
    for task, n, first in zip(run.tasks, run.accuracy.n or [], run.accuracy.matrix[0], strict=True):
        yield f"test examples of {task}", n
        yield f"the base's own answers to {task} (other data)", first  # row 0 is no seed's: the same base on the same examples
    own = run.retention_row("as_used", 0)
    yield "retention examples", tuple(sorted(own.n.items())) or None if own else None
    settings = _settings(root, folder_of(run))
    for key, value in (settings.get("evaluate") or {}).items():
        if key not in ("batch_size", "split", "test", "retention", "metrics", "reading"):  # batches and metrics change no answer
            yield f"evaluate.{key}", _frozen(value)
    for key in ("path", "revision", "quantization", "chat") if settings.get("backbone") else ():
        yield f"backbone.{key}", _frozen(settings["backbone"].get(key))


def _settings(root: Path, run: Path) -> dict[str, Any]:
    """The experiment that a run was made by: as its folder says, or of a packed run as the study does."""
    own, study = RunFolder(run).config, ExperimentFolder(root).config
    if own.exists():
        return dict(read_json(own)["experiment"])
    return _settings_of_study(study) if kept.read(root) and study.exists() else {}


@lru_cache(maxsize=16)  # asked for with every run
def _settings_of_study(path: Path) -> dict[str, Any]:
    from cl_softcot.config.yaml import read_file

    return dict(read_file(path)[0].data)


def _other_training_data(runs: Sequence[Result]) -> list[str]:
    """Methods of one seed must have learned from the same examples, unless they are given fewer or more."""
    groups: dict[tuple[int, int], dict[tuple[str, ...], list[str]]] = {}
    for run in runs:
        if run.train_fingerprints:
            kinds = groups.setdefault((run.seed, run.cost.examples_per_task or 0), {})
            kinds.setdefault(tuple(sorted(run.train_fingerprints)), []).append(folder_of(run).name)
    return [
        f"training data of seed {seed} differ: " + "; ".join(listed(names) for names in kinds.values())
        for (seed, _), kinds in groups.items()
        if len(kinds) > 1
    ]


def differences(a: Study, b: Study) -> list[str]:
    """What was measured differently in two studies; empty where their numbers may stand side by side."""
    told, another = [], a.measured_as["base model"] != b.measured_as["base model"]
    for what in dict.fromkeys((*a.measured_as, *b.measured_as)):
        left, right = a.measured_as.get(what), b.measured_as.get(what)
        if another and what.startswith("the base's own answers"):
            continue  # of course
        if left is not None and right is not None and left != right:
            told.append(f"{what}: {_short(left)} against {_short(right)}")
    known = [kept.base_record(study.folder) for study in (a, b)]
    if all(known):
        sets = [key for key in known[0] if key.startswith(("task ", "retention ")) and key in known[1]]
        told += [f"examples of {key}" for key in sets if known[0][key] != known[1][key]]
    return told


_OF_THE_BASE = ("base model", "backbone.")


def same_but_for_the_base(a: Study, b: Study) -> bool:
    """Whether two studies asked the same questions of different base models: what each lost may be held against what it had.

    Only the record of the test data (base.json) can tell whether the questions are the same: without it they are not.
    """
    apart, known = differences(a, b), all(kept.base_record(study.folder) for study in (a, b))
    another = a.measured_as["base model"] != b.measured_as["base model"]
    same_tasks = set(a.runs[0].tasks) == set(b.runs[0].tasks)
    return known and another and same_tasks and all(told.startswith(_OF_THE_BASE) for told in apart)


# -------------------------------------------------------------------------------------------------------------- words


def _frozen(value: Any) -> Hashable:
    return value if isinstance(value, str | int | float | bool | None) else repr(value)


def _short(value: Any) -> str:
    text = ", ".join(f"{k} {v:g}" if isinstance(v, float) else f"{k} {v}" for k, v in value) if _pairs(value) else str(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _pairs(value: Any) -> bool:
    return isinstance(value, tuple) and bool(value) and all(isinstance(v, tuple) and len(v) == 2 for v in value)


def folder_of(run: Result) -> Path:
    """Where a run that a study holds was read from."""
    assert run.folder is not None
    return run.folder


def listed(names: Iterable[str], most: int = 6) -> str:
    """Names with commas; the rest of a long list is counted."""
    names = list(names)
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def choose_control(study: Study, wanted: str | None) -> str:
    """Whom all methods are compared with: as asked, or the first method that trains nothing, or the first.

    Raises:
        UserError: if there is no such method among those compared.
    """
    if wanted and wanted not in study.methods:
        raise UserError(
            f"the control {wanted!r} is not among the methods compared{did_you_mean(wanted, study.methods)}",
            where=str(study.folder),
        )
    untrained = [method for method, runs in study.by_method.items() if not any(run.trained for run in runs)]
    return wanted or next(iter([*untrained, *study.methods]), "")


def written_control(study: Study, method: str) -> str | None:
    """The same strategy in words: the method with the same strategy and copies a task whose reasoning is ``cot``."""
    kind: Callable[[Result], Any] = lambda run: (run.strategy_name, bool(run.per_task))  # noqa: E731
    own = study.by_method[method][0]
    for other, runs in study.by_method.items():
        if other != method and runs[0].reasoning_name == "cot" and kind(runs[0]) == kind(own) and own.trained:
            return other if own.reasoning_name != "cot" else None
    return None
