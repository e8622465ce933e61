"""What is read has bounds: malformed YAML and JSON end in one message within a second, whatever is in them."""

from __future__ import annotations

import gzip
import json
import os
import socket
import time

import pytest

from cl_softcot import files
from cl_softcot.config import yaml
from cl_softcot.config.loading import load_experiment
from cl_softcot.errors import UserError
from cl_softcot.files import read_json, read_jsonl, unpacked
from cl_softcot.results import kept
from cl_softcot.run.__main__ import main as run
from cl_softcot.sweep.__main__ import main as sweep
from cl_softcot.sweep.config import StorageConfig

LAUGHS = "\n".join(["a0: &a0 [1, 1, 1]", *(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 15))])
MERGES = "\n".join(["a0: &a0 {x: 1}", *(f"a{i}: &a{i}\n  <<: [*a{i - 1}, *a{i - 1}]" for i in range(1, 60))])
WORKING = "tasks: [graph]\nmethods: [{name: x, reasoning: cot, strategy: zero_shot}]\n"


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("a: " + "[" * 100_000, "nested deeper"),
        ("a: " + "{a: " * 5000, "nested deeper"),
        ("- " * 3000 + "x", "nested deeper"),
        (LAUGHS, "more than 20000 values"),
        (MERGES, "more than 20000 values"),
        ("\n".join(f"k{i}: {i}" for i in range(60_000)), "more than 20000 values"),
        ("a: " + "x" * (1 << 20), "larger than 1 MiB"),
        ("%YAML " + "9" * 5000 + ".1\n---\na: 1", "not valid YAML"),
        ('a: "\\UFFFFFFFF"', "not valid YAML"),
        ("a: " + "9" * 5000, "5000 digits"),
        ("a: 0x" + "f" * 300, "too large"),
        ("train: {steps: 99999999999999999999}", "too large"),
        ('backbone: "a\\0b"', "NUL"),
        ('"a\\0b": 1', "NUL"),
        ('backbone: "\\ud800"', "surrogate"),
        ("x" * 300 + ": 1", "a key of 300 letters"),
        ("a: &x [*x]", "inside of what it stands for"),
        ("a: !!python/object/apply:os.system [ls]", "tags such as"),
        ("a: &a {<<: *a}", ""),
        ("? [a, b]\n: c", "a key must be text"),
    ],
    ids=lambda value: value[:24],
)
def test_yaml_that_is_beyond_bounds_is_one_message(text, told, tmp_path, capsys):
    (tmp_path / "x.yaml").write_text(text)
    begun = time.monotonic()
    assert run([str(tmp_path / "x.yaml"), "--dry-run"]) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ") and told in said and "Traceback" not in said and len(said) < 20_000
    assert time.monotonic() - begun < 5


def test_what_the_bounds_leave_is_read_as_before():
    tree = yaml.parse("a: &a {x: 1, y: [1, 2]}\nb: {<<: *a, x: 2}\nc: 9223372036854775807\nd: 0x1f\n", "x.yaml")
    assert tree.data == {"a": {"x": 1, "y": [1, 2]}, "b": {"x": 2, "y": [1, 2]}, "c": 2**63 - 1, "d": 31} and not tree.problems


def test_very_many_problems_are_told_short(tmp_path, capsys):
    (tmp_path / "x.yaml").write_text(WORKING + "train:\n" + "".join(f"  stepps{i}: 1\n" for i in range(400)))
    assert run([str(tmp_path / "x.yaml"), "--dry-run"]) == 2
    assert "... and 351 more problems" in (said := capsys.readouterr().err) and said.count("\n") < 60


@pytest.mark.parametrize(
    "text", ["a." * 5000 + "b=1", "train.steps=" + "9" * 5000, "output_dir=\udcff", "a\0b=1", "=", "x=" + "[" * 9000]
)
def test_an_override_beyond_bounds_is_one_message(text, tmp_path, capsys):
    (tmp_path / "x.yaml").write_text(WORKING)
    assert run([str(tmp_path / "x.yaml"), text, "--dry-run"]) == 2
    assert (said := capsys.readouterr().err).startswith("error: ") and len(said) < 2000


