"""The training loop: exact steps, one division, stages inside a turn, divergence, and resume to the bit."""

import json
import math
import pickle
import signal
import sys
from pathlib import Path

import pytest
import torch
from learning_fakes import TASKS, FakeStrategy, Train, make_examples, make_learner, run_all, weights_sha256
from run_fakes import Ended, launch

from cl_softcot.errors import UserError
from cl_softcot.learning import learner as learner_module
from cl_softcot.learning.batches import ExactSteps
from cl_softcot.learning.optimiser import learning_rate_factor
from cl_softcot.learning.plugins import build_plugin
from cl_softcot.learning.snapshot import LossDiverged
from cl_softcot.learning.stream import make_stream, rows_to_indices
from cl_softcot.machine import processes

REPLAY = {"name": "replay", "mem_size": 10}


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


# --- budgets ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("plugins", [(), (REPLAY,)], ids=["plain", "replay"])
def test_budgets_are_equal_with_and_without_replay(plugins):
    learner, stream = make_learner(plugins=plugins)
    steps = []
    learner.on_step = lambda numbers: steps.append((numbers["turn"], numbers["step"]))
    reports = [learner.loop(turn) for turn in stream]
    assert [report.steps for report in reports] == [6, 6, 6]
    assert [report.examples_seen for report in reports] == [48, 48, 48]
    assert [report.replayed for report in reports] == ([0, 24, 24] if plugins else [0, 0, 0])
    assert steps == [(turn, step) for turn in range(3) for step in range(1, 7)]
    assert all(len(batch) == 8 for batch in learner.parts.reasoning.seen)


@pytest.mark.parametrize(("sharding", "size", "batch"), [("full", 2, 8), ("full", 4, 8), ("none", 3, 8), ("full", 1, 9)])
def test_shares_that_are_even_or_need_not_be_are_taken(monkeypatch, sharding, size, batch):
    monkeypatch.setattr(processes._world, "size", size)
    learner, _ = make_learner(train=Train(global_batch_size=batch, sharding=sharding))
    learner.training._refuse_uneven_shares()


def test_processes_that_share_weights_need_equal_shares(monkeypatch):
    """Each gathers the weights for its own rows: one with a row more would wait for the others for ever."""
    learner, stream = make_learner(train=Train(global_batch_size=8, sharding="full"))
    monkeypatch.setattr(processes._world, "size", 3)
    with pytest.raises(UserError, match="3 processes cannot share 8 examples") as caught:
        learner.loop(stream[0])
    assert "multiple of 3, say 9" in caught.value.fix


def test_torch_counts_every_step_as_a_write_to_the_weights():
    """Its fused optimisers leave that out, and what was computed with older weights would be taken for today's."""
    learner, stream = make_learner()
    weights = list(learner.strategy.tensors(learner.parts).values())
    counts = []
    learner.on_step = lambda _: counts.append([w._version for w in weights])
    learner.loop(stream[0])
    assert all(
        before < after
        for one, next_one in zip(counts, counts[1:], strict=False)
        for before, after in zip(one, next_one, strict=True)
    )
    assert len(counts) == 6 and weights


def test_replayed_examples_are_of_earlier_turns_and_get_todays_stage():
    learner, stream = make_learner(plugins=[{**REPLAY, "batch_size_mem": 3}], stages=2)
    learner.loop(stream[0])
    learner.parts.reasoning.seen.clear()
    learner.loop(stream[1])
    seen = learner.parts.reasoning.seen
    assert [[stage for _, stage in batch] for batch in seen] == [[0] * 8] * 3 + [[1] * 8] * 3
    for batch in seen:
        assert [example.split("-")[0] for example, _ in batch] == ["three"] * 5 + ["one"] * 3


def test_every_example_is_seen_as_often_as_any_other():
    learner, stream = make_learner(train=Train(steps=5))  # 40 places, 20 examples
    learner.loop(stream[0])
    seen = [example for batch in learner.parts.reasoning.seen for example, _ in batch]
    assert sorted(seen) == sorted(2 * [e.id for e in stream[0].examples])
    assert sorted(seen[:20]) == sorted(e.id for e in stream[0].examples)
    assert seen[:20] != seen[20:]


