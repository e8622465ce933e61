"""Public benchmarks: how files and the hub are read, what becomes of a row, and (with the shared data) the real sets."""

from __future__ import annotations

import collections
import datetime
import gzip
import hashlib
import json
import os
import re
import sys
import types
from datetime import timedelta
from pathlib import Path

import benchmark_rows
import pytest
from benchmark_rows import lines, write
from pydantic import ValidationError

from cl_softcot import registry
from cl_softcot.config.experiment import Experiment
from cl_softcot.errors import UserError
from cl_softcot.tasks import _sources, bbh, date_understanding, mmlu
from cl_softcot.tasks._sources import (
    Row,
    Source,
    SourceSettings,
    carve,
    find_file,
    question_of,
    read,
    read_file,
    read_hub,
    without_overlap,
)
from cl_softcot.tasks.base import Task
from cl_softcot.tasks.strategyqa import official_test

DATA = Path(__file__).resolve().parents[3] / "shared" / "data"
NAMES = sorted(benchmark_rows.SETTINGS)


def make(name: str, path: object = None, **settings) -> Task:
    """A task over a folder; without one, over the made-up rows."""
    cls = registry.find("task", name)
    if path is None:
        settings = {**benchmark_rows.settings(name), **settings}
    else:
        settings["path"] = str(path)
    return cls(cls.Settings(**settings), "mine")


def complaint(call, *arguments) -> str:
    with pytest.raises(UserError) as error:
        call(*arguments)
    return str(error.value)


def first(task: Task, split: str = "test"):
    return task.all(split)[0]


# ---------------------------------------------------------------------------------------------------- reading files


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_every_kind_of_file_gives_the_same_rows(tmp_path, suffix):
    import pyarrow
    import pyarrow.parquet

    rows = [{"q": 'a, "b"\u2028c', "n": "1"}, {"q": "\u00e9", "n": "2"}]
    write(tmp_path / f"a.jsonl{suffix}", lines(rows) + "\n")
    write(tmp_path / f"b.json{suffix}", json.dumps(rows))
    write(tmp_path / f"c.json{suffix}", lines(rows))  # lines in spite of the name, as AQuA's
    write(tmp_path / f"d.json{suffix}", json.dumps({"canary": "x", "examples": rows}))
    write(tmp_path / f"e.csv{suffix}", benchmark_rows.table(["q", "n"], [list(row.values()) for row in rows]))
    write(tmp_path / f"f.tsv{suffix}", "q\tn\n" + "".join(f"{row['q']}\t{row['n']}\n" for row in rows))
    sink = pyarrow.BufferOutputStream()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), sink)
    data = sink.getvalue().to_pybytes()
    (tmp_path / f"g.parquet{suffix}").write_bytes(gzip.compress(data) if suffix else data)
    for path in sorted(tmp_path.iterdir()):
        assert [dict(row.fields) for row in read_file(path)] == rows, path.name


def test_other_shapes(tmp_path):
    write(tmp_path / "map.json", json.dumps({"example1": {"a": 1}, "example2": {"a": 2}}))
    assert [row.fields for row in read_file(tmp_path / "map.json")] == [
        {"_key": "example1", "a": 1},
        {"_key": "example2", "a": 2},
    ]
    write(tmp_path / "one.json", json.dumps({"a": 1, "b": {}}))
    assert [row.fields for row in read_file(tmp_path / "one.json")] == [{"a": 1, "b": {}}]
    write(tmp_path / "values.json", "[3, 5]")
    assert [row.take("value") for row in read_file(tmp_path / "values.json")] == [3, 5]
    write(tmp_path / "lines.txt", "one\u2028still one\r\n\n two\n")
    assert [row.fields for row in read_file(tmp_path / "lines.txt")] == [{"text": "one\u2028still one"}, {"text": " two"}]
    write(tmp_path / "bom.jsonl", "\ufeff" + lines([{"a": 1}]))
    assert read_file(tmp_path / "bom.jsonl")[0].fields == {"a": 1}
    write(tmp_path / "odd.csv", 'q,n\r\n"one\u2028two\r\nthree",4\r\n')
    assert read_file(tmp_path / "odd.csv")[0].fields == {"q": "one\u2028two\r\nthree", "n": "4"}
    write(tmp_path / "quotes.tsv", 'say "hi\tB\n')
    assert read_file(tmp_path / "quotes.tsv", ("a", "b"))[0].fields == {"a": 'say "hi', "b": "B"}


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.jsonl", '{"a": 1}\n{"a": \n', ":2:7: not JSON"),
        ("a.jsonl", "[1]\n", ":1: a line holds list"),
        ("a.json", '{"a": [1}', ":1:9: not JSON"),
        ("a.json", "3", "holds int, not a list of objects"),
        ("a.json", "[]", "the file is empty"),
        ("a.txt", " \n", "the file is empty"),
        ("a.csv", "a,b\n1,2,3\n", ":2: has 3 columns where 2 are expected (a, b)"),
        ("a.csv", 'a,b\n"1,2\n', "broken table"),
        ("a.md", "x", "cannot read files of kind '.md'"),
        ("a.parquet", "x", "is not a parquet file"),
    ],
)
def test_a_broken_file_is_told_with_its_place(tmp_path, name, content, words):
    write(tmp_path / name, content)
    said = complaint(read_file, tmp_path / name)
    assert said.startswith(str(tmp_path / name)) and words in said