def test_what_is_no_file_is_refused_unread(tmp_path):
    os.mkfifo(tmp_path / "pipe.yaml")
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(tmp_path / "socket.yaml"))
        for place, kind in [("pipe.yaml", "a pipe"), ("socket.yaml", "a socket"), ("/dev/zero", "a device")]:
            for read in (load_experiment, read_json, read_jsonl):
                with pytest.raises(UserError, match=f"{kind}, not a file"):
                    read(tmp_path / place)
    with pytest.raises(UserError, match="a folder"):
        read_json(tmp_path)
    for path in ("a\0b", "\ud800", "x" * 5000):
        with pytest.raises(UserError):
            read_json(path)
        assert run([path, "--dry-run"]) == 2


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("[" * 100_000, "nested deeper"),
        ('{"a":' * 300 + "1" + "}" * 300, "nested deeper"),
        ("[" + "1, " * 200 + "[" * 150 + "]" * 150 + "]", "nested deeper"),
        ("9" * 5000, "5000 digits"),
        ("[1, " + "9" * 60 + "]", "60 digits"),
        ("{not json", "not valid JSON"),
        ("", "not valid JSON"),
    ],
)
def test_json_beyond_bounds_is_one_message(text, told, tmp_path):
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(UserError, match=told):
        read_json(tmp_path / "x.json")


def test_json_within_bounds_is_read(tmp_path):
    value = {"digits in a text": "1" * 5000, "many": [[1], [2]] * 200, "large": 2**63, "depth": json.loads("[" * 90 + "]" * 90)}
    (tmp_path / "x.json").write_text(json.dumps(value))
    assert read_json(tmp_path / "x.json") == value


def test_unpacking_is_bounded(tmp_path, monkeypatch):
    (tmp_path / "x.gz").write_bytes(gzip.compress(b"0" * 5_000_000))
    assert len(unpacked(tmp_path / "x.gz")) == 5_000_000
    with pytest.raises(UserError, match="unpacks to more than"):
        unpacked(tmp_path / "x.gz", 1_000_000)
    monkeypatch.setattr(files.unpacked, "__defaults__", (1_000_000,))
    (tmp_path / "runs.jsonl.gz").write_bytes(gzip.compress(b" " * 5_000_000))
    with pytest.raises(UserError, match="unpacks to more than"):
        kept.read(tmp_path)
    for damaged in (b"", b"no gzip", gzip.compress(b'{"kept": 1}\n')[:-6], gzip.compress(b'{"kept": 1}\n[1]\n')):
        (tmp_path / "runs.jsonl.gz").write_bytes(damaged)
        with pytest.raises(UserError):
            kept.read(tmp_path)


PASSWORDS = [
    "postgresql://u:HUNTER2@h/db",
    "postgresql://u:HUN/TER2@h:5/db",
    "postgresql://u:HUN@TER2@h/db",
    "postgresql://u:%48UNTER2@h/db",
    "postgresql://h/db?user=u&password=HUNTER2",
    "postgresql://h/db?PassWd=HUNTER2",
    "postgresql://h/db?sslpassword=HUNTER2&sslmode=require",
    "postgresql://h/db?pass%77ord=HUNTER2",
    "postgresql://u:a@h1,h2/db?pwd=HUNTER2",
    "host=h user=u password=HUNTER2",
]


@pytest.mark.parametrize("address", PASSWORDS)
def test_an_address_with_a_password_is_refused_in_a_file_and_not_shown(address, tmp_path, capsys):
    data = {"experiment": "x.yaml", "space": {"train.steps": [1, 2]}, "objectives": {"summary.acc": "maximize"}, "trials": 1}
    for storage in ({"kind": "postgresql", "url": address}, *([address] if "://" in address else [])):
        (tmp_path / "s.yaml").write_text(json.dumps({**data, "storage": storage}))
        assert sweep([str(tmp_path / "s.yaml"), "--dry-run"]) == 2
        said = capsys.readouterr().err
        assert "password" in said and not any(part in said for part in ("HUN", "TER2", "UNTER"))


@pytest.mark.parametrize("address", ["postgresql://me@h:1/db", "postgresql://h:5432/db?sslmode=require", "host=h user=me"])
def test_an_address_without_a_password_is_taken(address):
    assert StorageConfig.model_validate({"kind": "postgresql", "url": address}).url == address


def test_a_password_is_refused_in_an_experiment_and_behind_it_too(tmp_path, capsys):
    (tmp_path / "x.yaml").write_text(WORKING + f"tracking: {{experiment: '{PASSWORDS[1]}'}}\n")
    assert run([str(tmp_path / "x.yaml"), "--dry-run"]) == 2
    (tmp_path / "x.yaml").write_text(WORKING)
    assert run([str(tmp_path / "x.yaml"), f"tracking.experiment={PASSWORDS[1]}", "--dry-run"]) == 2
    said = capsys.readouterr().err
    assert said.count("must not hold a password") == 2 and "HUN" not in said and "TER2" not in said
