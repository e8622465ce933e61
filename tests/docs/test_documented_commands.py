"""Every command of the README works as it stands there: a documented command that fails is worse than none."""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
BLOCK = re.compile(r"(?:<!-- (?P<label>[^>]+) -->\n)?```(?P<kind>sh|python|yaml)\n(?P<text>.*?)```", re.S)
BLOCKS = [(m["label"], m["kind"], m["text"]) for m in BLOCK.finditer(README)]
COMMANDS = [(label, line) for label, kind, text in BLOCKS if kind == "sh" for line in text.strip().splitlines()]
LONG = ("smoke.yaml", "cl_softcot.track", "my-model", "own_", "my.jsonl", "mine.yaml", "runs/other", "mlflow ui")
LONG += ("torch.distr", "cl_softcot.sweep")


@pytest.fixture(scope="module")
def workplace(tmp_path_factory):
    """A folder that looks like a checkout in which the set-up command has run."""
    folder = tmp_path_factory.mktemp("readme")
    for name in ("experiments", "cl_softcot", "strategies", "tests", "pyproject.toml", "constraints.txt", "README.md"):
        (folder / name).symlink_to(ROOT / name)
    programs = folder / ".venv" / "bin"
    programs.mkdir(parents=True)
    for name in ("python", "mlflow"):
        source = Path(sys.executable) if name == "python" else Path(sys.executable).with_name(name)
        (programs / name).write_text(f'#!/bin/sh\nexec {shlex.quote(str(source))} "$@"\n')
        (programs / name).chmod(0o755)
    for label, kind, text in BLOCKS:
        if label and label.startswith("example ") and kind != "sh":
            (folder / label.removeprefix("example ")).write_text(text)
    return folder


def run(command: str, folder: Path, seconds: float = 900) -> subprocess.CompletedProcess:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "120"}
    environment.pop("MLFLOW_TRACKING_URI", None)
    return subprocess.run(command, shell=True, cwd=folder, env=environment, capture_output=True, text=True, timeout=seconds)


def test_the_readme_has_its_commands():
    labels = [label for label, _ in COMMANDS]
    assert "main command" in labels and "test command" in labels and "example command" in labels
    assert len(COMMANDS) >= 8


def others() -> list:
    """Every command but the two main ones, in the README's order; what takes long is marked."""
    commands = [c for label, c in COMMANDS if label not in ("main command", "test command")]
    return [pytest.param(c, marks=pytest.mark.slow if any(word in c for word in LONG) else ()) for c in commands]


@pytest.mark.parametrize("command", others())
def test_command(command, workplace):
    if command.endswith("mlflow ui"):
        return check_server(command, workplace)
    if "cl_softcot.track" in command and not (workplace / "runs" / "smoke").exists():
        assert run(".venv/bin/python -m cl_softcot.run experiments/smoke.yaml", workplace).returncode == 0
    result = run(command, workplace)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "Traceback" not in result.stderr


def check_server(command: str, folder: Path) -> None:
    """`mlflow ui` opens the store that runs in this folder write."""
    port = 5055
    server = subprocess.Popen(f"exec {command} --port {port}", shell=True, cwd=folder, start_new_session=True,
                              stdout=subprocess.PIPE, stderr=subprocess.STDOUT)  # fmt: skip
    try:
        for _ in range(240):
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=5) as page:
                    assert page.status == 200 and b"MLflow" in page.read()
                    return
            except OSError:
                assert server.poll() is None, server.stdout.read().decode()
                time.sleep(0.5)
        pytest.fail("mlflow ui did not answer within two minutes")
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        server.wait(30)


def test_the_example_is_complete_and_about_thirty_lines():
    example = next(text for label, _, text in BLOCKS if label == "example mine.py")
    code = [line for line in example.splitlines() if line.strip()]
    assert len(code) <= 32


@pytest.mark.slow
@pytest.mark.timeout(2400)
def test_main_command(workplace):
    """The second half of the main command; the first (setting up) is what made this environment."""
    command = next(c for label, c in COMMANDS if label == "main command")
    setup, _, main = command.partition(" && ")
    assert setup == "sh tools/setup.sh"
    result = run(main, workplace, 2400)
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-3000:]
    for word in ("full_coconut", "softcot_oracle", "forget", "mlflow ui"):
        assert word in result.stdout


def test_ci_runs_the_test_command():
    """CI takes the command out of the README; the two cannot drift apart."""
    script = (ROOT / ".ci" / "run").read_text()
    assert "README.md" in script and "<!-- test command -->" in script
    command = next(c for label, c in COMMANDS if label == "test command")
    assert "pytest" in command


def test_tables_are_those_of_the_kept_results():
    result = subprocess.run([sys.executable, ROOT / "tools" / "update_readme.py", "--check"], capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr


def test_no_placeholder_is_left():
    assert "@@" not in README
