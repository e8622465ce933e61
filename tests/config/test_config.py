"""The YAML of an experiment: what is read, what is refused, and where it says so."""

from __future__ import annotations

import itertools
import pickle
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
from pydantic import ValidationError

from cl_softcot import registry
from cl_softcot.config.experiment import Experiment
from cl_softcot.config.fingerprint import fingerprint, run_fingerprint, to_data, to_yaml
from cl_softcot.config.loading import load_experiment
from cl_softcot.config.schema import json_schema
from cl_softcot.config.settings import TrainConfig
from cl_softcot.errors import UserError

FAKES = """
from __future__ import annotations
from pathlib import Path
from typing import Literal
from pydantic import BaseModel, Field
from cl_softcot.errors import UserError
from cl_softcot.reasoning.base import Reasoning
from cl_softcot.tasks.base import Task
from strategies.base import Strategy

class Reader(Task):
    family = "fakes"
    class Settings(BaseModel):
        hops: int | list[int] = Field(2, description="steps to go")
        file: Path | None = None
        shape: tuple[int, int] = (1, 2)
        convention: str = "default"
        note: bool = False
    def __init__(self, settings, name):
        if settings.convention not in ("default", "other"):
            raise UserError(f"task {name!r}: unknown convention {settings.convention!r}", fix="known: default, other")
    def examples(self, split, n, seed): ...
    def judge(self, example, text): ...

class Think(Reasoning):
    class Settings(BaseModel):
        thoughts: int = Field(4, ge=1)
        curriculum: Literal["stages", "none"] | list[int] = "stages"
        source: Literal["assistant", "random", "free"] = "free"
        class Inner(BaseModel):
            width: int = 8
            depth: int = 1
        inner: Inner = Inner()
    @classmethod
    def needs_assistant(cls, settings):
        return settings.source != "free"
    @classmethod
    def refuses(cls, settings, strategy_name):
        return "it owns nothing to train" if strategy_name == "fakes:Frozen" and settings.thoughts == 1 else None

class Learn(Strategy):
    class Settings(BaseModel):
        learning_rate: float = Field(description="its own learning rate", gt=0)
        weight_decay: float = 0.0
    trains = True
    def trainable(self, parts): ...
    @classmethod
    def refuses(cls, settings, reasoning_name):
        return "a rate of 13 brings bad luck" if settings.learning_rate == 13 else None

class Frozen(Learn):
    pass

class Nothing(Strategy):
    class Settings(BaseModel):
        pass
    trains = False
    def trainable(self, parts): ...

class NoSettings(Strategy):
    Settings = None
    def trainable(self, parts): ...

class Clash(Strategy):
    class Settings(BaseModel):
        name: str = "x"
    def trainable(self, parts): ...

def function(): ...
"""

CONFIG = """\
name: trial
backbone: builtin:tiny
tasks:
  - {name: a, task: 'fakes:Reader', hops: 3}
  - name: b
    task: fakes:Reader
    note: true
methods:
  - name: cot
    reasoning: fakes:Think
    strategy: {name: 'fakes:Learn', learning_rate: 1e-4}
  - name: other-one
    reasoning:
      name: fakes:Think
      thoughts: 2
    strategy:
      name: fakes:Learn
      learning_rate: 0.001
    train: {steps: 7}
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A working folder with a module of plug-ins in it."""
    (tmp_path / "fakes.py").write_text(FAKES)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield tmp_path
    sys.modules.pop("fakes", None)


@pytest.fixture
def write(folder):
    def write(text: str, name: str = "trial.yaml") -> str:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
        return name

    return write


def problems(path: str, *overrides: str) -> list[str]:
    """The lines of what is wrong."""
    with pytest.raises(UserError) as caught:
        load_experiment(path, overrides)
    return str(caught.value).split("\n")


def changed(old: str, new: str, text: str = CONFIG) -> str:
    assert text.count(old) == 1, f"{old!r} comes {text.count(old)} times"
    return text.replace(old, new)


# --- what is read ----------------------------------------------------------------------------------


def test_a_config_is_read_with_all_that_follows_from_it(write):
    loaded = load_experiment(write(CONFIG))
    config = loaded.config
    assert loaded.source_path == Path("trial.yaml") and loaded.sources == (Path("trial.yaml"),)
    assert (config.backbone.path, config.backbone.dtype, config.assistant) == ("builtin:tiny", "float32", None)
    assert config.orders == {"given": ["a", "b"]}
    assert config.output_dir == "runs/trial" and config.tracking.experiment == "trial"
    assert config.tasks[0].settings.hops == 3 and config.tasks[1].settings.note is True
    assert config.methods[0].strategy.settings.learning_rate == 1e-4
    assert config.methods[0].reasoning.settings.thoughts == 4
    assert config.methods[1].reasoning.cls.__name__ == "Think"
    assert [task.name for task in config.tasks_in("given")] == ["a", "b"]
    assert config.seeds == [0] and config.train == TrainConfig()


