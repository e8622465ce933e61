"""A few rows of each public benchmark's form, made up here, in files that are named and written like the originals."""

from __future__ import annotations

import csv
import gzip
import json
import tempfile
from functools import cache
from pathlib import Path

from cl_softcot.tasks.strategyqa import official_test

NAMES = "Ada Ben Cleo Dan Eva Finn Gus Hal Ida Jon Kim Lea Max Nia Odo Pia Quin Rosa Sam Tia".split()
THINGS = "apples books coins drums eggs forks gems hats inks jars".split()


def gsm8k_row(i: int) -> dict[str, str]:
    """Different words for each ``i`` below 200, so that no two rows are variants of one problem."""
    who, what, n = NAMES[i % 20], THINGS[i // 20], i + 3
    question = f"{who} has {n} {what} and buys 2 boxes of 10 {what}. How many {what} is that?"
    answer = (
        f"The boxes hold 2 * 10 = <<2*10=20>>20 {what}.\n{who} has 20 + {n} = <<20+{n}={20 + n}>>{20 + n} {what}.\n#### {20 + n}"
    )
    return {"question": question, "answer": answer}


def icot_line(i: int) -> str:
    return f"{gsm8k_row(i)['question']}||<<2*10=20>> <<20+{i + 3}={i + 23}>> #### {i + 23}"


def aqua_row(i: int) -> dict[str, object]:
    options = [f"{letter}){10 * i + k}" for k, letter in enumerate("ABCDE")]
    letter = "ABCDE"[i % 5]
    rationale = f"Count up to {10 * i}.\nAdd {i % 5}.\nAnswer: {letter}"
    return {"question": f"What is 10 times {i} and {i % 5}?", "options": options, "rationale": rationale, "correct": letter}


def flan_line(i: int) -> str:
    options = "".join(f"\\n({letter}) {10 * i + k}" for k, letter in enumerate("ABCDE"))
    return f'What is 10 times {i} and {i % 5}?\\nOptions:{options}\t({"ABCDE"[i % 5]})\tCount "up" to {10 * i}.\\nAdd {i % 5}.'


def strategyqa_row(i: int) -> dict[str, object]:
    question = f"Could {NAMES[i % 20]} lift {THINGS[i // 20 % 10]} number {i}?"
    about = {"qid": f"q{i}", "term": f"term {i}", "description": "made up", "question": question, "answer": i % 3 == 0}
    return {
        **about,
        "facts": [f"Fact {i}.", "It is heavy. "],
        "decomposition": ["How heavy is it?", "Is #1 too much?"],
        "evidence": [],
    }


def strategyqa_test_rows() -> list[dict[str, object]]:
    """Made-up questions under the ids of the official test part: all 229, as the task asks for."""
    return [{**strategyqa_row(1000 + i), "qid": qid} for i, qid in enumerate(official_test())]


def svamp_row(i: int) -> dict[str, object]:
    had = i + 9 + i % 7
    body, question = f"{NAMES[i % 20]} picked {had} {THINGS[i // 20 % 10]}. Then {i + 1} got lost", f"How many are left of {had}?"
    equation = f"( {had}.0 - {i + 1}.0 )"
    answer = float(had - i - 1)
    return {
        "ID": f"chal-{i + 1}",
        "Body": body,
        "Question": question,
        "Equation": equation,
        "Answer": answer,
        "Type": "Subtraction",
    }


def commonsenseqa_row(i: int) -> dict[str, object]:
    choices = [{"label": letter, "text": f"place {i} {letter.lower()}x"} for letter in "ABCDE"]
    stem = f"Where would {NAMES[i % 20]} keep {THINGS[i // 20 % 10]}?"
    return {"id": f"c{i}", "answerKey": "ABCDE"[i % 5], "question": {"question_concept": "x", "choices": choices, "stem": stem}}


def bbh_dates_row(i: int) -> dict[str, str]:
    options = "".join(f"\n({letter}) 0{k + 1}/{i + 1:02d}/2001" for k, letter in enumerate("ABCDEF"))
    question = f"The show of Jan {i + 1}, 2001 is on today. What is the date today in MM/DD/YYYY?"
    return {"input": f"{question}\nOptions:{options}", "target": f"({'ABCDEF'[i % 6]})"}


def bbh_navigate_row(i: int) -> dict[str, str]:
    return {
        "input": f"Do you return? Take {i + 1} steps. Turn around. Take 7 steps.\nOptions:\n- Yes\n- No",
        "target": "Yes" if i % 3 else "No",
    }


def mmlu_cells(i: int) -> list[object]:
    return [f'Which is bone {i}, "really"?', f"skull {i}", f"rib {i}", f"toe {i}", f"jaw, {i}", i % 4]


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".gz":
        path.write_bytes(gzip.compress(text.encode(), mtime=0))
    else:
        path.write_text(text, encoding="utf-8", newline="")


def lines(rows: list) -> str:
    return "".join(f"{row if isinstance(row, str) else json.dumps(row)}\n" for row in rows)


def table(header: list, rows: list[list]) -> str:
    import io

    buffer = io.StringIO(newline="")
    csv.writer(buffer).writerows([header, *rows])
    return buffer.getvalue()


def write_all(root: Path) -> Path:
    """Every benchmark's files, in folders named as their tasks are."""
    first, last = list(range(180)), list(range(180, 200))
    write(root / "gsm8k/train.jsonl.gz", lines([gsm8k_row(i) for i in first]))
    write(root / "gsm8k/test.jsonl", lines([gsm8k_row(i) for i in last]))
    write(root / "gsm8k_icot/train.txt", lines([icot_line(i) for i in first]))  # holds valid's lines, as the originals do
    write(root / "gsm8k_icot/valid.txt", lines([icot_line(i) for i in first[:20]]))
    write(root / "gsm8k_icot/test.txt", lines([icot_line(i) for i in last]))
    write(root / "asdiv_aug/aug-train.jsonl", lines([gsm8k_row(i) for i in first]))
    write(root / "asdiv_aug/aug-dev.jsonl", lines([gsm8k_row(i) for i in last]))
    write(root / "aqua/flan_cot_aqua_train.tsv", lines([flan_line(i) for i in range(40)]))
    write(root / "aqua/dev.json", lines([aqua_row(i) for i in range(40, 60)]))
    write(root / "aqua/test.json", lines([aqua_row(i) for i in range(60, 80)]))
    write(root / "strategyqa/train.json.gz", json.dumps([strategyqa_row(i) for i in first], indent=1))
    write(root / "strategyqa/dev.json", json.dumps(strategyqa_test_rows()))
    write(root / "svamp/SVAMP.json", json.dumps([svamp_row(i) for i in range(250)]))
    write(root / "commonsenseqa/train_rand_split.jsonl.gz", lines([commonsenseqa_row(i) for i in first]))
    write(root / "commonsenseqa/dev_rand_split.jsonl", lines([commonsenseqa_row(i) for i in last]))
    for subset, row in (("date_understanding", bbh_dates_row), ("navigate", bbh_navigate_row)):
        write(root / f"bbh/{subset}.json", json.dumps({"canary": "x", "examples": [row(i) for i in range(20)]}))
    header = ["question", *(f"choice{k}" for k in range(4)), "answer"]
    write(root / "mmlu/test/anatomy_test.csv", table(header, [mmlu_cells(i) for i in range(20)]))
    write(root / "mmlu/dev/anatomy_dev.csv", table(header, [mmlu_cells(i) for i in range(20, 40)]))
    return root


@cache
def folder() -> str:
    """One folder with all of them, for the whole test run."""
    keep = tempfile.TemporaryDirectory(prefix="benchmark_rows")
    _kept.append(keep)
    return str(write_all(Path(keep.name)))


_kept: list[tempfile.TemporaryDirectory] = []

# What a task needs so that it reads these rows.
SETTINGS = {
    **dict.fromkeys("gsm8k gsm8k_aug asdiv_aug aqua strategyqa svamp commonsenseqa date_understanding".split(), {}),
    "bbh": {"subset": "navigate"},
    "mmlu": {"subject": "anatomy"},
}


def settings(name: str) -> dict[str, object]:
    return {"path": folder(), **SETTINGS[name]}