def test_the_order_is_a_function_of_seed_turn_and_step():
    def rows(seed: int, start: int = 0):
        learner, stream = make_learner(seed=seed)
        steps = ExactSteps([stream[1].experience.dataset], [8], [], learner.collate, seed, stream[1])
        return [[row["index"] for row in steps.rows(step)] for step in range(start, 5)]

    assert rows(0) == rows(0) and rows(0)[3:] == rows(0, start=3)
    assert rows(0) != rows(1)


def test_a_reasoning_that_plans_another_number_of_steps_is_refused():
    learner, stream = make_learner()
    learner.parts.reasoning.phases = lambda steps: []
    with pytest.raises(UserError, match="plans 0 optimiser steps where the budget is 6"):
        learner.loop(stream[0])


def test_stages_advance_inside_a_turn_and_start_over_in_the_next():
    learner, stream = make_learner(stages=3)
    stages = []
    learner.on_step = lambda numbers: stages.append(numbers["stage"])
    for turn in stream:
        learner.loop(turn)
    assert stages == [0, 0, 1, 1, 2, 2] * 3


# --- numerics --------------------------------------------------------------------------------------


def gradients_after_one_step(micro_batch_size: int | None):
    learner, stream = make_learner(train=Train(steps=1, micro_batch_size=micro_batch_size, gradient_clip=1e9))
    report = learner.loop(stream[0])
    gradients = {name: p.grad.clone() for name, p in learner.strategy.named.items()}
    return report, gradients


@pytest.mark.parametrize("micro_batch_size", [1, 2, 3, 4])
def test_1x8_equals_4x2(micro_batch_size):
    whole, expected = gradients_after_one_step(None)
    report, gradients = gradients_after_one_step(micro_batch_size)
    assert report.tokens == whole.tokens and report.losses == pytest.approx(whole.losses, rel=1e-6)
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-4, atol=1e-7)


def test_the_loss_is_the_mean_over_tokens_not_over_examples():
    learner, stream = make_learner(train=Train(steps=1), noise=0.0)
    model = learner.parts.backbone.model
    examples = [dict(stream[0].experience.dataset[i]) for i in range(3)]
    examples[0]["example"] = make_examples("longer", 1)[0].__class__(
        "long", "x", "2 3", (), "4 5 6 7 8 9"
    )  # seven tokens against two
    learner.collate.set_moment(0, 0, learner.parts.reasoning.phases(1)[0])
    batch = learner.collate(examples)
    logits = model(input_ids=batch["ids"], attention_mask=batch["mask"]).logits
    expected = torch.nn.functional.cross_entropy(
        logits[:, :-1].flatten(0, 1), batch["labels"][:, 1:].flatten(), ignore_index=-100
    )
    output = learner.training.model(batch)
    assert output.n_tokens == 11
    torch.testing.assert_close(learner.training._criterion(output, None), expected)


def test_learning_rate_warms_up_stays_and_decays_over_the_turn():
    factors = [learning_rate_factor(step, 20, 0.2, 0.5) for step in range(20)]
    assert factors[:4] == pytest.approx([0.25, 0.5, 0.75, 1.0])
    assert factors[4:11] == [1.0] * 7
    assert factors[11:] == pytest.approx([0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1])
    assert [learning_rate_factor(step, 3, 0.0, 0.0) for step in range(3)] == [1.0, 1.0, 1.0]
    learner, stream = make_learner(train=Train(steps=4, warmup_fraction=0.5), stages=2)
    rates = []
    learner.on_step = lambda numbers: rates.append(numbers["learning_rate"])
    learner.loop(stream[0])
    assert rates == pytest.approx([1.5e-3, 3e-3, 3e-3, 1.5e-3])


def test_the_optimiser_is_fresh_each_turn_and_kept_through_its_stages():
    learner, stream = make_learner(stages=3)
    optimisers, counts = [], []

    def look(_numbers):
        optimiser = learner.training.optimizer
        optimisers.append(optimiser)
        counts.append(next(iter(optimiser.state.values()))["step"].item())

    learner.on_step = look
    for turn in stream[:2]:
        learner.loop(turn)
    assert len(set(map(id, optimisers))) == 2
    assert counts == [1, 2, 3, 4, 5, 6] * 2
    assert optimisers[0].defaults["betas"] == (0.9, 0.99) and optimisers[0].defaults["weight_decay"] == 0.0