def test_a_damaged_gzip_a_missing_file_and_what_is_not_text(tmp_path):
    (tmp_path / "a.json.gz").write_bytes(gzip.compress(b"[1, 2]")[:-6])
    assert "not a whole gzip file" in complaint(read_file, tmp_path / "a.json.gz")
    assert "No such file" in complaint(read_file, tmp_path / "none.json")
    (tmp_path / "b.txt").write_bytes(b"abc\xff")
    assert "is not UTF-8 text" in complaint(read_file, tmp_path / "b.txt")


def test_a_file_is_read_once_and_again_when_it_has_changed(tmp_path, monkeypatch):
    path, opened = tmp_path / "a.jsonl", []
    write(path, lines([{"a": 1}]))
    original = _sources._bytes_of
    monkeypatch.setattr(_sources, "_bytes_of", lambda p: opened.append(p) or original(p))
    assert read_file(path) is read_file(str(path)) and len(opened) == 1
    write(path, lines([{"a": 2}]))
    os.utime(path, ns=(1, 1))
    assert read_file(path)[0].fields == {"a": 2} and len(opened) == 2


def test_a_folder_is_searched_for_the_known_names(tmp_path):
    assert find_file(tmp_path, ["a.json", "sub/b.json"], missing_ok=True) is None
    assert "has no a.json or sub/b.json" in complaint(find_file, tmp_path, ["a.json", "sub/b.json"])
    write(tmp_path / "sub/b.json.gz", "[]")
    assert find_file(tmp_path, ["a.json", "sub/b.json"]) == tmp_path / "sub/b.json.gz"
    write(tmp_path / "a.json", "[]")
    assert find_file(tmp_path, ["a.json", "sub/b.json"]) == tmp_path / "a.json"
    assert "relative to where the command runs" in complaint(find_file, tmp_path / "none", ["a.json"])


def test_one_file_cannot_stand_for_every_split(tmp_path):
    """Or training would be on the test questions."""
    write(tmp_path / "train.jsonl", lines([benchmark_rows.gsm8k_row(i) for i in range(50)]))
    assert "each split has its own" in complaint(make("gsm8k", tmp_path / "train.jsonl").examples, "test", 1, 0)
    write(tmp_path / "SVAMP.json", json.dumps([benchmark_rows.svamp_row(i) for i in range(50)]))
    assert make("svamp", tmp_path / "SVAMP.json").count("test") == 15


def test_a_field_that_is_missing_or_of_another_kind():
    row = Row({"question": "q", "answr": "a", "n": 3, "l": ["a", " "], "o": {}}, "f.jsonl:7")
    said = complaint(row.take, "answer")
    assert said.startswith("f.jsonl:7: no field 'answer'; did you mean 'answr'?")
    assert row.take("answer", None) is None and row.text("n") == "3" and row.texts("l") == ["a"]
    assert "f.jsonl:7: field 'o' should be a text" in complaint(row.text, "o")
    assert "should be a list of texts" in complaint(row.texts, "question")


# ------------------------------------------------------------------------------------------------------------ the hub


def hub(monkeypatch, answers):
    """Puts a hub in the place of the real one: (id, config, split) -> rows, or an error to raise."""
    asked = []

    def load_dataset(path, name=None, *, split=None, revision=None):
        asked.append((path, name, split, revision))
        if isinstance(answers, Exception):
            raise answers
        return answers[split] if isinstance(answers, dict) else answers

    monkeypatch.setitem(sys.modules, "datasets", types.SimpleNamespace(load_dataset=load_dataset))
    read_hub.cache_clear()
    return asked


@pytest.mark.parametrize(
    "error", [ConnectionError("no way"), ValueError("unknown split"), OSError("offline"), RuntimeError("gated")]
)
def test_whatever_fails_at_the_hub_names_the_set_and_the_way_out(monkeypatch, error):
    hub(monkeypatch, error)
    task = registry.find("task", "gsm8k")
    said = complaint(task(task.Settings(), "mine").examples, "test", 1, 0)
    assert "openai/gsm8k/main (test)" in said and str(error) in said and "`path:`" in said


def test_the_hub_is_asked_for_the_revision_once(monkeypatch):
    asked = hub(monkeypatch, [{"a": 1}])
    settings, source = SourceSettings(hub="some/set", revision="abc"), Source(("a.json",), "test", "main")
    assert read(settings, source) is read(settings, source)
    assert asked == [("some/set", "main", "test", "abc")]
    assert read(settings, source)[0].where == "some/set/main (test): row 1"
    assert "has no such split on the hub" in complaint(read, settings, Source(("a.json",), None))