def test_a_method_differs_from_the_budget_only_where_it_says_so(write):
    config = load_experiment(write(CONFIG + "train: {steps: 50, examples: 9}\n")).config
    assert config.train_for("cot") == config.train
    assert config.train_for("other-one") == TrainConfig(steps=7, examples=9)
    assert to_data(config)["methods"][1]["train"] == {"steps": 7}


def test_names_that_are_not_there_are_told(write):
    config = load_experiment(write(CONFIG)).config
    for ask in (config.method, config.task, config.tasks_in, config.train_for):
        with pytest.raises(UserError, match="unknown .* 'nope'; known: "):
            ask("nope")


def test_the_files_name_is_the_experiments_name(write):
    assert load_experiment(write(changed("name: trial\n", ""), "my_trial.yaml")).config.name == "my_trial"


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-4", 1e-4),
        ("1E5", 1e5),
        ("-.5", -0.5),
        ("3", 3),
        ("007", 7),
        ("0x1F", 31),
        ("0o17", 15),
        ("true", True),
        ("False", False),
        ("null", None),
        ("~", None),
        ("", None),
        ("yes", "yes"),
        ("no", "no"),
        ("on", "on"),
        ("off", "off"),
        ("y", "y"),
        ("2024-01-02", "2024-01-02"),
        ("12:30:00", "12:30:00"),
        ("1_000", "1_000"),
        ("'3'", "3"),
        ("<<", "<<"),
        ("builtin:tiny@25", "builtin:tiny@25"),
        ("!!str 5", "5"),
    ],
)
def test_values_mean_what_yaml_1_2_says(text, value):
    from cl_softcot.config import yaml

    tree = yaml.parse(f"key: {text}\n", "file.yaml")
    assert tree.problems == [] and tree.data == {"key": value} and type(tree.data["key"]) is type(value)
    assert yaml.parse(yaml.dump({"key": value}), "again.yaml").data == {"key": value}


def test_texts_that_look_like_something_else_come_back():
    from cl_softcot.config import yaml

    texts = ["1e4", "yes", "on", "null", "~", "", "0o7", "1_0", "2024-01-02", "<<", "=", "a: b", "#x", "ü\n", " x", "1:30"]
    assert yaml.parse(yaml.dump(texts), "again.yaml").data == texts


def test_anchors_and_merge_keys(write):
    text = changed(
        "strategy: {name: 'fakes:Learn', learning_rate: 1e-4}", "strategy: &rate {name: 'fakes:Learn', learning_rate: 2}"
    )
    text = changed(
        "strategy:\n      name: fakes:Learn\n      learning_rate: 0.001", "strategy: {<<: *rate, weight_decay: 0.5}", text
    )
    first, second = (m.strategy.settings for m in load_experiment(write(text)).config.methods)
    assert (first.learning_rate, first.weight_decay) == (2, 0) and (second.learning_rate, second.weight_decay) == (2, 0.5)
    # An override reaches only what it names, not what shares the anchor.
    first, second = (
        m.strategy.settings for m in load_experiment("trial.yaml", ["methods.cot.strategy.learning_rate=3"]).config.methods
    )
    assert (first.learning_rate, second.learning_rate) == (3, 2)


def test_the_resolved_config_comes_back_the_same(write):
    text = CONFIG + "evaluate: {retention_tasks: [{name: r, task: 'fakes:Reader', file: x.txt, shape: [3, 4]}]}\n"
    config = load_experiment(write(text)).config
    assert config.evaluate.retention_tasks[0].settings.shape == (3, 4)
    assert Experiment.model_validate(to_data(config)) == config
    assert load_experiment(write(to_yaml(config), "resolved.yaml")).config == config
    assert pickle.loads(pickle.dumps(config)) == config
    assert fingerprint(Experiment.model_validate(to_data(config))) == fingerprint(config)


# --- what is refused, and where --------------------------------------------------------------------