def steps_of_the_optimiser(train: Train, **settings) -> list[int]:
    learner, stream = make_learner(train=train, stages=3, **settings)
    counts = []
    learner.on_step = lambda _: counts.append(int(next(iter(learner.training.optimizer.state.values()))["step"]))
    learner.loop(stream[0])
    return counts


@pytest.mark.parametrize(("when", "counts"), [("stage", [1, 2, 1, 2, 1, 2]), ("epoch", [1, 2, 3, 1, 2, 1])])
def test_the_optimiser_forgets_at_stages_or_epochs_where_wanted(when, counts):
    """Three stages of two steps; 20 examples in batches of 8: step 4 goes into the second pass, step 6 into the third."""
    assert steps_of_the_optimiser(Train(reset_optimizer=when)) == counts


def test_an_epoch_is_one_of_the_turns_own_examples():
    """With replay half of the batch is new: 20 examples last five steps."""
    plugins = [{"name": "replay", "mem_size": 8}]
    learner, stream = make_learner(train=Train(reset_optimizer="epoch"), plugins=plugins)
    learner.loop(stream[1])  # something to replay
    counts = []
    learner.on_step = lambda _: counts.append(int(next(iter(learner.training.optimizer.state.values()))["step"]))
    learner.loop(stream[0])
    assert counts == [1, 2, 3, 4, 5, 1]


def test_a_reset_optimiser_resumes_where_it_was_reset():
    """The snapshot is taken right before the step that forgets (step 4, a new epoch)."""
    train, snapshots, weights = Train(reset_optimizer="epoch", checkpoint_every_steps=3), [], []
    for resume in (False, True):
        learner, stream = make_learner(train=train)
        if resume:
            learner.load_state_dict(snapshots[0], stream)
            assert learner.resumed_steps(learner._resume) == 3
        learner.loop(stream[0], checkpoint=snapshots.append)
        weights.append(weights_sha256(learner))
    assert weights[0] == weights[1]


def test_betas_are_those_of_the_settings():
    learner, stream = make_learner(train=Train(betas=(0.8, 0.999)))
    seen = []
    learner.on_step = lambda _: seen.append(learner.training.optimizer.defaults["betas"])
    learner.loop(stream[0])
    assert seen[0] == (0.8, 0.999)


def test_gradients_are_left_alone_without_a_limit():
    """The same step with a limit that nothing reaches, and not with one that cuts."""

    def gradients(limit: float | None) -> float:
        learner, stream = make_learner(train=Train(steps=1, gradient_clip=limit))
        learner.loop(stream[0])
        return math.sqrt(sum(p.grad.square().sum().item() for p in learner.strategy.named.values()))

    assert gradients(None) == gradients(1e9) > 0.1 > gradients(0.1) - 1e-6


def test_without_a_limit_a_gradient_that_is_no_number_still_stops():
    learner, stream = make_learner(train=Train(gradient_clip=None))
    learner.parts.reasoning.poison_at = 3
    with pytest.raises(LossDiverged, match="no longer a number") as caught:
        learner.loop(stream[0])
    assert "now null" in caught.value.fix


def test_the_8_bit_optimiser_is_asked_for_by_name(monkeypatch):
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    monkeypatch.setitem(sys.modules, "bitsandbytes.optim", None)
    learner, stream = make_learner(train=Train(optimizer="adamw_8bit"))
    with pytest.raises(UserError, match="adamw_8bit needs the package bitsandbytes") as caught:
        learner.loop(stream[0])
    assert "optimizer: adamw" in caught.value.fix


def test_the_8_bit_optimiser_learns_and_resumes():
    """Its states have to be of 4,096 numbers to be kept in 8 bits: the embedding is made that large."""
    pytest.importorskip("bitsandbytes")
    train, snapshots, weights = Train(optimizer="adamw_8bit", steps=8, checkpoint_every_steps=3), [], []
    for resume in (False, True):
        learner, stream = make_learner(train=train, vocabulary=512, strategy=FakeStrategy(("model.embed_tokens",)))
        if resume:
            learner.load_state_dict(snapshots[0], stream)
        report = learner.loop(stream[0], checkpoint=snapshots.append)
        weights.append(weights_sha256(learner))
    assert report.steps == 8 and weights[0] == weights[1]
    kinds = {tensor.dtype for name, tensor in snapshots[0]["tensors"].items() if name.startswith("optimizer/")}
    assert torch.uint8 in kinds
    json.dumps(snapshots[0]["state"])  # it can be written


