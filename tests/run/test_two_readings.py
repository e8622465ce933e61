"""Every answer is read twice: predictions, records, kept results, tables and charts hold both, and one is the headline."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from reading_fakes import NAMED
from run_fakes import local_task, made_once, run_folders, small, without_clock, write

from cl_softcot.config.fingerprint import run_fingerprint
from cl_softcot.config.loading import load_experiment
from cl_softcot.files import read_jsonl
from cl_softcot.report.__main__ import main as report
from cl_softcot.results import kept, load_results
from cl_softcot.results.events import read_events
from cl_softcot.results.keeping import keep, unpack
from cl_softcot.run.api import run_experiment

READINGS = ("strict", "flexible")
METHODS = ("base_direct", "softcot")


def last_word(name: str, file: str | None = None) -> dict:
    return {**local_task(name, file), "task": NAMED}


def config_of(folder: Path, reading: str | None):
    told = {} if reading is None else {"reading": reading}
    retention = [last_word("kept", "first"), last_word("other")]
    tasks = [last_word("first"), last_word("second")]
    return load_experiment(
        write(folder, small(*METHODS, tasks=tasks, evaluate={"retention_tasks": retention, **told}), f"{reading}.yaml")
    ).config


@pytest.fixture(scope="module")
def both(tmp_path_factory) -> dict[str, Path]:
    """The same experiment under each headline."""

    def make(folder: Path) -> None:
        for reading in READINGS:
            run_experiment(config_of(folder, reading), folder=folder / reading)

    place = made_once("two_readings", make)
    return {reading: place / reading for reading in READINGS}


def test_the_headline_is_a_setting_that_leaves_old_fingerprints_alone(tmp_path):
    configs = {reading: config_of(tmp_path, reading) for reading in (None, *READINGS)}
    prints = {reading: run_fingerprint(config, "softcot", "given", 0) for reading, config in configs.items()}
    assert prints[None] == prints["strict"] != prints["flexible"]


def test_predictions_hold_both_and_stand_on_the_headline(both):
    lines = {reading: read_jsonl(run_folders(both[reading])["softcot"] / "predictions" / "row_2.jsonl") for reading in READINGS}
    for reading, own in lines.items():
        assert all({key: line[key] for key in ("outcome", "answer")} == line["readings"][reading] for line in own)
    strict, flexible = lines.values()
    assert [line["readings"] for line in strict] == [line["readings"] for line in flexible]
    assert sum(line["outcome"] == "unanswered" for line in strict) > sum(line["outcome"] == "unanswered" for line in flexible)


def test_the_other_reading_of_a_record_is_the_headline_of_its_twin(both):
    for one, other in (READINGS, READINGS[::-1]):
        for mine, twin in zip(load_results(both[one]), load_results(both[other]), strict=True):
            assert (mine.reading, mine.other_reading.reading) == (one, other)
            section, same = mine.other_reading.as_dict(), twin.as_dict()
            assert section["accuracy"] == {key: same["accuracy"][key] for key in section["accuracy"]}
            assert section["retention"] == same["retention"]
            assert section["summary"] == {key: same["summary"][key] for key in section["summary"]}
            assert {"acc_interval", "bwt/gem", "unanswered/base", "unanswered/final"} <= set(section["summary"])
            assert mine.retention.as_used[0].unanswered.keys() == mine.retention.as_used[0].families.keys()
            assert len(mine.accuracy.untrained_unanswered) == 2


def test_answers_from_before_there_were_two_readings_are_read_again(both, tmp_path):
    """The base's answers of an older folder, and the rows of a run that was interrupted then."""
    config, out = config_of(tmp_path, "strict"), tmp_path / "out"
    shutil.copytree(both["strict"], out)
    run = run_folders(out)["softcot"]
    for name in ("result.json", "rows/row_1.json", "rows/row_2.json", "predictions/row_1.jsonl", "predictions/row_2.jsonl"):
        (run / name).unlink()
    shutil.rmtree(run / "checkpoints")
    for sums in out.rglob("SHA256SUMS"):  # they are younger than second readings
        sums.unlink()
    row = json.loads((run / "rows" / "row_0.json").read_text())
    of_two = {"other_reading", *(key for key in row if key.startswith("untrained_"))}
    (run / "rows" / "row_0.json").write_text(json.dumps({key: value for key, value in row.items() if key not in of_two}))
    for path in (out / "shared" / "base_predictions.jsonl", run / "predictions" / "row_0.jsonl"):
        lines = [{key: value for key, value in line.items() if key != "readings"} for line in read_jsonl(path)]
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    _, again = run_experiment(config, folder=out)
    _, first = load_results(both["strict"])
    for section in ("summary", "flips"):
        assert without_clock(again.as_dict()[section]) == without_clock(first.as_dict()[section])
    assert again.accuracy.matrix == first.accuracy.matrix and again.retention.as_used[2] == first.retention.as_used[2]
    assert again.other_reading is None, "row 0 was read once: half a matrix is none"
    assert all("readings" in line for line in read_jsonl(run / "predictions" / "row_2.jsonl"))
    assert kept.other_outcomes(run) is None