def test_everything_that_is_wrong_is_told_at_once_with_its_place(write):
    text = """\
backbon: builtin:tiny
tasks:
  - {name: a, task: 'fakes:Reader', hopps: 3}
  - {name: B!, task: 'fakes:Reader', hops: x}
train:
  steps: many
  steps: 3
  examples: 0
evaluate: {split: tets}
orders: {mine: [a, c]}
methods:
  - name: cot
    reasoning: {name: 'fakes:Think', inner: {widht: 3}}
    strategy: {name: 'fakes:Learn'}
    per_task: {routing: nearest}
  - name: cot
    reasoning: fakes:Think
    strategy: {name: 'fakes:Learn', learning_rate: yes}
"""
    assert problems(write(text)) == [
        "trial.yaml:1:1: backbon: unknown key 'backbon'; did you mean 'backbone'? Known: name, backbone, assistant, tasks, "
        "orders, seeds, train, evaluate, methods, diagnostics, tracking, output_dir",
        "trial.yaml:1:1: backbone: is missing: the model that answers",
        "trial.yaml:3:37: tasks.a.hopps: unknown key 'hopps'; did you mean 'hops'? Known: hops, file, shape, convention, "
        "note, name, task",
        "trial.yaml:4:12: tasks.B!.name: a label consists of lower-case letters, digits and '_' (got 'B!')",
        "trial.yaml:4:44: tasks.B!.hops: should be a whole number, or should be a list (got 'x')",
        "trial.yaml:6:10: train.steps: should be a whole number (got 'many')",
        "trial.yaml:7:3: train.steps: duplicate key 'steps' (first at line 6)",
        "trial.yaml:8:13: train.examples: should be greater than or equal to 1 (got 0)",
        "trial.yaml:9:19: evaluate.split: should be 'test' or 'valid' (got 'tets'); did you mean 'test'?",
        "trial.yaml:10:20: orders.mine.1: unknown task 'c'; known: a, B!",
        "trial.yaml:13:46: methods.0.reasoning.inner.widht: unknown key 'widht'; did you mean 'width'? Known: width, depth",
        "trial.yaml:14:15: methods.0.strategy.learning_rate: is missing: its own learning rate",
        "trial.yaml:15:25: methods.0.per_task.routing: nearest finds the task from an assistant's states: give "
        "`assistant:` a model",
        "trial.yaml:16:11: methods.1.name: 'cot' is the name of an earlier entry too (number 1)",
        "trial.yaml:18:52: methods.1.strategy.learning_rate: should be a number (got 'yes')",
    ]


MISTAKES = [
    ("backbone: builtin:tiny", "backbone: {path: x, dtype: fp16}", "2:28: backbone.dtype: should be 'float32', 'bfloat16'"),
    ("backbone: builtin:tiny", "backbone: 7", "2:11: backbone: should be a map"),
    ("backbone: builtin:tiny", "backbone:", "2:10: backbone: should be a map (key: value) (got nothing)"),
    ("hops: 3", "hops: true", "should be a whole number, or should be a list (got true)"),
    ("hops: 3", "hops: '3'", "should be a whole number, or should be a list (got '3')"),
    ("hops: 3", "hops: 3.5", "should be a whole number, or should be a list (got 3.5)"),
    ("hops: 3", "hops: .nan", "4:43: tasks.0.hops: .nan is not a finite number"),
    ("hops: 3", "settings: {hops: 3}", "unknown key 'settings'"),
    ("hops: 3", "convention: none", "4:5: tasks.a: task 'a': unknown convention 'none' -- known: default, other"),
    ("note: true", "note: yes", "7:11: tasks.b.note: should be true or false (got 'yes')"),
    ("name: b\n", "name: a\n", "5:11: tasks.1.name: 'a' is the name of an earlier entry too (number 1)"),
    ("name: b\n", "name: general\n", "5:11: tasks.general.name: 'general' is what drift calls general text"),
    ("name: b\n", "name: 5\n", "5:11: tasks.1.name: should be text (got 5)"),
    ("    task: fakes:Reader\n", "", "5:5: tasks.b: unknown task 'b'; known: "),
    ("    task: fakes:Reader\n", "    task: grahp\n", "6:11: tasks.b.task: unknown task 'grahp'; did you mean 'graph'?"),
    ("    task: fakes:Reader\n", "    task: words\n", "6:11: tasks.b.task: unknown task 'words'"),
    ("    task: fakes:Reader\n", "    task: fakes:Raeder\n", "has no class 'Raeder'; did you mean 'Reader'?"),
    ("    task: fakes:Reader\n", "    task: fakez:Reader\n", "there is no module 'fakez'"),
    ("    task: fakes:Reader\n", "    task: fakes.Reader\n", "named package.module:Class, with a colon"),
    ("    task: fakes:Reader\n", "    task: 'fakes:'\n", "'fakes:' does not name a task"),
    ("    task: fakes:Reader\n", "    task: fakes:function\n", "fakes:function is not a class"),
    ("    task: fakes:Reader\n", "    task: fakes:Think\n", "is not a task: it does not derive from cl_softcot.tasks.base.Task"),
    ("name: fakes:Learn\n", "name: fakes:NoSettings\n", "has no nested class Settings"),
    ("name: fakes:Learn\n", "name: fakes:Clash\n", "has a setting called 'name'"),
    ("thoughts: 2", "curriculum: stage", "should be 'stages' or 'none' (got 'stage'); did you mean 'stages'?, or should be a"),
    ("thoughts: 2", "source: random", "14:7: methods.other-one.reasoning: fakes:Think with these settings needs an assistant"),
    ("thoughts: 2", "thoughts: 1\n      thought: 2", "16:7: methods.other-one.reasoning.thought: unknown key"),
    ("learning_rate: 0.001", "learning_rate: 13", "fakes:Think and fakes:Learn do not go together: a rate of 13"),
    ("train: {steps: 7}", "train: {micro_batch_size: 5}", "5 does not divide global_batch_size (32)"),
    ("train: {steps: 7}", "train: {decay_fraction: 0.99}", "are over 1 together"),
    ("train: {steps: 7}", "train: {stesp: 7}", "methods.other-one.train.stesp: unknown key 'stesp'; did you mean 'steps'?"),
    ("train: {steps: 7}", "per_task: {routing: orcale}", "did you mean 'oracle'?"),
    ("name: other-one", "name: other.one", "a label consists of letters, digits, '_' and '-'"),
    ("name: trial", "seeds: [0, 1, 0]", "1:15: seeds.2: seed 0 comes twice"),
    ("name: trial", "seeds: [-1]", "a seed is between 0 and"),
    ("name: trial", "seeds: []", "1:8: seeds: should have at least 1 entry (has 0)"),
    ("name: trial", "seeds: 3", "1:8: seeds: should be a list (got 3)"),
    ("name: trial", "orders: {x: [a, a]}", "1:17: orders.x.1: task 'a' comes twice"),
    ("name: trial", "orders: {x: []}", "an order names at least one task"),
    ("name: trial", "orders: {x.y: [a]}", "a label consists of letters"),
    ("name: trial", "orders: [a]", "1:9: orders: should be a map"),
    ("name: trial", "train: 3", "1:8: train: should be a map"),
    ("name: trial", "train: {micro_batch_size: 5}", "1:27: train.micro_batch_size: 5 does not divide"),
    ("name: trial", "x: !!python/name:os.system ''", "tags such as"),
    ("name: trial", "x: &a [*a]", "an alias (*) inside of what it stands for"),
    ("name: trial", "? [a]\n: 3", "1:3: a key must be text"),
    ("name: trial", "<<: 3", "'<<' takes a map"),
]