def flat_choices(i: int) -> dict[str, object]:
    choices = {"label": list("ABCDE"), "text": [f"{i}{k}" for k in "vwxyz"]}
    return {"id": f"c{i}", "question": f"where is {i}", "choices": choices, "answerKey": "B"}


HUB_ROWS = {
    "gsm8k": [benchmark_rows.gsm8k_row(i) for i in range(40)],
    "asdiv_aug": [benchmark_rows.gsm8k_row(i) for i in range(40)],
    "gsm8k_aug": [{"question": f"what is {i}", "cot": [f"<<{i}+0={i}>>", ""], "answer": f"{i},000"} for i in range(40)],
    "aqua": [benchmark_rows.aqua_row(i) for i in range(40)],
    "strategyqa": [
        {k: v for k, v in row.items() if k != "evidence"}
        for row in (*benchmark_rows.strategyqa_test_rows(), *map(benchmark_rows.strategyqa_row, range(40)))
    ],
    "svamp": [benchmark_rows.svamp_row(i) for i in range(40)],
    "commonsenseqa": [flat_choices(i) for i in range(40)],
    "date_understanding": [benchmark_rows.bbh_dates_row(i) for i in range(20)],
    "bbh": [benchmark_rows.bbh_navigate_row(i) for i in range(20)],
    "mmlu": [
        {"question": f"which {i}", "subject": "anatomy", "choices": [f"{i}{k}" for k in "wxyz"], "answer": i % 4}
        for i in range(40)
    ],
}


@pytest.mark.parametrize("name", NAMES)
def test_rows_of_the_hub_become_examples(monkeypatch, name):
    rows = HUB_ROWS[name]
    splits = {"train": rows[:30], "test": rows[30:] or rows, "validation": rows[20:30], "valid": rows[20:30], "dev": rows[20:30]}
    if name == "asdiv_aug":
        splits["validation"] = rows[30:]
    asked = hub(monkeypatch, splits if len(rows) > 20 else rows)
    cls = registry.find("task", name)
    task = cls(cls.Settings(**benchmark_rows.SETTINGS[name]), "mine")
    example = first(task)
    assert example.answer and task.judge(example, f"### {example.answer}").outcome == "right"
    assert {a[0] for a in asked} == {cls.Settings.model_fields["hub"].default}
    if name == "gsm8k_aug":
        assert (example.steps, example.answer) == (("<<30+0=30>>",), "30000")
    if name == "commonsenseqa":
        assert example.meta["options"]["A"].endswith("v") and example.answer == "B"


# -------------------------------------------------------------------------------------------- what becomes of a row


def test_gsm8k_rows():
    example = next(e for e in make("gsm8k").all("train") if e.question.startswith("Ada has 3 apples"))
    assert example.question == "Ada has 3 apples and buys 2 boxes of 10 apples. How many apples is that?"
    assert example.steps == ("The boxes hold 2 * 10 = 20 apples.", "Ada has 20 + 3 = 23 apples.")
    assert (example.answer, example.meta) == ("23", {"family": "word_problems", "hops": 2})
    kept = next(e for e in make("gsm8k", calculator=True).all("train") if e.id == example.id)
    assert kept.steps == ("The boxes hold 2 * 10 = <<2*10=20>>20 apples.", "Ada has 20 + 3 = <<20+3=23>>23 apples.")


def test_gsm8k_with_the_validation_questions_of_icot(tmp_path):
    path = f"{benchmark_rows.folder()}/gsm8k_icot/valid.txt"
    task = make("gsm8k", valid_path=path)
    stated = {question_of(row.text("text").split("||")[0]) for row in read_file(path)}
    assert {question_of(e.question) for e in task.all("valid")} == stated and len(stated) == 20
    assert not stated & {question_of(e.question) for e in task.all("train")} and task.count("train") == 160


def test_gsm8k_in_icots_form_is_the_same_from_both_sources(tmp_path):
    lined = make("gsm8k_aug")
    for name in ("train.jsonl.gz", "test.jsonl"):
        (tmp_path / name).write_bytes((Path(benchmark_rows.folder()) / "gsm8k" / name).read_bytes())
    derived = make("gsm8k_aug", tmp_path)
    for task in (lined, derived):
        everything = {e.question: (e.steps, e.answer) for split in task.splits for e in task.all(split)}
        assert everything["Ada has 3 apples and buys 2 boxes of 10 apples. How many apples is that?"] == (
            ("<<2*10=20>>", "<<20+3=23>>"),
            "23",
        )
        assert len(everything) == 200
    assert {e.question: e.steps for e in lined.all("test")} == {e.question: e.steps for e in derived.all("test")}
    assert lined.count("valid") == 20 and derived.count("valid") == 18