def test_gradients_are_clipped():
    learner, stream = make_learner(train=Train(steps=1, gradient_clip=1e-3))
    learner.loop(stream[0])
    norm = math.sqrt(sum(p.grad.square().sum().item() for p in learner.strategy.named.values()))
    assert norm == pytest.approx(1e-3, rel=1e-3)


def test_it_learns():
    learner, stream = make_learner(train=Train(steps=150), strategy=FakeStrategy(learning_rate=1e-2), noise=0.0)
    report = learner.loop(stream[0])
    assert len(report.losses) == 15
    assert report.losses[-1] < 0.3 * report.losses[0]


def test_a_reasoning_that_miscounts_its_tokens_is_caught():
    learner, stream = make_learner()
    loss = learner.parts.reasoning.loss

    def miscount(parts, batch):
        output = loss(parts, batch)
        return type(output)(output.loss_sum, output.n_tokens - 1, output.per_example_B)

    learner.parts.reasoning.loss = miscount
    with pytest.raises(ValueError, match="counted 15 tokens, its batch has 16 labels"):
        learner.loop(stream[0])


def test_losses_are_means_of_ten_steps():
    learner, stream = make_learner(train=Train(steps=13))
    losses = []
    learner.on_step = lambda numbers: losses.append(numbers["loss"])
    report = learner.loop(stream[0])
    assert report.losses == pytest.approx([sum(losses[:10]) / 10, sum(losses[10:]) / 3])
    assert report.tokens == 13 * 8 * 2 and report.train_seconds > 0


# --- divergence ------------------------------------------------------------------------------------


@pytest.mark.parametrize("every, good", [(0, 0), (2, 4)])
def test_nan_loss_stops_says_where_and_keeps_the_last_good_state(every, good):
    learner, stream = make_learner(train=Train(checkpoint_every_steps=every))
    learner.loop(stream[0])
    snapshots = [learner.state_dict()]
    learner.parts.reasoning.poison_at = 4
    with pytest.raises(LossDiverged) as caught:
        learner.loop(stream[1], checkpoint=snapshots.append)
    error = caught.value
    assert (error.turn, error.step, error.last_good_step) == (1, 4, good)
    assert "turn 2 (three), step 5 of 6: the loss is no longer a number" in str(error)
    assert "Lower the learning rate (now 0.003)" in str(error)
    for name, tensor in learner.strategy.named.items():
        assert torch.equal(tensor, snapshots[-1]["tensors"][f"weights/{name}"])
    assert pickle.loads(pickle.dumps(error)).step == 4  # it crosses process boundaries
    # And the last good state can be gone on from.
    learner.parts.reasoning.poison_at = None
    learner.load_state_dict(snapshots[-1], stream)
    assert learner.loop(stream[1]).steps == 6


def test_nan_gradient_never_reaches_the_weights():
    learner, stream = make_learner()
    weight = next(iter(learner.strategy.named.values()))
    before = weight.detach().clone()
    weight.register_hook(lambda gradient: gradient * float("inf"))
    with pytest.raises(LossDiverged, match="step 1 of 6: the gradient is no longer a number"):
        learner.loop(stream[0])
    assert torch.equal(weight, before)


# --- resume ----------------------------------------------------------------------------------------

FAKES = Path(__file__).parents[1] / "learning_fakes.py"


INTERRUPTED = {
    "mid-turn": ({"checkpoint_every_steps": 2}, [1, 5], [1, 4]),
    "mid-turn-replay": ({"checkpoint_every_steps": 4, "plugins": [REPLAY]}, [2, 5], [2, 4]),
    "turn-boundary-replay": ({"plugins": [REPLAY]}, [2, 3], [2, 0]),  # the end of the turn before was saved
}
"""settings; where the process is killed; where the next one goes on, as [turn, step]"""


def _in_a_new_process(runs: dict[str, dict], folder: Path) -> Ended:
    """Forked off one that has trained nothing; a fork of this one can hang in the threads that torch has started by now."""
    return launch(json.dumps(runs), cwd=folder, processes=1, script=FAKES)


