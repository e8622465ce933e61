"""Anyone's own data: fields, splits, leaks, and what is said about a file that cannot be used."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from pydantic import ValidationError

from cl_softcot.errors import UserError
from cl_softcot.tasks.local_file import LocalFile, question_key

ROOT = Path(__file__).parents[2]


def write(path: Path, rows: list) -> str:
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def make(path: str, name: str = "mine", **settings) -> LocalFile:
    return LocalFile(LocalFile.Settings(path=path, **settings), name)


def rows(n: int, first: int = 0, **more) -> list[dict]:
    told = ((i, i + 1) for i in range(first, first + n))
    return [{"question": f"what is {i} plus 1 ?", "steps": [f"{i} + 1 = {j}"], "answer": str(j), **more} for i, j in told]


def everything(task: LocalFile, split: str):
    """All examples of a split."""
    return task._by_split[split]


def questions(task: LocalFile, split: str) -> set[str]:
    return {e.question for e in everything(task, split)}


def complaint(path: str, split: str = "train", **settings) -> str:
    with pytest.raises(UserError) as error:
        make(path, **settings).examples(split, 1, 0)
    assert error.value.exit_status == 2
    return str(error.value)


# ----------------------------------------------------------------------------------------------------------- fields


def test_fields_are_mapped(tmp_path):
    row = {"q": "  2 + 2 ?\n", "rationale": "two and two\n\n  make four \n", "a": 4, "extra": [1]}
    path = write(tmp_path / "my.jsonl", [row])
    task = make(path, question="q", steps="rationale", answer="a", family="sums", valid_path=path, test_path=path)
    (example,) = task.examples("test", 1, 0)
    assert (example.question, example.steps, example.answer) == ("2 + 2 ?", ("two and two", "make four"), "4")
    assert example.task == "mine" and example.id == "mine/test/1"
    assert task.family == example.meta["family"] == "sums" and example.meta["hops"] == 2
    assert task.judge(example, "so ; answer 4").outcome == "right" and task.judge(example, "answer 5").outcome == "wrong"


@pytest.mark.parametrize(
    ("steps", "expected"),
    [(["a", " b ", ""], ("a", "b")), ("a\nb", ("a", "b")), ([], ()), ("", ()), (None, ()), ([1, 2.5], ("1", "2.5"))],
)
def test_steps_are_a_list_or_a_text(tmp_path, steps, expected):
    path = write(tmp_path / "my.jsonl", [{"question": "q", "steps": steps, "answer": "a", "split": "train"}])
    assert make(path, split_field="split").examples("train", 1, 0)[0].steps == expected


def test_there_may_be_no_steps(tmp_path):
    path = write(tmp_path / "my.jsonl", [{"question": "q", "answer": "a", "split": "train"}])
    assert make(path, steps=None, split_field="split").examples("train", 1, 0)[0].steps == ()
    said = complaint(path, split_field="split")
    assert f"{path}:1: " in said and "no field 'steps'" in said and "`steps: null`" in said


def test_a_byte_order_mark_and_odd_line_ends_are_read(tmp_path):
    path = tmp_path / "my.jsonl"
    row = json.dumps({"question": "a\u2028b\x85c", "steps": [], "answer": "\u00e9", "split": "train"}, ensure_ascii=False)
    path.write_bytes(b"\xef\xbb\xbf" + f"{row}\r\n\r\n   \n".encode())
    (example,) = make(str(path), split_field="split").examples("train", 1, 0)
    assert example.question == "a\u2028b\x85c" and example.answer == "\u00e9"


JUDGED = [
    # (kind, gold answer, text, outcome)
    ("words", "12", "answer 12", "right"),
    ("words", "12", "### 12\nDone.", "right"),
    ("words", "12", "#### 12.\n\nI hope it helps.", "right"),
    ("words", "12", "###\n12\nDone.", "right"),
    ("words", "12", "### Answer: 12\nDone.", "right"),
    ("words", "12", "### Step 2\nAnswer: 12", "right"),
    ("words", "12", "### 12\nThis is the answer to it.", "right"),
    ("words", "12", "### $12", "wrong"),
    ("words", "12", "### 1\n### 12", "right"),
    ("words", "Bob is a shumpus.", "### bob is  a Shumpus", "right"),
    ("words", "blue", "answer blue .", "wrong"),  # a full stop that is a word, as the embedded models write it
    ("words", "blue", "answer blue\nred", "wrong"),  # lines end the answer only behind ### and ####
    ("words", "12", "12", "unanswered"),
    ("words", "12", "###\n", "unanswered"),
    ("number", "12", "### 12.", "right"),
    ("number", "12", "### $12", "right"),
    ("number", "$12.00", "3 * 4 = 12 ; answer 12", "right"),
    ("number", "1200", "### 1,200\nDone.", "right"),
    ("number", "1,200", "The answer is 1200.", "right"),
    ("number", "12", "### -12", "wrong"),
    ("number", "12", "### 12 or 13", "unanswered"),
    ("choice", "yes", "### Yes, it does.\nDone.", "right"),
    ("choice", "false", "### No.", "right"),
    ("choice", "True", "### no", "wrong"),
    ("choice", "no", "### perhaps", "unanswered"),
]


@pytest.mark.parametrize(("kind", "gold", "text", "outcome"), JUDGED)
def test_answers_are_compared_as_their_kind(tmp_path, kind, gold, text, outcome):
    path = write(tmp_path / "my.jsonl", [{"question": "q", "steps": [], "answer": gold, "split": "test"}])
    task = make(path, split_field="split", kind=kind)
    (example,) = task.examples("test", 1, 0)
    assert example.answer == gold and task.judge(example, text).outcome == outcome


@pytest.mark.parametrize(("kind", "gold"), [("number", "twelve"), ("number", "3:30"), ("choice", "12")])
def test_an_answer_that_is_not_of_its_kind(tmp_path, kind, gold):
    path = write(tmp_path / "my.jsonl", [{"question": "q", "steps": [], "answer": gold}])
    said = complaint(path, kind=kind)
    assert said.startswith(f"{path}:1: ") and f"{gold!r} is no {kind}" in said and "`kind: words`" in said


# ------------------------------------------------------------------------------------------------------ what is wrong


def test_a_malformed_line_is_named_with_line_and_column(tmp_path):
    path = write(tmp_path / "my.jsonl", [*rows(2), "", '{"question": "q", "answer" 3}'])
    said = complaint(path)
    assert said.startswith(f"{path}:4:28: ") and "not JSON" in said and "one JSON object a line" in said


@pytest.mark.parametrize("line", ["[1, 2]", '"text"', "3", "null"])
def test_a_line_that_is_no_object(tmp_path, line):
    path = write(tmp_path / "my.jsonl", [*rows(1), line])
    assert f"{path}:2: " in complaint(path) and "not an object" in complaint(path)


def test_a_missing_field_names_the_nearest(tmp_path):
    path = write(tmp_path / "my.jsonl", [*rows(1), {"qestion": "q", "steps": [], "answer": "a"}])
    said = complaint(path)
    assert said.startswith(f"{path}:2: ") and "no field 'question'; did you mean 'qestion'?" in said
    assert "`question: <field>`" in said


@pytest.mark.parametrize("value", ["", "  ", None, [], ["x"], {"a": 1}])
@pytest.mark.parametrize("field", ["question", "answer"])
def test_an_empty_or_structured_question_or_answer(tmp_path, field, value):
    row = {"question": "q", "steps": [], "answer": "a"} | {field: value}
    path = write(tmp_path / "my.jsonl", [row])
    said = complaint(path)
    assert said.startswith(f"{path}:1: ") and f"field '{field}' should be a text or a number" in said


@pytest.mark.parametrize("steps", [3, True, {"1": "a"}])
def test_steps_of_another_kind(tmp_path, steps):
    path = write(tmp_path / "my.jsonl", [{"question": "q", "steps": steps, "answer": "a"}])
    assert f"{path}:1: " in complaint(path) and "should be a list or a text" in complaint(path)


@pytest.mark.parametrize("content", ["", "\n\n  \n"])
def test_an_empty_file(tmp_path, content):
    path = tmp_path / "my.jsonl"
    path.write_text(content)
    assert complaint(str(path)).startswith(f"{path}: task 'mine': the file is empty")


def test_an_empty_test_file(tmp_path):
    path, test = write(tmp_path / "my.jsonl", rows(5)), write(tmp_path / "test.jsonl", [])
    assert complaint(path, test_path=test).startswith(f"{test}: ")


def test_a_file_that_is_not_there_or_not_text(tmp_path):
    assert "no such file" in complaint(str(tmp_path / "none.jsonl"))
    assert "cannot read" in complaint(str(tmp_path))
    binary = tmp_path / "binary.jsonl"
    binary.write_bytes(b"\xff\xfe\x00{")
    assert "cannot read" in complaint(str(binary))


def test_too_few_rows(tmp_path):
    path = write(tmp_path / "my.jsonl", rows(3, split="train"))
    task = make(path, split_field="split")
    assert len(task.examples("train", 3, 0)) == 3
    with pytest.raises(UserError, match="has 3 train examples, 4 are asked for") as error:
        task.examples("train", 4, 0)
    assert path in str(error.value) and "train.examples" in str(error.value)
    with pytest.raises(UserError, match="has 0 test examples"):
        task.examples("test", 1, 0)


def test_unknown_settings_are_refused():
    with pytest.raises(ValidationError):
        LocalFile.Settings(path="x", stepps="rationale")
    with pytest.raises(ValidationError):
        LocalFile.Settings()


# ----------------------------------------------------------------------------------------------------------- splits


def test_a_field_says_the_split(tmp_path):
    told = [("train", 4), ("valid", 2), ("test", 3), ("Validation", 1), ("DEV", 1), ("Test", 1)]
    data, first = [], 0
    for split, n in told:
        data += rows(n, first, part=split)
        first += n
    task = make(write(tmp_path / "my.jsonl", data), split_field="part")
    assert {s: len(everything(task, s)) for s in ("train", "valid", "test")} == {"train": 4, "valid": 4, "test": 4}


@pytest.mark.parametrize("split", ["exam", None, 3, ["train"]])
def test_an_unknown_split(tmp_path, split):
    path = write(tmp_path / "my.jsonl", [*rows(1, part="train"), *rows(1, 1, part=split)])
    said = complaint(path, split_field="part")
    assert said.startswith(f"{path}:2: ") and "train, valid, test" in said


def test_without_a_field_a_hash_of_the_question_splits(tmp_path):
    path = write(tmp_path / "my.jsonl", rows(1000))
    parts = {split: questions(make(path), split) for split in ("train", "valid", "test")}
    assert sum(map(len, parts.values())) == 1000
    for split, share in (("train", 800), ("valid", 100), ("test", 100)):
        assert abs(len(parts[split]) - share) < 45
    # The split follows the question: neither the task's name, nor the order of the rows, nor further rows move it.
    shuffled = write(tmp_path / "other.jsonl", [*rows(500, 1000), *reversed(rows(1000))])
    for split, found in parts.items():
        assert found <= questions(make(shuffled, name="another"), split)


def test_separate_files(tmp_path):
    train, valid, test = (write(tmp_path / f"{i}.jsonl", rows(50, 100 * i)) for i in range(3))
    task = make(train, valid_path=valid, test_path=test)
    assert [len(everything(task, s)) for s in ("train", "valid", "test")] == [50, 50, 50]
    ids = [e.id for s in ("train", "valid", "test") for e in everything(task, s)]
    assert len(set(ids)) == 150
    # With one of them, the other split is cut off the main file by its hash.
    task = make(train, test_path=test)
    assert questions(task, "test") == {e["question"] for e in rows(50, 200)}
    assert len(everything(task, "train")) + len(everything(task, "valid")) == 50 and everything(task, "valid")


def test_a_split_field_and_a_separate_file(tmp_path):
    test = write(tmp_path / "test.jsonl", rows(5, 100))  # its rows need no field: the file says it all
    path = write(tmp_path / "my.jsonl", [*rows(5, part="train"), *rows(5, 5, part="valid")])
    task = make(path, split_field="part", test_path=test)
    assert [len(everything(task, s)) for s in ("train", "valid", "test")] == [5, 5, 5]
    path = write(tmp_path / "both.jsonl", [*rows(2, part="train"), *rows(1, 9, part="test")])
    said = complaint(path, split_field="part", test_path=test)
    assert said.startswith(f"{path}:3: ") and "that split has a file of its own" in said and "`test_path`" in said


def test_leaks_between_splits_are_removed_and_the_evaluation_split_keeps_the_question(tmp_path):
    shared, odd = rows(3), {**rows(1)[0], "question": "  WHAT is 0  plus 1 ? "}
    train = write(tmp_path / "train.jsonl", [odd, *shared, *rows(5, 10)])
    valid = write(tmp_path / "valid.jsonl", [*shared[:2], *rows(5, 20)])
    test = write(tmp_path / "test.jsonl", [shared[0], shared[0], *rows(5, 30)])
    task = make(train, valid_path=valid, test_path=test)
    keys = {s: [question_key(e.question) for e in everything(task, s)] for s in ("train", "valid", "test")}
    assert {s: len(k) for s, k in keys.items()} == {"train": 6, "valid": 6, "test": 6}
    assert len({k for found in keys.values() for k in found}) == 18

    data = [{**shared[0], "part": part} for part in ("train", "valid", "test", "train")]
    task = make(write(tmp_path / "field.jsonl", data), split_field="part")
    assert [len(everything(task, s)) for s in ("train", "valid", "test")] == [0, 0, 1]


def test_the_test_set_does_not_follow_the_seed_and_training_does(tmp_path):
    path = write(tmp_path / "my.jsonl", rows(400))
    task = make(path)
    assert task.examples("test", 20, 0) == task.examples("test", 20, 5) == make(path).examples("test", 30, 1)[:20]
    assert task.examples("train", 100, 0) != task.examples("train", 100, 1)
    assert task.examples("train", 100, 1) == make(path).examples("train", 100, 1)


def test_the_same_in_every_process(tmp_path):
    path, other = write(tmp_path / "my.jsonl", rows(200)), write(tmp_path / "other.jsonl", rows(40, 180))
    code = (
        "import sys; from cl_softcot.tasks.local_file import LocalFile as L\n"
        "t = L(L.Settings(path=sys.argv[1], test_path=sys.argv[2], valid_path=sys.argv[2]), 'm')\n"
        "t = [t, L(L.Settings(path=sys.argv[1]), 'm')]\n"
        "print([(x.id, x.question) for k in t for s, n in (('train', 30), ('test', 3)) for x in k.examples(s, n, 2)])"
    )
    said = set()
    for seed in ("0", "1"):
        environment = {**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": str(ROOT)}
        command = [sys.executable, "-c", code, path, other]
        said.add(subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout)
    assert len(said) == 1
