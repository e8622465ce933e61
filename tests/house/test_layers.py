"""Who may import whom (the contract in pyproject.toml, and what it cannot say), and that light commands stay light."""

from __future__ import annotations

import ast
import functools
import graphlib
import os
import re
import subprocess
import sys
import tomllib
from collections import defaultdict
from pathlib import Path

import pytest

from cl_softcot import registry

grimp = pytest.importorskip("grimp", reason="needs import-linter: pip install 'cl-softcot[test]'")

ROOT = Path(__file__).resolve().parents[2]
FILES = sorted([*(ROOT / "cl_softcot").rglob("*.py"), *(ROOT / "strategies").rglob("*.py")])
FLOORS = 10
HEAVY = {
    "avalanche",
    "datasets",
    "matplotlib",
    "mlflow",
    "numpy",
    "optuna",
    "pandas",
    "peft",
    "rich",
    "scipy",
    "torch",
    "transformers",
}


def python(*arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run([sys.executable, *arguments], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)


# ------------------------------------------------------------------------------------------------------------- the rooms


@functools.cache
def graph() -> grimp.ImportGraph:
    """All imports, those inside of functions too; those for type checkers only are left out."""
    return grimp.build_graph("cl_softcot", "strategies", exclude_type_checking_imports=True, cache_dir=None)


def room(module: str) -> str:
    """A folder or a file directly below ``cl_softcot``; all strategies are one."""
    return ".".join(module.split(".")[: 1 if module.startswith("strategies") else 2])


def rooms() -> dict[str, set[str]]:
    """Which rooms each room imports from."""
    found: dict[str, set[str]] = defaultdict(set)
    for module in graph().modules:
        below = {room(other) for other in graph().find_modules_directly_imported_by(module)}
        found[room(module)] |= below - {room(module)}
    return found


def test_the_contract_is_kept():
    done = python("-c", "from importlinter.cli import lint_imports_command as run; run(['--no-cache', '--no-logo'])")
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_contract_places_every_room():
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    layers = next(contract["layers"] for contract in contracts if contract["type"] == "layers")
    placed = {name.strip(" ()") for layer in layers for name in layer.split("|")}
    assert set(rooms()) - {"cl_softcot"} <= placed


def test_rooms_form_no_circle_and_few_floors():
    order = list(graphlib.TopologicalSorter(rooms()).static_order())  # CycleError names a circle
    chains: dict[str, list[str]] = {}
    for name in order:
        chains[name] = [name, *max((chains[below] for below in rooms()[name]), key=len, default=[])]
    longest = max(chains.values(), key=len)
    assert len(longest) <= FLOORS, " -> ".join(longest)


def test_files_form_no_circle():
    imports = {module: graph().find_modules_directly_imported_by(module) for module in graph().modules}
    graphlib.TopologicalSorter(imports).prepare()  # CycleError names a circle


@pytest.mark.parametrize("kind", registry.KINDS)
def test_nothing_that_is_found_by_name_is_imported_by_name(kind):
    """Only the base class; and plain chain of thought, which is what 'the base' means. ``tiny`` makes models of known tasks."""
    package = registry.KINDS[kind].package
    allowed = {package, f"{package}.base", "cl_softcot.reasoning.cot"}
    for module in graph().modules:
        if room(module) not in (package, "cl_softcot.tiny"):
            named = {m for m in graph().find_modules_directly_imported_by(module) if room(m) == package}
            assert named <= allowed, module


def test_models_do_not_even_name_a_way_of_thinking():
    every = grimp.build_graph("cl_softcot", exclude_type_checking_imports=False, cache_dir=None)
    below = every.find_descendants("cl_softcot.models")
    named = {m: {o for o in every.find_modules_directly_imported_by(m) if room(o) == "cl_softcot.reasoning"} for m in below}
    assert not any(named.values()), named


def test_only_the_registry_imports_by_a_made_up_name():
    """What is imported through a string is seen by no contract."""
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            name = ast.unparse(node.func).rpartition(".")[2] if isinstance(node, ast.Call) else ""
            if name in ("import_module", "__import__", "run_module", "resolve_name") and path.name != "registry.py":
                assert ast.literal_eval(node.args[0]).split(".")[0] not in ("cl_softcot", "strategies"), path


def test_a_public_class_name_stands_in_one_file():
    """``Settings`` are a plug-in's own, and are named by it."""
    homes: dict[str, list[str]] = defaultdict(list)
    for path in FILES:
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_") and node.name != "Settings":
                homes[node.name].append(path.relative_to(ROOT).as_posix())
    assert {name: files for name, files in homes.items() if len(files) > 1} == {}


# --------------------------------------------------------------------------------------------------------------- light


def imported_at_once(path: Path) -> set[str]:
    """The libraries that a file needs in order to be imported: not what functions and type checkers import."""
    found: set[str] = set()

    def visit(node: ast.AST) -> None:
        if isinstance(node, ast.Import):
            found.update(alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            found.add((node.module or "").split(".")[0])
        for child in ast.iter_child_nodes(node):
            is_for_types = isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test)
            if not isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef) and not is_for_types:
                visit(child)

    visit(ast.parse(path.read_text(encoding="utf-8")))
    return found


def test_heavy_libraries_are_imported_when_they_are_used():
    lazy = {"mlflow", "matplotlib", "datasets", "optuna", "submitit", "psycopg", "sqlalchemy"}
    for path in FILES:
        if path.relative_to(ROOT).as_posix() != "cl_softcot/track/figures.py":
            assert not imported_at_once(path) & lazy, path


def test_whoever_imports_transformers_prepares_torchvision_first():
    """Importing any cl_softcot.models module does it; other files say so themselves."""
    for path in FILES:
        name = path.relative_to(ROOT).as_posix()
        if "transformers" in imported_at_once(path) and not name.startswith("cl_softcot/models/"):
            text = path.read_text(encoding="utf-8")
            prepared = min((text.find(s) for s in ("ensure_torchvision()", "from cl_softcot.models") if s in text), default=-1)
            used = text.find("from transformers")
            assert 0 <= prepared and (prepared < used or "cl_softcot.models" in text), name


def loaded_by(*arguments: str) -> tuple[set[str], str]:
    """The libraries that a Python process loads, and what it prints. What it takes would depend on the machine's load."""
    done = python("-X", "importtime", *arguments)
    assert done.returncode == 0, done.stderr
    return {m[1] for m in re.finditer(r"^import time:[^|]*\|[^|]*\| *(\w+)", done.stderr, re.M)}, done.stdout


def test_the_package_itself_is_light():
    assert not loaded_by("-c", "import cl_softcot")[0] & (HEAVY | {"pydantic", "yaml"})


def test_reading_a_config_imports_no_model():
    assert not loaded_by("-c", "import cl_softcot.config, cl_softcot.files, cl_softcot.errors")[0] & {"torch", "transformers"}


@pytest.mark.parametrize("command", registry.commands())
def test_help_is_told_before_anything_heavy_is_loaded(command):
    loaded, told = loaded_by("-m", f"cl_softcot.{command}", "--help")
    assert f"usage: python -m cl_softcot.{command}" in told
    assert not loaded & HEAVY


def test_the_list_of_commands_is_told_before_anything_is_loaded():
    loaded, told = loaded_by("-m", "cl_softcot")
    assert told.startswith("usage: python -m cl_softcot") and not loaded & (HEAVY | {"pydantic", "yaml"})
