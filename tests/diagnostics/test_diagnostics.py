"""What holds for every diagnostic: it is measured once, leaves no trace, and can be switched off."""

from __future__ import annotations

import json

import pytest
from run_fakes import METHODS, assert_same_numbers, finished, result, run_folders, small, start, without_clock, write

from cl_softcot import registry
from cl_softcot.config.fingerprint import run_fingerprint
from cl_softcot.config.loading import load_experiment

OWN = '''
import random
import torch
from cl_softcot.diagnostics.base import Diagnostic, DiagnosticSettings

class Settings(DiagnosticSettings):
    steps: int = 2

class Probe(Diagnostic):
    """Learns the other task for a while, and draws random numbers."""
    Settings = Settings

    @classmethod
    def refuses(cls, method):
        return "nothing is trained" if not method.strategy.cls.trains else None

    def measure(self, subject):
        probe = subject.tasks[0]
        with subject.learning("again", probe.examples, self.settings.steps) as losses:
            with subject.answering(probe.name):
                answers = subject.write(subject.encode(probe.examples))
            right = subject.right(probe, probe.examples, answers)
        random.random(), torch.rand(3)
        with open("measured.txt", "a") as file:
            print(subject.method.name, subject.row, file=file)
        return {"n": len(right), "accuracy": sum(right) / len(right), "loss": losses[-1], "learned": subject.learned}

class Inside(Diagnostic):
    """Learns and draws inside the turns, too."""
    def moments(self, reasoning, steps):
        return {1, 4}

    def measure_inside(self, subject):
        model = subject.parts.backbone.model
        probe = subject.probe(subject.learned[-1])
        with subject.answering(probe.name):
            answers = subject.write(subject.encode(probe.examples))
        right = subject.right(probe, probe.examples, answers)
        weights = float(sum(t.detach().double().sum() for t in subject.strategy.tensors(subject.parts).values()))
        with subject.learning("again", probe.examples, 1):
            model.train()
        torch.rand(3)
        with open("measured.txt", "a") as file:
            print(subject.method.name, subject.row, subject.step, file=file)
        return {"right": sum(right), "weights": weights, "learned": subject.learned}

    def measure(self, subject):
        assert subject.step is None
        return {"inside": subject.inside, "earlier": sorted(subject.earlier), "own": subject.outcomes(subject.row, "first")}

class Careless(Diagnostic):
    def measure(self, subject):
        next(iter(subject.strategy.tensors(subject.parts).values())).data += 1.0
        return {}
'''


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "own.py").write_text(OWN)
    return tmp_path


def with_own(*methods: str, name: str = "own:Probe", **settings):
    return small(*methods) | {"diagnostics": [{"name": name, **settings}]}


@pytest.mark.parametrize("method", ["full_coconut", "softcot_oracle", "lora_replay"])
def test_a_diagnostic_that_trains_changes_no_number(method, folder):
    ended = start(write(folder, with_own(method, rows="each")), "output_dir=out", cwd=folder)
    assert ended.status == 0, ended.text
    found = result(folder / "out", method)
    assert list(found["diagnostics"]["own:Probe"]["rows"]) == ["1", "2"]
    assert found["diagnostics"]["own:Probe"]["rows"]["1"]["learned"] == ["first"]
    expected = without_clock(result(finished(), method))
    others = ("diagnostics", "config_fingerprint", "user_modules")  # the diagnostic is a module of its own
    assert {k: v for k, v in without_clock(found).items() if k not in others} == {
        k: v for k, v in expected.items() if k not in others
    }


