"""Everything that a user can get wrong: one clear message with the way out, exit status 2, no traceback, nothing lost."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

import pytest
from run_fakes import arguments, command, environment, local_rows, local_task, models, small, start, write, write_jsonl


def refused(ended, *words: str) -> str:
    """Asserts one clear refusal and returns what was said."""
    assert ended.status == 2, ended.text
    assert "Traceback" not in ended.text and 'File "' not in ended.text, ended.text
    assert ended.err.startswith("error: "), ended.err
    for word in words:
        assert word in ended.err, f"{word!r} is not in: {ended.err}"
    return ended.err


def method(**changes):
    return {"name": "mine", "reasoning": "cot", "strategy": "full_finetune", **changes}


# ----------------------------------------------------------------------------------------------------- the config


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"train": {"stepps": 3}}, ["train.stepps", "did you mean 'steps'"]),
        ({"backbones": "x"}, ["backbones", "did you mean 'backbone'"]),
        ({"train": {"steps": "many"}}, ["train.steps"]),
        ({"train": {"steps": 0}}, ["train.steps"]),
        ({"methods": [method(strategy="lorra")]}, ["unknown strategy 'lorra'", "did you mean 'lora'"]),
        ({"methods": [method(reasoning="cocoonut")]}, ["unknown reasoning 'cocoonut'", "did you mean 'coconut'"]),
        ({"methods": [method(strategy={"name": "lora", "rnk": 3})]}, ["rnk", "did you mean 'rank'"]),
        ({"methods": [method(strategy="frozen_backbone")]}, ["do not go together", "zero_shot"]),
        ({"methods": [method(strategy="zero_shot", per_task={"routing": "oracle"})]}, ["trains nothing"]),
        ({"methods": [method(plugins=["repla"])]}, ["unknown plugin 'repla'", "did you mean 'replay'"]),
        ({"methods": [method(strategy="no.such.module:Thing")]}, ["no module"]),
        ({"methods": [method(), method()]}, ["'mine'", "earlier"]),
        ({"methods": []}, ["methods"]),
        ({"assistant": None, "methods": [method(reasoning="softcot", strategy="frozen_backbone")]}, ["assistant"]),
        ({"assistant": None, "methods": [method(per_task={"routing": "nearest"})]}, ["assistant"]),
        ({"tasks": [{"name": "x", "task": "grpah"}]}, ["unknown task 'grpah'", "did you mean 'graph'"]),
        ({"tasks": [{"name": "x", "task": "lists", "convention": "from_nowhere"}]}, ["from_nowhere", "from_zero"]),
        ({"tasks": [local_task("first"), local_task("first")]}, ["'first'", "earlier"]),
        ({"orders": {"odd": ["first", "third"]}}, ["third", "first, second"]),
        ({"seeds": [-1]}, ["seeds"]),
    ],
    ids=lambda value: re.sub(r"\W+", "_", str(value))[:40],
)
def test_a_wrong_setting_is_one_message_with_its_place(change, words, tmp_path):
    err = refused(start(write(tmp_path, small("softcot", **change)), cwd=tmp_path), *words)
    assert re.match(r"error: \S*small\.yaml:\d+:\d+: ", err), err
    assert len(err.strip().splitlines()) == 1, err
    assert [p.name for p in tmp_path.iterdir()] == ["small.yaml"]  # no folder was begun


def test_all_errors_are_told_at_once_each_with_its_place(tmp_path):
    text = f"""backbone: {models()}/backbone
tasks:
  - {{name: first, task: grpah}}
  - {{name: Second Task, task: lists}}
train: {{stepps: 3, examples: none}}
methods:
  - {{name: one, reasoning: cot, strategy: frozen_backbone}}
  - {{name: two, reasoning: {{name: coconut, max_stage: -1}}, strategy: lorra}}
