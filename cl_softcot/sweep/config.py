"""The YAML of a sweep as typed models, and everything that can be told to be wrong before anything is launched."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator
from pydantic_core import PydanticCustomError

from cl_softcot.config import yaml
from cl_softcot.config.experiment import Experiment
from cl_softcot.config.fingerprint import to_data
from cl_softcot.config.loading import load_experiment, validated
from cl_softcot.config.yaml import Problem, Tree
from cl_softcot.errors import UserError, did_you_mean
from cl_softcot.printable import holds_password
from cl_softcot.sweep import objectives
from cl_softcot.sweep.space import Distribution, as_override, samples

METHOD = "{method}"  # in keys of `space`, `set` and `test`: the name of the method that is searched
NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]*$"


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


class SelectOn(_Strict):
    """What the tuner sees. `whole_stream`, `{first_tasks: 2}` or `{other_sequence: other.yaml}`."""

    whole_stream: bool = Field(False, description="the validation scores of the very stream that is reported later")
    first_tasks: int | None = Field(None, ge=1, description="only this many first tasks of every order")
    other_sequence: str | None = Field(None, description="another experiment with the same methods, relative to this file")

    @model_validator(mode="before")
    @classmethod
    def _short(cls, data: Any) -> Any:
        return {"whole_stream": True} if data == "whole_stream" else data

    @model_validator(mode="after")
    def _one(self) -> Self:
        if sum(map(bool, (self.whole_stream, self.first_tasks, self.other_sequence))) != 1:
            raise ValueError("should be whole_stream, {first_tasks: N} or {other_sequence: FILE.yaml}")
        return self

    @property
    def saw_the_future(self) -> bool:
        """Whether settings were chosen by scores on tasks that a learner at its first task cannot know."""
        return self.whole_stream

    def __str__(self) -> str:
        if self.first_tasks:
            return "the first task" if self.first_tasks == 1 else f"the first {self.first_tasks} tasks"
        return f"another sequence ({self.other_sequence})" if self.other_sequence else "the whole stream"


class Bound(_Strict):
    """What a number of the result may be: `{at_most: 20000}` or `{at_least: 0.5}`."""

    at_most: float | None = None
    at_least: float | None = None

    @model_validator(mode="after")
    def _some(self) -> Self:
        if self.at_most is None and self.at_least is None:
            raise ValueError("should say at_most or at_least")
        if self.at_most is not None and self.at_least is not None and self.at_least > self.at_most:
            raise ValueError(f"nothing is at least {self.at_least:g} and at most {self.at_most:g}")
        return self

    def excess(self, value: float) -> float:
        """How far a value is outside; 0 or below: inside."""
        over = value - self.at_most if self.at_most is not None else -float("inf")
        under = self.at_least - value if self.at_least is not None else -float("inf")
        return max(over, under)


class _Named(_Strict):
    """A mere text stands for the map with this key."""

    short: ClassVar[str] = "name"

    @model_validator(mode="before")
    @classmethod
    def _spell_out(cls, data: Any) -> Any:
        return {cls.short: data} if isinstance(data, str) else data


class SamplerConfig(_Named):
    """Who proposes the next trial. A mere text is its name."""

    name: Literal["tpe", "random", "grid", "nsga2", "gp"] = Field("tpe", description="grid takes every combination once")
    seed: int = Field(0, ge=0, description="with one worker the same seed proposes the same trials")
    startup_trials: int = Field(8, ge=1, description="trials at random before tpe or gp begins to learn from them")


class PrunerConfig(_Named):
    """Which trials are given up early, judged after every experience. A mere text is its name."""

    name: Literal["none", "median", "halving"] = Field("none", description="median; halving: asynchronous successive halving")
    startup_trials: int = Field(5, ge=1, description="trials that are never pruned, to have something to compare with")
    after: int = Field(1, ge=1, description="experiences before a trial may be pruned")


class StorageConfig(_Named):
    """Where workers agree on trials. A mere text is its kind. Never holds a password (see `storage.py`)."""

    short = "kind"

    kind: Literal["sqlite", "postgresql", "journal"] = Field("sqlite", description="sqlite: one machine; postgresql: a cluster")
    url: str | None = Field(None, description="postgresql://USER@HOST:PORT/DATABASE, without a password")
    url_env: str | None = Field(None, description="environment variable that holds the whole address instead")
    heartbeat_seconds: float = Field(10.0, gt=0, description="how often a worker says that it lives")
    grace_seconds: float = Field(120.0, gt=0, description="silence after which another machine's worker counts as dead")
    patience_seconds: float = Field(900.0, ge=0, description="how long a worker waits for a database that is away")

    @field_validator("url")
    @classmethod
    def _no_password(cls, url: str | None) -> str | None:
        words = url and "://" not in url and f"postgresql://?{'&'.join(url.split())}"  # libpq takes key=value words as well
        if url and (holds_password(url) or (words and holds_password(words))):
            wrong = "an address in a file must not hold a password: put it into PGPASSWORD, ~/.pgpass or url_env"
            raise PydanticCustomError("said", "{said}", {"said": wrong})  # without what was given
        return url

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.kind == "postgresql" and not (self.url or self.url_env):
            raise ValueError("postgresql needs url: postgresql://USER@HOST/DATABASE or url_env: NAME_OF_A_VARIABLE")
        if self.kind != "postgresql" and (self.url or self.url_env):
            raise ValueError(f"{self.kind} is a file in the sweep's folder and takes no address")
        if self.grace_seconds < 2 * self.heartbeat_seconds:
            raise ValueError("grace_seconds should be at least twice heartbeat_seconds")
        return self


class InProcess(_Strict):
    """Trials one after the other, in the process of the command."""

    name: Literal["in_process"]


class Local(_Strict):
    """Worker processes on this machine, one a GPU where there are any."""

    name: Literal["local"]
    workers: int | None = Field(None, ge=1, description="null: the GPUs, or the cores")


class Slurm(_Strict):
    """An array of Slurm jobs, each a worker; they are requeued when preempted or out of time."""

    name: Literal["slurm"]
    workers: int = Field(4, ge=1, description="jobs")
    array_parallelism: int | None = Field(None, ge=1, description="jobs at a time (null: all)")
    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    time_minutes: int = Field(60, ge=1, description="of one job; it is requeued while trials are missing")
    gpus: int | str | None = Field(None, description="GPUs a job, such as 1 or a100:1")
    cpus: int = Field(1, ge=1, description="cores a job")
    memory_gb: float | None = Field(None, gt=0)
    signal_seconds: int = Field(90, ge=1, description="warning before a job's time is out")
    requeues: int = Field(100, ge=0, description="how often one job may run out of time")
    setup: list[str] = Field([], description="shell lines before the worker, such as 'module load cuda'")
    sbatch: dict[str, str | int | bool] = Field({}, description="any further option of sbatch: {constraint: h100}")


Launcher = Annotated[InProcess | Local | Slurm, Field(discriminator="name")]


class SweepConfig(_Strict):
    """One sweep file."""

    name: str = Field(pattern=NAME, description="name (left out: that of the file)")
    experiment: str = Field(min_length=1, description="the base experiment's YAML, relative to this file")
    set: dict[str, Any] = Field({}, description="settings of every trial: dotted key -> value")
    method: str | None = Field(None, description="the method that is searched (may be left out where there is one)")
    for_each: list[str] = Field([], description="several methods, each searched for itself; {method} in keys stands for its name")
    space: dict[str, Distribution] = Field(min_length=1, description="dotted key -> what it may be")
    objectives: dict[str, Literal["maximize", "minimize"]] = Field(
        min_length=1, description="numbers of the result by name, such as summary.acc; several give a Pareto front"
    )
    constraints: dict[str, Bound] = Field({}, description="bounds on numbers of the result")
    seeds: list[int] = Field([0], min_length=1, description="seeds of every trial; its values are means over them")
    select_on: SelectOn = Field(description="what the tuner sees: whole_stream, first_tasks or other_sequence")
    test: dict[str, Any] = Field({}, description="settings of the winner's test alone, such as {evaluate.test: 500}")
    trials: int = Field(20, ge=1, description="complete trials (for each method of for_each); raising it tops up")
    most_trials: int | None = Field(
        None, ge=1, description="end after so many, pruned and failed ones included (null: 3 x trials)"
    )
    first_failures: int = Field(
        5, ge=1, description="stop after so many failures if nothing completed: the sweep itself is wrong"
    )
    retries: int = Field(5, ge=0, description="how often a trial that was interrupted is taken up again")
    sampler: SamplerConfig = Field(SamplerConfig(), description="tpe, random, grid, nsga2, gp")
    pruner: PrunerConfig | None = Field(None, description="null: median for what measures learning alone, none otherwise")
    storage: StorageConfig = Field(StorageConfig(), description="sqlite, postgresql, journal")
    side_by_side: int | None = Field(
        None,
        ge=1,
        description="trials that a worker trains in step over one frozen backbone (null: 4 where the sampler does not learn from "
        "results and nothing is pruned, otherwise 1)",
    )
    launcher: Launcher = Field(InProcess(name="in_process"), description="in_process, local, slurm")
    output_dir: str = Field(min_length=1, description="the folder (left out: sweeps/<name>)")

    @model_validator(mode="before")
    @classmethod
    def _filled(cls, data: Any) -> Any:
        if not isinstance(data, Mapping):
            return data
        filled = dict(data)
        if isinstance(filled.get("launcher"), str):
            filled["launcher"] = {"name": filled["launcher"]}
        if filled.get("output_dir") is None and isinstance(filled.get("name"), str):
            filled["output_dir"] = f"sweeps/{filled['name']}"
        return filled

    @model_validator(mode="after")
    def _methods_once(self) -> Self:
        if self.method and self.for_each:
            raise ValueError("either method or for_each")
        if len(set(self.for_each)) < len(self.for_each):
            raise ValueError("for_each: a method comes twice")
        return self

    @property
    def title(self) -> str:
        """What it is called where a reader has to learn that it is a sweep."""
        return self.name if self.name.lower().startswith("sweep") else f"sweep {self.name}"

    @property
    def folder(self) -> Path:
        return Path(self.output_dir)

    @property
    def most(self) -> int:
        return self.most_trials or 3 * self.trials

    def plans(self) -> list[SearchPlan]:
        """The searches of the sweep: one, or one for each method of `for_each`."""
        methods: Sequence[str | None] = self.for_each or [self.method]
        return [SearchPlan(self, method) for method in methods]


class SearchPlan:
    """One search: a study in the storage, a folder of trials, and how a trial's command is made.

    Attributes:
        method: whose settings are searched; None: the only one.
        space: dotted key -> distribution, with the method's name in the keys.
    """

    def __init__(self, sweep: SweepConfig, method: str | None):
        self.sweep, self.method = sweep, method
        self.study_name = f"{sweep.name}.{method}" if sweep.for_each else sweep.name
        self.folder = sweep.folder / method if sweep.for_each and method else sweep.folder
        self.space = {self._named(key): self._conditional(value) for key, value in sweep.space.items()}

    def trial_folder(self, number: int) -> Path:
        return self.folder / "trials" / str(number)

    def _named(self, key: str) -> str:
        return key.replace(METHOD, self.method) if self.method else key

    def _conditional(self, distribution: Distribution) -> Distribution:
        return distribution.model_copy(update={"when": {self._named(key): value for key, value in distribution.when.items()}})

    def _fixed(self, more: Mapping[str, Any]) -> list[str]:
        only = {"methods_only": [self.method]} if self.method else {}
        settings = {**only, "tracking.experiment": self.sweep.title, **self.sweep.set, **more}
        return [as_override(self._named(key), value) for key, value in {**settings, "seeds": self.sweep.seeds}.items()]

    @property
    def trial_experiment(self) -> str:
        """The file that trials run."""
        return self.sweep.select_on.other_sequence or self.sweep.experiment

    def trial_overrides(self, params: Mapping[str, Any]) -> list[str]:
        """What stands behind the experiment's file in the command of a trial (but for its folder)."""
        texts = self._fixed({"evaluate.split": "valid"})
        first = self.sweep.select_on.first_tasks
        if first:
            orders = load_experiment(self.trial_experiment, texts).config.orders
            texts.append(as_override("orders", {label: names[:first] for label, names in orders.items()}))
        return texts + [as_override(key, value) for key, value in params.items()]

    def test_overrides(self, params: Mapping[str, Any]) -> list[str]:
        """The same for the winner's test: on the whole stream, and on the test split."""
        texts = self._fixed({**self.sweep.test, "evaluate.split": "test"})
        return texts + [as_override(key, value) for key, value in params.items()]

    def alone_because(self) -> str | None:
        """Why two trials have nothing in common that could be computed once, so that they run one by one; None if they have.

        Trials share what they ask of the same frozen backbone about the same examples at the same step. So only settings of how
        the method thinks and of its rate may differ.
        """
        method = self.trial_config({}).methods[0]
        learns = method.strategy.cls.learns_as(method.strategy.settings)
        if not learns.trains or learns.writes_weights or learns.adapts_backbone:
            return f"the method {method.name} does not train in front of a frozen backbone ({method.strategy.name})"
        may_differ = re.compile(rf"methods\.{re.escape(method.name)}\.(reasoning|strategy)\.(?!(name|of)\b)")
        others = [key for key in self.space if not may_differ.match(key)]
        return f"they differ in {', '.join(others)}" if others else None

    def trial_config(self, params: Mapping[str, Any]) -> Experiment:
        return load_experiment(self.trial_experiment, self.trial_overrides(params)).config

    def fingerprint(self) -> str:
        """SHA-256 of all that must be the same for trials to be comparable. The number of trials and who runs them are not."""
        sweep = self.sweep.model_dump(mode="json")
        base = to_data(self.trial_config({}))
        identity = {
            **{key: sweep[key] for key in ("objectives", "constraints", "seeds")},
            "space": {key: value.model_dump(mode="json") for key, value in self.space.items()},
            "select_on": str(self.sweep.select_on),
            "experiment": {k: v for k, v in base.items() if k not in ("name", "output_dir", "tracking")},
        }
        return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()


