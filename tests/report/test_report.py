"""The report of finished runs: every number once more from the folders, what is not comparable, and the files."""

from __future__ import annotations

import csv
import fcntl
import json
import math
import re
import shutil
from pathlib import Path

import pytest
import run_fakes
from plain_numbers import Plain, read_report
from printed_report import problems
from report_fakes import METHODS, REFERENCE, TASKS, edit_result, write_study

from cl_softcot.report.__main__ import main
from cl_softcot.report.content import Number, Table
from cl_softcot.report.writing import as_csv, latex

# Diagnostics that are too long, or have nothing to measure, at the size of these runs.
SMALL: dict[str, dict] = {"during": {"every": 3, "examples": 4}, "relearning": {"steps": 2}}
FAST = ["--bootstrap", "300", "--no-mlflow"]


@pytest.fixture
def undrawn(monkeypatch):
    """Drawing takes most of the time of a small report; tests of numbers and words do without."""
    empty = b'<svg width="1pt" height="1pt"></svg>'
    monkeypatch.setattr("cl_softcot.report.writing.drawn", lambda name, draw: {"svg": empty, "pdf": b""})


def report(*arguments: str | Path) -> int:
    return main([*map(str, arguments), *FAST])


def loaded(folder: Path) -> dict:
    return read_report(folder)


def cell(numbers: list[dict], table: str, row: list[str], column: str) -> dict:
    return next(n for n in numbers if (n["table"], n["row"], n["column"]) == (table, row, column))


@pytest.fixture(scope="module")
def study(tmp_path_factory) -> Path:
    folder = write_study(tmp_path_factory.mktemp("studies") / "study")
    for run in (folder / "runs").glob("full_coconut.*"):
        edit_result(run, diagnostics=_interventions(int(run.name[-1])))
    for run in (folder / "runs").glob("full_cot.*"):
        edit_result(run, diagnostics={"interventions": {"skipped": "cot has no thoughts"}})
    return folder


def _interventions(seed: int) -> dict:
    """What a diagnostic of thoughts leaves in a result."""
    change = {"value": -0.3 - 0.02 * seed, "low": -0.5, "high": -0.1}
    edits = {"swap": {"n": 8, "accuracy_change": change, "p_change": change}, "shuffle": {"skipped": "one thought has no order"}}
    numbers = {"tasks": {}, "pooled": {"accuracy": {"value": 0.5, "low": 0.4, "high": 0.6}, "edits": edits}}
    unknown = {"rows": {"3": {"speed": {"value": 2.0 + seed, "low": 1.0, "high": 4.0}}}, "seconds": 1.0}
    return {"interventions": {"rows": {"3": numbers}, "seconds": 1.0}, "of_tomorrow": unknown}


@pytest.fixture(scope="module")
def written(study, tmp_path_factory) -> Path:
    output = tmp_path_factory.mktemp("report")
    assert report(study, "--output", output) == 0
    return output


# ------------------------------------------------------------------------------------------------------- every number


def test_every_number_follows_from_the_run_folders(study, written):
    entries, plain = loaded(written)["numbers"], Plain({"study": study})
    kinds = set()
    for entry in entries:
        kinds.add(entry["how"])
        found = plain.again(entry, entries)
        if found["value"] is not None:
            assert math.isclose(entry["value"], found["value"], rel_tol=1e-7, abs_tol=1e-9), entry
        if "se" in found and found["se"] is None:
            assert entry["more"].get("se") is None, entry
        elif "se" in found:
            assert math.isclose(entry["more"]["se"], found["se"], rel_tol=1e-7, abs_tol=1e-12), entry
        if "low" in found:  # resampled on one side, in closed form on the other
            width = found["high"] - found["low"]
            assert abs(entry["low"] - found["low"]) < 0.12 * width + 1e-9, (entry, found)
            assert abs(entry["high"] - found["high"]) < 0.12 * width + 1e-9, (entry, found)
    assert kinds == {
        "mean", "interquartile mean", "share above", "intransigence", "point", "law", "paired difference", "p, Holm",
        "smallest difference that would have been shown",
    }  # fmt: skip
    assert len(entries) > 600