def test_icots_training_shares_no_13_words_with_the_test(tmp_path):
    words = [f"w{i}" for i in range(20)]
    write(tmp_path / "train.txt", f"a {' '.join(words[:13])} b||#### 1\nc {' '.join(words[:12])} d||#### 2\n")
    write(tmp_path / "valid.txt", "q five||#### 5\n")
    write(tmp_path / "test.txt", f"{' '.join(words)}||#### 6\n")
    assert [e.answer for e in make("gsm8k_aug", tmp_path).all("train")] == ["2"]


def test_an_empty_step_of_icot_is_no_step(tmp_path):
    write(tmp_path / "train.txt", "q one|| #### 1\nq two||<<1+1=2>>  #### 1,002\n")
    write(tmp_path / "valid.txt", "q five||#### 5\n")
    write(tmp_path / "test.txt", "q six|| #### 6\n")
    task = make("gsm8k_aug", tmp_path)
    assert [(e.steps, e.answer, e.meta["hops"]) for e in task.all("train")] == [((), "1", 0), (("<<1+1=2>>",), "1002", 1)]
    assert first(task, "valid").steps == first(task).steps == ()
    write(tmp_path / "test.txt", "q six #### 6\n")
    assert f"{tmp_path}/test.txt:1: is not a line of the form" in complaint(make("gsm8k_aug", tmp_path).all, "test")


def test_aqua_rows():
    example = first(make("aqua"))
    assert example.question.splitlines() == [
        "What is 10 times 60 and 0?",
        *(f"({letter}) {600 + k}" for k, letter in enumerate("ABCDE")),
        "Give the letter of one option as your answer.",
    ]
    assert example.steps == ("Count up to 600.", "Add 0.") and example.answer == "A"  # the rationale's last line is the answer
    flan = first(make("aqua"), "train")
    assert flan.question.startswith("What is 10 times 0 and 0?\n(A) 0\n(B) 1\n") and flan.steps == ('Count "up" to 0.', "Add 0.")
    assert first(make("aqua", hint=False)).question.endswith("(E) 604")


VERDICTS = ("Answer: C", "ANSWER:C", "ANSWER :(Option C)", "Hence (C) is correct answer.", "C is the answer", "Option C", "C")
STEPS = ("=> x = 42857.", "Cost = 5", "C = 4", "The area of C is 4", "So C has 4", "Total")


@pytest.mark.parametrize(("line", "kept"), [*((line, False) for line in VERDICTS), *((line, True) for line in STEPS)])
def test_the_verdict_of_a_rationale_is_no_step(tmp_path, line, kept):
    row = {**benchmark_rows.aqua_row(2), "rationale": f"First.\n{line}\n"}
    for name in ("train", "dev", "test"):
        write(tmp_path / f"{name}.json", lines([row]))
    assert first(make("aqua", tmp_path)).steps == (("First.", line) if kept else ("First.",))


def test_aquas_training_rows_are_cleaned(tmp_path):
    long = "a word that is said so that there are more than thirteen words in this one"
    tested, validated, own = ({**benchmark_rows.aqua_row(i)} for i in range(3))
    tested["question"] = f"Tom says {long}"
    twin = {**own, "question": "twin", "options": ["A)1", "B)1", "C)3", "D)4", "E)5"], "correct": "A"}
    shifted = {**own, "options": [o.replace(")", ")9") for o in own["options"]]}
    leaks = [{**own, "question": f"Ann said: {long}!"}, {**own, "question": validated["question"].upper()}]
    write(tmp_path / "train.json", lines([own, own, shifted, twin, *leaks]))
    write(tmp_path / "dev.json", lines([validated]))
    write(tmp_path / "test.json", lines([tested, {**twin, "question": "other"}]))
    task = make("aqua", tmp_path)
    assert [e.meta["options"]["A"] for e in task.all("train")] == ["20", "920"]
    odd = task.all("test")[1]
    outcomes = {letter: task.judge(odd, f"### {letter}").outcome for letter in "ABC"}
    assert odd.meta["accept"] == ["B"] and outcomes == {"A": "right", "B": "right", "C": "wrong"}
    assert task.judge(odd, "### 1").outcome == "right"