# --- loading ---------------------------------------------------------------------------------------------


def load_sweep(path: str | Path, overrides: Sequence[str] = ()) -> SweepConfig:
    """Reads and checks a sweep file, against the experiment that it names too.

    Raises:
        UserError: with everything that is wrong, one problem a line.
    """
    path = Path(path).expanduser()
    tree, files = yaml.read_file(path)
    tree.data.setdefault("name", path.stem)
    for text in overrides:
        yaml.override(tree, text, {"sampler": ("name",), "pruner": ("name",), "storage": ("kind",), "launcher": ("name",)}, 1)
    if len(files) > 1:
        for key in ("name", "output_dir"):
            if key in tree.data and key in [k for (k, *_), m in tree.keys.items() if m.name != str(path)]:
                del tree.data[key]
        tree.data.setdefault("name", path.stem)
    _find_files(tree, path)
    config, problems = validated(tree, SweepConfig)
    if config is not None and not problems:
        problems = sorted(_against_experiment(config, tree))
    if problems:
        raise UserError(yaml.told(problems))
    return config


def _find_files(tree: Tree, path: Path) -> None:
    """Names of experiments are relative to the file that holds them; from here on to the folder of the command."""

    def found(holder: Any, key: str, loc: tuple[str, ...]) -> None:
        if isinstance(holder, dict) and isinstance(holder.get(key), str):
            file = Path(holder[key]).expanduser()
            if not file.is_absolute() and (said_in := tree.mark(loc)).line:
                file = Path(said_in.name).parent / file
            holder[key] = shown_path(file)

    found(tree.data, "experiment", ("experiment",))
    found(tree.data.get("select_on"), "other_sequence", ("select_on", "other_sequence"))