"""
    lines = refused(start(write(tmp_path, text), cwd=tmp_path)).removeprefix("error: ").strip().splitlines()
    places = [tuple(map(int, re.search(r"small\.yaml:(\d+):(\d+): ", line).groups())) for line in lines]
    assert places == sorted(places) and len(places) >= 7
    assert {line for line, _ in places} == {3, 4, 5, 7, 8}
    column = text.splitlines()[4].index("stepps") + 1
    assert (5, column) in places


def test_an_override_is_named_by_its_text(tmp_path):
    path = write(tmp_path, small("softcot"))
    refused(start(path, "train.stepps=3", cwd=tmp_path), "train.stepps", "did you mean")
    refused(start(path, "methods.softcoot.strategy.learning_rate=1", cwd=tmp_path), "softcoot", "softcot")
    refused(start(path, "train.steps", cwd=tmp_path), "train.steps", "=")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", ["empty"]),
        ("- a\n- b\n", ["small.yaml:1"]),
        ("backbone: [builtin:tiny\ntasks: 3\n", ["small.yaml:"]),
        ("backbone: a\nbackbone: b\n", ["small.yaml:2:1", "backbone"]),
        ("backbone: a\n\ttasks: b\n", ["small.yaml:2"]),
    ],
    ids=["empty", "a list", "not closed", "twice", "a tab"],
)
def test_a_file_that_is_no_experiment(text, words, tmp_path):
    refused(start(write(tmp_path, text), cwd=tmp_path), *words)


def test_a_missing_file(tmp_path):
    refused(start("nowhere.yaml", cwd=tmp_path), "nowhere.yaml")
    refused(start(tmp_path, cwd=tmp_path), str(tmp_path))


def test_wrong_commands(tmp_path):
    ended = start(cwd=tmp_path)
    assert ended.status == 2 and "usage:" in ended.err
    ended = start("x.yaml", "--job", "x", cwd=tmp_path)
    assert ended.status == 2 and "Traceback" not in ended.err
    refused(start(write(tmp_path, small("softcot")), "--jobs", 0, cwd=tmp_path), "--jobs")


# ------------------------------------------------------------------------------------------------------- the models


def test_missing_and_unfit_models(tmp_path):
    path = write(tmp_path, small("softcot"))
    refused(start(path, "backbone=./nowhere", "output_dir=a", cwd=tmp_path), "nowhere")
    refused(start(path, "backbone=builtin:tinny", "output_dir=b", cwd=tmp_path), "tinny", "did you mean")
    (tmp_path / "empty").mkdir()
    refused(start(path, "backbone=./empty", "output_dir=c", cwd=tmp_path), "config.json")


def test_a_prompt_longer_than_the_context_names_its_example(tmp_path):
    rows = local_rows(80, 9)
    for row in rows:
        row["question"] = " ".join([row["question"].removesuffix(" ?")] * 20) + " ?"
    file = write_jsonl(tmp_path / "long.jsonl", rows)
    data = small("softcot", tasks=[{"name": "long", "task": "local_file", "path": str(file)}])
    err = refused(start(write(tmp_path, data), "output_dir=out", cwd=tmp_path), "does not fit", "128")
    assert "long/" in err and "max_new_tokens" in err


def test_an_answer_longer_than_the_context(tmp_path):
    path = write(tmp_path, small("softcot"))
    refused(start(path, "evaluate.max_new_tokens=500", "output_dir=out", cwd=tmp_path), "does not fit", "500")


def test_a_word_that_the_model_does_not_know(tmp_path):
    rows = local_rows(80, 9)
    for row in rows:
        row["question"] = row["question"].replace("?", "zyzzyva ?")
    file = write_jsonl(tmp_path / "odd.jsonl", rows)
    data = small("softcot", tasks=[{"name": "odd", "task": "local_file", "path": str(file)}])
    refused(start(write(tmp_path, data), "output_dir=out", cwd=tmp_path), "zyzzyva")


# ------------------------------------------------------------------------------------------------------ data of one's own

GOOD = json.dumps({"question": "a b ?", "steps": ["a is b"], "answer": "b"})


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, ["mine.jsonl", "no such file"]),
        ("", ["mine.jsonl", "empty"]),
        ("\n\n", ["mine.jsonl", "empty"]),
        (GOOD + "\n{not json}\n", ["mine.jsonl:2", "not JSON"]),
        (GOOD + "\n[1, 2]\n", ["mine.jsonl:2", "list"]),
        (GOOD + '\n{"question": "a ?", "steps": []}\n', ["mine.jsonl:2", "'answer'"]),
        ('{"query": "a ?", "steps": [], "answer": "b"}\n', ["mine.jsonl:1", "'question'", "query"]),
        (GOOD + '\n{"question": "", "steps": [], "answer": "b"}\n', ["mine.jsonl:2"]),
        (GOOD + "\n", ["mine.jsonl", "examples"]),
    ],
    ids=["missing", "empty", "blank", "not json", "a list", "no answer", "other field", "empty question", "too few"],
)
def test_a_local_file_is_refused_with_file_and_line(content, words, tmp_path):
    if content is not None:
        (tmp_path / "mine.jsonl").write_text(content)
    data = small("softcot", tasks=[{"name": "mine", "task": "local_file", "path": "mine.jsonl"}])
    refused(start(write(tmp_path, data), "output_dir=out", cwd=tmp_path), *words)


def test_too_few_rows_to_train_on_stop_before_anything_is_learned(tmp_path):
    ended = start(write(tmp_path, small("softcot", "full_coconut")), "output_dir=out", "train.examples=5000", cwd=tmp_path)
    assert ended.status in (1, 2) and "Traceback" not in ended.text
    assert "5000" in ended.text and "first.jsonl" in ended.text


def test_a_task_called_like_a_family_of_the_base(tmp_path):
    data = small("softcot", tasks=[{**local_task("first"), "name": "kept"}])
    refused(start(write(tmp_path, data), "output_dir=out", cwd=tmp_path), "kept")


# ------------------------------------------------------------------------------------------------------------ the rest


def test_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    refused(start(write(tmp_path, small("softcot")), "output_dir=file/out", cwd=tmp_path), "file", "output_dir")


def test_a_damaged_config_of_a_run(tmp_path):
    folder = tmp_path / "out" / "runs" / "softcot.given.seed0"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{")
    refused(start(write(tmp_path, small("softcot")), "output_dir=out", cwd=tmp_path), "config.json")


def test_a_mistake_in_somebodys_own_code_shows_where(tmp_path):
    """Not a user's mistake in the YAML: its author needs the traceback, and the other methods still finish."""
    text = "from cl_softcot.reasoning.cot import Cot\nclass Broken(Cot):\n    def loss(self, parts, batch): return 1 / 0\n"
    (tmp_path / "broken.py").write_text(text)
    data = small("softcot")
    data["methods"].insert(0, method(reasoning="broken:Broken"))
    ended = start(write(tmp_path, data), "output_dir=out", cwd=tmp_path)
    assert ended.status == 1 and "ZeroDivisionError" in ended.out and "Traceback" not in ended.text
    assert "broken.py" in (tmp_path / "out" / "runs" / "mine.given.seed0" / "error.txt").read_text()
    assert (tmp_path / "out" / "runs" / "softcot.given.seed0" / "result.json").exists()