@pytest.fixture(scope="module")
def resumed(tmp_path_factory) -> dict[str, dict]:
    """What a new process makes of the folders that killed ones left behind."""
    folder = tmp_path_factory.mktemp("killed")
    runs = {}
    for name, (settings, kill_at, _) in INTERRUPTED.items():
        killed = _in_a_new_process({str(folder / name): {**settings, "kill_at": kill_at}}, folder)
        assert killed.status == -signal.SIGKILL, killed.text
        runs[str(folder / name)] = settings
    done = _in_a_new_process(runs, folder)
    assert done.status == 0, done.text
    return dict(zip(INTERRUPTED, json.loads(done.out), strict=True))


@pytest.mark.parametrize("name", INTERRUPTED)
def test_killed_and_resumed_in_a_new_process_equals_uninterrupted_to_the_bit(tmp_path, resumed, name):
    settings, _, resumed_at = INTERRUPTED[name]
    uninterrupted = json.loads(json.dumps(run_all(tmp_path / "whole", settings)))
    assert resumed[name]["resumed_at"] == resumed_at and uninterrupted["resumed_at"] == [0, 0]
    assert resumed[name]["weights"] == uninterrupted["weights"]
    assert resumed[name]["reports"] == uninterrupted["reports"]


def test_dropout_makes_the_resume_test_a_test_of_random_numbers_too():
    runs = []
    for dropout in (0.0, 0.1):
        learner, stream = make_learner(dropout=dropout)
        learner.loop(stream[0])
        runs.append(weights_sha256(learner))
    assert runs[0] != runs[1]


def test_what_happens_between_turns_does_not_change_them():
    def run(between):
        learner, stream = make_learner(plugins=[REPLAY], dropout=0.1)
        for turn in stream:
            learner.loop(turn)
            between()
        return weights_sha256(learner)

    assert run(lambda: None) == run(lambda: torch.rand(7))


@pytest.mark.parametrize("policy", ["default", "reservoir", "task-balanced"])
def test_replay_buffer_comes_back_as_example_indices(policy):
    def learner_with_policy():
        learner, stream = make_learner(plugins=[{**REPLAY, "task_balanced_dataloader": policy == "task-balanced"}])
        if policy == "reservoir":
            from avalanche.training.storage_policy import ReservoirSamplingBuffer

            learner.plugins[0].storage_policy = ReservoirSamplingBuffer(10)
        return learner, stream

    learner, stream = learner_with_policy()
    for turn in stream[:2]:
        learner.loop(turn)
    snapshot = learner.state_dict()
    json.dumps(snapshot["state"])  # plain data, no pickles
    indices = rows_to_indices(learner.plugins[0].storage_policy.buffer)
    assert len(indices) == 10 and {turn for turn, _ in indices} == {0, 1}

    other, stream = learner_with_policy()
    other.load_state_dict(snapshot, stream)
    assert rows_to_indices(other.plugins[0].storage_policy.buffer) == indices
    assert weights_sha256(other) == weights_sha256(learner)
    for one in (learner, other):
        one.loop(stream[2])
    assert weights_sha256(other) == weights_sha256(learner)
    assert rows_to_indices(other.plugins[0].storage_policy.buffer) == rows_to_indices(learner.plugins[0].storage_policy.buffer)


def mid_turn_snapshot():
    snapshots = []
    learner, stream = make_learner(train=Train(checkpoint_every_steps=3))
    learner.loop(stream[0], checkpoint=snapshots.append)
    return snapshots[0], learner, stream


def test_resume_can_be_given_to_the_loop():
    snapshot, learner, _ = mid_turn_snapshot()
    other, stream = make_learner(train=Train(checkpoint_every_steps=3))
    seen = other.parts.reasoning.seen
    report = other.loop(stream[0], resume=snapshot)
    assert len(seen) == 3 and report.steps == 6
    assert weights_sha256(other) == weights_sha256(learner)


def test_a_resumed_reasoning_is_told_of_the_earlier_turns_too():
    learner, stream = make_learner()
    for turn in stream:
        learner.loop(turn)
    assert learner.parts.reasoning.registered == ["one", "three", "seventy"]
    other, stream = make_learner()
    other.load_state_dict(learner.state_dict(), stream)
    other.loop(stream[2])
    assert other.parts.reasoning.registered == ["one", "three", "seventy"]