def test_strategyqa_rows(tmp_path):
    example = first(make("strategyqa"))
    number = int(re.search(r"number (\d+)", example.question)[1])
    assert example.question == f"{benchmark_rows.strategyqa_row(number)['question']}\nAnswer with yes or no."
    assert example.steps == (f"Fact {number}.", "It is heavy.") and example.meta["hops"] == 2
    assert example.answer == ("Yes" if number % 3 == 0 else "No")
    assert first(make("strategyqa", steps="decomposition", hint=False)).steps == ("How heavy is it?", "Is #1 too much?")
    with pytest.raises(ValidationError):
        make("strategyqa", steps="evidence")
    rows, tests = [benchmark_rows.strategyqa_row(i) for i in range(40)], benchmark_rows.strategyqa_test_rows()
    write(tmp_path / "train.json", json.dumps([*rows, {**rows[0], "question": "new"}]))
    write(tmp_path / "dev.json", json.dumps([{**tests[0], "term": rows[5]["term"]}, *tests[1:]]))
    n = {shared: make("strategyqa", tmp_path, shared_terms=shared) for shared in (False, True)}
    kept = {e.id for e in n[True].all("train")} - {e.id for e in n[False].all("train")}
    assert kept == {"mine/train/q5"} and n[True].all("valid") == n[False].all("valid")
    write(tmp_path / "dev.json", json.dumps([{**tests[5], "answer": "yes"}, *tests[:5], *tests[6:]]))
    assert "field 'answer' should be true or false" in complaint(make("strategyqa", tmp_path).all, "test")
    write(tmp_path / "dev.json", json.dumps(tests[:-1]))
    said = complaint(make("strategyqa", tmp_path).all, "train")
    assert said.startswith(f"{tmp_path}: ") and "228 of the 229 official test questions" in said


def strategyqa_from_hub(monkeypatch, rows: list[dict]) -> Task:
    """The task, from a hub that cuts the rows 70 / 30 after shuffling them, as the real one does."""
    rows = sorted(rows, key=lambda row: hashlib.md5(row["question"].encode()).digest())
    cut = 7 * len(rows) // 10
    asked = hub(monkeypatch, {"train": rows[:cut], "test": rows[cut:]})
    task = registry.find("task", "strategyqa")
    task = task(task.Settings(), "mine")
    assert task.all("train") and {split for _, _, split, _ in asked} == {"train", "test"}
    return task


def test_strategyqa_has_the_same_splits_from_a_hub_that_cuts_it_otherwise(monkeypatch):
    files = make("strategyqa")
    rows = [*benchmark_rows.strategyqa_test_rows(), *map(benchmark_rows.strategyqa_row, range(180))]
    task = strategyqa_from_hub(monkeypatch, rows)
    assert {split: task.all(split) for split in task.splits} == {split: files.all(split) for split in files.splits}
    assert [task.count(split) for split in ("train", "valid", "test")] == [162, 18, 229]
    assert {e.id.rpartition("/")[2] for e in task.all("test")} == set(official_test())


# ----------------------------------------------------------------------------------------- what keeps splits apart


def test_carving_depends_on_nothing_but_the_questions():
    items = [f"q{i}" for i in range(1000)]
    rest, held = carve(items, str, 50)
    again, same = carve([*reversed(items)], str, 50)
    assert len(held) == 50 and len(rest) == 950 and set(held) == set(same) and set(rest) == set(again)
    assert len(carve(items[:100], str, 50)[1]) == 10  # never more than a tenth
    pairs = [f"{i}{side}" for i in range(500) for side in "ab"]  # what belongs together stays together
    rest, held = carve(pairs, lambda item: item[:-1], 20)
    assert len(held) == 40 and not {item[:-1] for item in rest} & {item[:-1] for item in held}


def test_overlap_is_thirteen_words_or_the_whole_text():
    test = " ".join(f"w{i}" for i in range(30))
    middle = [test.split()[i : i + 13] for i in (0, 9, 17)]
    items = [f"X, {' '.join(words).upper()}. y" for words in middle] + [" ".join(test.split()[:12]), "short  One!", "short two"]
    assert without_overlap(items, str, [test, "short one"]) == [items[3], items[5]]


# -------------------------------------------------------------------------------------------- errors of the user


def test_a_gold_answer_that_the_judge_cannot_read_is_told_at_once(tmp_path):
    rows = [benchmark_rows.svamp_row(i) for i in range(12)]
    write(tmp_path / "SVAMP.json", json.dumps([*rows, {**rows[0], "Question": "x", "Answer": "nan"}]))
    said = [
        complaint(make("svamp", tmp_path).all, split)
        for split in ("train", "test", "valid")
        if _fails(make("svamp", tmp_path), split)
    ]
    assert len(said) == 1 and "cannot read the gold answer 'nan' in field 'Answer'" in said[0]
    assert f"{tmp_path}/SVAMP.json: row 13" in said[0] and "leave the row out" in said[0]
    write(tmp_path / "c/train_rand_split.jsonl", lines([benchmark_rows.commonsenseqa_row(0)]))
    write(tmp_path / "c/dev_rand_split.jsonl", lines([{**benchmark_rows.commonsenseqa_row(1), "answerKey": "F"}]))
    said = complaint(make("commonsenseqa", tmp_path / "c").all, "test")
    assert f"{tmp_path}/c/dev_rand_split.jsonl:1" in said and "'F' in field 'answerKey'" in said


def _fails(task: Task, split: str) -> bool:
    try:
        task.all(split)
    except UserError:
        return True
    return False


@pytest.mark.parametrize(
    ("name", "setting", "near"), [("bbh", {"subset": "navigat"}, "navigate"), ("mmlu", {"subject": "anatomi"}, "anatomy")]
)
def test_unknown_parts_are_told_when_the_task_is_made(name, setting, near):
    assert f"did you mean '{near}'?" in complaint(lambda: make(name, **setting))


