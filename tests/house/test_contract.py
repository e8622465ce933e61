"""What every plug-in owes, checked over the files that are there: a new one is tested by being added."""

from __future__ import annotations

import dataclasses
import json
import random
from functools import partial

import benchmark_rows
import pytest
import torch
from model_fakes import examples, parts_of, words_model
from run_fakes import METHODS, finished, local_task, result, run_folders

from cl_softcot import registry
from cl_softcot.answering.policy import BasePolicy, MethodPolicy
from cl_softcot.errors import UserError
from cl_softcot.learning import checkpoint
from cl_softcot.reasoning.base import Phase
from cl_softcot.tasks.base import Task

STRATEGIES, REASONINGS, TASKS = (registry.known(kind) for kind in ("strategy", "reasoning", "task"))
NEEDED = {"local_file": lambda: {k: v for k, v in local_task("first").items() if k not in ("name", "task")}}
NEEDED |= {name: partial(benchmark_rows.settings, name) for name in benchmark_rows.SETTINGS}


def settings_of(kind: str, name: str):
    """The settings that a plug-in has by itself."""
    return registry.find(kind, name).Settings(**NEEDED.get(name, dict)())


def go_together(strategy: str, reasoning: str) -> bool:
    s, r = registry.find("strategy", strategy), registry.find("reasoning", reasoning)
    return not (s.refuses(s.Settings(), reasoning) or r.refuses(r.Settings(), strategy))


PAIRS = [(s, r) for s in STRATEGIES for r in REASONINGS if go_together(s, r)]
TRAINED = [(s, r) for s, r in PAIRS if registry.find("strategy", s).trains]


def prepared(strategy: str, reasoning: str, folder):
    backbone, assistant = words_model(folder), words_model(folder, "assistant", width=16, seed=5)
    thinks = registry.find("reasoning", reasoning)(settings_of("reasoning", reasoning))
    learns = registry.find("strategy", strategy)(settings_of("strategy", strategy))
    parts = parts_of(backbone, thinks, assistant)
    learns.prepare(parts, seed=0)
    return parts, learns


def encoded(parts, items):
    reasoning = parts.reasoning
    reasoning.register(parts, items)
    return [reasoning.encode(parts.backbone.text, e, reasoning.final_phase(), random.Random(0)) for e in items]


def train(parts, strategy, items, steps: int) -> list[float]:
    optimizer = torch.optim.AdamW(strategy.trainable(parts))
    batch = parts.reasoning.collate(encoded(parts, items))
    losses = []
    for _ in range(steps):
        loss = parts.reasoning.loss(parts, batch)
        optimizer.zero_grad()
        (loss.loss_sum / loss.n_tokens).backward()
        optimizer.step()
        losses.append(loss.loss_sum.item() / loss.n_tokens)
    return losses


def test_every_file_is_found_and_used():
    """Each strategy and each way of thinking has a partner, or nobody could ever run it."""
    assert {s for s, _ in PAIRS} == set(STRATEGIES)
    assert {r for _, r in PAIRS} == set(REASONINGS)
    assert {"zero_shot", "full_finetune", "lora", "frozen_backbone"} <= set(STRATEGIES)
    assert {"direct", "cot", "pause", "coconut", "softcot"} <= set(REASONINGS)
    assert len(TASKS) >= 8


# ------------------------------------------------------------------------------- strategies x ways of thinking


@pytest.mark.parametrize(("strategy", "reasoning"), TRAINED)
def test_loss_falls_frozen_weights_stay_and_a_checkpoint_brings_it_back(strategy, reasoning, tmp_path):
    parts, learns = prepared(strategy, reasoning, tmp_path)
    named = {f"backbone.{n}": p for n, p in parts.backbone.model.named_parameters()}
    named |= {f"reasoning.{n}": p for n, p in parts.reasoning.named_parameters()}
    before = {n: p.detach().clone() for n, p in named.items()}
    hashes = parts.backbone.weights_sha256(), parts.assistant.weights_sha256()
    items = examples(8)
    losses = train(parts, learns, items, 10)
    assert losses[-1] < losses[0]
    trained = learns.tensors(parts)
    assert trained and all(torch.equal(p, before[n]) for n, p in named.items() if n not in trained)
    assert any(not torch.equal(p, before[n]) for n, p in named.items())
    assert parts.assistant.weights_sha256() == hashes[1]
    if not learns.changes_backbone:
        assert parts.backbone.weights_sha256() == hashes[0]

    written = MethodPolicy(parts, learns).generate(items, 8)
    checkpoint.save(tmp_path / "checkpoints", "here", {n: t.detach() for n, t in trained.items()}, {})
    twin, again = prepared(strategy, reasoning, tmp_path)
    loaded = checkpoint.load_latest(tmp_path / "checkpoints").tensors
    with torch.no_grad():
        for name, tensor in again.tensors(twin).items():
            tensor.copy_(loaded[name])
    assert MethodPolicy(twin, again).generate(items, 8) == written
    assert MethodPolicy(twin, again).fingerprint == MethodPolicy(parts, learns).fingerprint