def test_a_snapshot_of_another_turn_is_refused():
    snapshot, _, _ = mid_turn_snapshot()
    learner, stream = make_learner()
    with pytest.raises(UserError, match=r"of turn 1 \(one\), not of turn 2 \(three\)(.|\n)*--restart"):
        learner.loop(stream[1], resume=snapshot)


def test_changed_training_data_are_refused():
    snapshot, _, _ = mid_turn_snapshot()
    learner, _ = make_learner()
    stream = make_stream([(name, make_examples(name, n + 1)) for name, n in TASKS], learner.collate)
    with pytest.raises(UserError, match=r"data of turn 1 \(one\) are not those of the checkpoint"):
        learner.loop(stream[0], resume=snapshot)


def test_a_snapshot_of_another_method_is_refused():
    snapshot, _, _ = mid_turn_snapshot()
    learner, stream = make_learner(strategy=FakeStrategy(("model.layers",)))
    with pytest.raises(UserError, match="of another method"):
        learner.loop(stream[0], resume=snapshot)
    learner, stream = make_learner(plugins=[REPLAY])
    with pytest.raises(UserError, match="other plugins"):
        learner.loop(stream[0], resume=snapshot)


def test_a_snapshot_is_a_copy():
    learner, stream = make_learner()
    snapshot = learner.state_dict()
    before = {name: tensor.clone() for name, tensor in snapshot["tensors"].items()}
    learner.loop(stream[0])
    assert all(torch.equal(snapshot["tensors"][name], before[name]) for name in before)


# --- plugins from the configuration ----------------------------------------------------------------


def test_replay_takes_half_of_the_batch_by_default():
    plugin = build_plugin({"name": "replay", "mem_size": 50}, 32)
    assert (plugin.mem_size, plugin.batch_size, plugin.batch_size_mem) == (50, 16, 16)
    plugin = build_plugin({"name": "avalanche.training.plugins:ReplayPlugin", "batch_size_mem": 8}, 32)
    assert (plugin.batch_size, plugin.batch_size_mem) == (24, 8)


@pytest.mark.parametrize(
    "config, message",
    [
        ({"name": "repaly"}, "unknown plugin 'repaly'; did you mean 'replay'"),
        ({"name": "replay", "memsize": 3}, "no setting 'memsize'; did you mean 'mem_size'"),
        ({"name": "replay", "batch_size_mem": 32}, "takes 0 new and 32 replayed examples a step"),
        ({"name": "replay", "batch_size": 32, "batch_size_mem": 32}, "takes 32 new and 32 replayed"),
        ({"name": "avalanche.training.plugins:EWCPlugin"}, "needs the setting 'ewc_lambda'"),
        ({"name": "avalanche.training.plugins:NoPlugin"}, "no class 'NoPlugin'"),
        ({"name": "avalanche.training.plugins:LwFPlugin"}, "takes the targets for class numbers"),
    ],
)
def test_a_wrong_plugin_is_one_clear_message(config, message):
    with pytest.raises(UserError, match=message):
        build_plugin(config, 32)


def test_a_plugin_that_makes_larger_batches_is_refused():
    learner, stream = make_learner(plugins=[REPLAY])
    learner.plugins[0].batch_size_mem = 8
    learner.loop(stream[0])
    with pytest.raises(UserError, match=r"batches of 4 \+ 8 examples where train.global_batch_size is 8"):
        learner.loop(stream[1])


def test_a_plugin_that_cannot_be_saved_is_refused_at_resume_only():
    ewc = {"name": "avalanche.training.plugins:EWCPlugin", "ewc_lambda": 1.0}
    learner, stream = make_learner(plugins=[ewc])
    learner.loop(stream[0])
    snapshot = learner.state_dict()
    with pytest.raises(UserError, match="what the plugin EWCPlugin remembers cannot be kept(.|\n)*--restart"):
        learner.load_state_dict(snapshot, stream)


# --- contracts with strategies ---------------------------------------------------------------------