def test_evaluation_only_tasks_are_refused_in_a_stream():
    assert "carries a canary" in complaint(make("bbh").examples, "train", 1, 0)
    assert make("bbh").count("train") == 0 and make("mmlu").splits == ("valid", "test")

    def experiment(tasks, **evaluate):
        methods = [{"name": "m", "reasoning": "cot", "strategy": "zero_shot"}]
        data = {"name": "x", "backbone": "builtin:tiny", "tasks": tasks, "methods": methods, "evaluate": evaluate}
        try:
            Experiment.model_validate(data)
        except ValidationError as error:
            return [(e["loc"], e["msg"]) for e in error.errors()]
        return []

    (problem,) = experiment(["gsm8k", "bbh"])
    assert problem[0] == ("tasks", 1) and "'bbh' has test examples only" in problem[1] and "canary" in problem[1]
    assert experiment(["gsm8k"], retention_tasks=["bbh", "mmlu"]) == []
    (problem,) = experiment(["gsm8k"], split="valid", retention_tasks=["mmlu", "bbh"])
    assert problem[0] == ("evaluate", "retention_tasks", 1) and "valid ones are needed" in problem[1]
    assert [loc for loc, _ in experiment(["bbh"], retention_tasks=["mmlu"])] == [("tasks", 0)]


# --------------------------------------------------------------------------------------------- generated date questions


def solved(question: str) -> str:
    """The answer of a generated date question, from its words alone."""
    months = {name: i for i, name in enumerate(date_understanding.calendar.month_name) if name}
    story, ask = re.fullmatch(r"(.*) Which date is it (.*)\? Dates are written MM/DD/YYYY\.", question.split("\n(A)")[0]).groups()
    long = re.search(r"([A-Z][a-z]+) (\d+), (\d{4})", story)
    day = datetime.date(int(long[3]), months[long[1]], int(long[2])) if long else None
    number = next((int(n) for n in re.findall(r"\d+", story.replace(long[0], "") if long else story)), None)
    if "letter" in story or "calendar" in story:
        today = day + timedelta(number)
    elif "museum" in story:
        today = day - timedelta(number)
    elif "receipts" in story:
        today = day + timedelta(7 * number)
    elif "lease" in story:
        month, year = re.search(r"day of ([A-Z]\w+) (\d{4})", story).groups()
        late = (datetime.date(int(year), months[month], 27) + timedelta(k) for k in range(5))
        today = max(d for d in late if d.month == months[month])
    elif "ticket" in story:
        d, m, y = map(int, re.search(r"(\d+)\.(\d+)\.(\d{4})", story).groups())
        today = datetime.date(y, m, d)
    elif "dam" in story:
        years, month = divmod(day.month - 1 + number, 12)
        today = day.replace(year=day.year + years, month=month + 1)
    elif "oak" in story:
        today = day.replace(year=day.year + number)
    else:
        today = (datetime.datetime(day.year, day.month, day.day) - timedelta(hours=number)).date()
    sign = -1 if "back" in ask or "before" in ask else 1
    count = int((re.search(r"\d+", ask) or ["1"])[0])
    if "month" in ask:
        years, month = divmod(today.month - 1 + sign, 12)
        today = today.replace(year=today.year + years, month=month + 1)
    elif "year" in ask:
        today = today.replace(year=today.year + sign)
    elif ask != "today":
        today += timedelta(sign * count * (7 if "week" in ask else 1))
    return f"{today:%m/%d/}{today.year}"


def test_generated_dates_are_right_and_their_options_fair():
    task = make("date_understanding")
    examples = task.examples("train", 3000, 0)
    for e in examples:
        options = e.meta["options"]
        assert options[e.answer] == solved(e.question), e.question
        assert len(options) == 6 == len(set(options.values())) and len(e.steps) == e.meta["hops"] in (1, 2)
        assert e.steps[-1].count(options[e.answer]) == 1
        for text in options.values():
            assert re.fullmatch(r"\d\d/\d\d/\d{4}", text) and f"{datetime.datetime.strptime(text, '%m/%d/%Y'):%m/%d/%Y}" == text
    letters = collections.Counter(e.answer for e in examples)
    assert min(letters.values()) > 420 and max(letters.values()) < 580  # 500 each, give or take four standard deviations
    # Neither the middle, the first nor the last of the sorted dates gives the answer away.
    ranks = collections.Counter(
        sorted(map(_day, e.meta["options"].values())).index(_day(e.meta["options"][e.answer])) for e in examples
    )
    assert max(ranks.values()) < 0.4 * len(examples)
    assert not {e.question for e in examples} & {e.question for e in task.examples("valid", 500, 0)}


def _day(text: str) -> datetime.date:
    return datetime.datetime.strptime(text, "%m/%d/%Y").date()


