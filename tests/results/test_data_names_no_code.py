"""Files of data, which may come from anywhere: they name no code, reach nothing outside their folder, and cannot write markup."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest
import yaml
from report_fakes import METHODS, write_study

from cl_softcot import registry
from cl_softcot.config.fingerprint import named_modules
from cl_softcot.config.loading import load_experiment
from cl_softcot.errors import UserError
from cl_softcot.report.building import build
from cl_softcot.report.writing import latex, markdown
from cl_softcot.results.folder import RunFolder
from cl_softcot.results.reading import load_results
from cl_softcot.results.record import read_record
from cl_softcot.track.console import table_markdown, table_text

EVIL = "raise SystemExit('code of a data file ran')\n"


@pytest.fixture
def evil(tmp_path, monkeypatch):
    """A module that must not be imported, where commands run."""
    (tmp_path / "evil.py").write_text(EVIL)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


@pytest.fixture
def undrawn(monkeypatch):
    """Drawing takes most of the time of a small report."""
    empty = b'<svg width="1pt" height="1pt"></svg>'
    monkeypatch.setattr("cl_softcot.report.writing.drawn", lambda name, draw: {"svg": empty, "pdf": b""})


@pytest.mark.parametrize(
    "name", ["evil:Task", "os:system", "downloaded.evil:Anything", "grph", "../graph", "base", "_judging", "", None, 3]
)
def test_only_our_own_tasks_are_families(name):
    with pytest.raises(UserError, match="no task of this package"):
        registry.find_builtin("task", name, where="folder/cl_softcot.json")
    assert registry.find_builtin("task", "graph").__name__ == "Graph"


def test_a_model_folder_names_no_code(evil):
    from cl_softcot.answering.build import _families_of
    from cl_softcot.models.language_model import load_language_model
    from cl_softcot.tiny import __file__ as tiny

    folder = evil / "downloaded"
    shutil.copytree(Path(tiny).parent / "assistant", folder)
    marker = json.loads((Path(tiny).parent / "backbone" / "cl_softcot.json").read_text())
    for families, told in [
        ({"x": "evil:Task"}, "no task"),
        ({"x": "local_file"}, "would have to be told"),
        (["x"], "map of texts"),
    ]:
        (folder / "cl_softcot.json").write_text(json.dumps({**marker, "families": families}))
        with pytest.raises(UserError, match=told):
            _families_of(load_language_model(str(folder)))
    assert "evil" not in sys.modules


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        (
            "cl_softcot.json",
            '{"style": "words", "instructions": [], "step_separator": ";", "answer_marker": "a"}',
            "instructions",
        ),
        (
            "cl_softcot.json",
            '{"style": "words", "instructions": {}, "step_separator": 3, "answer_marker": "a"}',
            "step_separator",
        ),
        ("cl_softcot.json", "[" * 9999, "nested deeper"),
        ("config.json", "[]", "should hold a map"),
        ("config.json", '{"model_type": 3}', "of a kind"),
        ("config.json", {"hidden_size": "wide"}, "cannot be loaded"),
        ("config.json", {"num_attention_heads": 0}, "cannot be loaded"),
        ("config.json", {"num_hidden_layers": 10**9}, "num_hidden_layers"),
        ("config.json", {"num_hidden_layers": 10**60}, "61 digits"),
        ("config.json", {"vocab_size": -1}, "cannot be loaded"),
        ("generation_config.json", "3", "should hold a map"),
        ("tokenizer.json", "{}", "tokenizer"),
        ("tokenizer.json", "[" * 9999, "tokenizer"),
        ("tokenizer_config.json", '{"tokenizer_class": 3}', "tokenizer"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_malformed_files_of_a_model_are_one_sentence(name, content, told, tmp_path):
    from cl_softcot.models.language_model import load_language_model
    from cl_softcot.tiny import __file__ as tiny

    folder = tmp_path / "model"
    shutil.copytree(Path(tiny).parent / "assistant", folder)
    if isinstance(content, dict):
        content = json.dumps({**json.loads((folder / name).read_text()), **content})
    (folder / name).write_text(content)
    with pytest.raises(UserError, match=told):
        load_language_model(str(folder))


def test_what_a_results_folder_names_is_not_imported(evil, undrawn):
    study, said = write_study(evil / "study", {"a": METHODS["full_cot"], "b": METHODS["zero_shot_cot"]}, seeds=[0, 1]), []
    config = yaml.safe_load((study / "config.yaml").read_text())
    config["evaluate"]["metrics"] = ["evil:metric"]
    config["methods"][0]["reasoning"] = {"name": "evil:Reasoning"}
    (study / "config.yaml").write_text(yaml.safe_dump(config))
    for path in study.rglob("result.json"):
        data = json.loads(path.read_text())
        data["strategy"] = {"name": "evil:Strategy"}
        path.write_text(json.dumps(data))
    build([str(study)], say=said.append, bootstrap=100, output=str(evil / "out"))
    assert "evil" not in sys.modules and any("--metric evil:metric" in line for line in said)
    with registry.only_builtin("a folder"), pytest.raises(UserError, match="a folder names no code"):
        registry.find("task", "evil:Task")
    with registry.only_builtin("a folder"), pytest.raises(UserError, match="a folder names no code"):
        registry.find_function("metric", "evil:metric")


def test_all_that_an_experiment_names_is_in_the_record(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "named_task.py").write_text("from cl_softcot.tasks.graph import Graph\nclass Mine(Graph): pass\n")
    (tmp_path / "named_metric.py").write_text(
        "from cl_softcot.metrics import metric\n@metric('f', 's', 'u', 'higher is better')\ndef mine(matrix): return 1.0\n"
    )
    (tmp_path / "x.yaml").write_text(
        "backbone: builtin:tiny\ntasks: [{name: a, task: 'named_task:Mine'}]\nevaluate: {metrics: ['named_metric:mine']}\n"
        "methods: [{name: x, reasoning: cot, strategy: zero_shot}]\n"
    )
    assert named_modules(load_experiment(tmp_path / "x.yaml").config).keys() == {"named_task", "named_metric"}


def test_no_file_outside_of_a_run_is_sent(tmp_path):
    run, secret = RunFolder(tmp_path / "run"), tmp_path / "secret.txt"
    (run.path / "figures").mkdir(parents=True)
    secret.write_text("private")
    (run.path / "mine.txt").write_text("mine")
    (run.path / "link.txt").symlink_to(secret)
    (run.path / "away").symlink_to(tmp_path)
    (run.path / "within.txt").symlink_to(run.path / "mine.txt")
    for name in (
        "../secret.txt",
        str(secret),
        "figures/../../secret.txt",
        "link.txt",
        "away/secret.txt",
        "a\0b",
        "figures",
        "",
        3,
    ):
        assert run.inside(name) is None, name
    (tmp_path / "elsewhere").symlink_to(run.path)
    for place in (run.path, tmp_path / "elsewhere"):
        assert RunFolder(place).inside("mine.txt") == RunFolder(place).inside("within.txt") == run.path / "mine.txt"


def _records(study: Path):
    return [json.loads(path.read_text()) for path in sorted(study.rglob("result.json"))]


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"accuracy": {"matrix": []}}, "no first row"),
        ({"accuracy": {"matrix": [[0.5]] * 4}}, "not as long as"),
        ({"accuracy": {"matrix": [[float("nan")] * 3] * 4}}, "finite"),
        ({"summary": {"acc": "high"}}, "summary.acc"),
        ({"seed": "zero"}, "seed"),
        ({"tasks": 3}, "tasks"),
        ({"drift": {"as_used": [{"forward_kl/general": "much"}]}}, "drift.as_used"),
        ({"schema": 99}, "later version"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_malformed_fields_of_a_result_are_one_sentence(change, told, tmp_path):
    [data, *_] = _records(write_study(tmp_path / "study", seeds=[0]))
    with pytest.raises(UserError, match=told):
        read_record({**data, **change})


def test_crafted_names_are_shown_and_not_obeyed(tmp_path, undrawn):
    odd = "x|<img src=q>\x1b[2J\n# h \\input{a} $y$ [z](javascript:a) \ud800"
    study = write_study(tmp_path / "study", {"a": METHODS["full_cot"], "b": METHODS["zero_shot_cot"]}, seeds=[0, 1])
    for path in study.rglob("result.json"):
        data = json.loads(path.read_text())
        if data["method"] == "a":
            path.write_text(json.dumps({**data, "method": odd}))
    (study / "config.yaml").unlink()
    for path in study.rglob("config.json"):
        path.unlink()
    page, _ = build([str(study)], bootstrap=100, output=str(tmp_path / "out"), say=lambda _: None)
    text = page.with_name("report.md").read_text()
    assert "x\\|\\<img src=q>\\x1b[2J # h \\input" in text and "\n# h" not in text and "[z](" not in text
    assert "<img src=q>" not in page.read_text() and "&lt;img src=q&gt;" in page.read_text()
    tables = "".join(path.read_text() for path in (tmp_path / "out" / "tables").glob("*.tex"))
    assert "\\input" not in tables and "\\textbackslash{}input" in tables and "$y$" not in tables
    results = load_results(study)
    for shown in (text, page.read_text(), tables, table_text(results), table_markdown(results)):
        assert "\x1b" not in shown and "\ud800" not in shown


def test_names_in_drawings_are_no_formulas():
    from cl_softcot.report.drawing import drawn, panels

    def draw():
        figure, [[axes]] = panels(1, 1)
        axes.plot([1, 2], [1, 10], label="$\\frac{$ and $\\mathdefault{x}$")
        axes.set(title="$y_{$", yscale="log", xticks=[1, 2], xticklabels=["$a^{$", "b"])
        axes.legend()
        return figure

    assert drawn("x", draw)["svg"].startswith(b"<?xml")


def test_tables_cannot_be_broken_out_of():
    from cl_softcot.report.content import Listing, Section, Table
    from cl_softcot.report.writing import Part

    table = Table("t", "a\n\\input{b}", ["method"], [["[1cm]"], ["* x"]], notes=["c\n\\input{d}"])
    assert all(line.startswith("%") for line in latex(table).splitlines() if "input" in line)
    assert "\n{}[1cm] " in latex(table) and "\n{}* x " in latex(table)
    text = markdown([Part("", [Section("s", [Listing("```\n<b>\n```")])])], "t")
    assert text.count("````") == 2
