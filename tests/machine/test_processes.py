"""Several processes give the numbers of one: batches split, gradients summed, weights sharded, questions dealt out."""

from __future__ import annotations

import functools
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from run_fakes import Ended, environment, finished, launch, made_once, result, run_folders, small, start, tiny, write

from cl_softcot.config.loading import load_experiment
from cl_softcot.errors import UserError
from cl_softcot.machine import processes as parallel
from cl_softcot.machine.exact import memory_explained

HERE = Path(__file__).parents[1]
TOLERANCE = 1e-5
# Of drift. Processes add up gradients in another order, and AdamW divides them by their own size: where a gradient is all
# rounding, a weight's step is too. Measured on the embedded models after three tasks: 4e-5 of the drift, losses equal to 1e-5.
DRIFT_SHARE = 1e-3


def torchrun(*args: Any, cwd: Path, processes: int = 2, timeout: float = 400, **env: str) -> Ended:
    """``torchrun`` of a module, on the CPU: for what ``launch`` leaves out, since every process imports everything anew."""
    start = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    surroundings = environment(CUDA_VISIBLE_DEVICES="", **env)
    surroundings["PYTHONPATH"] += os.pathsep + str(HERE)
    done = subprocess.run([*start, *map(str, args)], cwd=cwd, env=surroundings, capture_output=True, text=True, timeout=timeout)
    return Ended(done.returncode, done.stdout, done.stderr)


# --------------------------------------------------------------------------------------------- one process, alone


@pytest.mark.parametrize(
    ("given", "missing"),
    [({"WORLD_SIZE": "2"}, "RANK and MASTER_ADDR and MASTER_PORT"), ({"WORLD_SIZE": "4", "RANK": "1"}, "MASTER_ADDR")],
)
def test_a_launch_without_a_meeting_place_is_told(monkeypatch, given, missing):
    for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    assert not parallel.launched()
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert not parallel.launched()
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=missing) as caught:
        parallel.launched()
    assert "torchrun" in caught.value.fix


def test_one_process_does_the_obvious():
    assert (parallel.size(), parallel.rank(), parallel.is_main()) == (1, 0, True)
    assert parallel.dealt([3, 4], lambda x: x + 1) == [4, 5]
    assert parallel.own_rows(5) == slice(0, 5)
    with pytest.raises(ZeroDivisionError):
        parallel.from_main(lambda: 1 // 0)


@pytest.mark.parametrize("size", [2, 3, 4])
def test_every_row_is_somebodys(monkeypatch, size):
    monkeypatch.setattr(parallel._world, "size", size)
    rows = []
    for rank in range(size):
        monkeypatch.setattr(parallel._world, "rank", rank)
        own = parallel.own_rows(10)
        assert abs((own.stop - own.start) - 10 / size) < 1
        rows += range(10)[own]
    assert rows == list(range(10))
    with pytest.raises(UserError, match="batch of 1 examples cannot be split"):
        parallel.own_rows(1)


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("CUDA out of memory. Tried"), RuntimeError("[enforce] can't allocate memory: 9 bytes")]
)
def test_out_of_memory_says_what_to_change(error):
    with pytest.raises(UserError, match="not enough memory") as caught, memory_explained():
        raise error
    for setting in ("micro_batch_size", "gradient_checkpointing", "quantization", "sharding", "evaluate.batch_size"):
        assert setting in caught.value.fix
    assert caught.value.exit_status == 1


def test_other_errors_are_left_alone():
    with pytest.raises(RuntimeError, match="shapes"), memory_explained():
        raise RuntimeError("shapes do not match")


# ---------------------------------------------------------------------------------------- what two say to each other


@functools.cache
def said() -> list[dict[str, Any]]:
    def make(folder: Path) -> None:
        ended = launch(folder, cwd=folder, script=HERE / "parallel_worker.py")
        assert ended.status == 0, ended.text

    folder = made_once("parallel", make)
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in (0, 1)]


def check(name: str) -> list[Any]:
    found = [one[name] for one in said()]
    assert not any(isinstance(f, dict) and "error" in f for f in found), found
    return found


def test_pieces_are_dealt_and_everybody_gets_all():
    first, second = check("deals")
    assert first["found"] == second["found"] == [[10.5], [11.5], [12.5], [13.5], [14.5]]
    assert first["done"] == [10, 12, 14] and second["done"] == [11, 13]