def test_there_is_nothing_public_to_train_dates_on():
    with pytest.raises(ValidationError):
        make("date_understanding", train="bigbench")


# ------------------------------------------------------------------------------------------------------ the real sets


def real(name: str, **settings) -> Task:
    return make(name, DATA, **settings)


shared = pytest.mark.shared
there = pytest.mark.skipif(not DATA.is_dir(), reason="the data folder (../shared/data) is not there")

SIZES = {
    "gsm8k": (6969, 500, 1319),
    "gsm8k_aug": (6969, 500, 1319),
    "aqua": (None, 254, 254),
    "strategyqa": (1645, 200, 229),
    "svamp": (629, 70, 300),
    "commonsenseqa": (9241, 500, 1221),
    "date_understanding": (None, None, 250),
    "bbh": (None, None, 6504),
    "mmlu": (None, 279, 13937),
}


@shared
@there
@pytest.mark.parametrize("name", SIZES)
def test_real_sets_have_their_sizes_and_every_gold_answer_is_right(name):
    task = real(name)
    for split, size in zip(("train", "valid", "test"), SIZES[name], strict=True):
        if split not in task.splits or (task.count(split) is None):
            assert size is None
            continue
        rows = task.all(split)
        assert size is None or len(rows) == size, split
        assert len({e.id for e in rows}) == len(rows) == len({e.question + str(e.meta.get("subset")) for e in rows})
        for e in rows[:: max(1, len(rows) // 300)]:
            assert task.judge(e, "\n".join([*e.steps, f"### {e.answer}"])).outcome == "right"
    keys = {s: {question_of(e.question) for e in task.all(s)} for s in task.splits if task.count(s) is not None}
    assert all(not keys[a] & keys[b] for a in keys for b in keys if a < b)


@shared
@there
def test_real_gsm8k():
    task = real("gsm8k")
    raw = read_file(DATA / "gsm8k/test.jsonl")
    # The published texts themselves, commas and negative numbers included, are judged right.
    assert all(task.judge(e, row.text("answer")).outcome == "right" for e, row in zip(task.all("test"), raw, strict=True))
    assert sum("," in row.text("answer").split("####")[1] for row in raw) > 10
    assert not any("<<" in step for split in task.splits for e in task.all(split) for step in e.steps)
    # Three test questions (581, 602 and 632) share 13 words with training: their partners are gone.
    train = read_file(DATA / "gsm8k/train.jsonl.gz")
    kept = {e.question for split in ("train", "valid") for e in task.all(split)}
    gone = [row.text("question") for row in train if row.text("question") not in kept]
    tested = {i: e.question for i, e in enumerate(task.all("test"))}
    assert 3 <= len(gone) <= 6
    met = {i for i, question in tested.items() for other in gone if without_overlap([other], str, [question]) == []}
    assert met == {581, 602, 632}
    hops = collections.Counter(e.meta["hops"] for e in task.all("test"))
    assert sum(hops.values()) == 1319 and max(hops) == 11


@shared
@there
def test_real_icot_lines_are_gsm8ks_annotations(tmp_path):
    """Built from GSM8K alone, the rows are those of iCoT's own files; and its validation is never trained on."""
    lined = real("gsm8k_aug")
    derived = make("gsm8k_aug", DATA / "gsm8k")
    ours = {question_of(e.question): (e.steps, float(e.answer)) for split in derived.splits for e in derived.all(split)}
    for split in ("valid", "test"):
        for e in lined.all(split):
            assert ours[question_of(e.question)] == (e.steps, float(e.answer)), e.id
    assert [sum(e.steps == () for e in lined.all(split)) for split in ("valid", "test")] == [6, 18]
    held = {question_of(e.question) for split in ("valid", "test") for e in lined.all(split)}
    assert len(held) == 1819 and not held & {question_of(e.question) for e in lined.all("train")}
    same = real("gsm8k", valid_path=str(DATA / "gsm8k_icot/valid.txt"))
    assert same.count("valid") >= 498 and {question_of(e.question) for e in same.all("valid")} < held


@shared
@there
def test_real_aqua():
    task = real("aqua")
    odd = {int(e.id.rpartition("/")[2]): e for e in task.all("test") if "accept" in e.meta}
    assert sorted(odd) == [117, 124, 126, 193]
    assert all(task.judge(e, f"### ({e.meta['accept'][0]})").outcome == "right" for e in odd.values())
    assert collections.Counter(e.answer for s in ("valid", "test") for e in task.all(s)) == {
        "A": 132,
        "B": 124,
        "D": 103,
        "C": 89,
        "E": 60,
    }
    # The authors' own rationales, read as a model's answers: none is taken for another letter.
    found = collections.Counter()
    for split, name in (("valid", "dev"), ("test", "test")):
        for e, row in zip(task.all(split), read_file(DATA / f"aqua/{name}.json"), strict=True):
            found[task.judge(e, row.text("rationale")).outcome] += 1
    assert found["wrong"] == 0 and found["right"] > 380
    assert 2600 < task.count("train") < 2728
    endings = [e.steps[-1] for e in task.all("train") if e.steps]
    assert len(endings) > 2600 and not any(re.search(r"(?i)\banswer\W*(is|:)?\W*\(?[a-e]\W*$", line) for line in endings)


@shared
@there
def test_real_strategyqa():
    clean, all_terms = real("strategyqa"), real("strategyqa", shared_terms=True)
    rows = {row.text("qid"): row for name in ("train.json.gz", "dev.json") for row in read_file(DATA / "strategyqa" / name)}

    def terms_of(split):
        return {rows[e.id.rpartition("/")[2]].text("term").casefold() for e in clean.all(split)}

    assert not terms_of("train") & terms_of("test") and all_terms.count("train") > clean.count("train") > 1500
    assert collections.Counter(e.answer for e in clean.all("test")) == {"No": 122, "Yes": 107}
    official = {row.text("qid") for row in read_file(DATA / "strategyqa/dev.json")}
    assert {e.id.rpartition("/")[2] for e in clean.all("test")} == official


@shared
@there
@pytest.mark.parametrize("dropped", ["nothing", "qid"])
def test_real_strategyqa_is_the_same_without_ids_and_otherwise_cut(monkeypatch, dropped):
    rows = [dict(row.fields) for name in ("train.json.gz", "dev.json") for row in read_file(DATA / "strategyqa" / name)]
    task = strategyqa_from_hub(monkeypatch, [{k: v for k, v in row.items() if k != dropped} for row in rows])
    files = real("strategyqa")
    for split in files.splits:
        assert [e.question for e in task.all(split)] == [e.question for e in files.all(split)]


@shared
@there
def test_real_svamp():
    task = real("svamp")
    everything = [e for split in task.splits for e in task.all(split)]
    assert len(everything) == 999 and not any(e.id.endswith("/chal-680") for e in everything)
    # Every other answer is the value of its equation.
    for e in everything:
        assert abs(eval(e.steps[0], {"__builtins__": {}}) - float(e.answer)) < 1e-6, e.id


@shared
@there
def test_real_dates_share_every_story_with_the_test():
    stories = {e.question.split(" What is the date")[0] for e in real("date_understanding").all("test")}
    rows = read_file(DATA / "date_understanding/bigbench_date_understanding_task.json")
    told = [row.text("input").split(" What is the date")[0] for row in rows]
    assert len(rows) == 369 and len(stories) == 41
    assert sum(story not in stories for story in told) == 0  # none of BIG-bench's other 119 could be trained on
    words = {question_of(story) for story in stories}
    generated = real("date_understanding").examples("train", 2000, 1)
    assert not any(question_of(e.question.split(" Which date")[0]) in words for e in generated)


@shared
@there
def test_real_bbh():
    task = real("bbh")
    sizes = collections.Counter(e.meta["subset"] for e in task.all("test"))
    published = {"causal_judgement": 187 - 2, "penguins_in_a_table": 146, "snarks": 178, "sports_understanding": 250 - 2}
    broken = {"movie_recommendation": 249, "ruin_names": 248}
    assert sizes == {name: {**dict.fromkeys(bbh.SUBSETS, 250), **published, **broken}[name] for name in bbh.SUBSETS}
    first_of = {e.meta["subset"]: e for e in task.all("test")}
    # The published worked examples end with "So the answer is ...": the judge reads each as what it says.
    read_right = 0
    for path in sorted((DATA / "bbh/cot-prompts").glob("*.txt")):
        for shot in path.read_text(encoding="utf-8").split("\nQ: ")[1:]:
            asked, _, text = shot.partition("\nA:")
            said = re.search(r"[Ss]o the answer is (.*?)\.?\s*$", text)[1]
            example = first_of[path.stem]
            meta = {**example.meta, "options": bbh.options_of(asked)}
            answer = said.strip("()") if re.fullmatch(r"\([A-Z]\)", said) else said
            read_right += task.judge(type(example)("x", "x", asked, (), answer, meta), text).outcome == "right"
    assert read_right == 81


@shared
@there
def test_real_mmlu():
    task = real("mmlu")
    assert len({e.meta["subset"] for e in task.all("test")}) == len(mmlu.SUBJECTS) == 57
    assert 14042 - task.count("test") == 105 and 285 - task.count("valid") <= 6


@shared
@there
@pytest.mark.parametrize("name", ["commonsenseqa", "aqua", "mmlu", "date_understanding"])
def test_the_words_of_the_right_option_are_as_good_as_its_letter(name):
    task = real(name)
    rows = task.all("test")[:: max(1, task.count("test") // 500)]
    missed = 0
    for e in rows:
        text = e.meta["options"][e.answer]
        assert task.judge(e, f"### ({e.answer}) {' '.join(text.split())}").outcome == "right"
        missed += task.judge(e, f"### {text}").outcome != "right"
    assert missed <= 0.005 * len(rows)
