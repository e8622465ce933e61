"""Anyone's own data: kinds of files, fields, splits, leaks, what is left out, and what is said about what cannot be used."""

from __future__ import annotations

import gzip
import json
import os
import re
import subprocess
import sys
import time
import types
from decimal import Decimal
from pathlib import Path

import pytest
from pydantic import ValidationError

from cl_softcot.errors import UserError
from cl_softcot.tasks import _sources
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


@pytest.mark.parametrize("value", ["", "  ", None, [], ["x"], {"a": 1}, float("nan"), float("inf")])
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
    told = [("train", 2), ("TRAINING ", 2), ("valid", 1), (" val", 1), ("test", 2), ("testing", 1)]
    told += [("Validation", 1), ("DEV", 1), ("Test", 1)]
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


# --------------------------------------------------------------------------------------------------- what is left out


def counted(task: LocalFile) -> dict[str, int]:
    """The numbers of the one line."""
    words = "rows train valid test duplicates conflicts empty that".split()
    return {word: int(found[1]) for word in words if (found := re.search(rf"(\d+) {word}", task.about()))}


def test_one_line_says_what_became_of_every_row(tmp_path):
    a, b, c = rows(3, part="train")
    data = [
        *(a, {**a, "question": "WHAT is 0  plus 1 ?"}),  # a duplicate
        *(b, {**b, "part": "test"}),  # in two splits
        *(c, {**c, "part": "test", "answer": "4"}, c),  # conflicts, wherever they stand
        *({**a, "question": " "}, {**a, "answer": None}),
        *rows(2, 10, part="dev"),
    ]
    path = write(tmp_path / "my.jsonl", data)
    task = make(path, split_field="part")
    wanted = {"rows": 11, "train": 1, "valid": 2, "test": 1, "duplicates": 1, "conflicts": 3, "empty": 2, "that": 1}
    assert counted(task) == wanted and "\n" not in task.about()
    assert f"[{path}:2]" in task.about() and f"[{path}:8, {path}:9]" in task.about()
    assert questions(task, "train") == {a["question"]} and questions(task, "test") == {b["question"]}
    with pytest.raises(UserError, match="2 empty"):
        task.examples("train", 2, 0)


@pytest.mark.parametrize(
    ("kind", "first", "second", "kept"),
    [
        ("words", "Paris", "paris .", 0),
        ("words", "Paris", " paris. ", 1),
        ("number", "1,200", 1200.0, 1),
        ("number", "$3", "4", 0),
        ("choice", True, "yes", 1),
        ("choice", "no", "Yes", 0),
    ],
)
def test_answers_are_in_conflict_where_the_judge_tells_them_apart(tmp_path, kind, first, second, kept):
    data = [{"question": q, "answer": a} for q, a in (("How many?", first), ("how  many?", second))]
    task = make(write(tmp_path / "my.jsonl", data), kind=kind, steps=None)
    found = counted(task)
    assert sum(len(task.examples(s, task.count(s), 0)) for s in ("train", "valid", "test")) == kept
    assert (found["duplicates"], found["conflicts"]) == ((1, 0) if kept else (0, 2))


# ------------------------------------------------------------------------------------------ all that is wrong, at once


def places(said: str, path: str) -> list[str]:
    return [line.removeprefix(path).split(": ")[0] for line in said.splitlines() if line.startswith(path)]


def test_all_that_is_wrong_with_a_file_is_told_at_once(tmp_path):
    odd = [
        {"question": "a", "steps": [{"text": "x"}], "answer": "1"},
        "not json",
        {"question": "a", "steps": []},
        rows(1)[0],
        '{"question": "\\ud800", "steps": ["\\udfff"], "answer": "1"}',
        {"question": "two\nlines are fine", "steps": [], "answer": "1\n2"},
        '{"question": "a", "steps": [], "answer": "1", "answer": "2"}',
        '{"question": "a", "steps": [], "answer": ' + 5000 * "9" + "}",
        50000 * "[",
        {"question": "esc \x1b[31m", "steps": [], "answer": "1"},
        {"question": "tab\tand\x0cpage", "steps": [], "answer": "1"},
    ]
    path = write(tmp_path / "my.jsonl", odd)
    said = complaint(path)
    assert places(said, path) == [":1", ":2:1", ":3", ":5", ":5", ":6", ":7", ":8", ":9", ":10"]
    for words in ("{'text': 'x'}", "no field 'answer'", "U+D800", "U+DFFF", "several lines", "twice", "U+001B"):
        assert words in said
    said.encode()  # whatever is in the file, the message can be printed
    write(tmp_path / "my.jsonl", 50 * ["x"])
    assert len(places(complaint(path), path)) == 20 and "30 more: 50 problems" in complaint(path)