def test_errors_of_the_first_reach_all():
    first, second = check("hears_errors")
    assert first == ["UserError|here: no disk\n  buy one", "KeyError|'k'", "I am 0"]
    assert second == ["UserError|here: no disk\n  buy one", "Told|KeyError: 'k'", "I am 0"]


def test_what_differs_stops_all():
    assert all("the cats of process 1 are not those of process 0" in one for one in check("compares"))


def test_gradients_are_summed_and_missing_ones_count_as_nothing():
    for found in check("sums_gradients"):
        assert found["gradients"] == [[3.0] * 3, [[2.0, 2.0]] * 2, [9.0] * 9, [12.0] * 2, None]


def test_tensors_of_any_type_are_sent():
    assert check("sends_tensors") == [True, True]


def test_random_numbers_of_ones_own_leave_the_common_ones_alone():
    first, second = check("draws")
    assert first["before"] == second["before"] and first["common"] and second["common"]
    assert first["inside"] != second["inside"]
    assert first["inside"] == first["again"] and second["inside"] == second["again"]


def test_failing_together_and_alone_are_told_apart():
    assert check("fails") == [[True, False], [True, None]]


@pytest.mark.parametrize("tied", ["tied", "untied"])
def test_sharded_steps_are_those_of_one_process(tied):
    """Over a cache and with a hidden state fed back: losses, clipped norms and weights after three steps of AdamW."""
    for found in check(f"shards_{tied}"):
        assert max(found["loss_gaps"]) < 1e-4  # a sum over 16 tokens, about 50 nats
        for one, split in found["norms"]:
            assert one > 10 * 0.5 and split == pytest.approx(one, rel=1e-5)
        assert found["weight_gap"] < TOLERANCE
        assert found["gathered_gap"] < 1e-4 and found["put"]
    first, second = check(f"shards_{tied}")
    assert first["whole"] == ["model.embed_tokens.weight"]
    assert ("lm_head.weight" in first["sharded"]) is (tied == "untied") and len(first["sharded"]) >= 3 * 9 + 1
    embedding = 24 * 16
    assert first["own_numbers"] + second["own_numbers"] - embedding == first["all_numbers"]  # each the half of the rest
    assert first["kept"] < TOLERANCE and second["kept"] == 0  # the whole state is gathered to the first process only


def test_uneven_shares_of_sharded_weights_are_refused():
    assert all("2 processes cannot share 9 examples" in one and "say 10" in one for one in check("refuses_uneven_shares"))


# ------------------------------------------------------------------------------------------------ the command


def numbers_of(value: Any, path: str = "") -> dict[str, Any]:
    """All leaves of a result but those of the clock, the machine and hashes of trained weights."""
    skipped = ("seconds", "peak_memory_mb", "finished", "versions", "revision", "machine", "sha256", "config_fingerprint")
    if any(word in path for word in skipped):
        return {}
    if isinstance(value, dict | list):
        pairs = value.items() if isinstance(value, dict) else enumerate(value)
        return {k: v for key, inner in pairs for k, v in numbers_of(inner, f"{path}/{key}").items()}
    return {path: value}


def assert_numbers_of_one_process(got: Path, expected: Path, methods: Any, tolerance: float = TOLERANCE) -> None:
    """Accuracies, answers and everything counted are the same; losses to the tolerance; drift to it or to a thousandth."""
    for method in methods:
        a, b = run_folders(got)[method], run_folders(expected)[method]
        found, wanted = (numbers_of(json.loads((folder / "result.json").read_text())) for folder in (a, b))
        assert found.keys() == wanted.keys()
        for key, value in wanted.items():
            if key.startswith(("/losses", "/drift")) and value is not None:
                share = DRIFT_SHARE if key.startswith("/drift") else 0.0
                assert found[key] == pytest.approx(value, abs=tolerance, rel=share), (method, key)
            else:
                assert found[key] == value, (method, key)
        for file in sorted((b / "predictions").iterdir()):
            rows = [[json.loads(line) for line in (f / "predictions" / file.name).read_text().splitlines()] for f in (a, b)]
            without = [[{k: v for k, v in row.items() if k != "policy"} for row in some] for some in rows]
            assert without[0] == without[1], (method, file.name)


def machine_of(out: Path, method: str) -> dict[str, Any]:
    return result(out, method)["machine"]