def test_the_recomputation_would_notice_a_wrong_number(study, written):
    """It reads the answers, not the results that the report was made from."""
    entries, plain = loaded(written)["numbers"], Plain({"study": study})
    entry = cell(entries, "study-main", ["full_cot"], "ACC ↑")
    assert plain.again(entry, entries)["value"] == pytest.approx(entry["value"], abs=1e-12)
    fewer = {**entry, "runs": entry["runs"][1:]}
    assert abs(plain.again(fewer, entries)["value"] - entry["value"]) > 1e-6


def test_numbers_of_kept_results_follow_too(study, tmp_path, undrawn):
    kept = tmp_path / "kept"
    shutil.copytree(study, kept)
    for run in (kept / "runs").iterdir():
        shutil.rmtree(run / "predictions", ignore_errors=True)
        (run / "config.json").unlink()
    assert report(kept, "--output", tmp_path / "out") == 0
    entries, plain = loaded(tmp_path / "out")["numbers"], Plain({"kept": kept})
    difference = cell(entries, "kept-differences", ["ACC ↑", "full_cot"], "difference")
    assert difference["more"]["basis"] == "runs"
    assert math.isclose(difference["value"], plain.again(difference, entries)["value"], abs_tol=1e-9)
    assert "the folder holds no predictions" in (tmp_path / "out" / "report.md").read_text()


def test_intervals_of_questions_hold_at_their_own_ends(written):
    """A difference at the end of its interval has p = .05: the interval and the test are one."""
    entries = loaded(written)["numbers"]
    found = [e for e in entries if e["how"] == "paired difference" and e["more"]["basis"] == "questions"]
    assert len(found) >= 6
    for e in found:
        outside = not e["low"] <= 0 <= e["high"]
        assert outside == (e["more"]["p"] < 0.05), e
        half = (e["high"] - e["low"]) / 2
        assert 1.9 * e["more"]["se"] < half < 6 * e["more"]["se"] or e["low"] == -1 or e["high"] == 1


def test_one_run_has_intervals_over_examples_and_says_so(tmp_path, undrawn):
    one = write_study(tmp_path / "one", seeds=[0], orders={"given": TASKS})
    assert report(one, "--output", tmp_path / "out") == 0
    acc = cell(loaded(tmp_path / "out")["numbers"], "one-main", ["full_cot"], "ACC ↑")
    result = json.loads((one / "runs" / "full_cot.given.seed0" / "result.json").read_text())
    assert [acc["low"], acc["high"]] == result["summary"]["acc_interval"] and acc["covers"] == "examples"
    text = (tmp_path / "out" / "report.md").read_text()
    assert "say nothing about other seeds" in text and "one seed only" in text and "one task order only" in text
    bwt = [e for e in loaded(tmp_path / "out")["numbers"] if e["path"] == ["summary", "bwt/gem"] and e["how"] == "p, Holm"]
    assert not bwt  # one run of each says nothing about the next
    assert re.search(r"\| BWT \(GEM\) ↑ \| full_cot \| .* \| one run: not tested \|", text)
    assert "BWT (GEM) — one run: not tested: all." in text


def test_references_stand_apart(written):
    numbers = loaded(written)["numbers"]
    assert "joint_cot" not in {row for e in numbers if e["table"] == "study-main" for row in e["row"]}
    assert cell(numbers, "study-references", ["joint_cot", "all tasks together", "6"], "accuracy ↑")["value"] > 0.9
    assert cell(numbers, "study-intransigence", ["full_coconut"], "against joint_cot ↓")["value"] > 0.1


def test_verdicts_need_their_corrected_p(written):
    with open(written / "tables" / "study-differences.csv") as file:
        lines = list(csv.DictReader(file))
    assert len(lines) == 6 * 3  # measures (all but learning accuracy, which zero-shot has not) x methods
    for line in lines:
        assert (line["verdict"] == "no difference shown") == (float(line["p (Holm)"]) >= 0.05), line
    coconut = next(line for line in lines if line["measure"].startswith("KL(base") and line["method"] == "full_coconut")
    assert coconut["verdict"] == "zero_shot_cot better" and float(coconut["difference"]) > 0  # lower drift is better


