"""``python -m cl_softcot.run`` as a user meets it: what it writes, what it says, and how it ends."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
from run_fakes import (
    METHODS,
    assert_same_numbers,
    command,
    environment,
    finished,
    local_task,
    result,
    run_folders,
    small,
    start,
    tiny,
    write,
)

# ------------------------------------------------------------------------------------------------ what is written


def test_the_folder_holds_everything(tmp_path):
    out = finished()
    for name in ("config.yaml", "experiment.json", "table.txt", "summary.json", "comparison.png"):
        assert (out / name).stat().st_size > 0, name
    record = json.loads((out / "experiment.json").read_text())
    assert record["name"] == "small" and record["versions"]["python"] and record["config_fingerprint"]
    assert record["task_data"].keys() > {"first", "second"} and record["task_data"]["first"].startswith("240 rows: ")
    assert json.loads((out / "runs/softcot.given.seed0/result.json").read_text())["task_data"] == record["task_data"]
    for method, folder in run_folders(out).items():
        names = {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}
        rows = range(3)
        wanted = {"config.json", "events.jsonl", "result.json", *(f"rows/row_{i}.json" for i in rows)}
        assert wanted | {f"predictions/row_{i}.jsonl" for i in rows} <= names, method
        assert any(name.startswith("figures/") and name.endswith(".png") for name in names), method
        trained = method != "base_direct"
        assert len([n for n in names if n.startswith("checkpoints/")]) == (4 if trained else 0), method
        assert not [n for n in names if n.endswith(".tmp") or n.endswith(".pkl") or n.endswith(".pt")], method
    summary = json.loads((out / "summary.json").read_text())
    assert len(summary["results"]) == len(METHODS) and summary["failed"] == {}
    table = (out / "table.txt").read_text()
    assert all(method in table for method in METHODS)


def test_the_resolved_config_runs_by_itself(tmp_path):
    ended = start(finished() / "config.yaml", "--dry-run", cwd=tmp_path)
    assert ended.status == 0 and f"{len(METHODS)} of" not in ended.err, ended.text


SCALARS = ("schema", "experiment", "method", "order", "seed", "config_fingerprint", "finished", "revision")
SECTIONS = ("tasks", "reasoning", "strategy", "accuracy", "summary", "retention", "drift", "cost", "frozen", "versions")


@pytest.mark.parametrize("method", METHODS)
def test_result_json_is_complete_and_plain(method):
    def no_constant(text: str) -> None:
        raise AssertionError(f"{text} is not JSON")

    text = (run_folders(finished())[method] / "result.json").read_text()
    found = json.loads(text, parse_constant=no_constant)
    assert set(SCALARS) | set(SECTIONS) | {"per_task", "plugins"} <= set(found)
    tasks, accuracy = found["tasks"], found["accuracy"]
    assert tasks == ["first", "second"]
    for key in ("matrix", "intervals", "unanswered"):
        assert len(accuracy[key]) == len(tasks) + 1 and all(len(row) == len(tasks) for row in accuracy[key]), key
    for row, intervals in zip(accuracy["matrix"], accuracy["intervals"], strict=True):
        assert all(low <= value <= high for value, (low, high) in zip(row, intervals, strict=True))
    assert accuracy["n"] == [8, 8] and len(accuracy["untrained"]) == 2
    for view in ("as_used", "weights_alone"):
        kept, drifted = found["retention"][view], found["drift"][view]
        assert len(kept) == len(drifted) == 3
        assert set(kept[0]) >= {"families", "n", "all", "all_interval", "same_family", "unrelated"}
        assert kept[0]["n"] == {"kept": 6, "other": 6}
        for key in ("forward_kl/first", "reverse_kl/second"):
            assert all(math.isfinite(row[key]) and row[key] >= -1e-6 for row in drifted), key
    for key in ("trained_parameters", "tokens_per_answer", "forward_passes_per_answer", "train_seconds", "evaluate_seconds"):
        assert found["cost"][key] >= 0, key
    assert found["cost"]["optimiser_steps"] == (0 if method == "base_direct" else 12)
    for key in ("acc", "bwt/gem", "fwt/gem", "forgetting/chaudhry", "learning_accuracy"):
        assert key in found["summary"], key


def test_retention_is_grouped_by_family_whatever_the_tasks_are_called():
    retention = result(finished(), "full_coconut")["retention"]
    last = retention["as_used"][-1]
    assert retention["same_family"] == ["kept"]
    assert last["same_family"] == last["families"]["kept"] and last["unrelated"] == last["families"]["other"]


@pytest.mark.parametrize("method", METHODS)
def test_row_zero_is_the_base_for_every_method(method):
    mine, other = result(finished(), method), result(finished(), "softcot")
    assert mine["accuracy"]["matrix"][0] == other["accuracy"]["matrix"][0]
    assert all(value == 0.0 for view in ("as_used", "weights_alone") for value in kl(mine["drift"][view][0]))
    folder = run_folders(finished())
    first = "predictions/row_0.jsonl"
    assert (folder[method] / first).read_bytes() == (folder["softcot"] / first).read_bytes()


def kl(row: dict) -> list[float]:
    return [value for key, value in row.items() if key.startswith(("forward_kl/", "reverse_kl/"))]


@pytest.mark.parametrize("method", METHODS)
def test_predictions_hold_what_the_model_wrote(method):
    folder = run_folders(finished())[method]
    for i in range(3):
        rows = [json.loads(line) for line in (folder / "predictions" / f"row_{i}.jsonl").read_text().splitlines()]
        assert len(rows) == 2 * 8 + 2 * 6
        assert {row["outcome"] for row in rows} <= {"right", "wrong", "unanswered"}
        assert all({"set", "task", "id", "question", "gold", "answer", "text", "tokens"} <= set(row) for row in rows)
        matrix = result(finished(), method)["accuracy"]["matrix"][i]
        for task, accuracy in zip(("first", "second"), matrix, strict=True):
            outcomes = [row["outcome"] == "right" for row in rows if row["set"] == "task" and row["task"] == task]
            assert sum(outcomes) / len(outcomes) == accuracy


def test_frozen_weights_are_hashed():
    for method in METHODS:
        found = result(finished(), method)
        untouched = found["strategy"].get("of", found["strategy"])["name"] in ("zero_shot", "frozen_backbone", "lora")
        assert found["frozen"]["unchanged"] is untouched, method


# -------------------------------------------------------------------------------------------------- how it is used


@pytest.mark.slow
def test_the_command_end_to_end_on_the_embedded_models(tmp_path):
    """In processes of its own, two side by side; MLflow cannot be reached, and no result depends on it."""
    path = write(tmp_path, tiny("full_coconut", "softcot_oracle", tracking={"mlflow": True}), "small.yaml")
    ended = command(path, "--jobs", 2, cwd=tmp_path, MLFLOW_TRACKING_URI="http://127.0.0.1:9")
    assert ended.status == 0, ended.text
    assert "Traceback" not in ended.text
    assert "python -m cl_softcot.track" in ended.out and "127.0.0.1:9" in ended.text
    out = tmp_path / "runs" / "small"  # the default folder
    for method in ("full_coconut", "softcot_oracle"):
        found = result(out, method)
        assert "forward_kl/general" in found["drift"]["as_used"][1]
        assert len(found["retention"]["families"]) >= 7
        assert method in ended.out
    # The same in one process, one run after the other.
    ended = start(path, "output_dir=one", "--jobs", 1, cwd=tmp_path, env={"MLFLOW_TRACKING_URI": "http://127.0.0.1:9"})
    assert ended.status == 0, ended.text
    assert_same_numbers(tmp_path / "one", out)


@pytest.mark.slow
def test_workers_and_threads_of_the_environment_change_no_number(tmp_path):
    """All methods by two workers; and by one in an environment that asks for more threads than it gets."""
    ended = command(write(tmp_path, small(*METHODS)), "output_dir=two", "--jobs", 2, cwd=tmp_path)
    assert ended.status == 0, ended.text
    assert_same_numbers(tmp_path / "two", finished())
    few = ["full_coconut", "lora_replay"]
    ended = command(write(tmp_path, small(*few)), "output_dir=one", "--jobs", 1, cwd=tmp_path, OMP_NUM_THREADS="2")
    assert ended.status == 0, ended.text
    assert_same_numbers(tmp_path / "one", finished(), few)


def test_dry_run_writes_nothing(tmp_path):
    path = write(tmp_path, small("full_coconut", "softcot_oracle", seeds=[0, 1]))
    ended = start(path, "--dry-run", cwd=tmp_path)
    assert ended.status == 0, ended.text
    assert "4 runs" in ended.out and "full_coconut" in ended.out and "per task (oracle)" in ended.out
    assert "task first: 240 rows: " in ended.out and "left out: 0 duplicates, 0 conflicts" in ended.out
    assert "first -> second" in ended.out and "about" in ended.out and "seconds in all" in ended.out
    assert [p.name for p in tmp_path.iterdir()] == ["small.yaml"]


def test_overrides_seeds_and_orders(tmp_path):
    """An order may leave a task out, and need not be the first."""
    orders = {"there": ["first"], "back": ["second", "first"]}
    path = write(tmp_path, small("softcot", orders=orders, seeds=[0, 1]))
    ended = start(path, "output_dir=out", "methods.softcot.reasoning.soft_thoughts=2", "train.steps=2", cwd=tmp_path)
    assert ended.status == 0, ended.text
    assert ended.text.count("\ntask first: 240 rows: ") + ended.text.startswith("task first: 240 rows: ") == 1
    folders = sorted(p.name for p in (tmp_path / "out" / "runs").iterdir())
    assert folders == [f"softcot.{order}.seed{seed}" for order in ("back", "there") for seed in (0, 1)]
    found = {name: json.loads((tmp_path / "out" / "runs" / name / "result.json").read_text()) for name in folders}
    assert found["softcot.back.seed0"]["tasks"] == ["second", "first"]
    assert len(found["softcot.there.seed1"]["accuracy"]["matrix"]) == 2
    assert all(r["reasoning"]["soft_thoughts"] == 2 for r in found.values())
    back, there = (found[f"softcot.{order}.seed0"]["accuracy"]["matrix"][0] for order in ("back", "there"))
    assert back[1] == there[0]  # the same questions


def test_without_retention_drift_and_assistant(tmp_path):
    data = small("full_coconut", evaluate={"retention": 0, "drift": 0, "retention_tasks": None})
    del data["assistant"]
    ended = start(write(tmp_path, data), "output_dir=out", cwd=tmp_path)
    assert ended.status == 0, ended.text
    assert result(tmp_path / "out", "full_coconut")["cost"]["optimiser_steps"] == 12


def test_one_task_is_a_sequence_too(tmp_path):
    ended = start(write(tmp_path, small("softcot", tasks=[local_task("first")])), "output_dir=out", cwd=tmp_path)
    assert ended.status == 0, ended.text
    assert result(tmp_path / "out", "softcot")["summary"]["bwt/gem"] is None


def test_a_method_whose_loss_diverges_stops_alone(tmp_path):
    data = small("full_coconut", "softcot")
    data["methods"][0]["strategy"] = {"name": "full_finetune", "learning_rate": 1e30}
    path = write(tmp_path, data)
    ended = start(path, "output_dir=out", cwd=tmp_path)
    assert ended.status == 1 and "Traceback" not in ended.text
    assert "is no longer a number" in ended.out and "first" in ended.out and "learning rate" in ended.out
    assert_same_numbers(tmp_path / "out", finished(), ["softcot"])
    assert not (run_folders(tmp_path / "out")["full_coconut"] / "result.json").exists()
    assert (run_folders(tmp_path / "out")["full_coconut"] / "rows" / "row_0.json").exists()
    table = (tmp_path / "out" / "table.txt").read_text()
    assert "full_coconut" in table and "softcot" in table
    failed = json.loads((tmp_path / "out" / "summary.json").read_text())["failed"]
    assert list(failed) == ["full_coconut.given.seed0"]


def test_two_runs_cannot_write_one_folder(tmp_path):
    from cl_softcot.files import FolderLock

    with FolderLock(tmp_path / "out"):
        ended = start(write(tmp_path, small("softcot")), "output_dir=out", cwd=tmp_path)
    assert ended.status == 2 and "another run is writing this folder" in ended.err and "output_dir" in ended.err
    assert [p.name for p in (tmp_path / "out").iterdir()] == [".lock"]


@pytest.mark.parametrize(
    "override", ["train.steps=7", "evaluate.test=9", "methods.softcot.strategy.learning_rate=0.5", "tasks.first.family=renamed"]
)
def test_changed_settings_in_a_used_folder_are_refused(override, tmp_path):
    before = {p: p.read_bytes() for p in sorted(finished().rglob("*")) if p.is_file() and p.name != ".lock"}
    ended = start(write(tmp_path, small("softcot")), f"output_dir={finished()}", override, cwd=tmp_path)
    assert ended.status == 2 and "other settings" in ended.err and "--restart" in ended.err
    assert {p: p.read_bytes() for p in before} == before


def test_other_measurements_under_other_methods_are_refused_too(tmp_path):
    """No run of the folder is continued, but the base's answers in it are of other settings."""
    data = small("softcot")
    data["methods"][0]["name"] = "renamed"
    assert start(write(tmp_path, data), "output_dir=out", "train.steps=2", cwd=tmp_path).status == 0
    data["methods"][0]["name"] = "again"
    ended = start(write(tmp_path, data), "output_dir=out", "evaluate.drift=5", cwd=tmp_path)
    assert ended.status == 2 and "drift first" in ended.err and "Traceback" not in ended.text
    assert [p.name for p in (tmp_path / "out" / "runs").iterdir()] == ["renamed.given.seed0"]  # nothing was begun
    ended = start(write(tmp_path, data), "output_dir=out", "train.steps=2", cwd=tmp_path)
    assert ended.status == 0, ended.text