@pytest.mark.parametrize(("old", "new", "message"), MISTAKES, ids=[f"{new.strip()!r}" for _, new, _ in MISTAKES])
def test_a_mistake_is_told_with_its_place(write, old, new, message):
    lines = problems(write(changed(old, new)))
    assert any(message in line for line in lines), lines
    assert all(re.match(r"trial\.yaml:\d+:\d+: ", line) for line in lines), lines


def test_one_mistake_is_told_once(write):
    for old, new in (("name: b\n", "name: 5\n"), ("hops: 3", "hops: .nan"), ("name: fakes:Learn\n", "name: fakes:Lear\n")):
        assert len(problems(write(changed(old, new)))) == 1


def test_impossible_pairs_are_refused_with_the_reason(write):
    text = changed("thoughts: 2", "thoughts: 1").replace("name: fakes:Learn\n", "name: fakes:Frozen\n")
    assert problems(write(text)) == [
        "trial.yaml:14:7: methods.other-one.reasoning: fakes:Think and fakes:Frozen do not go together: it owns nothing to train"
    ]


def test_what_trains_nothing_takes_no_copies_and_no_plugins(write):
    text = changed("name: fakes:Learn\n      learning_rate: 0.001\n    train: {steps: 7}", "name: fakes:Nothing\n    PLACE")
    (line,) = problems(write(changed("PLACE", "per_task: {routing: oracle}", text)))
    assert "methods.other-one.per_task: fakes:Nothing trains nothing" in line


def test_a_path_to_an_assistant_satisfies_those_who_need_one(write):
    text = changed("thoughts: 2", "source: random").replace("name: trial", "assistant: builtin:tiny-assistant")
    assert load_experiment(write(text)).config.assistant.path == "builtin:tiny-assistant"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "trial.yaml: the file is empty"),
        ("# only a comment\n", "trial.yaml: the file is empty"),
        ("- a\n- b\n", "trial.yaml:1:1: the file should hold a map"),
        ("just text", "trial.yaml:1:1: the file should hold a map"),
        ("a: [1, 2\nb: 3\n", "trial.yaml:2:2: not valid YAML: while parsing a flow sequence"),
        ("a: b: c\n", "trial.yaml:1:5: not valid YAML: mapping values are not allowed here\n  A text with ': '"),
        ("a:\n\t- b\n", "trial.yaml:2:1: not valid YAML: while scanning for the next token found character '\\t'"),
        ("a: 1\n---\nb: 2\n", "trial.yaml:2:1: not valid YAML: expected a single document"),
        ("a: 1\nb: \x01\n", "trial.yaml:2:4: not valid YAML: the character #x0001 is not allowed"),
        ("a: *nope\n", "trial.yaml:1:4: not valid YAML: found undefined alias 'nope'"),
    ],
)
def test_files_that_are_no_config(write, text, message):
    with pytest.raises(UserError) as caught:
        load_experiment(write(text))
    assert str(caught.value).startswith(message)