def test_the_problems_of_all_files_are_told_together(tmp_path):
    train, test = write(tmp_path / "a.jsonl", [*rows(1), "x"]), write(tmp_path / "b.jsonl", ["y"])
    said = complaint(train, test_path=test, valid_path=str(tmp_path / "none.jsonl"))
    assert f"{train}:2:1: " in said and f"{test}:1:1: " in said and "none.jsonl: no such file" in said


@pytest.mark.parametrize(
    "steps", [[None], ["x", None], [{"a": 1}], [["a", "b"]], [True], [float("nan")], float("nan"), ["\ud800"], ["a\x00"]]
)
def test_steps_that_are_no_text(tmp_path, steps):
    path = write(tmp_path / "my.jsonl", [*rows(1), {"question": "q", "steps": steps, "answer": "a"}])
    assert complaint(path).startswith(f"{path}:2: ") and "field 'steps'" in complaint(path)


@pytest.mark.parametrize("answer", ["a\nb", "5\n6", "Answer: 3", "####"])
def test_an_answer_that_could_never_count_as_right(tmp_path, answer):
    path = write(tmp_path / "my.jsonl", [*rows(1), {"question": "q", "steps": [], "answer": answer}])
    assert complaint(path).startswith(f"{path}:2: ") and "never count as right" in complaint(path)


# ------------------------------------------------------------------------------------------------------ kinds of files


ODD = [['multi\nline, "q"\u2028!', "007"], ["b", "NA"], ["c", "null"], ["d", "1.50"], ["\u00e9", "nan"], ["f", "True"]]


def saved(path: Path, kind: str) -> None:
    """The rows of ``ODD`` as a file of some kind."""
    import pandas

    table = pandas.DataFrame(ODD, columns=["question", "answer"])
    if kind in ("csv", "tsv"):
        text = table.to_csv(None, sep="," if kind == "csv" else "\t", index=False, lineterminator="\r\n")
        path.write_text("\ufeff" + text, encoding="utf-8", newline="")
    elif kind == "parquet":
        table.to_parquet(path)
    else:
        table.to_json(path, orient="records", lines=kind == "jsonl", indent=None if kind == "jsonl" else 1)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("kind", ["jsonl", "json", "csv", "tsv", "parquet"])
def test_every_kind_of_file_gives_the_same_rows(tmp_path, kind, packed):
    path = tmp_path / f"my.{kind}"
    saved(path, kind)
    if packed:
        path.with_name(f"{path.name.upper()}.gz").write_bytes(gzip.compress(path.read_bytes()))
        path = path.with_name(f"{path.name.upper()}.gz")
    task = make(str(path), steps=None)
    found = [e for split in ("train", "valid", "test") for e in everything(task, split)]
    assert [[e.question, e.answer] for e in sorted(found, key=lambda e: int(e.id.split("/")[2]))] == ODD
    assert {int(e.id.split("/")[2]) for e in found} == {1, 2, 3, 4, 5, 6}


def test_steps_of_a_table(tmp_path):
    import pandas

    path = tmp_path / "my.csv"
    path.write_text('question,answer,steps\nq,a,"one\ntwo"\nr,a,\n')
    assert {e.question: e.steps for s in ("train", "valid", "test") for e in everything(make(str(path)), s)} == {
        "q": ("one", "two"),
        "r": (),
    }
    table = {"question": ["q", "r", None], "answer": [Decimal("1.50"), Decimal(2), None], "steps": [["one", "two"], None, []]}
    pandas.DataFrame(table).to_parquet(tmp_path / "my.parquet")
    task = make(str(tmp_path / "my.parquet"))
    found = {e.question: (e.steps, e.answer) for s in ("train", "valid", "test") for e in everything(task, s)}
    assert found == {"q": (("one", "two"), "1.50"), "r": ((), "2.00")} and counted(task)["empty"] == 1