def test_no_verdict_rests_on_what_is_unanswered(tmp_path, undrawn):
    """Of a base that answers nothing, and of a method whose answers about the base's abilities are mostly none."""
    folder = write_study(tmp_path / "study", {m: METHODS[m] for m in ("zero_shot_cot", "full_coconut", "full_cot")})
    for run in sorted((folder / "runs").iterdir()):
        base, silent = 24 if "zero_shot" in run.name else 0, 8 if "full_cot" in run.name else 0
        kept = json.loads((run / "result.json").read_text())["retention"]["as_used"]
        rows = [{**row, "unanswered": dict.fromkeys(row["families"], silent if i == 3 else 0)} for i, row in enumerate(kept)]
        edit_result(run, accuracy={"unanswered": [[24] * 3, *[[base] * 3] * 3]}, retention={"as_used": rows})
    assert report(folder, "--no-mlflow", "--output", tmp_path / "out") == 0
    text = (tmp_path / "out" / "report.md").read_text()
    lines = {line.split(" — ")[0]: line for line in text.splitlines() if " — " in line}
    assert lines["ACC"] == "ACC — all not compared: 432 of 432 of zero_shot_cot's answers are unanswered."
    assert "full_cot not compared: 96 of 144 of full_cot's answers are unanswered" in lines["retention, as used"]
    assert "full_coconut not compared" not in lines["retention, as used"]
    assert "(432 of 432 unanswered)" in text and "(96 of 144 unanswered)" in text
    assert "the base on the stream's tasks (72 of 72 unanswered)" in text
    assert not problems(tmp_path / "out")


def test_the_control_can_be_chosen_and_the_written_control_stands_beside(study, tmp_path, undrawn):
    assert report(study, "--output", tmp_path, "--control", "full_coconut") == 0
    numbers = loaded(tmp_path)["numbers"]
    assert {e["more"]["b"] for e in numbers if e["table"] == "study-differences"} == {"full_coconut"}
    beside = {tuple(e["row"]) for e in numbers if e["table"] == "study-beside-words"}
    assert {row[1] for row in beside} == {"full_coconut − full_cot"}


# -------------------------------------------------------------------------------------------------------- diagnostics


def test_diagnostics_are_shown_and_missing_ones_have_their_reason(written):
    numbers, text = loaded(written)["numbers"], (written / "report.md").read_text()
    swap = cell(numbers, "study-interventions-accuracy", ["full_coconut"], "swap")
    assert swap["value"] == pytest.approx(-0.32) and swap["n"] == 6 and len(swap["runs"]) == 6
    assert "shuffle" not in {e["column"] for e in numbers if e["table"] == "study-interventions-accuracy"}
    missing = text.split("## What was not measured")[1].split("## ")[0]
    assert "| interventions of full_cot | cot has no thoughts |" in missing
    assert "| interventions, pooled shuffle of full_coconut | one thought has no order |" in missing
    assert re.search(r"\| readout \| not switched on in the experiment", missing)
    assert (written / "figures" / "study-interventions.svg").exists()


def test_a_diagnostic_without_a_section_is_not_hidden(written):
    speed = cell(loaded(written)["numbers"], "study-of_tomorrow", ["speed"], "full_coconut")
    assert speed["value"] == pytest.approx(3.0)


@pytest.mark.slow
def test_real_runs_with_every_diagnostic(tmp_path):
    """What the diagnostics really write: all of it is shown, and every number follows from the folders."""
    from cl_softcot.registry import known

    names = known("diagnostic")
    settings = {"seeds": [0, 1], "diagnostics": [{"name": name, **SMALL.get(name, {})} for name in names]}
    path = run_fakes.write(tmp_path, run_fakes.small("full_coconut", "lora_replay", "softcot", **settings))
    ended = run_fakes.start(path, "output_dir=out", cwd=tmp_path)
    assert ended.status == 0, ended.text
    assert report(tmp_path / "out", "--output", tmp_path / "report") == 0
    entries, text = loaded(tmp_path / "report")["numbers"], (tmp_path / "report" / "report.md").read_text()
    plain = Plain({"out": tmp_path / "out"})
    for entry in entries:
        if entry["how"] != "law":  # models that learn nothing give points that no form is determined by
            found = plain.again(entry, entries)
            assert found["value"] is None or math.isclose(entry["value"], found["value"], rel_tol=1e-7, abs_tol=1e-9), entry
    shown = {entry["path"][1] for entry in entries if entry["path"][0] == "diagnostics"}
    missing = text.split("## What was not measured")[1].split("## ")[0]
    for name in names:
        assert name in shown or name.replace("_", " ") in missing, name
    assert {"interventions", "readout", "variance_split", "weight_change", "similarity", "during"} <= shown