def test_files_that_are_not_there(write, folder):
    write(CONFIG)
    with pytest.raises(UserError, match=r"trail\.yaml: there is no trail\.yaml; did you mean 'trial\.yaml'\?"):
        load_experiment("trail.yaml")
    with pytest.raises(UserError, match=r"there is no folder 'none'"):
        load_experiment("none/trial.yaml")
    with pytest.raises(UserError, match="this is a folder"):
        load_experiment(folder)
    (folder / "latin.yaml").write_bytes("name: é\n".encode("latin-1"))
    with pytest.raises(UserError, match="not UTF-8"):
        load_experiment("latin.yaml")


def test_a_plugin_of_a_missing_package_says_what_to_install(write, folder):
    (folder / "needy.py").write_text("import surely_not_installed.deep\n")
    (line,) = problems(write(changed("name: fakes:Learn\n", "name: needy:Learn\n")))
    assert "needs the package 'surely_not_installed', which is not installed" in line


def test_a_bug_in_a_plugin_is_not_hidden(write, folder):
    (folder / "buggy.py").write_text("1 / 0\n")
    with pytest.raises(ZeroDivisionError) as caught:
        load_experiment(write(changed("name: fakes:Learn\n", "name: buggy:Learn\n")))
    assert caught.value.__notes__ == ["while importing buggy for strategy 'buggy:Learn'"]


# --- base ------------------------------------------------------------------------------------------


def test_a_base_is_merged_and_methods_are_added(write):
    write(CONFIG + "train: {steps: 50, examples: 9}\noutput_dir: somewhere\n", "deep/first.yaml")
    write("base: deep/first.yaml\ntrain: {steps: 60}\nseeds: [3]\n", "second.yaml")
    third = """\
base: second.yaml
seeds: [1, 2]
orders: {back: [b, a]}
methods_add:
  - {name: third, reasoning: 'fakes:Think', strategy: {name: 'fakes:Learn', learning_rate: 1}}
"""
    loaded = load_experiment(write(third, "third.yaml"))
    config = loaded.config
    assert [str(source) for source in loaded.sources] == ["third.yaml", "second.yaml", "deep/first.yaml"]
    assert (config.train.steps, config.train.examples, config.seeds) == (60, 9, [1, 2])
    assert [method.name for method in config.methods] == ["cot", "other-one", "third"]
    assert config.orders == {"back": ["b", "a"]}
    assert (config.name, config.output_dir) == ("third", "runs/third"), "results of two files never share a folder"


def test_added_methods_pile_up_along_the_bases(write):
    extra = "methods_add: [{name: %s, reasoning: 'fakes:Think', strategy: {name: 'fakes:Learn', learning_rate: 1}}]\n"
    write(CONFIG + extra % "x", "first.yaml")
    write("base: first.yaml\n" + extra % "y", "second.yaml")
    config = load_experiment(write("base: second.yaml\n" + extra % "z", "third.yaml")).config
    assert [method.name for method in config.methods] == ["cot", "other-one", "x", "y", "z"]


def test_lists_of_a_base_are_replaced(write):
    write(CONFIG)
    child = "base: trial.yaml\ntasks: [{name: z, task: 'fakes:Reader'}]\n"
    config = load_experiment(write(child, "child.yaml")).config
    assert [task.name for task in config.tasks] == ["z"] and config.orders == {"given": ["z"]}


def test_a_mistake_in_a_base_names_the_base(write):
    write(changed("hops: 3", "hopps: 3"), "deep/first.yaml")
    child = """\
base: deep/first.yaml
train: {stesp: 3}
methods_add:
  - {name: third, reasoning: 'fakes:Think', strategy: {name: 'fakes:Learn', learning_rate: x}}
"""
    lines = problems(write(child, "child.yaml"))
    assert [line.split(": ")[:2] for line in lines] == [
        ["child.yaml:2:9", "train.stesp"],
        ["child.yaml:4:92", "methods.third.strategy.learning_rate"],
        ["deep/first.yaml:4:37", "tasks.a.hopps"],
    ]


@pytest.mark.parametrize(
    ("child", "message"),
    [
        ("base: nope.yaml\n", "child.yaml:1:7: base: nope.yaml: there is no nope.yaml; known: child.yaml, trial.yaml"),
        ("base: [a]\n", "child.yaml:1:7: base: should be the path of one YAML file"),
        ("base: child.yaml\n", "child.yaml:1:7: base: the files name each other in a circle: child.yaml -> child.yaml"),
        ("base: trial.yaml\nmethods_add: 3\n", "child.yaml:2:14: methods_add: should be a list"),
        ("base: trial.yaml\nmethod_add: []\n", "child.yaml:2:1: method_add: unknown key 'method_add'; did you mean 'methods"),
    ],
)
def test_bases_that_do_not_work(write, child, message):
    write(CONFIG)
    assert problems(write(child, "child.yaml"))[0].startswith(message)