BROKEN = [
    ("a.csv", b"question,answer\na,1\nb,caf\xe9\nc\nd,1,2\n,\ne,5\n", [":3", ":4 (row 3)", ":5 (row 4)"], "UTF-8"),
    ("a.csv", 'question,answer\n"a\nb",1\n"x" y,2\nc\n', [":4", ":5 (row 2)"], "doubled"),
    ("a.csv", 'question,answer\na,1\n"open,1\nb,2\n', [":3"], "unexpected end"),
    ("a.csv", "question;answer\na;1\n", [":1"], "part them by commas"),
    ("a.csv", "question,answer,answer\na,1,2\n", [":1"], "two columns"),
    ("a.csv", "qestion,answer\na,1\nb,1\n", [":1"], "did you mean 'qestion'"),
    ("a.csv", "question,answer\n", [":1"], "empty"),
    ("a.csv", "question,answer\na\x00,1\n", [":2 (row 1)"], "U+0000"),
    ("a.csv", "question,answer\na,1\n".encode("utf-16"), [""], "UTF-16"),
    ("a.tsv", 'question\tanswer\n"hi" she\tB\n', [":2"], "doubled"),
    ("a.json", '[\n{"question": "a", "answer": "1"},\n3, []\n]', [":3 (row 2)", ":3 (row 3)"], "not an object"),
    ("a.json", '[\n{"question": "a", "answer": {}},\n{"question": "b"} oops]', [":2 (row 1)", ":3:19", ":3 (row 2)"], "','"),
    ("a.json", '[{"question": "a", "answer": "1"},]', [":1:35"], "not JSON"),
    ("a.json", '{\n"data": [{"question": "a", "answer": "1"}]}', [""], "not a list"),
    ("a.json", 50000 * "[", [":1 (row 1)"], "too deeply"),
    ("a.json", "[]", [""], "empty"),
    ("a.jsonl", '[\n{"question": "a", "answer": "1"}]', [":1:2"], ".json file"),
    ("a.parquet", "nope", [""], "parquet"),
    ("a.jsonl.gz", b"nope", [""], "gzip"),
    ("a.jsonl.gz", gzip.compress(b'{"question": "a", "answer": "1"}')[:-9], [""], "gzip"),
    ("a.jsonl", gzip.compress(b"x"), [""], "end in .gz"),
    ("a.xlsx", "PK", [""], "known, each also with .gz"),
]


@pytest.mark.parametrize(("name", "content", "where", "words"), BROKEN)
def test_a_broken_file_is_told_with_all_its_places(tmp_path, name, content, where, words):
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    said = complaint(str(path), steps=None)
    assert places(said, str(path)) == where and words in said


def test_what_is_no_regular_file_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "my.jsonl")
    assert "no regular file" in complaint(str(tmp_path / "my.jsonl")) and "cannot read" in complaint("a\0b.jsonl")
    assert "cannot read" in complaint("~nobody_is_called_so/x.csv")


# ------------------------------------------------------------------------------------------------------------- the hub


class Table(list):
    """A split as the hub's library gives it, from its cache."""

    cache_files = [{"filename": f"/cache/some___set/main/0.0.0/{'ab' * 20}/set-train.arrow"}]


def hub(monkeypatch, splits: dict) -> list:
    asked = []

    def load_dataset(path, name=None, *, split=None, revision=None):
        asked.append((path, name, split, revision))
        if split not in splits:
            raise ValueError(f'Unknown split "{split}". Should be one of {list(splits)}.')
        return splits[split]

    monkeypatch.setitem(sys.modules, "datasets", types.SimpleNamespace(load_dataset=load_dataset))
    _sources.read_hub.cache_clear()
    return asked


def from_hub(**settings) -> LocalFile:
    return LocalFile(LocalFile.Settings(hub="some/set", **settings), "mine")


