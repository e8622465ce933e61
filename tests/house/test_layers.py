"""Who may import whom (by reading the source), and that light commands stay light."""

from __future__ import annotations

import ast
import statistics
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
ENGINE = sorted((ROOT / "cl_softcot").rglob("*.py"))
STRATEGIES = sorted((ROOT / "strategies").glob("*.py"))


def imports(path: Path, *, top_level: bool = False) -> set[str]:
    """Full names of everything that a file imports; ``top_level`` leaves out what functions and TYPE_CHECKING import."""
    found: set[str] = set()

    def visit(node: ast.AST) -> None:
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            module = node.module or ""
            if node.level:
                folder = path.relative_to(ROOT).parent.parts
                module = ".".join([*folder[: len(folder) - node.level + 1], *filter(None, [module])])
            found.update(f"{module}.{alias.name}" for alias in node.names)
        for child in ast.iter_child_nodes(node):
            if top_level and isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
                continue
            if top_level and isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
                continue
            visit(child)

    visit(ast.parse(path.read_text(encoding="utf-8")))
    return found


def who_imports(package: str, paths: list[Path], **options: bool) -> set[str]:
    def is_it(name: str) -> bool:
        return name == package or name.startswith(package + ".")

    return {p.relative_to(ROOT).as_posix() for p in paths if any(is_it(name) for name in imports(p, **options))}


def below(folder: str) -> list[Path]:
    return [path for path in ENGINE if path.is_relative_to(ROOT / "cl_softcot" / folder)]


@pytest.mark.parametrize(
    ("package", "allowed"),
    [
        ("avalanche", {"cl_softcot/learning/stream.py", "cl_softcot/learning/loop.py"}),
        ("peft", {"strategies/lora.py"}),
        ("mlflow", {"cl_softcot/track/mlflow.py", "cl_softcot/track/__main__.py"}),
        (
            "matplotlib",
            {
                "cl_softcot/track/figures.py",
                "cl_softcot/sweep/report.py",
                "cl_softcot/law/figure.py",
                "cl_softcot/report/drawing.py",
            },
        ),
        ("submitit", {"cl_softcot/sweep/launchers/slurm.py"}),
        ("psycopg", {"cl_softcot/sweep/storage.py"}),
        ("rich", {"cl_softcot/track/console.py", "cl_softcot/tiny/pretrain.py"}),
        ("yaml", {"cl_softcot/config/yaml.py"}),
    ],
)
def test_a_library_is_imported_in_its_own_file(package, allowed):
    assert who_imports(package, ENGINE + STRATEGIES) <= allowed


@pytest.mark.parametrize("package", ["mlflow", "matplotlib", "datasets", "optuna", "submitit", "psycopg", "sqlalchemy"])
def test_heavy_libraries_are_imported_when_they_are_used(package):
    assert who_imports(package, ENGINE + STRATEGIES, top_level=True) <= {"cl_softcot/track/figures.py"}


def test_the_engine_never_imports_a_strategy():
    """Its base class is a type, and nothing that runs."""
    assert who_imports("strategies", ENGINE, top_level=True) == set()
    named = {name for path in ENGINE for name in imports(path) if name.split(".")[0] == "strategies"}
    assert named <= {"strategies.base.Strategy"}


@pytest.mark.parametrize("kind", ["reasoning", "tasks"])
def test_the_engine_never_imports_what_is_found_by_name(kind):
    """Only the base class; and plain chain of thought, which is what 'the base' means."""
    allowed = {f"cl_softcot.{kind}.base", "cl_softcot.reasoning.cot", "cl_softcot.tasks.words"}
    for path in ENGINE:
        if path.is_relative_to(ROOT / "cl_softcot" / kind) or path.is_relative_to(ROOT / "cl_softcot" / "tiny"):
            continue
        named = {name for name in imports(path) if name.startswith(f"cl_softcot.{kind}.")}
        assert all(any(f"{name}.".startswith(f"{good}.") for good in allowed) for name in named), (path, named)


@pytest.mark.parametrize("folder", ["metrics", "trackers"])
def test_metrics_and_trackers_know_no_trainer(folder):
    above = ["learning", "stream", "one_run", "orchestration", "run", "evaluate", "policy", "per_task", "checkpoint", "reasoning"]
    if folder == "trackers":
        above += ["models", "metrics.drift", "tasks"]
    for module in above:
        assert who_imports(f"cl_softcot.{module}", below(folder)) == set(), module


def test_reports_read_folders_and_run_nothing():
    above = ["learning", "stream", "one_run", "orchestration", "run", "evaluate", "policy", "checkpoint", "models", "reasoning"]
    for module in above:
        assert who_imports(f"cl_softcot.{module}", below("reports")) == set(), module
    assert who_imports("torch", below("reports")) == set()


def test_models_and_tasks_know_nothing_above_them():
    for module in ("learning", "stream", "one_run", "orchestration", "run", "evaluate", "config", "trackers"):
        assert who_imports(f"cl_softcot.{module}", below("models") + below("tasks") + below("reasoning")) == set(), module
    assert who_imports("torch", below("tasks")) == set()


def test_trackers_need_no_torch():
    assert who_imports("torch", below("trackers")) == set()


def test_strategies_use_the_models_and_the_interface_of_reasoning_only():
    for module in ("one_run", "orchestration", "run", "evaluate", "trackers", "metrics", "config"):
        assert who_imports(f"cl_softcot.{module}", STRATEGIES) == set(), module


def test_whoever_imports_transformers_prepares_torchvision_first():
    """Importing any cl_softcot.models module does it; other files say so themselves."""
    for name in who_imports("transformers", ENGINE + STRATEGIES, top_level=True):
        if not name.startswith("cl_softcot/models/"):
            text = (ROOT / name).read_text(encoding="utf-8")
            prepared = min((text.find(s) for s in ("ensure_torchvision()", "from cl_softcot.models") if s in text), default=-1)
            used = text.find("from transformers")
            assert 0 <= prepared and (prepared < used or "cl_softcot.models" in text), name


def python(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True, timeout=120)
    return done.stdout


def test_the_package_itself_is_light():
    heavy = "('torch', 'transformers', 'avalanche', 'mlflow', 'numpy', 'pydantic', 'rich', 'yaml', 'matplotlib')"
    assert python(f"import cl_softcot, sys; print([m for m in {heavy} if m in sys.modules])").strip() == "[]"


def test_reading_a_config_imports_no_model():
    loaded = python("import cl_softcot.config, cl_softcot.files, cl_softcot.errors, sys; print('torch' in sys.modules)")
    assert loaded.strip() == "False"


@pytest.mark.parametrize("command", ["cache", "check", "law", "report", "run", "track", "sweep"])
def test_help_answers_in_under_a_second(command):
    seconds = []
    for _ in range(3):
        started = time.perf_counter()
        done = subprocess.run(
            [sys.executable, "-m", f"cl_softcot.{command}", "--help"], cwd=ROOT, capture_output=True, text=True, timeout=120
        )
        seconds.append(time.perf_counter() - started)
        assert done.returncode == 0 and "usage: python -m cl_softcot" in done.stdout
    own = _seconds_of_an_empty_python()  # a machine that is busy is slow to start anything
    assert statistics.median(seconds) < max(1.0, 8 * own), seconds


def _seconds_of_an_empty_python() -> float:
    started = time.perf_counter()
    python("pass")
    return time.perf_counter() - started