# ---------------------------------------------------------------------------------------------------- what is compared


def run_of(folder: Path, name: str) -> Path:
    return folder / "runs" / name


def test_tables_hold_the_runs_that_all_methods_have(tmp_path, capsys, undrawn):
    folder = write_study(tmp_path / "study", METHODS)
    (run_of(folder, "full_cot.given.seed1") / "result.json").rename(run_of(folder, "full_cot.given.seed1") / "events.jsonl")
    shutil.rmtree(run_of(folder, "softcot_oracle.reverse.seed2"))
    assert report(folder, "--output", tmp_path / "out") == 0
    said, found = capsys.readouterr().out, loaded(tmp_path / "out")
    assert "1 runs not finished: full_cot.given.seed1" in said
    assert "1 runs missing: softcot_oracle.reverse.seed2" in said
    assert "compared over the 4 runs" in said
    runs = found["studies"][0]["runs"]
    assert len(runs) == 4 * 4 and not [r for r in runs if r.endswith(("given.seed1", "reverse.seed2"))]
    used = {run for e in found["numbers"] for run in e["runs"]}
    assert used <= set(runs)
    assert cell(found["numbers"], "study-main", ["zero_shot_cot"], "ACC ↑")["n"] == 4
    assert "full_cot.given.seed1" in (tmp_path / "out" / "report.html").read_text()


def test_a_run_that_is_still_going_is_told(tmp_path, capsys, undrawn):
    folder = write_study(tmp_path / "study", METHODS)
    (run_of(folder, "full_cot.given.seed1") / "result.json").unlink()
    (run_of(folder, "full_cot.given.seed1") / "events.jsonl").write_text("")
    with open(folder / ".lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert report(folder, "--output", tmp_path / "out") == 0
    assert "1 runs still going: full_cot.given.seed1" in capsys.readouterr().out


def refused(capsys, *arguments: str | Path) -> tuple[int, str]:
    status = report(*arguments)
    said = capsys.readouterr().err
    assert said.startswith("error: ") and said.count("error:") == 1 and "Traceback" not in said
    return status, said


def test_nothing_in_common_is_one_error(tmp_path, capsys, undrawn):
    folder = write_study(tmp_path / "study", {name: METHODS[name] for name in ("full_cot", "full_coconut")}, seeds=[0, 1])
    for order in ("given", "reverse"):
        (run_of(folder, f"full_cot.{order}.seed0") / "result.json").unlink()
        (run_of(folder, f"full_coconut.{order}.seed1") / "result.json").unlink()
    status, said = refused(capsys, folder)
    assert status == 1 and "no task order and seed was finished by all methods" in said and "--methods" in said
    assert not (folder / "report").exists()
    assert report(folder, "--methods", "full_cot") == 0


def test_an_experiment_without_finished_runs(tmp_path, capsys):
    folder = write_study(tmp_path / "study", {"full_cot": METHODS["full_cot"]}, seeds=[0])
    for run in (folder / "runs").iterdir():
        (run / "result.json").rename(run / "events.jsonl")
    status, said = refused(capsys, folder)
    assert status == 1 and "no run is finished" in said and "2 runs not finished" in said


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"split": "valid"}, "split differs: test in"),
        ({"frozen": {"backbone_sha256_before": "other"}}, "base model differs"),
        ({"train_fingerprints": ["a", "b", "c"]}, "training data of seed 1 differ"),
        ({"accuracy": {"n": [5, 24, 24]}}, "test examples of deduce differs: 24 in"),
    ],
)
def test_runs_that_were_measured_differently_never_mix(tmp_path, capsys, change, words):
    folder = write_study(tmp_path / "study", METHODS)
    edit_result(run_of(folder, "full_cot.given.seed1"), **change)
    status, said = refused(capsys, folder)
    assert status == 1 and words in said and "full_cot.given.seed1" in said