def shown_path(path: Path) -> str:
    """A path as a command in this folder would say it."""
    relative = os.path.relpath(path)
    return str(path.resolve()) if relative.startswith("..") else relative


def _against_experiment(config: SweepConfig, tree: Tree) -> Iterator[Problem]:
    """What does not fit the experiment: keys, values, objectives, methods."""
    problems = [*_check_keys(config, tree), *_check_base(config, tree)]
    yield from problems
    if problems:
        return  # what follows from those would only confuse
    for plan in config.plans():
        for key, written in zip(plan.space, config.space, strict=True):
            wrong = _why_not(plan, key)
            if wrong:
                yield Problem(tree.mark(("space", written), key=True), f"space: {key}: {wrong}")
    plan = config.plans()[0]
    tuned, tested = plan.trial_config({}), load_experiment(config.experiment, plan.test_overrides({})).config
    for section in ("objectives", "constraints"):
        for name in getattr(config, section):
            for base, which in ((tuned, "result"), (tested, "result of the winner's test")):
                if not objectives.is_known(name, base):
                    near = did_you_mean(name, objectives.near(name, base))
                    yield Problem(tree.mark((section, name), key=True), f"{section}: no {which} holds {name!r}{near}")
                    break
    yield from _check_search(config, tree)


def _check_keys(config: SweepConfig, tree: Tree) -> Iterator[Problem]:
    before: list[str] = []
    for key, distribution in config.space.items():
        place = tree.mark(("space", key), key=True)
        if METHOD in key and not (config.method or config.for_each):
            yield Problem(place, f"space: {key}: {METHOD} needs method: NAME or for_each: [...]")
        for other in distribution.when:
            if other not in before:
                yield Problem(place, f"space: {key}: when names {other!r}, which is no earlier key{did_you_mean(other, before)}")
        before.append(key)
    decided = ("seeds", "evaluate.split", "output_dir", "orders", "methods_only")
    for section in ("set", "test"):
        for key in getattr(config, section):
            if key in decided or key in config.space:
                place = tree.mark((section, key), key=True)
                yield Problem(place, f"{section}: {key} is decided by {'`space`' if key in config.space else 'the sweep itself'}")