def test_a_syntax_error_in_a_base_names_the_base(write):
    write("a: [\n", "broken.yaml")
    assert problems(write("base: broken.yaml\n", "child.yaml"))[0].startswith("broken.yaml:2:1: not valid YAML")


# --- overrides -------------------------------------------------------------------------------------


def test_overrides_reach_every_value(write):
    overrides = [
        "seeds=[4, 5]",
        "seeds.1=6",
        "train.steps=60",
        "tasks.b.hops=9",
        "tasks.0.note=true",
        "methods.other-one.train.steps=8",
        "methods.cot.reasoning.thoughts=3",
        "methods.cot.reasoning.inner.width=5",
        "methods.1.strategy.learning_rate=1e-5",
        "methods.cot.train.examples=11",
        "backbone.dtype=bfloat16",
        "assistant=builtin:tiny-assistant",
        "output_dir=/tmp/some where",
        "tracking.mlflow=false",
        "orders.back=[b, a]",
    ]
    loaded = load_experiment(write(CONFIG), overrides)
    config = loaded.config
    assert loaded.overrides == tuple(overrides)
    assert (config.seeds, config.train.steps) == ([4, 6], 60)
    assert [task.settings.hops for task in config.tasks] == [3, 9] and config.tasks[0].settings.note
    assert config.train_for("other-one").steps == 8 and config.train_for("cot").examples == 11
    assert (config.methods[0].reasoning.settings.thoughts, config.methods[0].reasoning.settings.inner.width) == (3, 5)
    assert config.methods[1].strategy.settings.learning_rate == 1e-5
    assert (config.backbone.path, config.backbone.dtype) == ("builtin:tiny", "bfloat16")
    assert config.output_dir == "/tmp/some where" and config.tracking.mlflow is False
    assert config.orders == {"back": ["b", "a"]}


def test_the_last_override_wins_and_null_takes_back(write):
    text = CONFIG + "assistant: builtin:tiny-assistant\n"
    config = load_experiment(write(text), ["train.steps=1", "train.steps=2", "assistant=", "methods.other-one.train=null"]).config
    assert (config.train.steps, config.assistant, config.methods[1].train) == (2, None, None)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.stesp=3", "train.stesp: unknown key 'stesp'; did you mean 'steps'?"),
        ("trian.steps=3", "trian: unknown key 'trian'; did you mean 'train'?"),
        ("train.steps=x", "train.steps: should be a whole number (got 'x')"),
        ("methods.coot.train.steps=3", "methods has no entry 'coot'; did you mean 'cot'? Known: cot, other-one"),
        ("methods.2.train.steps=3", "methods has 2 entries (counted from 0), so there is no methods.2"),
        ("methods.cot.reasoning.thougts=3", "methods.cot.reasoning.thougts: unknown key"),
        ("name.x=3", "name holds no keys, so there is no name.x"),
        ("tasks.a.hops.x=3", "tasks.a.hops holds no keys"),
        ("train.steps", "an override is written key=value"),
        ("=3", "an override is written key=value"),
        ("a..b=3", "an override is written key=value"),
        ("seeds=[1, 2", "not valid YAML"),
        ("train={steps: 1, steps: 2}", "duplicate key 'steps'"),
        ("train.gradient_clip=.inf", ".inf is not a finite number"),
        ("orders.x=[a, z]", "orders.x.1: unknown task 'z'"),
    ],
)
def test_a_mistake_in_an_override_names_it(write, override, message):
    (line,) = problems(write(CONFIG), override)
    assert line.startswith(f"command line: {override}: ") and message in line


def test_mistakes_in_the_file_and_on_the_command_line_are_told_together(write):
    lines = problems(write(changed("hops: 3", "hopps: 3")), "train.steps=x", "nonsense")
    assert [line.split(": ")[0] for line in lines] == ["trial.yaml:4:37", "command line", "command line"]


def test_an_override_mends_what_the_file_has_wrong(write):
    assert load_experiment(write(changed("hops: 3", "hops: x")), ["tasks.a.hops=4"]).config.tasks[0].settings.hops == 4


# --- fingerprints ----------------------------------------------------------------------------------


