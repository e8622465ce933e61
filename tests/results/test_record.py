"""The typed record: each schema that was ever written is read, nothing is lost on the way, and every field is documented."""

from __future__ import annotations

import doctest
import json
import subprocess
import sys
from pathlib import Path

import pytest
from report_fakes import write_study

from cl_softcot.errors import UserError
from cl_softcot.results import kept, load_results, reading
from cl_softcot.results.folder import ExperimentFolder, RunFolder
from cl_softcot.results.keeping import keep
from cl_softcot.results.record import SCHEMA, PartialRecord, RunRecord, fields_of, read_record, record_fields

ROOT = Path(__file__).parents[2]
KEPT = ROOT / "experiments" / "results"
HERE = Path(__file__).parent
STUDIES = sorted(path.parent for path in KEPT.glob("*/runs.jsonl.gz"))


@pytest.mark.parametrize("study", STUDIES, ids=lambda path: path.name)
def test_kept_results_of_schema_1_are_read_and_given_back_to_the_byte(study):
    for line in kept.read(study).runs.values():
        data = line["result"]
        record = read_record(data)
        assert record.schema_version == 1 and record.routing_accuracy is None and record.metrics is None
        assert json.dumps(record.as_dict()) == json.dumps(data), line["run"]
        assert not record.model_extra, "a field that the model does not know has no meaning in the docs"


def test_a_record_of_schema_2_as_a_run_wrote_it():
    """``result_2.json`` is the ``lora_nearest`` of ``run_fakes``, kept as it was written."""
    path = HERE / "result_2.json"
    record = read_record(json.loads(path.read_text()))
    assert record.schema_version == SCHEMA == 2 and record.strategy_name == "lora" and record.trained
    assert json.dumps(record.as_dict(), indent=2, ensure_ascii=False) + "\n" == path.read_text()
    assert not record.model_extra
    assert record.last_row == len(record.tasks) == 2
    assert record.routing_accuracy[0] is None and all(0 <= share <= 1 for share in record.routing_accuracy[1:])
    assert record.at("summary.acc") == record.accuracy.matrix[-1][0] / 2 + record.accuracy.matrix[-1][1] / 2
    assert record.at("retention.as_used.families.kept") == record.retention.as_used[-1].families["kept"]


def test_every_field_is_documented():
    fields = list(fields_of(RunRecord))
    assert len(fields) > 80
    assert not [name for name, _, meaning in fields if len(meaning) < 5]
    assert not [(name, kind) for name, kind, _ in fields if kind == "any"]
    table = record_fields()
    for name in ("schema", "accuracy.matrix", "retention.as_used[i].unrelated", "cost.tokens_per_answer", "metrics.<name>.unit"):
        assert f"| `{name}` |" in table, name
    assert "folder" not in [name for name, *_ in fields]


def test_what_is_no_record_is_told(tmp_path):
    path = tmp_path / "result.json"
    for data, told in (
        ([], "not the result of a run"),
        ({"tasks": []}, "not the result of a run"),
        ({"method": "m"}, "accuracy: field required"),
        ({"method": "m", "accuracy": {"matrix": "x"}}, "accuracy.matrix"),
        ({"method": "m", "schema": 3, "accuracy": {"matrix": []}}, "a later version of this package"),
    ):
        path.write_text(json.dumps(data))
        with pytest.raises(UserError, match=told) as caught:
            load_results(tmp_path)
        assert str(path) in str(caught.value)


def test_what_a_record_does_not_know_stays_and_what_it_lacks_is_none():
    record = read_record({"method": "m", "accuracy": {"matrix": [[0.5], [1]]}, "later": {"x": 1}})
    assert record.as_dict() == {"method": "m", "accuracy": {"matrix": [[0.5], [1]]}, "later": {"x": 1}}
    assert record.split is record.cost.trained_parameters is record.accuracy.n is None and not record.trained
    assert record.retention_row("as_used", 0) is None and record.drift_row("as_used", -1) == {}
    assert record.in_folder("x").as_dict() == record.as_dict()
    with pytest.raises(KeyError):
        record.at("summary.acc")
    changed = record.with_summary({"a": 1.0}, {})
    assert changed.at("summary.a") == 1.0 and "summary" not in record.data
    assert PartialRecord.model_validate(record.as_dict()).accuracy == record.accuracy


def test_the_names_of_files():
    study = ExperimentFolder(Path("runs/x"))
    run = study.run("m.given.seed0")
    assert run.experiment == study and run.root == study.path and RunFolder(Path("alone")).experiment is None
    named = (run.result, run.row(2), run.answers(0), run.answers_alone(1), run.diagnostic("d", 1), run.diagnostic("d", 1, 5))
    assert [path.relative_to(run.path).as_posix() for path in named] == [
        "result.json", "rows/row_2.json", "predictions/row_0.jsonl", "predictions/weights_alone_1.jsonl",
        "diagnostics/d_1.json", "diagnostics/d_1_step5.json",
    ]  # fmt: skip
    assert study.shared.base.as_posix() == "runs/x/shared/base.json" and study.packed.name == "runs.jsonl.gz"


# ------------------------------------------------------------------------------------------------------------ as a table


def test_the_examples_of_the_docstrings(monkeypatch):
    monkeypatch.chdir(ROOT)
    found = doctest.testmod(reading)
    assert found.attempted >= 5 and found.failed == 0


def test_a_table_of_run_folders_is_that_of_their_kept_results(tmp_path):
    import pandas

    study = write_study(tmp_path / "study")
    table = load_results(study).to_dataframe()
    pandas.testing.assert_frame_equal(table, load_results(keep(study, tmp_path / "kept")).to_dataframe())
    columns = ["method", "order", "seed", "experience", "task", "measure", "value", "low", "high", "n", "reading"]
    assert list(table.columns) == columns and not table.value.isna().any()
    keys = ["method", "order", "seed", "experience", "task", "measure"]
    assert not table.duplicated(keys).any(), "a number has one row"
    for run in load_results(study):
        mine = table[(table.method == run.method) & (table.order == run.order) & (table.seed == run.seed)]
        for j, task in enumerate(run.tasks):
            some = mine[(mine.measure == "accuracy") & (mine.task == task)].sort_values("experience")
            assert some.value.tolist() == [row[j] for row in run.accuracy.matrix] and set(some.n) == {run.accuracy.n[j]}
            assert some[["low", "high"]].to_numpy().tolist() == [row[j] for row in run.accuracy.intervals]
        acc = mine[mine.measure == "summary/acc"].iloc[0]
        assert acc.experience == run.last_row and acc.value == run.summary["acc"]
        assert [acc.low, acc.high] == run.summary["acc_interval"]
        drift = mine[(mine.measure == "drift/as_used/forward_kl") & (mine.task == "general")]
        assert drift.value.tolist() == [row["forward_kl/general"] for row in run.drift.as_used]


def test_reading_results_needs_no_torch():
    code = (
        "import sys; from cl_softcot.results import load_results; "
        "load_results('experiments/results/layers').to_dataframe(); print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True, timeout=120)
    assert done.stdout.strip() == "False"
    code = "import sys; from cl_softcot.results import load_results; print('pandas' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True, timeout=120)
    assert done.stdout.strip() == "False"