def test_every_number_is_measured_once_however_often_it_is_killed(folder):
    path = write(folder, with_own("lora_replay", rows="each"))
    whole = start(path, "output_dir=whole", cwd=folder, kill_at=("os:fsync", 0))
    (folder / "measured.txt").unlink()
    for n in range(10, whole.calls, whole.calls // 5):
        start(path, "output_dir=out", cwd=folder, kill_at=("os:fsync", n))
    assert start(path, "output_dir=out", cwd=folder).status == 0
    assert_same_numbers(folder / "out", folder / "whole")
    again = start(path, "output_dir=out", cwd=folder)
    assert again.status == 0 and "1 run was finished before" in again.out or "finished before" in again.out, again.text


SLOW = pytest.mark.slow


@pytest.mark.parametrize(
    "method", ["full_coconut", pytest.param("softcot_oracle", marks=SLOW), pytest.param("lora_replay", marks=SLOW)]
)
def test_inside_a_turn_it_is_measured_once_at_the_right_weights_and_leaves_no_trace(method, folder):
    """The models of these methods have dropout, plugins, copies, stages; checkpoints are made at steps 2 and 4."""
    path = write(folder, with_own(method, name="own:Inside", rows="each"))
    whole = start(path, "output_dir=whole", cwd=folder, kill_at=("os:fsync", 0))
    assert whole.status == 0, whole.text
    once = [f"{method} {row} {step}" for row in (1, 2) for step in (1, 4)]
    assert (folder / "measured.txt").read_text().split("\n")[:-1] == once
    found = result(folder / "whole", method)
    rows = found["diagnostics"]["own:Inside"]["rows"]
    assert [list(rows[row]["inside"]) for row in "12"] == [["1", "4"]] * 2
    assert rows["2"]["inside"]["4"]["learned"] == ["first", "second"] and rows["2"]["earlier"] == [1]
    sums = [row["inside"][step]["weights"] for row in rows.values() for step in ("1", "4")]
    assert len(set(sums)) == 4, "the weights move on between the moments"
    assert sum(rows["1"]["own"]) / 8 == found["accuracy"]["matrix"][1][0] and len(rows["1"]["own"]) == 8
    expected = without_clock(result(finished(), method))
    got = without_clock(found)
    for key in ("diagnostics", "config_fingerprint", "user_modules"):
        got.pop(key), expected.pop(key, None)
    assert got == expected

    (folder / "measured.txt").unlink()
    for n in range(8, whole.calls, whole.calls // 6):
        start(path, "output_dir=out", cwd=folder, kill_at=("os:fsync", n))
    assert start(path, "output_dir=out", cwd=folder).status == 0
    assert_same_numbers(folder / "out", folder / "whole")
    seen = (folder / "measured.txt").read_text().split("\n")[:-1]
    assert set(seen) == set(once)


def test_what_is_missing_inside_a_turn_cannot_be_made_up_for(folder):
    path = write(folder, with_own("full_coconut", name="own:Inside"))
    start(path, "output_dir=out", cwd=folder, kill_at=("cl_softcot.run.one_run:_Run._measure", 3))
    run = run_folders(folder / "out")["full_coconut"]
    (run / "diagnostics" / "own:Inside_2_step4.json").unlink()
    ended = start(path, "output_dir=out", cwd=folder)
    assert ended.status == 1 and "own:Inside_2_step4.json" in ended.text and "--restart" in ended.text, ended.text
    assert "Traceback" not in ended.text


def test_only_the_last_row_is_measured_unless_told_and_reasons_stand_in_the_result(folder):
    ended = start(write(folder, with_own("base_direct", "softcot")), "output_dir=out", cwd=folder)
    assert ended.status == 0, ended.text
    assert result(folder / "out", "base_direct")["diagnostics"] == {"own:Probe": {"skipped": "nothing is trained"}}
    assert list(result(folder / "out", "softcot")["diagnostics"]["own:Probe"]["rows"]) == ["2"]
    assert (folder / "measured.txt").read_text() == "softcot 2\n"
    kept = json.loads((run_folders(folder / "out")["softcot"] / "diagnostics" / "own:Probe_2.json").read_text())
    assert kept["numbers"]["n"] == 8 and kept["seconds"] > 0


def test_one_that_is_switched_off_counts_for_nothing(folder, monkeypatch):
    monkeypatch.chdir(folder)
    path = write(folder, with_own("softcot"))
    off = load_experiment(path, ["diagnostics.own:Probe.enabled=false"]).config
    assert off.measured == []
    none = load_experiment(write(folder, small("softcot"), "none.yaml")).config
    on = load_experiment(path).config
    prints = [run_fingerprint(c, "softcot", "given", 0) for c in (off, none, on)]
    assert prints[0] == prints[1] != prints[2]


def test_a_careless_one_stops_the_run(folder):
    ended = start(write(folder, with_own("lora_replay", name="own:Careless")), "output_dir=out", cwd=folder)
    assert ended.status != 0 and "changed the weights" in ended.text


@pytest.fixture(scope="module")
def all_measured(tmp_path_factory):
    """One run of every method with every diagnostic."""
    folder = tmp_path_factory.mktemp("all_measured")
    ended = start(write(folder, small(*METHODS) | {"diagnostics": registry.known("diagnostic")}), "output_dir=out", cwd=folder)
    assert ended.status == 0, ended.text
    return {method: result(folder / "out", method) for method in METHODS}


@pytest.mark.parametrize("name", registry.known("diagnostic"))
def test_every_diagnostic_refuses_or_measures_every_method(name, all_measured):
    entries = {method: found["diagnostics"][name] for method, found in all_measured.items()}
    measured = [entry["rows"] for entry in entries.values() if "rows" in entry]
    assert measured and all(rows and all(rows.values()) for rows in measured), "it refuses every method, or finds nothing"
    for entry in entries.values():
        assert ("skipped" in entry) != ("rows" in entry)
        assert "rows" in entry or (isinstance(entry["skipped"], str) and len(entry["skipped"]) > 10)


@pytest.mark.parametrize("method", METHODS)
def test_all_diagnostics_together_change_no_number(method, all_measured):
    found, expected = dict(all_measured[method]), result(finished(), method)
    for data in (found, expected):
        data.pop("config_fingerprint"), data.pop("diagnostics", None)
    assert without_clock(found) == without_clock(expected)


def test_settings_of_a_diagnostic_are_checked(folder):
    ended = start(write(folder, with_own("softcot", stepps=3)), cwd=folder)
    assert ended.status == 2 and "did you mean 'steps'" in ended.text and "small.yaml:" in ended.text
    ended = start(write(folder, small("softcot") | {"diagnostics": ["interventoins"]}), cwd=folder)
    assert ended.status == 2 and "unknown diagnostic 'interventoins'" in ended.text