def test_the_fingerprint_follows_what_can_change_a_number(write):
    path = write(CONFIG)
    mark = fingerprint(load_experiment(path).config)
    assert re.fullmatch("[0-9a-f]{64}", mark)
    same = ["output_dir=elsewhere", "tracking.mlflow=false", "train.steps=120", "methods.cot.reasoning.thoughts=4"]
    assert fingerprint(load_experiment(path, same).config) == mark
    for change in ("train.steps=121", "tasks.a.hops=4", "seeds=[1]", "methods.cot.strategy.learning_rate=2e-4"):
        assert fingerprint(load_experiment(path, [change]).config) != mark


def test_a_runs_fingerprint_does_not_change_with_its_neighbours(write):
    path = write(CONFIG)
    config = load_experiment(path).config
    mark = run_fingerprint(config, "cot", "given", 0)
    more = ["seeds=[0, 1]", "orders={given: [a, b], back: [b, a]}", "methods.other-one.train.steps=9", "name=x"]
    other = load_experiment(path, more).config
    assert run_fingerprint(other, "cot", "given", 0) == mark
    marks = {run_fingerprint(other, m, o, s) for m, o, s in itertools.product(["cot", "other-one"], ["given", "back"], [0, 1])}
    assert len(marks) == 8 and mark in marks
    assert run_fingerprint(load_experiment(path, ["train.steps=60"]).config, "cot", "given", 0) != mark


# --- use from programs -----------------------------------------------------------------------------


def test_validation_outside_of_files_words_its_errors_too(folder):
    with pytest.raises(ValidationError, match="unknown key 'stesp'; did you mean 'steps'"):
        Experiment.model_validate(
            {
                "name": "x",
                "backbone": "builtin:tiny",
                "tasks": [{"name": "a", "task": "fakes:Reader"}],
                "methods": [{"name": "m", "reasoning": "fakes:Think", "strategy": {"name": "fakes:Nothing"}}],
                "train": {"stesp": 3},
            }
        )


def test_a_config_does_not_change(write):
    config = load_experiment(write(CONFIG)).config
    with pytest.raises(ValidationError, match="frozen"):
        config.train.steps = 3


# --- plug-ins that the package brings --------------------------------------------------------------


def test_tasks_are_found_by_their_files_name():
    names = registry.known("task")
    assert {"graph", "local_file"} <= set(names) and not {"base", "words"} & set(names)
    for name in names:
        cls = registry.find("task", name)
        assert cls.__module__ == f"cl_softcot.tasks.{name}"


@pytest.mark.parametrize("kind", ["reasoning", "strategy"])
def test_all_plugins_can_be_found(kind):
    for name in registry.known(kind):
        assert registry.find(kind, name).__module__.endswith(f".{name}")


def test_a_file_in_the_working_folders_package_is_found(folder, monkeypatch):
    package = folder / "fake_strategies"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "base.py").write_text("class Strategy:\n    def trainable(self): ...\n")
    (package / "one.py").write_text(
        "from pydantic import BaseModel\nfrom fake_strategies.base import Strategy\n"
        "class One(Strategy):\n    class Settings(BaseModel): pass\n"
    )
    (package / "two.py").write_text((package / "one.py").read_text() + "class Two(One): pass\n")
    (package / "_help.py").write_text((package / "one.py").read_text())
    (package / "helper.py").write_text("class Helper: pass\n")
    kinds = {**registry.KINDS, "strategy": registry.Kind("fake_strategies", "Strategy")}
    monkeypatch.setattr(registry, "KINDS", kinds)
    assert registry.known("strategy") == ["one", "two"]
    assert registry.find("strategy", "one").__name__ == "One"
    with pytest.raises(UserError, match="should define one public Strategy class; it defines One, Two"):
        registry.find("strategy", "two")
    for name in ("helper", "_help", "base", "three", "../one"):
        with pytest.raises(UserError, match="unknown strategy"):
            registry.find("strategy", name)


def test_a_short_task_is_its_own_label(write):
    text = changed("  - name: b\n    task: fakes:Reader\n    note: true\n", "  - graph\n  - {name: dates, note: true}\n")
    config = load_experiment(write(text), ["tasks.graph.hops=2"]).config
    assert [(task.name, task.task) for task in config.tasks[1:]] == [("graph", "graph"), ("dates", "dates")]
    assert config.tasks[1].settings.hops == 2 and config.tasks[2].settings.note
    assert config.tasks[1].make().name == "graph"


