"""Fingerprints outlive new settings: what was measured before they existed is still what it was."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import pytest
from pydantic import BaseModel, Field

from cl_softcot.additions import ADDED_LATER, identity_of, unset_additions
from cl_softcot.config.fingerprint import run_fingerprint
from cl_softcot.config.loading import load_experiment

EXPERIMENTS = Path(__file__).resolve().parents[2] / "experiments"


class Inner(BaseModel):
    old: int = 1
    new: Annotated[int, ADDED_LATER] = 2


class Outer(BaseModel):
    name: str = "x"
    inner: Inner = Inner()
    many: list[Inner] = []
    plain: list[int] = [1]
    later: Annotated[list[int], ADDED_LATER] = Field(default_factory=list)


def test_additions_at_their_default_are_left_out_at_every_depth():
    assert unset_additions(Outer()) == {"later"}
    assert identity_of(Outer(many=[Inner(), Inner(new=3)])) == {
        "name": "x",
        "inner": {"old": 1},
        "many": [{"old": 1}, {"old": 1, "new": 3}],
        "plain": [1],
    }
    assert identity_of(Outer(later=[1], inner=Inner(old=2, new=2)))["later"] == [1]
    assert identity_of(Outer(inner=Inner(new=3)))["inner"] == {"old": 1, "new": 3}


@pytest.mark.parametrize(
    ("file", "expected"),
    [
        ("smoke.yaml", ["bad15207", "047bcc90"]),
        ("sequence_a.yaml", ["51096931", "f8bb750f", "2c137863", "b97b52f4", "4db776f5", "d3533398", "9171d8b4", "1fd4ee05"]),
        ("latent_hops.yaml", ["3e3c837b", "8911c98a", "00c47a29", "082123d9", "6a58f8a2"]),
    ],
)
def test_runs_of_the_kept_results_keep_their_fingerprints(file, expected):
    """Recorded before the first setting was added: a changed one would do finished runs again. Edit with the experiment only."""
    config = load_experiment(EXPERIMENTS / file).config
    order = next(iter(config.orders), "given")
    marks = [run_fingerprint(config, method.name, order, 0)[:8] for method in config.methods]
    assert marks[: len(expected)] == expected