def test_a_folder_of_one_headline_gives_its_base_to_the_other(both, tmp_path):
    """Other runs in the same folder: the base's answers are not written again, and stand under the new headline."""
    out = tmp_path / "out"
    shutil.copytree(both["strict"] / "shared", out / "shared")
    found = run_experiment(config_of(tmp_path, "flexible"), folder=out)
    for mine, twin in zip(found, load_results(both["flexible"]), strict=True):
        assert without_clock(mine.as_dict()) == without_clock(twin.as_dict())


def test_kept_results_keep_both(both, tmp_path):
    packed = keep(both["strict"], tmp_path / "kept")
    again = unpack(packed, tmp_path / "again")
    for run in run_folders(both["strict"]).values():
        other = kept.other_outcomes(run)
        assert other["reading"] == "flexible" and other["outcomes"] != kept.outcomes(run)[1]
        assert kept.other_outcomes(packed / "runs" / run.name) == kept.other_outcomes(again / "runs" / run.name) == other
        assert (again / "runs" / run.name / "result.json").read_bytes() == (run / "result.json").read_bytes()
    assert (keep(again, tmp_path / "twice") / "runs.jsonl.gz").read_bytes() == (packed / "runs.jsonl.gz").read_bytes()


def test_a_table_for_pandas_says_the_reading_of_each_number(both):
    pytest.importorskip("pandas")
    tables = {reading: load_results(both[reading]).to_dataframe() for reading in READINGS}
    columns = ["method", "experience", "task", "measure"]
    for reading in READINGS:
        chosen = [table[(table.reading == reading) & ~table.measure.str.contains("flips")] for table in tables.values()]
        a, b = (one[[*columns, "value"]].sort_values(columns).reset_index(drop=True) for one in chosen)
        assert len(a) > 50
        both_have = a.merge(b, on=columns, how="inner")
        assert (both_have.value_x == both_have.value_y).all() and len(both_have) > 50
    table = tables["strict"]
    assert set(table[table.measure.str.startswith(("cost/", "drift/"))].reading.isna()) == {True}


def test_charts_and_pages_show_both(both):
    run = run_folders(both["strict"])["softcot"]
    names = {name for event in read_events(run) if event["kind"] == "metrics" for name in event["data"]}
    for name in ("accuracy/share unanswered", "retention/share unanswered", "final/unanswered final", "final/acc"):
        section, rest = name.split("/")
        assert {name, f"{section} flexible/{rest}"} <= names, name
    assert {"accuracy flexible/first", "retention flexible/family kept"} <= names
    page, table = (run / "predictions.html").read_text(), json.loads((run / "predictions.json").read_text())
    assert "strict: unanswered; flexible: wrong (" in page and "the strict reading, the headline" in page
    assert table["columns"][-4:] == ["base, flexible", "model, flexible", "base, strict", "model, strict"]
    assert {len(row) for row in table["data"]} == {len(table["columns"])}


def test_terminal_and_report_have_both_beside_each_other(both, tmp_path, monkeypatch):
    undrawn = {"svg": b'<svg width="1pt" height="1pt"></svg>', "pdf": b""}
    monkeypatch.setattr("cl_softcot.report.writing.drawn", lambda *_: undrawn)
    text = (both["strict"] / "table.txt").read_text()
    assert "headline: the strict reading" in text and "unanswered)" in text and "strict/" in text
    assert "not compared: " in text and "of the base's answers are unanswered" in text and "above it" not in text
    assert report([str(both["strict"]), "--no-mlflow", "--output", str(tmp_path / "report")]) == 0
    said = (tmp_path / "report" / "report.md").read_text()
    for head in ("ACC, flexible ↑", "retention, as used, flexible ↑", "unanswered, strict ↓", "unanswered, flexible ↓"):
        assert f"| {head} |" in said
    assert "Headline: the strict reading" in said and "of softcot's answers are unanswered" in said
    assert "better than" not in said and "No difference that rests on them is claimed" in said
    from printed_report import problems

    assert not problems(tmp_path / "report")