def _check_base(config: SweepConfig, tree: Tree) -> Iterator[Problem]:
    """The experiments by themselves, with the fixed settings."""
    for plan in config.plans():
        try:
            tested = load_experiment(config.experiment, plan.test_overrides({})).config
            tuned = load_experiment(plan.trial_experiment, plan.trial_overrides({})).config
        except UserError as error:
            yield Problem(tree.mark(("experiment",)), f"experiment: {_as_said(error)}")
            return
        if len(tuned.methods) > 1:
            names = ", ".join(m.name for m in tuned.methods)
            yield Problem(
                tree.mark(("experiment",)),
                f"the experiment has {len(tuned.methods)} methods ({names}), and a trial is one of them: "
                "say method: NAME, or for_each: [NAME, ...] to search each for itself",
            )
            return
        first, longest = config.select_on.first_tasks, max(map(len, tested.orders.values()))
        if first and first >= longest:
            wrong = f"select_on: first_tasks should be less than the stream's tasks ({longest}), or whole_stream"
            yield Problem(tree.mark(("select_on",)), wrong)
            return


def _as_said(error: UserError) -> str:
    """An error about an override, without the override that the user never wrote."""
    return re.sub(r"^command line: [^\n]*?=[^\n]*?: ", "", str(error), flags=re.M)