@pytest.mark.slow
def test_two_processes_give_the_numbers_of_one(tmp_path):
    """By the real launcher, each importing everything by itself: without a plug-in too, whose check imports Avalanche early."""
    path = write(tmp_path, small("full_coconut", "lora_nearest"))
    ended = torchrun("-m", "cl_softcot.run", path, "output_dir=two", cwd=tmp_path)
    assert ended.status == 0, ended.text
    assert_numbers_of_one_process(tmp_path / "two", finished(), ["full_coconut", "lora_nearest"])
    assert machine_of(tmp_path / "two", "full_coconut")["processes"] == 2
    assert ended.out.count("full_coconut.given.seed0 finished") == 1  # one process speaks
    again = launch(path, "output_dir=two", cwd=tmp_path)
    assert again.status == 0 and again.out.count("was finished before") == 2, again.text


MANY = {
    "full_coconut": {"reasoning": {"name": "coconut", "max_stage": 2}, "strategy": "full_finetune"},
    "lora_replay": {
        "reasoning": "cot",
        "strategy": {"name": "lora", "rank": 2},
        "plugins": [{"name": "replay", "mem_size": 8}],
    },
    "softcot": {"reasoning": "softcot", "strategy": "frozen_backbone"},
    "lora_nearest": {"reasoning": "cot", "strategy": "lora", "per_task": {"routing": "nearest"}},
}


def many(build: Any, **changes: Any) -> dict[str, Any]:
    return build("softcot", **changes) | {"methods": [{"name": name, **parts} for name, parts in MANY.items()]}


@pytest.mark.slow
@pytest.mark.parametrize("processes", [2, 3])
def test_the_embedded_models_in_several_processes(tmp_path, processes):
    """Uneven shares of the batch (3 of 4 examples), micro-batches, several batches of answers a set."""
    data = many(tiny, train={"steps": 6, "micro_batch_size": 1}, evaluate={"test": 12, "batch_size": 5})
    path = write(tmp_path, data)
    assert start(path, "output_dir=one", cwd=tmp_path).status == 0
    ended = launch(path, "output_dir=several", cwd=tmp_path, processes=processes)
    assert ended.status == 0, ended.text
    assert_numbers_of_one_process(tmp_path / "several", tmp_path / "one", MANY)
    assert (
        max(result(tmp_path / "one", "softcot")["retention"]["as_used"][0]["families"].values()) > 0
    )  # the base can do something: answers are not noise


@pytest.mark.slow
@pytest.mark.parametrize("processes", [2, 4])
def test_sharded_weights_give_the_numbers_of_one_process(tmp_path, processes):
    data = small("full_coconut", train={"steps": 8})
    data["methods"][0]["reasoning"]["max_stage"] = 2
    path = write(tmp_path, data)
    assert start(path, "output_dir=one", cwd=tmp_path).status == 0
    sharded = ["train.sharding=full", "output_dir=sharded"]
    ended = launch(path, *sharded, cwd=tmp_path, processes=processes)
    assert ended.status == 0, ended.text
    assert_numbers_of_one_process(tmp_path / "sharded", tmp_path / "one", ["full_coconut"])
    # Checkpoints hold whole tensors: one process goes on with what four sharded began.
    folder = run_folders(tmp_path / "sharded")["full_coconut"]
    (folder / "result.json").unlink()
    (folder / "rows" / "row_2.json").unlink()
    ended = start(path, *sharded, cwd=tmp_path)
    assert ended.status == 0, ended.text
    assert f"begun with {processes} processes, goes on with 1" in ended.text
    assert_numbers_of_one_process(tmp_path / "sharded", tmp_path / "one", ["full_coconut"])


@pytest.mark.slow
@pytest.mark.parametrize("sharding", ["none", "full"])
def test_a_killed_launch_goes_on_with_another_number_of_processes(tmp_path, sharding):
    """Inside a turn: weights, optimiser and position come from the checkpoint of the others."""
    path = write(tmp_path, small("full_coconut", train={"steps": 8, "checkpoint_every_steps": 3, "sharding": sharding}))
    assert start(path, "output_dir=one", cwd=tmp_path).status == 0
    kill = ("cl_softcot.learning.loop:TrainingLoop._count_step", 12)
    assert start(path, "output_dir=out", cwd=tmp_path, kill_at=kill).status == -signal.SIGKILL
    ended = launch(path, "output_dir=out", cwd=tmp_path)
    assert ended.status == 0, ended.text
    assert "begun with 1 processes, goes on with 2" in ended.out
    assert_numbers_of_one_process(tmp_path / "out", tmp_path / "one", ["full_coconut"])
    machine = machine_of(tmp_path / "out", "full_coconut")
    assert machine["processes"] == 2 and machine["processes_before"] == [1]