def test_other_test_data_show_in_the_base_s_own_answers(tmp_path, capsys):
    """Of kept results, which have no fingerprint of the test data."""
    folder = write_study(tmp_path / "study", METHODS, predictions=False)
    other = write_study(tmp_path / "other", METHODS, predictions=False, data_seed=5)
    shutil.rmtree(run_of(folder, "zero_shot_cot.given.seed1"))
    shutil.copytree(run_of(other, "zero_shot_cot.given.seed1"), run_of(folder, "zero_shot_cot.given.seed1"))
    status, said = refused(capsys, folder)
    assert status == 1 and "the base's own answers" in said and "zero_shot_cot.given.seed1" in said


def test_other_evaluate_settings_never_mix(tmp_path, capsys):
    folder = write_study(tmp_path / "study", METHODS)
    path = run_of(folder, "full_cot.given.seed1") / "config.json"
    config = json.loads(path.read_text())
    config["experiment"]["evaluate"]["max_new_tokens"] = 7
    path.write_text(json.dumps(config))
    status, said = refused(capsys, folder)
    assert status == 1 and "evaluate.max_new_tokens differs" in said


def test_wrong_folders_and_names(tmp_path, study, capsys):
    (tmp_path / "empty").mkdir()
    status, said = refused(capsys, tmp_path / "empty")
    assert status == 2 and "no run in this folder" in said
    status, said = refused(capsys, tmp_path / "nowhere")
    assert status == 2 and "there is no such folder" in said
    status, said = refused(capsys, study, "--methods", "full_kot")
    assert status == 2 and "did you mean 'full_cot'?" in said
    status, said = refused(capsys, study, "--control", "full_kot")
    assert status == 2 and "did you mean 'full_cot'?" in said
    status, said = refused(capsys)
    assert status == 2 and "give folders of runs" in said


def test_unequal_budgets_are_told(tmp_path, undrawn):
    folder = write_study(tmp_path / "study", METHODS)
    for run in (folder / "runs").glob("full_cot.*"):
        edit_result(run, cost={"optimiser_steps": 90})
    assert report(folder, "--output", tmp_path / "out") == 0
    assert "Unequal budgets" in (tmp_path / "out" / "report.md").read_text()


# ---------------------------------------------------------------------------------------------------- several studies


def test_studies_side_by_side_only_if_they_were_measured_alike(tmp_path, study, capsys, undrawn):
    alike = write_study(tmp_path / "alike", luck=1)
    apart = write_study(tmp_path / "apart", settings={"backbone": {"path": "builtin:tiny@50"}})
    assert report(study, alike, apart, "--output", tmp_path / "out") == 0
    said, found = capsys.readouterr().out, loaded(tmp_path / "out")
    assert "apart is not in one table with study" in said and "base model" in said
    beside = {e["row"][0] for e in found["numbers"] if e["table"] == "side-by-side"}
    assert beside == {"study", "alike"}
    assert {s["name"] for s in found["studies"]} == {"study", "alike", "apart"}
    assert cell(found["numbers"], "apart-main", ["full_cot"], "ACC ↑")["n"] == 6


def of_bases(folder: Path, **more) -> list[Path]:
    """The same methods from two bases, of which the weaker forgets less; ``more``: records of the test data."""
    weak = dict(METHODS) | {"full_coconut": ("coconut", "full_finetune", False, 0.7, 0.05, 0.6)}
    full = write_study(folder / "full", dict(METHODS))
    half = write_study(folder / "half", weak, settings={"backbone": {"path": "builtin:tiny@50"}})
    for study, record in more.items():
        (folder / study / "shared").mkdir()
        (folder / study / "shared" / "base.json").write_text(json.dumps(record))
    return [half, full]