def test_trainable_must_be_what_requires_a_gradient():
    learner, stream = make_learner()
    forgotten = learner.parts.backbone.model.lm_head.weight
    learner.strategy.trainable = lambda parts: [
        {"params": [p for p in learner.strategy.named.values() if p is not forgotten], "lr": 1e-3}
    ]
    with pytest.raises(ValueError, match="left out: .*lm_head.weight"):
        learner.loop(stream[0])
    learner, stream = make_learner()
    learner.parts.backbone.model.lm_head.weight.requires_grad_(False)
    with pytest.raises(ValueError, match="1 of those given do not"):
        learner.loop(stream[0])


def test_frozen_weights_stay_bit_identical_and_get_no_gradient():
    learner, stream = make_learner(strategy=FakeStrategy(("model.layers",)))
    frozen = {n: p for n, p in learner.parts.backbone.model.named_parameters() if not p.requires_grad}
    before = {name: p.detach().clone() for name, p in frozen.items()}
    trained_before = weights_sha256(learner)
    for turn in stream:
        learner.loop(turn)
    assert frozen and all(torch.equal(p, before[n]) and p.grad is None for n, p in frozen.items())
    assert weights_sha256(learner) != trained_before


def test_an_empty_task_is_a_clear_message():
    learner, _ = make_learner()
    with pytest.raises(UserError, match="task 'x' has no training examples"):
        make_stream([("x", [])], learner.collate)
    with pytest.raises(UserError, match="no tasks"):
        make_stream([], learner.collate)


def test_per_example_losses_are_there_for_per_example_gradients():
    learner, stream = make_learner(train=Train(steps=1), noise=0.0)
    training = learner.training
    seen = []
    learner.on_step = lambda _: seen.append((training.mb_output, dict(training.optimized_param_id)))
    learner.loop(stream[0])
    output, trained = seen[0]
    assert output.per_example_B.shape == (8,)
    torch.testing.assert_close(output.per_example_B.sum(), output.loss_sum)
    assert all(p.requires_grad for p in trained.values())

    batch = stream[0].experience.dataset.collate_fn([stream[0].experience.dataset[i] for i in range(3)])
    losses_B = training.model(batch).per_example_B
    one_by_one = [torch.autograd.grad(loss, list(trained.values()), retain_graph=True) for loss in losses_B]
    together = torch.autograd.grad(losses_B.sum(), list(trained.values()))
    for i, gradient in enumerate(together):
        torch.testing.assert_close(sum(g[i] for g in one_by_one), gradient, rtol=1e-4, atol=1e-6)


# --- half precision --------------------------------------------------------------------------------


def test_small_gradients_survive_half_precision(monkeypatch):
    """fp16 ends at 6e-8: without a scale a part of the gradients is exactly zero, with it none more than in fp32."""
    from cl_softcot.learning import loop
    from cl_softcot.models.language_model import load_language_model
    from cl_softcot.reasoning.base import Parts
    from cl_softcot.reasoning.cot import Cot
    from cl_softcot.tasks.arithmetic import Arithmetic
    from strategies.full_finetune import FullFinetune

    task = Arithmetic(Arithmetic.Settings(), "sums")

    def norm_and_zeros(dtype: str, scale: float) -> tuple[float, float]:
        monkeypatch.setattr(loop, "HALF_SCALE", scale)
        parts = Parts(load_language_model("builtin:tiny", dtype).copy(), None, Cot())
        strategy = FullFinetune()
        strategy.prepare(parts, 0)
        learner = learner_module.Learner(parts, strategy, Train(steps=1, global_batch_size=16), (), 0)
        stream = make_stream([("sums", task.examples("train", 16, 0))], learner.collate)
        found = {}

        def look(**_kwargs):
            gradients = torch.cat([p.grad.flatten() for p in parts.backbone.layers.parameters()])
            found.update(norm=float(gradients.norm()), zeros=float((gradients == 0).float().mean()))

        monkeypatch.setattr(learner.training, "_after_backward", look)
        learner.loop(stream[0])
        return found["norm"], found["zeros"]

    scale = loop.HALF_SCALE
    norm, zeros = norm_and_zeros("float32", 1.0)
    scaled_norm, scaled_zeros = norm_and_zeros("float16", scale)
    _, plain_zeros = norm_and_zeros("float16", 1.0)
    assert scaled_norm == pytest.approx(norm, rel=0.02)
    assert plain_zeros - zeros > 4 * (scaled_zeros - zeros) > -0.01, (zeros, plain_zeros, scaled_zeros)
