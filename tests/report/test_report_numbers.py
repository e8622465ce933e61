"""Every number of a kept report follows from the run folders that are kept beside it, and a wrong digit anywhere is found."""

from __future__ import annotations

import importlib.util
import json
import re
import shutil
from pathlib import Path

import pytest
from plain_numbers import read_report
from printed_report import problems
from report_fakes import METHODS, REFERENCE, edit_result, write_study

from cl_softcot.report.__main__ import main

ROOT = Path(__file__).parents[2]
KEPT = sorted(path.parent for path in (ROOT / "experiments" / "results").glob("**/report/report.json"))


@pytest.mark.parametrize("report", KEPT, ids=lambda path: path.parent.name)
@pytest.mark.slow
def test_a_kept_report_follows_from_its_runs(report):
    assert not problems(report)


# ------------------------------------------------------------------------------------- the same, of a report made here


def keep(folder: Path, target: Path, monkeypatch) -> Path:
    """As ``tools/keep_results.py`` does it."""
    spec = importlib.util.spec_from_file_location("keep_results", ROOT / "tools" / "keep_results.py")
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    monkeypatch.setattr(tool, "KEPT", target)
    return tool.keep(folder)


def diagnostics(method: str, seed: int, order: str) -> dict:
    """What diagnostics leave in a result; tasks as in ``report_fakes``."""
    noise = 0.01 * seed + (0.005 if order == "reverse" else 0.0)
    number = lambda value: {"value": value, "low": value - 0.05, "high": value + 0.05, "n": 20}  # noqa: E731
    earlier = ("deduce", "recall") if order == "given" else ("fees", "recall")
    tasks = {
        task: {
            "as_learned": number(0.8 - noise), "before": number(0.5 + noise), "after": number(0.7 - noise),
            "control_before": number(0.3), "control_after": number(0.4 + noise / 2), "lost": number(-0.3 + 2 * noise),
            "recovered": number(0.66) if seed else {"value": None, "low": None, "high": None, "why": "nothing lost"},
            "control": number(0.2),
        }
        for task in earlier
    }  # fmt: skip
    learn = lambda after: {"before": number(0.1), "after": number(after), "losses": [1.0]}  # noqa: E731
    plasticity = {
        "task": "probe", "family": "dates", "steps": 5, "now": learn(0.5 - noise * 2), "from_the_beginning": learn(0.8 + noise),
        "gain_ratio": number(0.57 - noise), "after_difference": number(-0.3 - 3 * noise),
    }  # fmt: skip
    kinds = {"facts": {"tasks": ["recall"], **number(-0.1 - noise)}, "skill": {"tasks": ["deduce"], **number(-0.3 + noise * 3)}}
    layers = {"relative": 0.1 + noise, "layers": [0.1 + noise, 0.2, 0.3 + noise], "halves": {"lower": 0.1, "upper": 0.3 + noise}}
    cka = {"as_used": [number(0.9 - noise), number(0.8)], "weights_alone": None}
    return {
        "relearning": {"rows": {"3": {"steps": 5, "tasks": tasks}}},
        "plasticity": {"rows": {"1": plasticity, "3": plasticity}},
        "facts_and_skills": {"rows": {"3": {"learned": kinds, "own_abilities": kinds, "unrelated": {"skill": kinds["skill"]}}}},
        "weight_change": {"rows": {"3": {"since_base": layers}}},
        "similarity": {"rows": {"3": {"layers": 1, "sets": {"deduce": cka}}}},
        "during": {
            "rows": {
                str(row): {
                    "steps": [5, 10], "accuracy": {task: [0.5 + noise, 0.6] for task in earlier[:row]},
                    "n": dict.fromkeys(earlier, 4),
                    "acc/min": 0.4 + noise, "acc/wc": 0.5 - noise, "forgetting/curve_area": 0.1 + noise,
                }
                for row in (1, 2, 3)
            }
        },
    }  # fmt: skip


@pytest.fixture(scope="module")
def study(tmp_path_factory) -> Path:
    folder = write_study(tmp_path_factory.mktemp("made") / "study", {**METHODS, **REFERENCE})
    for run in (folder / "runs").glob("full_*"):
        method, order, seed = run.name.split(".")
        edit_result(run, diagnostics=diagnostics(method, int(seed[-1]), order))
    empty = b'<svg width="1pt" height="1pt"></svg>'  # drawing takes most of the time
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("cl_softcot.report.writing.drawn", lambda name, draw: {"svg": empty, "pdf": b""})
        assert main([str(folder), "--bootstrap", "200", "--no-mlflow"]) == 0
    return folder