def sizes(task: LocalFile) -> list[int]:
    return [len(everything(task, s)) for s in ("train", "valid", "test")]


def test_a_data_set_of_the_hub(monkeypatch):
    asked = hub(monkeypatch, {"train": Table(rows(50)), "validation": Table(rows(8, 50)), "test": Table(rows(9, 57))})
    task = from_hub(config="main", revision="v1")
    assert not task.at_hand() and asked == []
    assert sizes(task) == [50, 7, 9] and counted(task)["that"] == 1
    assert task.about().endswith(f"from the hub: some/set/main, commit {'ab' * 20}")
    assert task.examples("test", 9, 0)[0].id.startswith("mine/test/")
    assert set(asked) == {("some/set", "main", split, "v1") for split in ("train", "validation", "test")}


def test_splits_of_the_hub_that_are_named_and_those_that_it_has_not(monkeypatch):
    hub(monkeypatch, {"train": rows(200), "part": rows(5, 300)})
    cut = from_hub()
    assert sum(sizes(cut)) == 200 and all(sizes(cut)) and "revision not known" in cut.about()
    named = from_hub(hub_split={"train": "train", "test": "part"}, revision="v1")
    assert sizes(named)[2] == 5 and sum(sizes(named)[:2]) == 200 and "revision v1" in named.about()
    assert sizes(from_hub(hub_split={"test": "part"})) == [0, 0, 5]
    with pytest.raises(UserError, match="Should be one of"):
        from_hub(hub_split={"train": "nope"}).count("train")
    hub(monkeypatch, {"all": rows(5)})
    with pytest.raises(UserError, match="say which splits it has: `hub_split:"):
        from_hub().count("train")
    hub(monkeypatch, {"train": [*rows(2), {"question": "q", "steps": [None], "answer": {}}]})
    with pytest.raises(UserError, match=r"^some/set \(train\): row 3: .*'answer'.*\nsome/set \(train\): row 3: .*None"):
        from_hub().count("train")


def test_a_folder_by_the_hubs_own_library(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    folder = tmp_path / "set"
    folder.mkdir()
    write(folder / "train.jsonl", rows(5))
    write(folder / "test.jsonl", rows(3, 5))
    _sources.read_hub.cache_clear()
    task = LocalFile(LocalFile.Settings(hub=str(folder), split_field=None, hub_split={"train": "train", "test": "test"}), "mine")
    assert sizes(task)[2] == 3 and sum(sizes(task)) == 8
    with pytest.raises(UserError, match="a kind of file"):
        LocalFile(LocalFile.Settings(hub="json"), "mine").count("train")


def test_offline_is_one_sentence_within_seconds(monkeypatch):
    """Where nothing answers, the hub's library would ask for half a minute."""
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    for proxy in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(proxy, raising=False)
    _sources.read_hub.cache_clear()
    started = time.monotonic()
    with pytest.raises(UserError, match="nobody/nothing.*cannot be had from the hub"):
        LocalFile(LocalFile.Settings(hub="nobody/nothing"), "mine").count("train")
    assert time.monotonic() - started < 6
    import datasets

    assert datasets.config.HF_HUB_OFFLINE is False


@pytest.mark.parametrize(
    "settings",
    [
        {"hub": "a/b", "path": "c"},
        {"path": "c", "config": "main"},
        {"path": "c", "hub_split": {"train": "x"}},
        {"hub": "a/b", "hub_split": {"tset": "x"}},
        {"hub": "a/b", "hub_split": {"train": "x", "test": "x"}},
        {"hub": "a/b", "hub_split": {"test": "x"}, "test_path": "c"},
        {"hub": "a/b", "trust_remote_code": True},
    ],
)
def test_sources_that_do_not_go_together(settings):
    with pytest.raises(ValidationError):
        LocalFile.Settings(**settings)


def test_new_settings_that_are_not_used_leave_a_fingerprint_as_it_was():
    from cl_softcot.additions import identity_of

    known = {"path", "valid_path", "test_path", "question", "steps", "answer", "split_field", "family"}
    assert set(identity_of(LocalFile.Settings(path="x"))) == known
