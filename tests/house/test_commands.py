"""How commands are found, start and end."""

from __future__ import annotations

import os
import pkgutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from cl_softcot import __main__ as script
from cl_softcot import __version__, commands, registry
from cl_softcot.errors import UserError

ROOT = Path(__file__).resolve().parents[2]


def fails(error: BaseException):
    def work() -> int:
        raise error

    return work


# --------------------------------------------------------------------------------------------------- which there are


def test_every_documented_command_is_found_and_says_what_it_does():
    found = registry.commands()
    assert {"cache", "check", "config", "law", "report", "results", "run", "sweep", "track"} <= set(found)
    assert not {"commands", "errors", "tiny", "__main__"} & set(found)
    assert all(20 < len(line) < 100 and "`" not in line for line in found.values()), found


@pytest.mark.parametrize("name", registry.commands())
def test_every_command_has_a_main_that_takes_its_arguments(name, capsys):
    with pytest.raises(SystemExit) as ended:
        registry.command(name)(["--help"])
    assert ended.value.code == 0 and f"cl_softcot.{name}" in capsys.readouterr().out


@pytest.mark.parametrize("arguments", [[], ["--help"], ["-h"]])
def test_alone_it_lists_the_commands(arguments, capsys):
    assert script.main(arguments) == 0
    told = capsys.readouterr().out
    assert all(f"  {name} " in told for name in registry.commands())


def test_it_tells_its_version(capsys):
    assert script.main(["--version"]) == 0
    assert capsys.readouterr().out == f"cl-softcot {__version__}\n"


def test_an_unknown_command_is_told_the_nearest(capsys):
    assert script.main(["swep", "x.yaml"]) == 2
    assert "unknown command 'swep'; did you mean 'sweep'?" in capsys.readouterr().err
    assert script.main(["experiments/smoke.yaml"]) == 2
    assert "cl_softcot.run experiments/smoke.yaml" in capsys.readouterr().err


def test_what_is_installed_starts_the_same(capsys, monkeypatch):
    entry = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]["cl-softcot"]
    assert pkgutil.resolve_name(entry) is script.main
    monkeypatch.setattr(sys, "argv", ["/somewhere/bin/cl-softcot", "sweep", "status", "--help"])
    with pytest.raises(SystemExit):
        script.main()
    assert "usage: cl-softcot sweep status" in capsys.readouterr().out


def test_usage_is_told_as_the_command_was_called(monkeypatch):
    for first, told in [
        ("/usr/bin/cl-softcot", "cl-softcot run"),
        (str(Path(commands.__file__).with_name("__main__.py")), "python -m cl_softcot run"),
        (str(Path(commands.__file__).parent / "run" / "__main__.py"), "python -m cl_softcot.run"),
    ]:
        monkeypatch.setattr(sys, "argv", [first])
        assert commands.called("run") == told
        assert commands.called() == told.removesuffix("run").rstrip(" .")


def test_a_command_of_the_list_ends_with_its_own_status(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("CL_SOFTCOT_CACHE", str(tmp_path))
    assert script.main(["cache", "list"]) == 0
    assert "nothing is cached" in capsys.readouterr().out
    assert script.main(["cache", "prune", "--max-size", "much"]) == 2
    assert capsys.readouterr().err.startswith("error: --max-size: 'much' is no size")


# -------------------------------------------------------------------------------------------------- how one starts and ends


def test_variables_are_set_before_the_work_and_what_the_user_set_stays(monkeypatch):
    environment = {"OMP_NUM_THREADS": "3"}
    monkeypatch.setattr(os, "environ", environment)
    seen: dict[str, str] = {}

    def work() -> int:
        seen.update(environment)
        return 5

    assert commands.guarded(work, environment=commands.REPEATABLE) == 5
    assert seen == {**commands.REPEATABLE, "OMP_NUM_THREADS": "3"}


def test_a_mistake_is_told_in_a_line_with_its_status(capsys):
    error = UserError("no such thing", where="a.yaml:3", fix="Write another.")
    assert commands.guarded(fails(error)) == 2
    assert capsys.readouterr().err == "error: a.yaml:3: no such thing\n  Write another.\n"
    error.exit_status = 1
    assert commands.guarded(fails(error), tells=lambda: False) == 1
    assert capsys.readouterr().err == ""
    assert (
        commands.guarded(fails(UserError("postgresql://me:secret@host/db")), shown=lambda text: text.replace("secret", "***"))
        == 2
    )
    assert capsys.readouterr().err == "error: postgresql://me:***@host/db\n"


def test_ctrl_c_is_no_traceback(capsys):
    assert commands.guarded(fails(KeyboardInterrupt()), stopped="stopped; go on") == 130
    assert capsys.readouterr().err == "\nstopped; go on\n"


def test_any_other_error_is_a_bug_and_keeps_its_traceback():
    with pytest.raises(ZeroDivisionError):
        commands.guarded(lambda: 1 // 0)


def test_a_process_that_the_others_wait_for_ends_at_once():
    """Even one that must not tell of mistakes tells of this one, and nothing that waits for others is run."""
    code = """
import atexit
from cl_softcot.commands import guarded
from cl_softcot.machine.processes import OutOfStep
atexit.register(print, "an orderly end", flush=True)
def work(): raise OutOfStep("out of step")
guarded(work, tells=lambda: False)
"""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout, done.stderr) == (1, "", "error: out of step\n")