@pytest.fixture
def kept(study, tmp_path, monkeypatch) -> Path:
    return keep(study, tmp_path, monkeypatch)


def test_every_number_follows_from_what_is_kept(kept):
    assert not list((kept / "runs").rglob("predictions")) and (kept / "questions.json").exists()
    assert not problems(kept / "report")
    tables = {entry["table"] for entry in read_report(kept / "report")["numbers"]}
    of = {"main", "conventions", "differences", "plasticity", "relearning", "relearning-tasks", "facts-and-skills", "similarity"}
    assert {f"study-{name}" for name in of} <= tables


def test_a_report_of_kept_results_says_the_same(kept, study, tmp_path, monkeypatch):
    """Question by question too: what is kept of the answers is enough."""
    monkeypatch.setattr("cl_softcot.report.writing.drawn", lambda name, draw: {"svg": b'<svg width="1pt"></svg>', "pdf": b""})
    assert main([str(kept), "--bootstrap", "200", "--no-mlflow", "--output", str(tmp_path / "again")]) == 0
    again, before = (read_report(folder)["numbers"] for folder in (tmp_path / "again", study / "report"))
    assert again == before
    assert any(entry.get("more", {}).get("basis") == "questions" for entry in again)


CELL = {
    "report.md": r"\| (\d\.\d{3}) ±",
    "report.html": r'"">(\d\.\d{3}) <span|>(\d\.\d{3}) <span',
    "tables/study-main.tex": r"& (\d\.\d{3}) ",
}
CELL |= {
    "tables/study-main.csv": r",(0\.\d{8,}),",
    "tables/study-relearning.csv": r",(0\.\d{3,}),",
    "report.json": r'"value": (0\.\d{8,})',
}


@pytest.mark.parametrize("name", CELL)
def test_a_wrong_digit_is_found(kept, name):
    path = kept / "report" / name
    text = path.read_text()
    match = re.search(CELL[name], text)
    place = match.start(match.lastindex) + 4  # the third decimal
    path.write_text(text[:place] + str((int(text[place]) + 1) % 10) + text[place + 1 :])
    assert problems(kept / "report")


def test_another_result_is_found(kept):
    """A run whose answers are not those that the report was made from."""
    path = kept / "runs" / "full_coconut.given.seed1" / "outcomes.json"
    rows = json.loads(path.read_text())
    letters = rows[-1]["task"]["deduce"]
    rows[-1]["task"]["deduce"] = letters.translate(str.maketrans("rw", "wr"))
    path.write_text(json.dumps(rows))
    found = problems(kept / "report")
    assert any("study-main" in line and "ACC" in line for line in found)
    assert any("study-differences" in line for line in found)


@pytest.mark.parametrize(
    ("table", "old", "new"),
    [
        ("study-differences.csv", "full_cot better", "no difference shown"),
        ("study-main.csv", "\nfull_cot,6,", "\nfull_cot,5,"),
        ("study-methods.csv", ",0.001,", ",0.002,"),
    ],
)
def test_wrong_words_are_found(kept, table, old, new):
    path = kept / "report" / "tables" / table
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))
    assert problems(kept / "report")


def test_a_column_of_another_name_is_found(kept):
    """A table whose heads are swapped, everywhere alike."""
    folder = kept / "report"
    for path in (folder / "report.json", folder / "report.md", folder / "report.html", *(folder / "tables").glob("study-main.*")):
        text = path.read_text()
        for a, b in (("ACC ↑", "@"), ("learning accuracy ↑", "ACC ↑"), ("@", "learning accuracy ↑")):
            text = text.replace(a, b).replace(a.replace("↑", r"$\uparrow$"), b).replace(a.replace(" ", "&nbsp;"), b)
        path.write_text(text)
    assert any("study-main" in line for line in problems(folder))


def test_a_table_that_is_left_out_is_found(kept):
    shutil.move(kept / "report" / "tables" / "study-main.csv", kept / "elsewhere.csv")
    assert any("study-main" in line for line in problems(kept / "report"))