def _why_not(plan: SearchPlan, key: str) -> str | None:
    """Why the ends of a distribution (each choice of a list) cannot be values of the key."""
    reasons: dict[str, None] = {}
    for value in samples(plan.space[key]):
        try:
            load_experiment(plan.trial_experiment, plan.trial_overrides(_with_companions(plan.space, key, value)))
        except UserError as error:
            reason = _as_said(error).replace("\n", "; ").removeprefix(f"{key}: ")
            if not reason.startswith("unknown key") and " has no entry " not in reason and f"{value!r}" not in reason:
                reason = f"{as_override(key, value).partition('=')[2]}: {reason}"
            reasons[reason] = None
    return "; ".join(reasons) or None


def _with_companions(space: Mapping[str, Distribution], key: str, value: Any) -> dict[str, Any]:
    """A key's value, and those of other keys under which alone it matters."""
    params: dict[str, Any] = {}
    for other, its_value in space[key].when.items():
        params |= _with_companions(space, other, its_value)
    return {**params, key: value}


def _check_search(config: SweepConfig, tree: Tree) -> Iterator[Problem]:
    """Sampler and pruner, and what they are asked to do."""
    first = next(iter(config.objectives))
    reasons = [plan.alone_because() for plan in config.plans()]
    if (config.side_by_side or 1) > 1 and None not in reasons:
        yield Problem(tree.mark(("side_by_side",)), f"side_by_side: these trials have nothing to share: {reasons[0]}")
    if config.pruner and config.pruner.name != "none":
        if len(config.objectives) > 1:
            wrong = "several objectives cannot be pruned; prune on one, with `constraints` for the others"
            yield Problem(tree.mark(("pruner",)), f"pruner: {wrong}")
        elif not objectives.can_be_followed(first):
            yield Problem(tree.mark(("pruner",)), f"pruner: {first} is only known at the end of a run")
    if config.sampler.name == "grid":
        for key, distribution in config.space.items():
            if not distribution.grid():
                wrong = "a grid needs a list of choices, or low, high and step"
                yield Problem(tree.mark(("space", key), key=True), f"space: {key}: {wrong}")
