"""The spawned command, killed at random moments: a few points of ``tools/kill_test.py``, whose full size stands in the docs."""

from __future__ import annotations

from pathlib import Path

import pytest

from tools import kill_test

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="reads /proc"),
]


def test_killed_started_again_and_started_twice(tmp_path):
    one = {**kill_test.EXPERIMENT, "methods": kill_test.EXPERIMENT["methods"][1:]}
    trials = kill_test.run(2, 3, tmp_path / "work", pairs=1, experiment=one)
    assert {trial.kind for trial in trials} == {"killed", "two starts on one folder", "two runs on one cache"}
    assert [trial.problems for trial in trials] == [[]] * len(trials)


def test_a_difference_would_be_found(tmp_path):
    """What the comparison is for, on a folder that was changed in every way that it looks at."""
    import shutil

    from run_fakes import finished

    def place(name: str) -> kill_test.Place:
        found = kill_test.Place(tmp_path / name, False, tmp_path / "cache")
        shutil.copytree(finished(), found.out)
        return found

    whole, other = place("whole"), place("other")
    assert kill_test.differences(other, whole) == []
    run = other.out / "runs" / "softcot.given.seed0"
    (run / "rows" / "row_1.json").write_text((run / "rows" / "row_1.json").read_text().replace("0.", "7.", 1))
    (run / ".x.0123abcd-1-1.0123abcd.tmp").write_text("")
    (run / "mine").write_text("")
    events = (run / "events.jsonl").read_text().splitlines(keepends=True)
    (run / "events.jsonl").write_text("".join(events[:-1]))
    (other.out / "runs" / "lora_replay.given.seed0" / "result.json").unlink()
    found = "\n".join(kill_test.differences(other, whole))
    for words in ("numbers differ: runs/softcot.given.seed0/rows/row_1.json", "not its checksum", "left over", "nobody's",
                  "the log does not end", "missing: runs/lora_replay.given.seed0/result.json"):  # fmt: skip
        assert words in found, found