def test_a_failing_disk_ends_its_own_run_only(tmp_path):
    """The other runs are finished, even where the story of a failure cannot be kept, and the exit status tells."""
    (tmp_path / "failing.py").write_text(
        "import errno, os\nfrom cl_softcot.reasoning.cot import Cot\n"
        "class Disk(Cot):\n    def loss(self, parts, batch): raise OSError(errno.EIO, os.strerror(errno.EIO), '/mnt/stale')\n"
        "class Bug(Cot):\n    def loss(self, parts, batch):\n"
        "        os.mkdir('out/runs/bug.given.seed0/error.txt')\n"
        "        raise TypeError('postgresql://me:HUNTER2@host/db \\x1b[2J')\n"
    )
    data = small("softcot")
    data["methods"] = [
        method(name="disk", reasoning="failing:Disk"),
        method(name="bug", reasoning="failing:Bug"),
        *data["methods"],
    ]
    ended = start(write(tmp_path, data), "output_dir=out", cwd=tmp_path)
    assert ended.status == 1 and "Traceback" not in ended.text and "HUNTER2" not in ended.text and "\x1b[2J" not in ended.text
    assert "/mnt/stale: the disk or its connection failed" in ended.text and "its traceback could not be kept" in ended.text
    runs = tmp_path / "out" / "runs"
    assert (runs / "softcot.given.seed0" / "result.json").exists() and not (runs / "disk.given.seed0" / "error.txt").exists()
    summary = (tmp_path / "out" / "summary.json").read_text()
    assert "HUNTER2" not in summary and "disk.given.seed0" in summary


@pytest.mark.parametrize("place", ["runs", "runs/softcot.given.seed0", "shared"])
def test_restart_follows_no_link(place, tmp_path):
    elsewhere = tmp_path / "elsewhere"
    (elsewhere / "precious").mkdir(parents=True)
    (elsewhere / "precious" / "file").write_text("keep")
    link = tmp_path / "out" / place
    link.parent.mkdir(parents=True)
    link.symlink_to(elsewhere)
    (tmp_path / "out" / "experiment.json").write_text("{}")
    refused(start(write(tmp_path, small("softcot")), "output_dir=out", "--restart", cwd=tmp_path), "is a link", str(link.name))
    assert (elsewhere / "precious" / "file").read_text() == "keep" and link.is_symlink()


@pytest.mark.slow
def test_the_exit_status_reaches_the_shell(tmp_path):
    """Through the interpreter itself; what a worker refuses, too."""
    done = subprocess.run(arguments("nowhere.yaml"), cwd=tmp_path, env=environment(), capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.startswith("error: ") and "Traceback" not in done.stderr
    Path(tmp_path / "mine.jsonl").write_text("{")
    data = small("softcot", tasks=[{"name": "mine", "task": "local_file", "path": "mine.jsonl"}])
    ended = command(write(tmp_path, data), "output_dir=out", cwd=tmp_path)
    refused(ended, "mine.jsonl:1")