# ------------------------------------------------------------------------------------------------- plug-ins of one's own

STRATEGY = '''
"""Only the last norm learns."""
from strategies.base import Strategy, TrainedSettings, freeze


class LastNorm(Strategy):
    class Settings(TrainedSettings):
        learning_rate: float = 0.01

    changes_backbone = True

    def prepare(self, parts, seed):
        freeze(parts)
        parts.backbone.core.norm.weight.requires_grad_(True)
'''
REASONING = '''
"""Writes the first step only, then the answer."""
from cl_softcot.reasoning.base import Reasoning, ReasoningSettings


class Short(Reasoning):
    class Settings(ReasoningSettings):
        steps: int = 1

    def steps_written(self, example, stage):
        return example.steps[: self.settings.steps]
'''
TASK = '''
"""Repeats the first letter of the question."""
import random

from cl_softcot.tasks.base import Example, Task


class First(Task):
    family = "first_letter"

    def examples(self, split, n, seed):
        rng, found = random.Random(f"{split}/{seed}"), []
        for i in range(n):
            letters = [rng.choice("abcdefgh") for _ in range(5)]
            found.append(Example(f"{self.name}/{split}/{i}", self.name, " ".join(letters) + " ?", (), letters[0]))
        return found
'''


def with_plugins(folder: Path) -> Path:
    """An experiment whose strategy, reasoning and task are files beside it."""
    (folder / "mine").mkdir()
    for name, text in (("norms", STRATEGY), ("short", REASONING), ("letters", TASK)):
        (folder / "mine" / f"{name}.py").write_text(text)
        assert len(text.strip().splitlines()) <= 30
    method = {
        "name": "mine",
        "reasoning": {"name": "mine.short:Short", "steps": 1},
        "strategy": {"name": "mine.norms:LastNorm", "learning_rate": 0.02},
    }
    tasks = [local_task("first"), {"name": "letters", "task": "mine.letters:First"}]
    return write(folder, small(tasks=tasks, methods=[method]))


def test_plugins_of_the_working_folder_run_end_to_end(tmp_path):
    ended = start(with_plugins(tmp_path), "output_dir=out", cwd=tmp_path)
    assert ended.status == 0, ended.text
    found = result(tmp_path / "out", "mine")
    assert found["strategy"]["learning_rate"] == 0.02 and found["tasks"] == ["first", "letters"]
    assert found["cost"]["trained_parameters"] == 32 and found["frozen"]["unchanged"] is False


@pytest.mark.slow
def test_plugins_of_the_working_folder_reach_the_workers(tmp_path):
    """``python -m`` and the console script do not look for modules in the same places."""
    ended = command(with_plugins(tmp_path), "output_dir=out", cwd=tmp_path)
    assert ended.status == 0, ended.text
    file = tmp_path / "elsewhere" / "cl-softcot"
    file.parent.mkdir()
    file.write_text("import sys\nif __name__ == '__main__':\n    from cl_softcot.__main__ import main\n    sys.exit(main())\n")
    done = subprocess.run(
        [sys.executable, file, "run", "small.yaml", "output_dir=script"],
        cwd=tmp_path,
        env=environment(),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert_same_numbers(tmp_path / "script", tmp_path / "out")