@pytest.mark.slow
def test_dropout_is_drawn_apart_and_the_same_again(tmp_path):
    """Masks differ between processes, so that losses are not those of one; memories of a plug-in stay common."""
    path = write(tmp_path, small("lora_replay"))
    for out in ("a", "b"):
        ended = launch(path, f"output_dir={out}", cwd=tmp_path)
        assert ended.status == 0, ended.text
    assert_numbers_of_one_process(tmp_path / "a", tmp_path / "b", ["lora_replay"], tolerance=0.0)
    losses = [
        json.loads((run_folders(o)["lora_replay"] / "result.json").read_text())["losses"] for o in (tmp_path / "a", finished())
    ]
    assert losses[0] != losses[1]
    assert losses[0][0][0] == pytest.approx(losses[1][0][0], abs=0.05)  # later turns replay other examples


# --------------------------------------------------------------------------------------------------- mis-launches


def test_jobs_do_not_go_with_a_launch(tmp_path):
    rendezvous = {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}
    ended = start(write(tmp_path, small("softcot")), "--jobs", 2, cwd=tmp_path, env=rendezvous)
    assert ended.status == 2 and ended.err.count("error: --jobs 2") == 1 and "Traceback" not in ended.text
    assert not (tmp_path / "runs").exists()


def test_one_process_where_several_were_meant_is_told(tmp_path):
    env = {"ACCELERATE_MIXED_PRECISION": "no", "ACCELERATE_USE_CPU": "True"}
    ended = start(write(tmp_path, small("softcot")), "--dry-run", cwd=tmp_path, env=env)
    assert ended.status == 0 and "accelerate started one process" in ended.err and "torchrun" in ended.err


def test_a_model_over_several_gpus_does_not_go_with_a_launch(tmp_path):
    data = small("softcot")
    data["backbone"] = {"path": data["backbone"], "device_map": "auto"}
    rendezvous = {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}
    ended = start(write(tmp_path, data), cwd=tmp_path, env=rendezvous)
    assert ended.status == 2 and "device_map" in ended.err and "Traceback" not in ended.text


def test_a_size_without_a_meeting_place_is_one_error(tmp_path):
    ended = start(write(tmp_path, small("softcot")), cwd=tmp_path, env={"WORLD_SIZE": "2"})
    assert ended.status == 2 and "MASTER_ADDR" in ended.err and "torchrun" in ended.err and "Traceback" not in ended.text


FAILING = """
from cl_softcot.machine import processes
from strategies.frozen_backbone import FrozenBackbone

processes._PATIENCE = 3.0


class Failing(FrozenBackbone):
    def after(self, turn):
        if processes.rank() == 1:
            raise ZeroDivisionError("only here")
"""


@pytest.mark.slow
def test_a_process_that_fails_alone_ends_the_launch(tmp_path):
    """No hang (of which this test would be ended): its story is told, and what was measured before is kept."""
    (tmp_path / "failing.py").write_text(FAILING)
    data = small("softcot")
    data["methods"][0]["strategy"] = "failing:Failing"
    path = [str(tmp_path), environment()["PYTHONPATH"]]
    ended = torchrun(
        "-m", "cl_softcot.run", write(tmp_path, data), "output_dir=out", cwd=tmp_path, PYTHONPATH=os.pathsep.join(path)
    )
    assert ended.status != 0
    assert "process 1 of 2 failed alone" in ended.err and "ZeroDivisionError: only here" in ended.err
    folder = run_folders(tmp_path / "out")["softcot"]
    assert (folder / "rows" / "row_0.json").exists() and not (folder / "result.json").exists()


# ------------------------------------------------------------------------------------------------- settings


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        (["train.sharding=full"], "frozen_backbone does not train them"),
        (["train.sharding=full", "train.optimizer=adamw_8bit"], "adamw_8bit does not work on weights that are split"),
        (["train.betas=[0.9]"], "betas"),
        (["train.betas=[0.9,1.0]"], "betas"),
        (["train.gradient_clip=0"], "gradient_clip"),
        (["train.reset_optimizer=never"], "reset_optimizer"),
    ],
)
def test_settings_that_cannot_be(tmp_path, overrides, told):
    with pytest.raises(UserError, match=told):
        load_experiment(write(tmp_path, small("softcot")), overrides)


def test_sharding_keeps_one_copy(tmp_path):
    with pytest.raises(UserError, match="one copy of the backbone"):
        load_experiment(write(tmp_path, small("full_oracle")), ["train.sharding=full"])