@pytest.mark.parametrize(("strategy", "reasoning"), TRAINED)
def test_weights_alone_of_an_untouched_backbone_are_the_base_to_the_bit(strategy, reasoning, tmp_path):
    parts, learns = prepared(strategy, reasoning, tmp_path)
    base, items, ids = BasePolicy(words_model(tmp_path)), examples(5), [[20, 21, 1]] * 5
    train(parts, learns, items, 2)
    alone = MethodPolicy(parts, learns, weights_alone=True)
    same = [torch.equal(a, b) for a, b in zip(alone.hidden_states(items, ids), base.hidden_states(items, ids), strict=True)]
    assert all(same) or learns.changes_backbone
    assert learns.changes_backbone or alone.generate(items, 8) == base.generate(items, 8)


@pytest.mark.parametrize("reasoning", REASONINGS)
def test_padding_and_company_change_nothing(reasoning, tmp_path):
    strategy = next(s for s, r in PAIRS if r == reasoning)
    parts, learns = prepared(strategy, reasoning, tmp_path)
    items = examples(6)
    with torch.no_grad():
        rows = encoded(parts, items)
        together = parts.reasoning.loss(parts, parts.reasoning.collate(rows))
        alone = [parts.reasoning.loss(parts, parts.reasoning.collate([row])) for row in rows]
    assert together.n_tokens == sum(one.n_tokens for one in alone)
    torch.testing.assert_close(together.per_example_B, torch.cat([one.per_example_B for one in alone]), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(together.per_example_B.sum(), together.loss_sum)
    policy = MethodPolicy(parts, learns)
    assert [g.ids for g in policy.generate(items, 6)] == [policy.generate([item], 6)[0].ids for item in items]


@pytest.mark.parametrize("reasoning", REASONINGS)
def test_phases_use_the_whole_budget(reasoning):
    thinks = registry.find("reasoning", reasoning)(settings_of("reasoning", reasoning))
    for steps in (1, 7, 120):
        assert sum(phase.steps for phase in thinks.phases(steps)) == steps
    assert isinstance(thinks.final_phase(), Phase)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_the_optimiser_holds_exactly_what_is_trained(strategy, tmp_path):
    reasoning = next(r for s, r in PAIRS if s == strategy)
    parts, learns = prepared(strategy, reasoning, tmp_path)
    given = [id(p) for group in learns.trainable(parts) for p in group["params"]]
    wanted = learns.tensors(parts) if learns.trains else {}
    assert sorted(given) == sorted(id(t) for t in wanted.values())
    assert all(group["lr"] > 0 for group in learns.trainable(parts))


# ------------------------------------------------------------------------------------------ in a whole experiment


@pytest.mark.parametrize("method", METHODS)
def test_with_weights_alone_a_frozen_backbone_is_exactly_the_base(method):
    """Through the whole command: retention as the base's, drift 0.0."""
    found = result(finished(), method)
    retention, drift = found["retention"]["weights_alone"], found["drift"]["weights_alone"]
    if found["strategy"].get("of", found["strategy"])["name"] in ("frozen_backbone", "lora", "zero_shot"):
        assert all(row == retention[0] for row in retention)
        assert all(value == 0.0 for row in drift for key, value in row.items() if key.startswith(("forward_kl/", "reverse_kl/")))
    else:
        assert any(value > 0 for key, value in drift[-1].items() if key.startswith("forward_kl/"))


@pytest.mark.parametrize("method", ["softcot_oracle", "full_oracle"])
def test_oracle_copies_leave_earlier_rows_bit_identical(method):
    """After its own turn a task is answered by the same copy for ever; before it, by the base."""
    found, folder = result(finished(), method), run_folders(finished())[method]
    tasks, matrix = found["tasks"], found["accuracy"]["matrix"]
    answers = []
    for i in range(len(tasks) + 1):
        rows = [json.loads(line) for line in (folder / "predictions" / f"row_{i}.jsonl").read_text().splitlines()]
        answers.append({task: [r for r in rows if r["set"] == "task" and r["task"] == task] for task in tasks})
    for j, task in enumerate(tasks):
        for i in range(len(tasks) + 1):
            last_change = j + 1 if i > j else 0
            assert matrix[i][j] == matrix[last_change][j]
            assert answers[i][task] == answers[last_change][task]
    # Questions of no task of the stream are the base's.
    assert found["retention"]["as_used"][-1] == found["retention"]["as_used"][0]
    assert found["summary"]["forgetting/chaudhry"] == 0.0


# ----------------------------------------------------------------------------------------------------------- tasks


def make(name: str):
    return registry.find("task", name)(settings_of("task", name), "mine")


@pytest.mark.parametrize("name", TASKS)
def test_examples_are_the_same_for_the_same_seed(name):
    for split in make(name).splits:
        first, again = make(name).examples(split, 8, 3), make(name).examples(split, 8, 3)
        assert first == again and len(first) == 8
        assert len({e.id for e in first}) == 8 and len({e.question for e in first}) == 8
        assert all(e.task == "mine" and e.question.strip() and e.answer.strip() for e in first)
        assert all(isinstance(step, str) and step.strip() for e in first for step in e.steps)
        json.dumps([dataclasses.asdict(e) for e in first])  # predictions and checkpoints are JSON
    if name != "local_file":
        assert make(name).examples(split, 8, 3) != make(name).examples(split, 8, 4)


@pytest.mark.parametrize("name", TASKS)
def test_a_task_says_how_many_examples_it_has(name):
    task = make(name)
    for split in task.splits:
        n = task.count(split)
        if n is None:  # generated
            continue
        assert len({e.id for e in task.examples(split, n, 0)}) == n
        with pytest.raises(UserError, match=str(n)):
            task.examples(split, n + 1, 0)


@pytest.mark.parametrize("name", TASKS)
def test_making_a_task_reads_nothing(name, tmp_path):
    """A configuration is checked, offline too, by making its tasks."""
    settings = settings_of("task", name)
    if "path" in type(settings).model_fields:
        cls, nowhere = registry.find("task", name), settings.model_copy(update={"path": str(tmp_path / "nowhere")})
        task = cls(nowhere, "mine")
        assert task.family and task.splits


@pytest.mark.parametrize("name", TASKS)
def test_splits_have_no_question_in_common(name):
    """At any seeds: what is tested was never trained on."""
    seen: dict[str, str] = {}
    for split in make(name).splits:
        for seed in (0, 1, 2):
            for example in make(name).examples(split, 16, seed):
                assert seen.setdefault(example.question, split) == split
    assert make(name).family


@pytest.mark.parametrize("name", TASKS)
def test_the_judge_tells_right_wrong_and_unanswered_apart(name):
    task = make(name)
    items = task.examples("test", 12, 0)
    for example in items:
        words = " ; ".join([*example.steps, f"answer {example.answer}"])
        lines = "\n".join([*example.steps, f"### {example.answer}"])
        assert task.judge(example, words).outcome == "right" == task.judge(example, lines).outcome
        if type(task).judge is Task.judge:  # answers that are words have nothing behind them
            assert task.judge(example, f"answer {example.answer} qqq").outcome == "wrong"
        assert task.judge(example, "answer qqq").outcome != "right"
        other = next((e.answer for e in items if e.answer != example.answer), "qqq")
        verdict = task.judge(example, f"answer {other}")
        assert (verdict.outcome, verdict.extracted) == ("wrong", other)
        for nothing in ("", " ; ".join(example.steps), "answer", f"{example.answer}"):
            if "answer" not in " ".join(example.steps):
                assert task.judge(example, nothing).outcome == "unanswered", nothing