def test_plugins_of_avalanche_are_checked_where_they_stand(write):
    pytest.importorskip("avalanche")
    text = changed("train: {steps: 7}", "plugins: [{name: replay, mem_size: 20}, {name: replay, memsize: 20}, {name: repaly}]")
    lines = problems(write(text))
    assert [line.split(": ", 2)[:2] for line in lines] == [
        ["trial.yaml:19:69", "methods.other-one.plugins.1.memsize"],
        ["trial.yaml:19:81", "methods.other-one.plugins.repaly.name"],
    ]
    assert "did you mean 'mem_size'?" in lines[0] and "did you mean 'replay'?" in lines[1]
    text = changed("train: {steps: 7}", "plugins: [{name: replay, mem_size: 20, batch_size_mem: 32}]")
    (line,) = problems(write(text))
    assert line.startswith("trial.yaml:19:15: methods.other-one.plugins.replay: ")
    text = changed("train: {steps: 7}", "plugins: [{name: replay, mem_size: 20, batch_size_mem: 8}]")
    config = load_experiment(write(text)).config
    assert to_data(config)["methods"][1]["plugins"] == [{"name": "replay", "mem_size": 20, "batch_size_mem": 8}]


def test_loading_is_fast_and_imports_only_what_is_named(write):
    path = write(CONFIG)
    script = (
        "import sys; from cl_softcot.config import load_experiment\n"
        f"load_experiment({path!r})\n"
        "print(sorted({'avalanche', 'peft', 'mlflow'} & set(sys.modules)))"
    )
    source = str(Path(registry.__file__).parents[1])
    start = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env={"PYTHONPATH": source})
    assert done.stdout == "[]\n", done.stderr
    assert time.perf_counter() - start < 60, "seconds; typically three: the base classes of what is named bring torch"


REAL = """\
backbone: builtin:tiny
assistant: builtin:tiny-assistant
tasks: [graph]
methods:
  - {name: zero, reasoning: cot, strategy: zero_shot}
  - {name: coconut, reasoning: {name: coconut, thoughts_per_step: 2, curriculum: none}, strategy: full_finetune}
  - {name: lora, reasoning: coconut, strategy: {name: lora, rank: 4, learning_rate: 1e-3}}
  - {name: softcot, reasoning: {name: softcot, soft_thoughts: 2}, strategy: frozen_backbone, per_task: {routing: nearest}}
"""


def test_the_methods_of_the_package_are_read(write):
    pytest.importorskip("torch")
    config = load_experiment(write(REAL), ["methods.coconut.reasoning.thoughts_per_step=1"]).config
    assert config.method("coconut").reasoning.settings.thoughts_per_step == 1
    assert config.method("lora").strategy.settings.rank == 4
    assert config.method("softcot").per_task.routing == "nearest"
    assert load_experiment(write(to_yaml(config), "again.yaml"), ["name=trial", "output_dir=runs/trial"]).config == config


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["methods.zero.strategy=frozen_backbone"], "methods.zero.strategy: cot and frozen_backbone do not go together: "),
        (["methods.softcot.strategy=zero_shot", "methods.softcot.per_task="], "do not go together: "),
        (["assistant="], "methods.softcot.reasoning: softcot with these settings needs an assistant"),
        (["methods.zero.per_task={routing: oracle}"], "zero_shot trains nothing"),
        (["methods.lora.reasoning=coconnut"], "unknown reasoning 'coconnut'; did you mean 'coconut'? Known: "),
        (["methods.lora.strategy=lorra"], "unknown strategy 'lorra'; did you mean 'lora'? Known: frozen_backbone, "),
        (["methods.lora.strategy.rnak=3"], "methods.lora.strategy.rnak: unknown key 'rnak'; did you mean 'rank'? Known: "),
    ],
)
def test_mistakes_with_the_methods_of_the_package(write, overrides, message):
    pytest.importorskip("torch")
    assert any(message in line for line in problems(write(REAL), *overrides))


# --- the JSON schema -------------------------------------------------------------------------------


def test_the_schema_describes_every_key_and_every_plugin():
    schema = json_schema()
    assert {"base", "methods_add", *Experiment.model_fields} <= set(schema["properties"])
    assert all("description" in properties for properties in schema["properties"].values())
    choices = schema["$defs"]["TaskConfig"]["anyOf"]
    graph = [c for c in choices if c.get("properties", {}).get("task") == {"const": "graph"}]
    assert "hops" in graph[0]["properties"] and graph[0]["additionalProperties"] is False
    references = set(re.findall(r"'\$ref': '#/\$defs/([^']+)'", str(schema)))
    assert references <= set(schema["$defs"])


def test_the_schema_agrees_with_the_loader(write):
    jsonschema = pytest.importorskip("jsonschema")
    from cl_softcot.config import yaml

    check = jsonschema.Draft202012Validator(json_schema())
    good = changed("  - name: b\n    task: fakes:Reader\n    note: true\n", "  - graph\n  - {name: dates, note: true}\n")
    assert list(check.iter_errors(yaml.parse(good, "x").data)) == []
    assert list(check.iter_errors(to_data(load_experiment(write(good)).config))) == []
    for old, new in (("note: true}", "noet: true}"), ("steps: 7", "steps: x"), ("name: trial", "nmae: trial")):
        assert list(check.iter_errors(yaml.parse(changed(old, new, good), "x").data)) != []
