"""Every command of README.md and docs/ works as it stands there: a documented command that fails is worse than none.

A block of a page says in the comment above it what it is (CONTRIBUTING.md explains the labels to writers)::

    <!-- example FILE -->                the block is that file; all of them are written before anything runs
    <!-- example command -->             runs in plain pytest
    <!-- example command slow -->        takes longer: CI only
    <!-- example command study -->       takes hours: its dry run is tested
    ... makes PATH, needs PATH           who needs a path waits for the command that makes it
    ... server                           stays until it is ended; it has to answer
    <!-- not run: WHY -->

All pages share one folder, so that what one command made is there for the others.
"""

from __future__ import annotations

import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
README = ROOT / "README.md"
PAGES = [README, ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
BLOCK = re.compile(r"(?:^<!-- (?P<label>[^>]+?) -->\n)?^```(?P<kind>\w+)\n(?P<text>.*?)^```", re.S | re.M)
OF_README = ("main command", "test command")  # CI and the tests below take them by these names


@dataclass(frozen=True)
class Block:
    page: str
    label: str
    kind: str
    text: str


@dataclass
class Command:
    """A documented command, and what its label says about it."""

    line: str
    page: str
    slow: bool = False
    study: bool = False
    server: bool = False
    makes: list[str] = field(default_factory=list)
    needs: list[str] = field(default_factory=list)


BLOCKS = [
    Block(page.relative_to(ROOT).as_posix(), m["label"] or "", m["kind"], m["text"])
    for page in PAGES
    for m in BLOCK.finditer(page.read_text(encoding="utf-8"))
]


def commands_of(block: Block) -> list[Command]:
    words = block.label.removeprefix("example command").split()
    said: dict = {"makes": [], "needs": []}
    while words:
        word = words.pop(0)
        if word in ("makes", "needs"):
            said[word].append(words.pop(0))
        elif word in ("slow", "study", "server"):
            said[word] = True
        else:
            raise ValueError(f"{block.page}: the label {block.label!r} has the unknown word {word!r}")
    return [Command(line, block.page, **said) for line in block.text.strip().splitlines()]


# A command that stands on several pages runs once.
COMMANDS = {c.line: c for b in BLOCKS if b.label.split()[:2] == ["example", "command"] for c in commands_of(b)}
FILES = {b.label.removeprefix("example "): b for b in BLOCKS if re.fullmatch(r"example \S+\.\w+", b.label)}
MAKERS = {path: command for command in COMMANDS.values() for path in command.makes}


class Workplace:
    """A folder that looks like a checkout in which the set-up command has run; it remembers what was done in it."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.done: dict[str, subprocess.CompletedProcess] = {}
        for name in ("experiments", "tests", "pyproject.toml", "constraints.txt", "README.md"):
            (folder / name).symlink_to(ROOT / name)
        for package in ("cl_softcot", "strategies"):  # examples may add files to them
            self._mirror(ROOT / package, folder / package)
        programs = folder / ".venv" / "bin"
        programs.mkdir(parents=True)
        for name in ("python", "mlflow"):
            source = Path(sys.executable) if name == "python" else Path(sys.executable).with_name(name)
            (programs / name).write_text(f'#!/bin/sh\nexec {shlex.quote(str(source))} "$@"\n')
            (programs / name).chmod(0o755)
        for name, block in FILES.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text(block.text)

    def _mirror(self, source: Path, target: Path) -> None:
        target.mkdir()
        for path in source.iterdir():
            if path.is_dir() and path.name != "__pycache__":
                self._mirror(path, target / path.name)
            elif path.is_file():
                (target / path.name).symlink_to(path)

    def environment(self) -> dict[str, str]:
        environment = {**os.environ, "PYTHONPATH": str(self.folder), "COLUMNS": "120"}
        environment.pop("MLFLOW_TRACKING_URI", None)
        return environment

    def run(self, line: str, seconds: float = 900) -> subprocess.CompletedProcess:
        """A command's result; the same command is not run again."""
        if line not in self.done:
            how = {"shell": True, "cwd": self.folder, "env": self.environment(), "capture_output": True, "text": True}
            self.done[line] = subprocess.run(line, timeout=seconds, **how)
        return self.done[line]

    def check(self, command: Command) -> None:
        """Runs a command, and before it what makes the paths that it needs.

        Raises:
            AssertionError: if it failed, or did not make what it is said to make.
        """
        for path in command.needs:
            self.check(MAKERS[path])
        if command.server:
            return check_server(command.line, self)
        result = self.run(f"{command.line} --dry-run" if command.study else command.line)
        assert result.returncode == 0, result.stdout + result.stderr
        assert "Traceback" not in result.stderr
        assert all((self.folder / path).exists() for path in command.makes)
        return None


@pytest.fixture(scope="session")
def workplace(tmp_path_factory):
    return Workplace(tmp_path_factory.mktemp("documented"))


@pytest.mark.parametrize(
    "command", [pytest.param(c, id=c.line, marks=pytest.mark.slow if c.slow else ()) for c in COMMANDS.values()]
)
def test_command(command, workplace):
    workplace.check(command)


def check_server(line: str, workplace: Workplace) -> None:
    """`mlflow ui` opens the store that runs in this folder write."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = subprocess.Popen(f"exec {line} --port {port}", shell=True, cwd=workplace.folder, env=workplace.environment(),
                              start_new_session=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)  # fmt: skip
    try:
        for _ in range(240):
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=5) as page:
                    assert page.status == 200 and b"MLflow" in page.read()
                    return
            except OSError:
                assert server.poll() is None, server.stdout.read().decode()
                time.sleep(0.5)
        pytest.fail(f"{line} did not answer within two minutes")
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        server.wait(30)


# ------------------------------------------------------------------------------------------------------------ labels


def test_every_block_of_commands_says_how_it_is_tested():
    labels = {block.label for block in BLOCKS if block.page == "README.md"}
    assert {"main command", "test command", "example mine.py", "example mine.yaml"} <= labels
    for block in BLOCKS:
        known = block.label in OF_README or block.label.split()[:2] == ["example", "command"] or block.label[:9] == "not run: "
        assert known or block.kind != "sh", f"{block.page}: commands without a label:\n{block.text}"
        assert block.label not in OF_README or block.page == "README.md"
    assert len(COMMANDS) >= 15


def test_what_is_needed_is_made():
    for command in COMMANDS.values():
        for path in command.needs:
            assert path in MAKERS, f"{command.page}: nothing makes {path}"
            assert command.slow or not MAKERS[path].slow, f"{command.page}: {command.line} is slow: {path} is"


def test_one_name_is_one_file():
    for block in BLOCKS:
        if (name := block.label.removeprefix("example ")) in FILES:
            assert block.text == FILES[name].text, f"{block.page} and {FILES[name].page} have different {name}"


# ------------------------------------------------------------------------------------------------------------ README


def test_the_readme_is_short():
    text = README.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 150
    example = FILES["mine.py"].text
    assert sum(bool(line.strip()) for line in example.splitlines()) <= 32


def test_lines_of_prose_can_be_read():
    for page in PAGES:
        prose = BLOCK.sub("", page.read_text(encoding="utf-8"))
        if prose.startswith("<!-- Written by"):
            continue
        long = [line for line in prose.splitlines() if len(line) > 120 and line[:1] not in ("|", "!") and line[:4] != "<!--"]
        assert not long, f"{page.name}: {long}"


def test_the_readme_links_to_files_that_there_are():
    for page in (README, ROOT / "CONTRIBUTING.md"):
        links = re.findall(r"\]\((?!https?:|#)([^)#]+)", page.read_text(encoding="utf-8"))
        assert not [link for link in links if not (ROOT / link).exists()]


@pytest.mark.slow
@pytest.mark.timeout(2400)
def test_main_command(workplace):
    """The second half of the main command; the first (setting up) is what made this environment."""
    command = next(block.text.strip() for block in BLOCKS if block.label == "main command")
    setup, _, main = command.partition(" && ")
    assert setup == "sh tools/setup.sh"
    result = workplace.run(main, 2400)
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-3000:]
    for word in ("full_coconut", "softcot_oracle", "forget", "mlflow ui"):
        assert word in result.stdout


def test_ci_runs_the_test_command():
    """CI takes the command out of the README; the two cannot drift apart."""
    script = (ROOT / ".ci" / "run").read_text()
    assert "README.md" in script and "<!-- test command -->" in script
    assert "pytest" in next(block.text for block in BLOCKS if block.label == "test command")


# -------------------------------------------------------------------------------------------------------------- docs


@pytest.mark.slow
def test_tables_and_reference_are_those_of_the_code_and_the_kept_results():
    result = subprocess.run([sys.executable, ROOT / "tools" / "update_docs.py", "--check"], capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.slow
def test_the_documentation_builds_without_a_warning(tmp_path):
    for package in ("sphinx", "myst_parser", "furo"):
        pytest.importorskip(package, reason="the documentation is built with the extra `docs`")
    command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", str(ROOT / "docs"), str(tmp_path)]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
    assert (tmp_path / "index.html").exists()


def test_no_placeholder_is_left():
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        assert "@@" not in text and not re.search(r"\b(TODO|TBD|FIXME)\b", text), page