def test_what_was_lost_is_held_against_what_there_was_to_lose(tmp_path, undrawn):
    data = {"task deduce": "a", "retention dates": "b"}
    half, full = of_bases(tmp_path, full={"base": "x", **data}, half={"base": "y", **data})
    assert report(half, full, "--output", tmp_path / "out") == 0
    entries = loaded(tmp_path / "out")["numbers"]
    lost = cell(entries, "across-bases", ["full_coconut", "full", "builtin:tiny"], "own abilities lost ↓")
    rows = [json.loads(p.read_text())["retention"]["as_used"] for p in full.glob("runs/full_coconut.*/result.json")]
    assert lost["value"] == pytest.approx(sum(row[0]["all"] - row[-1]["all"] for row in rows) / 6) and lost["value"] > 0.4
    share = cell(entries, "across-bases", ["full_coconut", "full", "builtin:tiny"], "share of them lost ↓")
    assert share["value"] == pytest.approx(lost["value"] / rows[0][0]["all"])
    against = [e for e in entries if e["table"] == "across-bases-differences" and e["how"] == "paired difference"]
    assert len(against) == 4 and {e["more"]["basis"] for e in against} == {"questions"}
    with open(tmp_path / "out" / "tables" / "across-bases-differences.csv") as file:
        verdicts = {line["measure"].split(":")[0]: line["verdict"] for line in csv.DictReader(file)}
    others = dict.fromkeys(set(METHODS) - {"full_coconut"}, "no difference shown")
    assert verdicts == {"full_coconut": [v for v in verdicts.values() if v.endswith("lost more")][0], **others}
    plain = Plain({"half": half, "full": full})
    for entry in entries:
        if entry["table"].startswith("across-bases"):
            found = plain.again(entry, entries)["value"]
            assert found is None or math.isclose(entry["value"], found, abs_tol=1e-9), entry


@pytest.mark.parametrize("half", [None, {"base": "y", "task deduce": "other questions"}])
def test_bases_are_not_compared_on_other_questions_or_without_a_record_of_them(tmp_path, undrawn, half):
    records = {"full": {"base": "x", "task deduce": "a"}} | ({"half": half} if half else {})
    assert report(*of_bases(tmp_path, **records), "--output", tmp_path / "out") == 0
    assert "across-bases" not in {e["table"] for e in loaded(tmp_path / "out")["numbers"]}


def test_a_copy_that_never_changes_forgets_nothing(tmp_path, undrawn):
    """Chaudhry et al.'s maximum counts what the base did before a task's turn; the headline does not."""
    methods = {"full_cot": METHODS["full_cot"], "copies": ("softcot", "frozen_backbone", True, 0.15, 0.0, 0.0)}
    folder = write_study(tmp_path / "study", methods)
    assert report(folder, "--output", tmp_path / "out", "--control", "full_cot") == 0
    entries = loaded(tmp_path / "out")["numbers"]
    assert cell(entries, "study-main", ["copies"], "forgetting since learned ↓")["value"] == 0
    assert cell(entries, "study-conventions", ["copies"], "Chaudhry et al. 2018 ↓")["value"] > 0.05
    assert {"forgetting since learned ↓", "BWT (GEM) ↑"} <= {e["row"][0] for e in entries if e["table"] == "study-differences"}
    assert "Which forgetting?" in (tmp_path / "out" / "report.md").read_text()


def test_compare_tells_what_changed_and_whether_it_matters(tmp_path, capsys, undrawn):
    weak, strong = dict(METHODS), dict(METHODS)
    weak["full_cot"] = ("cot", "full_finetune", False, 0.5, 0.3, 0.1)
    a = write_study(tmp_path / "before", weak)
    b = write_study(tmp_path / "after", strong, settings={"train": {"steps": 40}})
    assert main(["--compare", str(a), str(b), *FAST]) == 0
    output = b / "compare_before"
    numbers, text = loaded(output)["numbers"], (output / "report.md").read_text()
    assert "| train.steps | 10 | 40 |" in text and "evaluate.test" not in text.split("## Does it matter?")[0]
    acc = cell(numbers, "compare-differences", ["ACC ↑", "full_cot"], "difference")
    means = [
        sum(json.loads(p.read_text())["summary"]["acc"] for p in folder.glob("runs/full_cot.*/result.json")) / 6
        for folder in (b, a)
    ]
    assert acc["value"] == pytest.approx(means[0] - means[1]) and acc["value"] > 0.2
    with open(output / "tables" / "compare-differences.csv") as file:
        verdicts = {(line["measure"], line["method"]): line["verdict"] for line in csv.DictReader(file)}
    assert verdicts["ACC ↑", "full_cot"] == "after better"
    assert verdicts["ACC ↑", "zero_shot_cot"] == "no difference shown"
    plain = Plain({"before": a, "after": b})
    for entry in numbers:
        found = plain.again(entry, numbers)
        assert found["value"] is None or math.isclose(entry["value"], found["value"], rel_tol=1e-7, abs_tol=1e-9), entry


