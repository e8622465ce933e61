"""What is printed: no passwords, nothing that a terminal or a page obeys; and how commands end when the machine fails."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from cl_softcot import commands
from cl_softcot.printable import hide, holds_password, markdown, visible, without_user


@pytest.mark.parametrize(
    "address",
    [
        "postgresql://me@host/db",
        "postgresql://host:5432/db",
        "postgresql://me@[::1]:5432/db?sslmode=require",
        "postgresql://me@host/db?passfile=/home/me/.pgpass&sslkey=/k",
        "http://localhost:5000/#/experiments/1",
        "http://host:8080/@someone/page",
        "sqlite:////tmp/a.db",
        "builtin:tiny",
        "see https://arxiv.org/abs/2412.06769 and write to me@host",
    ],
)
def test_what_has_no_password_stays_as_it_is(address):
    assert not holds_password(address) and hide(address) == address


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("cannot reach 'postgresql://me:a/b@c@host/db' now", "cannot reach 'postgresql://me:***@host/db' now"),
        ("postgresql://:secret@host/db", "postgresql://:***@host/db"),
        ("http://me:secret@host:5000", "http://me:***@host:5000"),
        ("https://token@host/x", "https://***@host/x"),
        ("mysql+pymysql://h/db?user=me&passwd=secret&x=1", "mysql+pymysql://h/db?user=me&passwd=***&x=1"),
        ("connection to host=h password='se cret' user=me failed", "connection to host=h password=*** user=me failed"),
        ("x://?odbc_connect=A%3DB%3BPWD%3Dsecret%3BC%3DD", "x://?odbc_connect=A%3DB%3BPWD%3D***%3BC%3DD"),
    ],
)
def test_passwords_are_hidden_in_any_text(text, shown):
    assert hide(text) == shown and hide(shown) == shown


def test_secrets_of_the_environment_are_hidden_in_pieces_too(monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "postgresql://me:HUNT/ER22@host/db")
    monkeypatch.setenv("PGPASSWORD", "verysecret")
    assert hide("invalid literal for int() with base 10: 'HUNT'") == "invalid literal for int() with base 10: '***'"
    assert hide("host 'ER22', tried verysecret, veryverysecret") == "host '***', tried ***, veryverysecret"
    assert without_user("http://me:x@host:5000/a") == "http://host:5000/a"


def test_control_characters_are_shown_instead_of_sent():
    assert visible("a\x1b[31mb\x07\u202e\ud800\x9b2J") == "a\\x1b[31mb\\x07\\u202e\\ud800\\x9b2J"
    assert visible("ä → ± 日本\u200d\n\t") == "ä → ± 日本\u200d\n\t" and visible("a\nb", lines=False) == "a b"


@pytest.mark.parametrize(
    ("name", "written"),
    [
        ("full_coconut", "full_coconut"),
        ("0.5 ± 0.1 [0.4, 0.6], min_j R[T,j], <0.001", "0.5 ± 0.1 [0.4, 0.6], min_j R[T,j], <0.001"),
        ("<img src=x onerror=alert(1)>", "\\<img src=x onerror=alert(1)>"),
        ("[a](http://evil)", "[a\\](http://evil)"),
        ("![a][b]", "![a\\][b]"),
        ("*a* `b` _c_", "\\*a\\* \\`b\\` \\_c\\_"),
        ("# head\n## more", "\\# head ## more"),
        ("1. list", "1\\. list"),
        ("--- ", "\\--- "),
        ("&lt;b&#62;", "&amp;lt;b&amp;#62;"),
    ],
)
def test_names_are_no_markdown(name, written):
    assert markdown(name) == written


ROOT = Path(__file__).resolve().parents[2]


def fails(error):
    def work():
        raise error

    return work


@pytest.mark.parametrize(
    ("error", "status", "told"),
    [
        (OSError(errno.EIO, "Input/output error", "/mnt/a"), 2, "/mnt/a: the disk or its connection failed"),
        (OSError(errno.ESTALE, "Stale file handle", "/mnt/a"), 2, "/mnt/a: the disk or its connection failed"),
        (OSError(errno.ENOSPC, "No space left on device", "/a"), 2, "/a: disk full"),
        (FileNotFoundError(errno.ENOENT, "No such file or directory", "/a"), 2, "/a: cannot be read or written"),
        (RecursionError("maximum recursion depth exceeded"), 2, "nested too deeply"),
        (MemoryError(), 1, "not enough memory"),
        (UnicodeEncodeError("utf-8", "\ud800", 0, 1, "surrogates not allowed"), 2, "no valid Unicode"),
        (ValueError("embedded null byte"), 2, "NUL"),
    ],
)
def test_errors_of_the_machine_are_a_sentence(error, status, told, capsys, monkeypatch):
    assert commands.guarded(fails(error)) == status
    said = capsys.readouterr().err
    assert said.startswith("error: ") and told in said and "Traceback" not in said
    monkeypatch.setenv(commands.DEBUG, "1")
    assert commands.guarded(fails(error)) == status
    assert "Traceback" in (said := capsys.readouterr().err) and type(error).__name__ in said


@pytest.mark.parametrize("error", [TypeError("x"), AssertionError("x"), KeyError("x"), ValueError("x")])
def test_bugs_keep_their_traceback(error):
    with pytest.raises(type(error)):
        commands.guarded(fails(error))


def test_a_traceback_with_a_password_is_printed_without(capsys):
    assert commands.guarded(fails(TypeError("postgresql://me:secret@host/db"))) == 1
    said = capsys.readouterr().err
    assert "Traceback" in said and "me:***@host" in said and "secret" not in said


def test_nobody_reads_or_the_disk_behind_it_is_full():
    """Through the interpreter itself, whose exit would print as well."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    code = "import sys; from cl_softcot.__main__ import main; sys.exit(main([]))"
    done = subprocess.run(["bash", "-c", f'{sys.executable} -c "{code}" | head -c 0; echo ${{PIPESTATUS[0]}}'],
                          capture_output=True, text=True, timeout=60, env=environment)  # fmt: skip
    assert done.stderr == "" and done.stdout.strip() in ("0", "141")
    done = subprocess.run(
        ["bash", "-c", f'{sys.executable} -c "{code}" > /dev/full'], capture_output=True, text=True, timeout=60, env=environment
    )
    assert done.returncode == 2 and done.stderr.startswith("error: ") and "Traceback" not in done.stderr
