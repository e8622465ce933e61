"""Every number of a kept report follows from the runs that are kept beside it, and a wrong digit anywhere is found."""

from __future__ import annotations

import gzip
import json
import re
import shutil
from pathlib import Path

import pytest
from plain_numbers import read_report
from printed_report import problems, wrong_numbers
from report_fakes import METHODS, REFERENCE, edit_result, write_study

from cl_softcot.report.__main__ import main
from cl_softcot.results.keeping import keep

ROOT = Path(__file__).parents[2]
KEPT = sorted(path.parent for path in (ROOT / "experiments" / "results").glob("*/report.json"))


@pytest.fixture(autouse=True, scope="module")
def undrawn():
    """Drawing takes most of the time."""
    empty = b'<svg width="1pt" height="1pt"></svg>'
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("cl_softcot.report.writing.drawn", lambda name, draw: {"svg": empty, "pdf": b""})
        patch.setattr("cl_softcot.report.building._what_the_run_showed", lambda *_: None)
        yield


@pytest.mark.parametrize("folder", KEPT, ids=lambda path: path.name)
@pytest.mark.slow
def test_a_kept_report_follows_from_its_runs(folder, tmp_path):
    """Its numbers, and every page and table that is made again from what is kept."""
    assert not wrong_numbers(folder)
    assert main([str(folder), "--no-mlflow", "--output", str(tmp_path)]) == 0
    again, kept = read_report(tmp_path), read_report(folder)
    for new, old in zip(again["numbers"], kept["numbers"], strict=True):
        values = {key: pytest.approx(old[key], rel=1e-9) for key in ("value", "low", "high") if old[key] is not None}
        assert {**new, "more": None} == {**old, **values, "more": None}  # more: what ``problems`` computes the number from
    assert not problems(tmp_path)


# ------------------------------------------------------------------------------------- the same, of a report made here


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
    assert main([str(folder), "--bootstrap", "200", "--no-mlflow"]) == 0
    return folder


@pytest.fixture(scope="module")
def made(study, tmp_path_factory) -> Path:
    """The study as it is kept, and its report made again from that, in ``report`` beside it."""
    place = tmp_path_factory.mktemp("kept")
    kept = keep(study, place)
    assert main([str(kept), "--bootstrap", "200", "--no-mlflow", "--output", str(place / "report")]) == 0
    return place


@pytest.fixture
def kept(made, tmp_path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "kept")) / "study"


@pytest.fixture
def report(kept) -> Path:
    return kept.parent / "report"


def test_every_number_follows_from_what_is_kept(kept, report):
    assert sorted(path.name for path in kept.iterdir()) == ["config.yaml", "experiment.json", "report.json", "runs.jsonl.gz"]
    assert not problems(report) and not wrong_numbers(kept)
    tables = {entry["table"] for entry in read_report(report)["numbers"]}
    of = {"main", "conventions", "differences", "plasticity", "relearning", "relearning-tasks", "facts-and-skills", "similarity"}
    assert {f"study-{name}" for name in of} <= tables


def _anywhere(page: bytes) -> bytes:
    """A page without the places of its study, which commands name."""
    return re.sub(rb" output_dir=[^\s<]+|/\S*/(?=study\b)", b"", page)


def test_a_report_of_kept_results_says_the_same(kept, report, study):
    """To the letter, and question by question too: what is kept of the answers is enough."""
    assert not problems(study / "report")
    for path in sorted((study / "report").rglob("*")):
        if path.is_file() and path.name != "report.json":
            again = (report / path.relative_to(study / "report")).read_bytes()
            assert _anywhere(again) == _anywhere(path.read_bytes()), path.name
    again, before, beside = (read_report(folder) for folder in (report, study / "report", kept))
    assert again["numbers"] == before["numbers"] == beside["numbers"]
    assert [found["studies"][0].pop("folder") for found in (again, before, beside)] == ["../study", "..", "."]
    assert again == before == beside
    assert any(entry.get("more", {}).get("basis") == "questions" for entry in again["numbers"])


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
def test_a_wrong_digit_is_found(report, name):
    path = report / name
    text = path.read_text()
    match = re.search(CELL[name], text)
    place = match.start(match.lastindex) + 4  # the third decimal
    path.write_text(text[:place] + str((int(text[place]) + 1) % 10) + text[place + 1 :])
    assert problems(report)


def test_a_wrong_digit_in_what_is_kept_is_found(kept):
    path = kept / "report.json"
    text = path.read_text()
    place = re.search(CELL["report.json"], text).start(1) + 4
    path.write_text(text[:place] + str((int(text[place]) + 1) % 10) + text[place + 1 :])
    assert wrong_numbers(kept)


def test_another_result_is_found(kept, report):
    """A run whose answers are not those that the report was made from."""
    path = kept / "runs.jsonl.gz"
    lines = [json.loads(line) for line in gzip.decompress(path.read_bytes()).splitlines()]
    (run,) = (line for line in lines if line.get("run") == "full_coconut.given.seed1")
    letters = run["outcomes"][-1]["task"]["deduce"]
    run["outcomes"][-1]["task"]["deduce"] = letters.translate(str.maketrans("rw", "wr"))
    path.write_bytes(gzip.compress("".join(json.dumps(line) + "\n" for line in lines).encode()))
    for found in (problems(report), wrong_numbers(kept)):
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
def test_wrong_words_are_found(report, table, old, new):
    path = report / "tables" / table
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))
    assert problems(report)


def test_a_column_of_another_name_is_found(report):
    """A table whose heads are swapped, everywhere alike."""
    whole = (report / name for name in ("report.json", "report.md", "report.html"))
    for path in (*whole, *(report / "tables").glob("study-main.*")):
        text = path.read_text()
        for a, b in (("ACC ↑", "@"), ("learning accuracy ↑", "ACC ↑"), ("@", "learning accuracy ↑")):
            text = text.replace(a, b).replace(a.replace("↑", r"$\uparrow$"), b).replace(a.replace(" ", "&nbsp;"), b)
        path.write_text(text)
    assert any("study-main" in line for line in problems(report))


def test_a_table_that_is_left_out_is_found(report):
    (report / "tables" / "study-main.csv").unlink()
    assert any("study-main" in line for line in problems(report))