def test_compare_refuses_other_data_and_the_same_folder(tmp_path, capsys):
    a = write_study(tmp_path / "a", METHODS, seeds=[0, 1])
    b = write_study(tmp_path / "b", METHODS, seeds=[0, 1], split="valid")
    c = write_study(tmp_path / "c", METHODS, seeds=[7, 8])
    assert main(["--compare", str(a), str(b), *FAST]) == 1
    assert "split test against valid" in capsys.readouterr().err
    assert main(["--compare", str(a), str(c), *FAST]) == 1
    assert "has a seed and task order in common" in capsys.readouterr().err
    assert main(["--compare", str(a), str(a), *FAST]) == 2
    assert "the same study" in capsys.readouterr().err


# ------------------------------------------------------------------------------------------------------------- files


def test_the_same_folders_give_the_same_bytes(study, written, tmp_path):
    assert report(study, "--output", tmp_path / "again") == 0
    names = sorted(p.relative_to(written) for p in written.rglob("*") if p.is_file())
    assert names == sorted(p.relative_to(tmp_path / "again") for p in (tmp_path / "again").rglob("*") if p.is_file())
    for name in names:
        if name.name != "report.json":  # which names the study's folder as seen from itself
            assert (written / name).read_bytes() == (tmp_path / "again" / name).read_bytes(), name


def test_the_page_needs_nothing_else(written):
    page = (written / "report.html").read_text()
    assert not re.search(r"""(src|href)=["'](?!#|data:)""", page), "something is fetched"
    assert "@import" not in page and "url(http" not in page and "<script" not in page
    assert page.count("<svg") == len(list((written / "figures").glob("*.svg"))) >= 8
    assert "prefers-color-scheme: dark" in page and "@media print" in page
    assert "#1a1a1b" not in page.lower() and "currentColor" in page  # the ink of drawings follows the page
    ids = re.findall(r'<clipPath id="([^"]+)"', page)
    assert len(ids) == len(set(ids)), "a drawing would be cut by another's frame"


def test_every_method_has_one_colour_everywhere(written):
    from cl_softcot.results.colors import palette

    colors = palette([*METHODS, *REFERENCE])
    for name in ("study-curves-given", "study-law", "study-retention"):
        drawing = (written / "figures" / f"{name}.svg").read_text().lower()
        for method in ("full_coconut", "full_cot", "softcot_oracle"):
            if name != "study-law" or method != "softcot_oracle":  # which never moved
                assert colors[method].lower() in drawing, (name, method)


def test_names_cannot_break_the_page_or_the_tables(tmp_path, undrawn):
    odd = "a<b>&_50%|$x"
    folder = write_study(tmp_path / "odd", {odd: METHODS["full_cot"], "zero_shot_cot": METHODS["zero_shot_cot"]}, seeds=[0, 1])
    assert report(folder, "--output", tmp_path / "out") == 0
    page = (tmp_path / "out" / "report.html").read_text()
    assert "a<b>" not in page and "a&lt;b&gt;&amp;_50%|$x" in page
    assert r"a$<$b$>$\&\_50\%$|$\$x" in (tmp_path / "out" / "tables" / "odd-main.tex").read_text()
    assert r"a\<b>&\_50%\|$x" in (tmp_path / "out" / "report.md").read_text()


