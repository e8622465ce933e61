"""What the engine knows of a plug-in it asks it: no name of one, of its tokens or of its settings stands in these rooms."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest
from pydantic import BaseModel

from cl_softcot import registry
from cl_softcot.config import experiment, plugins, settings
from cl_softcot.models.language_model import _BUILTIN_TOKENS

ROOT = Path(__file__).resolve().parents[2] / "cl_softcot"
ROOMS = ("estimate", "config", "run")
FILES = sorted([*(path for room in ROOMS for path in (ROOT / room).rglob("*.py")), ROOT / "answering" / "evaluate.py"])
KINDS = ("task", "reasoning", "strategy", "diagnostic")


def engine_words() -> set[str]:
    """Keys of the YAML that are the engine's own, and what it calls the parts of a model, whatever plug-ins call theirs."""
    models = [m for module in (experiment, plugins, settings) for m in vars(module).values()]
    fields = {f for m in models if isinstance(m, type) and issubclass(m, BaseModel) for f in m.model_fields}
    # Keys of its own records that some setting happens to be called like.
    return fields | {"layers", "kind", "question", "answer", "tokens", "rows", "kept", "n"}


def names() -> set[str]:
    found = {name for kind in KINDS for name in registry.known(kind)} | set(_BUILTIN_TOKENS)
    found |= {token for name in registry.known("reasoning") for token in registry.find("reasoning", name).tokens}
    for kind in KINDS:
        for name in registry.known(kind):
            found |= set(registry.find(kind, name).Settings.model_fields)
    return found - engine_words()


def literals(path: Path) -> list[tuple[int, str]]:
    """Texts in the code, without docstrings."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    docs = {
        id(node.body[0].value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and node.body and isinstance(node.body[0], ast.Expr)
    }
    texts = [node for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)]
    return [(node.lineno, node.value) for node in texts if id(node) not in docs]


@pytest.fixture(scope="module")
def told_apart() -> tuple[set[str], re.Pattern[str]]:
    """All names, and those that are no English words: they may stand in no sentence either."""
    found = names()
    coined = {name for name in found if "_" in name} | {"coconut", "softcot", "lora", "graph", "gsm8k"}
    return found, re.compile(rf"\b({'|'.join(sorted(coined))})\b")


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_no_name_of_a_plugin(path, told_apart):
    known, coined = told_apart
    wrong = [(line, text) for line, text in literals(path) if text in known or coined.search(text)]
    assert not wrong, wrong


def test_this_test_sees_names():
    assert {"frozen_backbone", "soft_thoughts", "latent", "thoughts_per_step", "prosqa", "frontier"} <= names()


@pytest.mark.parametrize("room", ["config", "answering", "metrics", "learning", "check"])
def test_nobody_probes_a_plugin(room):
    """Base classes are complete: nothing is looked for with getattr."""
    probes = re.compile(r"getattr\([^,()]*\b(cls|policy|strategy|reasoning|task|generation)\b[^,]*, \"")
    for path in (ROOT / room).rglob("*.py"):
        assert not probes.findall(path.read_text(encoding="utf-8")), path
