"""What is wrong with an example is told before anything is computed, with its name and the way out."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
from run_fakes import local_rows, small, start, tiny, write, write_jsonl

from cl_softcot.answering.build import load_models, retention_tasks
from cl_softcot.config.loading import load_experiment
from cl_softcot.errors import UserError
from cl_softcot.run.preflight import check_examples
from cl_softcot.tasks.base import split_of
from cl_softcot.tasks.local_file import question_key

ROOT = Path(__file__).resolve().parents[2]


def check(config: Any) -> None:
    backbone, assistant = load_models(config)
    check_examples(config, backbone, assistant, retention_tasks(config, backbone), 0)


def with_rows(folder: Path, rows: list[dict[str, Any]], *methods: str, **changes: Any) -> Path:
    data = small(*methods, **changes)
    data["tasks"][0] = {"name": "first", "task": "local_file", "path": str(write_jsonl(folder / "first.jsonl", rows))}
    return write(folder, data)


def rows_with(where: int, **change: Any) -> list[dict[str, Any]]:
    """240 rows, about a tenth each for test and valid; change one of them."""
    rows = local_rows(240, 0)
    rows[where] |= change
    return rows


def rows_of(split: str) -> list[int]:
    """The numbers, from 0, of the rows that are in a split."""
    questions = [question_key(row["question"]) for row in local_rows(240, 0)]
    return [i for i, question in enumerate(questions) if split_of("local", question) == split]


ALL = {"train": {"examples": len(rows_of("train"))}, "evaluate": {"test": len(rows_of("test"))}}


def test_what_is_right_passes(tmp_path):
    check(load_experiment(write(tmp_path, small("full_coconut", "softcot", "lora_nearest", "base_direct"))).config)
    check(load_experiment(write(tmp_path, tiny("full_coconut", "softcot"))).config)


@pytest.mark.parametrize("split", ["train", "test"])
def test_an_unknown_word_names_the_example(tmp_path, split):
    number = rows_of(split)[-1]
    rows = rows_with(number, steps=["a is zebra"]) if split == "train" else rows_with(number, answer="zebra")
    with pytest.raises(UserError, match="'zebra' is not in the vocabulary") as caught:
        check(load_experiment(with_rows(tmp_path, rows, "softcot", **ALL)).config)
    assert f"task first, {split} example first/{split}/{number + 1}" in caught.value.where
    assert caught.value.fix


def test_only_the_last_stage_is_too_long(tmp_path):
    """Continuous thoughts of the last stage are more than the step that they stand for: the first stage fits."""
    data = small("full_coconut")
    data["methods"][0]["reasoning"] = {"name": "coconut", "max_stage": 3, "thoughts_per_step": 40}
    config = load_experiment(write(tmp_path, data)).config
    backbone, _ = load_models(config)
    assert backbone.max_length < 130
    with pytest.raises(UserError, match="does not fit") as caught:
        check(config)
    assert "method full_coconut" in caught.value.where


def test_room_for_the_answer_is_part_of_it(tmp_path):
    config = load_experiment(write(tmp_path, small("softcot")), ["evaluate.max_new_tokens=1000"]).config
    with pytest.raises(UserError, match="1000 to write") as caught:
        check(config)
    assert "example" in caught.value.where and "max_new_tokens" in caught.value.fix


def test_a_gold_answer_that_is_not_right_when_written(tmp_path, monkeypatch):
    from cl_softcot.tasks.base import Verdict
    from cl_softcot.tasks.local_file import LocalFile

    monkeypatch.setattr(LocalFile, "judge", lambda self, example, text: Verdict("unanswered", None))
    with pytest.raises(UserError, match="gold answer '.' is judged unanswered") as caught:
        check(load_experiment(write(tmp_path, small("softcot"))).config)
    assert "task first, train example" in caught.value.where


def test_the_command_stops_before_anything_is_written(tmp_path):
    rows = rows_with(rows_of("train")[7], steps=["zebra is a"])
    path = with_rows(tmp_path, rows, "softcot", **ALL)
    ended = start(path, "output_dir=out", cwd=tmp_path)
    assert ended.status == 2 and ended.err.count("error:") == 1 and "Traceback" not in ended.text
    assert "zebra" in ended.err and "train example" in ended.err
    assert not (tmp_path / "out" / "runs").exists() and not (tmp_path / "out" / "shared").exists()


def test_too_few_rows_are_told_first(tmp_path):
    path = with_rows(tmp_path, local_rows(40, 0), "softcot", train={"examples": 150})
    ended = start(path, "output_dir=out", cwd=tmp_path)
    assert ended.status == 2 and "150" in ended.err and "train" in ended.err and "Traceback" not in ended.text


def test_it_takes_no_time_on_the_embedded_models():
    config = load_experiment(ROOT / "experiments" / "sequence_a.yaml").config
    load_models(config)
    started = time.process_time()
    check(config)
    assert time.process_time() - started < 2