def test_tables_as_latex_and_csv():
    table = Table("t", "T", ["method", "ACC ↑"], [["a_b", Number(0.5, 0.4, 0.6, 3)], ["c", Number(None)]])
    assert latex(table).splitlines()[2:] == [
        r"\begin{tabular}{lr}", r"\toprule", r"method & ACC $\uparrow$ \\", r"\midrule", r"a\_b & 0.500 $\pm$ 0.100 \\",
        r"c & -- \\", r"\bottomrule", r"\end{tabular}",
    ]  # fmt: skip
    assert as_csv(table) == "method,ACC ↑,ACC ↑ low,ACC ↑ high,ACC ↑ n\na_b,0.5,0.4,0.6,3\nc,,,,\n"
    with pytest.raises(ValueError, match="2 columns"):
        Table("t", "T", ["a", "b"], [["only one"]])


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (Number(0.5), "0.500"),
        (Number(0.5, 0.4, 0.6), "0.500 ± 0.100"),
        (Number(0.5, 0.4, 0.7), "0.500 [0.400, 0.700]"),
        (Number(0.5, 0.5, 0.5), "0.500 ± 0"),
        (Number(-0.1, -0.2, 0.0, style="change"), "−0.100 ± 0.100"),
        (Number(0.1, style="change"), "+0.100"),
        (Number(-0.0001, style="change"), "0.000"),
        (Number(626_000, style="count"), "626k"),
        (Number(8_030_000_000, style="count"), "8.03G"),
        (Number(0.0002, style="p"), "<0.001"),
        (Number(-40686.2, style="ratio"), "−40.7k"),
        (Number(0.5, n=1, asked=3), "0.500 (n = 1)"),  # of three runs one has the number
        (Number(None), "–"),
    ],
)
def test_numbers_as_text(number, text):
    assert str(number) == text


def test_a_section_is_one_file(study, monkeypatch, tmp_path, undrawn):
    """A new file in the room of sections is found by itself."""
    from cl_softcot.report import sections

    (tmp_path / "greeting.py").write_text(
        "from cl_softcot.report.content import Section, Text\n"
        "def section(study):\n    return Section('Greeting', [Text(f'{len(study.runs)} runs')])\n"
    )
    monkeypatch.setattr(sections, "__path__", [*sections.__path__, str(tmp_path)])
    assert report(study, "--output", tmp_path / "out") == 0
    text = (tmp_path / "out" / "report.md").read_text()
    assert "## Greeting\n\n24 runs" in text
    assert text.index("## The question") < text.index("## The set-up") < text.index("## Greeting")


def test_the_sweep_that_chose_a_rate_is_named(study, tmp_path, capsys, undrawn):
    winner = {"number": 4, "params": {"methods.full_cot.strategy.learning_rate": 0.001}}
    other = {"number": 2, "params": {"methods.full_coconut.strategy.learning_rate": 0.01}}
    (tmp_path / "rates").mkdir()
    (tmp_path / "rates" / "winner.json").write_text(json.dumps({"sweep": "rates", "winners": [winner, other]}))
    assert report(study, "--output", tmp_path / "out", "--chosen-by", tmp_path / "rates") == 0
    text = (tmp_path / "out" / "report.md").read_text()
    assert "| 0.001 | sweep rates, trial 4, validation data |" in text
    assert "the experiment's file (sweep rates, trial 2, validation data chose 0.01)" in text
    status, said = refused(capsys, study, "--chosen-by", tmp_path / "out")
    assert status == 2 and "winner.json" in said


@pytest.mark.slow
def test_the_report_is_sent_to_mlflow_if_its_runs_were(tmp_path, monkeypatch):
    folder = write_study(tmp_path / "study", {"full_cot": METHODS["full_cot"]}, seeds=[0])
    text = (folder / "config.yaml").read_text().replace("mlflow: false", "mlflow: true")
    (folder / "config.yaml").write_text(text)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/store.db")
    monkeypatch.chdir(tmp_path)
    assert main([str(folder), "--bootstrap", "100"]) == 0
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{tmp_path}/store.db")
    experiment = client.get_experiment_by_name("study")
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.data.tags["mlflow.runName"] == "report study"
    assert {a.path for a in client.list_artifacts(run.info.run_id)} >= {"report.html", "report.md", "report.json"}


def test_what_became_of_the_rows_of_ones_own_data_stands_in_the_report(tmp_path):
    from cl_softcot.report.sections import reproduce
    from cl_softcot.report.studies import load_studies

    folder = write_study(tmp_path / "study", seeds=(0,), orders={"given": TASKS})
    record = json.loads((folder / "experiment.json").read_text())
    said = "9 rows: 7 train, 1 valid, 1 test; from the hub: some/set, commit abc"
    for told, expected in (({"mine": said}, [["data of mine", said]]), (None, []), ([1], [])):
        (folder / "experiment.json").write_text(json.dumps({**record, "task_data": told}))
        (study,) = load_studies([folder])
        table = next(b for b in reproduce.section(study).blocks if isinstance(b, Table) and b.name.endswith("-versions"))
        assert [row for row in table.rows if str(row[0]).startswith("data of")] == expected
