"""The command that checks a plug-in: it finds what is wrong with bad ones, and says where and what to do."""

from __future__ import annotations

import pytest

from cl_softcot.check.__main__ import main

MINE = """
import torch
from pydantic import BaseModel, Field
from torch import nn
from cl_softcot.diagnostics.base import Diagnostic
from cl_softcot.metrics import Meaning, metric
from cl_softcot.reasoning.base import Reasoning, ReasoningSettings
from cl_softcot.tasks.base import Example, Task
from strategies.base import Strategy, TrainedSettings, freeze

class Fast(TrainedSettings):
    learning_rate: float = Field(1e-2, description="peak rate")

class Good(Strategy):
    changes_backbone = True
    Settings = Fast
    def prepare(self, parts, seed):
        freeze(parts)
        parts.reasoning.requires_grad_(True)
        parts.backbone.core.norm.weight.requires_grad_(True)

class Secret(Strategy):
    "Learns in a module that nobody is told of."
    Settings = Fast
    writes_weights = False
    def prepare(self, parts, seed):
        freeze(parts)
        parts.reasoning.requires_grad_(True)
        self.behind = nn.Linear(parts.backbone.width, parts.backbone.width)
        parts.backbone.layers[0].mlp.register_forward_hook(lambda module, inputs, output: self.behind(output))
    def trainable(self, parts):
        return [{"params": list(self.behind.parameters()), "lr": 1e-2}]

class Reckless(Good):
    writes_weights = False

class Chatty(Reasoning):
    class Settings(ReasoningSettings):
        words: int = 3
    def encode(self, text, example, phase, rng):
        from dataclasses import replace
        found = super().encode(text, example, phase, rng)
        return replace(found, prefix_ids=found.prefix_ids + found.target_ids[:2])

class Marked(Reasoning):
    "A special token of its own, and no vector for it."
    tokens = ("mine",)
    def thoughts(self, stage):
        return ["mine", "mine"]

class Same(Task):
    family = "same"
    def examples(self, split, n, seed):
        return [Example(f"{split}/{i}", self.name, f"question {i}", (), "a") for i in range(n)]

class Silent(Diagnostic):
    pass

class Duck:
    def trainable(self, parts): ...

@metric("mean_j R[T,j]", "ours", "fraction", "higher is better")
def last_row(matrix):
    return float(matrix[-1].mean())

@metric("words", "ours", "none", "higher is better")
def says_words(matrix):
    return ["words"]

def means_nothing(matrix):
    return 0.0

CATALOGUE = {"worst/mine": Meaning("min", "", "fraction", "higher", lambda matrix: float(matrix[-1].min()))}
"""


@pytest.fixture(autouse=True)
def _mine(tmp_path, monkeypatch):
    import sys

    (tmp_path / "checked_mine.py").write_text(MINE)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "checked_mine", raising=False)


@pytest.mark.parametrize(
    ("name", "status", "says"),
    [
        ("Good", 0, ["all 11 rules are kept"]),
        ("Secret", 1, ["WRONG  the fingerprint changes with every turn", "name it in tensors()", "checked_mine.py:"]),
        ("Reckless", 1, ["shared with the base", "writes_weights = True"]),
        ("Chatty", 1, ["no description of words", "the prompt knows the gold steps", "use neither"]),
        ("Marked", 0, ["all 10 rules are kept"]),
        ("Same", 1, ["'question 0' is in", "WRONG  splits have no question in common"]),
        ("Silent", 1, ["it has no measure()"]),
    ],
)
def test_what_is_wrong_is_told(name, status, says, capsys):
    assert main([f"checked_mine:{name}"]) == status
    told = capsys.readouterr().out
    assert all(text in told for text in says), told


def test_what_cannot_be_tried(capsys):
    assert main(["checked_mine:Duck"]) == 2
    assert "derives from none of" in capsys.readouterr().err
    assert main(["checked_mine:Nothing"]) == 2
    assert main(["nowhere:Class"]) == 2
    assert main(["graph", "hops=-1"]) == 2


def test_a_metrics_file_is_checked_too(capsys):
    assert main(["checked_mine"]) == 1
    assert "formula, source, unit or direction is empty" in capsys.readouterr().out


def test_a_metric_that_is_a_function(capsys):
    assert main(["checked_mine:last_row"]) == 0
    assert "all 2 rules are kept" in capsys.readouterr().out
    assert main(["checked_mine:says_words"]) == 1
    told = capsys.readouterr().out
    assert "it gave list" in told and "checked_mine.py:" in told
    assert main(["checked_mine:means_nothing"]) == 1
    assert "does not say what it means" in capsys.readouterr().out


def test_ours_by_name_with_settings(capsys):
    assert main(["arithmetic", "note=true"]) == 0
    assert "arithmetic: all 8 rules are kept" in capsys.readouterr().out
