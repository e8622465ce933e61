"""A change of somebody's own file is a change of the run; what the package brings is known by its version."""

from __future__ import annotations

import subprocess
import sys

import pytest

from cl_softcot import provenance, registry
from cl_softcot.config.fingerprint import fingerprint, modules_of_run, run_fingerprint
from cl_softcot.config.loading import load_experiment
from cl_softcot.files import sha256_of

STRATEGY = """
from strategies.base import Strategy, freeze

class Mine(Strategy):
    changes_backbone = True
    def prepare(self, parts, seed):
        freeze(parts)
        parts.backbone.core.norm.weight.requires_grad_(True)
"""
CONFIG = """
backbone: builtin:tiny
tasks: [graph]
methods:
  - {name: ours, reasoning: cot, strategy: full_finetune}
  - {name: mine, reasoning: cot, strategy: 'hashed_mine:Mine'}
  - {name: of_mine, reasoning: cot, strategy: {name: joint, of: 'hashed_mine:Mine'}}
"""


@pytest.fixture
def experiment(tmp_path, monkeypatch):
    (tmp_path / "trial.yaml").write_text(CONFIG)
    monkeypatch.syspath_prepend(str(tmp_path))

    def load(text: str = STRATEGY):
        (tmp_path / "hashed_mine.py").write_text(text)
        (tmp_path / "__pycache__").exists() and __import__("shutil").rmtree(tmp_path / "__pycache__")
        monkeypatch.delitem(sys.modules, "hashed_mine", raising=False)
        return load_experiment(tmp_path / "trial.yaml").config

    return load


def test_a_changed_file_is_another_run_and_only_of_who_uses_it(experiment, tmp_path):
    config = experiment()
    marks = {m.name: run_fingerprint(config, m.name, "given", 0) for m in config.methods}
    assert modules_of_run(config, "mine", "given") == {"hashed_mine": sha256_of(tmp_path / "hashed_mine.py")}
    assert modules_of_run(config, "of_mine", "given").keys() == {"hashed_mine"}
    assert modules_of_run(config, "ours", "given") == {}
    whole = fingerprint(config)
    again = experiment()
    assert {m.name: run_fingerprint(again, m.name, "given", 0) for m in again.methods} == marks
    changed = experiment(STRATEGY + "\n    # another thought\n")
    differ = {m.name for m in changed.methods if run_fingerprint(changed, m.name, "given", 0) != marks[m.name]}
    assert differ == {"mine", "of_mine"} and fingerprint(changed) != whole


def test_what_was_imported_counts_not_what_the_file_has_become(experiment, tmp_path):
    config = experiment()
    before = run_fingerprint(config, "mine", "given", 0)
    (tmp_path / "hashed_mine.py").write_text(STRATEGY + "# later\n")
    assert run_fingerprint(config, "mine", "given", 0) == before


def test_nothing_of_ours_and_no_library_is_hashed():
    classes = [registry.find("strategy", "lora"), registry.find("reasoning", "coconut"), registry.find("plugin", "replay")]
    assert registry.user_modules(classes) == {}


def test_the_error_names_the_file(experiment, tmp_path):
    from cl_softcot.run.experiment import _what_differs

    now = modules_of_run(experiment(), "mine", "given")
    assert _what_differs({"hashed_mine": "0"}, now) == f"another version of {tmp_path / 'hashed_mine.py'}"
    assert _what_differs(now, now) == _what_differs({}, now) == "other settings"


def test_a_dirty_working_tree_is_told(tmp_path):
    def git(*arguments: str) -> None:
        identity = ("-c", "user.name=n", "-c", "user.email=e@x")
        subprocess.run(["git", "-C", tmp_path, *identity, *arguments], check=True, capture_output=True)

    assert provenance.revision(tmp_path / "nowhere") is None and not provenance.is_dirty(None)
    (tmp_path / "strategies").mkdir()
    (tmp_path / "strategies" / "old.py").write_text("1")
    git("init")
    git("add", ".")
    git("commit", "-m", "first")
    clean = provenance.revision(tmp_path)
    assert len(clean) == 40 and not provenance.is_dirty(clean)
    (tmp_path / "results.txt").write_text("numbers")
    assert provenance.revision(tmp_path) == clean
    (tmp_path / "strategies" / "new.py").write_text("2")
    assert provenance.revision(tmp_path) == f"{clean}+dirty"
    (tmp_path / "strategies" / "new.py").unlink()
    (tmp_path / "strategies" / "old.py").write_text("2")
    assert provenance.is_dirty(provenance.revision(tmp_path))
