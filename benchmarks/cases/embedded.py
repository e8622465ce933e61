"""The embedded models at the job of experiments/sequence_a.yaml: steps of 32 examples, 300 answers, the assistant's states."""

from __future__ import annotations

import contextlib
import os
import random
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.cases.coconut import passes
from benchmarks.cases.softcot import needed_for_training, slots_of
from benchmarks.cases.steps import OwnSteps, ReferenceSteps
from benchmarks.flops import Call, Shape, Work, answering_work, operations, padded_answering_work, shape_of, training_work
from benchmarks.measure import OURS, Case, Variant
from benchmarks.models import plain
from benchmarks.references import coconut as coconut_reference
from benchmarks.references import softcot as softcot_reference
from cl_softcot import cache
from cl_softcot.answering.build import load_models, make_tasks
from cl_softcot.config.loading import load_experiment
from cl_softcot.models.assistant import AssistantStates
from cl_softcot.models.batch import Encoded
from cl_softcot.models.writing import generate
from cl_softcot.reasoning.base import Parts, Phase, Reasoning
from cl_softcot.reasoning.coconut import Coconut
from cl_softcot.reasoning.cot import Cot
from cl_softcot.reasoning.softcot import Softcot
from strategies.frozen_backbone import FrozenBackbone
from strategies.full_finetune import FullFinetune

EXPERIMENT = Path(__file__).resolve().parents[2] / "experiments" / "sequence_a.yaml"
LEARNING_RATE = 1e-3


def coconut_step(device: str, quick: bool) -> Case:
    """Full fine-tuning with one thought."""
    settings = Coconut.Settings(thoughts_per_step=1, max_stage=1, markers="table")
    return _full_step("embedded_coconut_step", lambda: Coconut(settings), Phase(1, 0), quick)


def cot_step(device: str, quick: bool) -> Case:
    """Full fine-tuning on written steps."""
    return _full_step("embedded_cot_step", Cot, Phase(0, 0), quick)


def _full_step(name: str, make: Callable[[], Reasoning], phase: Phase, quick: bool) -> Case:
    rows = _rows(make(), phase, 4 if quick else 32)
    batch = _parts(make()).reasoning.collate(rows)
    settings = FullFinetune.Settings(learning_rate=LEARNING_RATE)
    thoughts = phase.stage

    def cached() -> Callable[[], float]:
        backbone = _parts(make()).backbone
        model, latent = plain(backbone).requires_grad_(True), backbone.special["latent"]
        loss = coconut_reference.cached_loss
        return ReferenceSteps(list(model.parameters()), lambda _: loss(model, batch, latent), 1, LEARNING_RATE)

    shape = _shape()
    columns = [(len(row.prefix_ids) + len(row.target_ids) - 1, len(row.target_ids)) for row in rows]
    needed = [Call(n, logits=labels, gradient="weights") for n, labels in columns]
    padded = training_work(shape, passes(batch, thoughts, "weights"), trained=shape.total, causal=False)
    return Case(
        name,
        f"one step of full fine-tuning of the embedded backbone, {len(rows)} examples of the first task, {thoughts} thoughts",
        _sizes(rows),
        [
            Variant(OURS, lambda: OwnSteps(_parts(make()), FullFinetune(settings), [batch])),
            Variant("cached", cached, padded),
        ],
        training_work(shape, needed, trained=shape.total),
    )


def softcot_step(device: str, quick: bool) -> Case:
    """One step of the projector in front of the frozen backbone."""
    n, size, count = 4, 4 if quick else 32, 16
    parts = _parts(Softcot(Softcot.Settings(soft_thoughts=n)))
    rows = _rows(parts.reasoning, Phase(0, 0), size * count)
    blocks = [rows[i : i + size] for i in range(0, len(rows), size)]
    batches = [parts.reasoning.collate(block) for block in blocks]
    questions = [[parts.states.prompt_ids(row.example.question) for row in block] for block in blocks]
    settings = FrozenBackbone.Settings(learning_rate=LEARNING_RATE)

    def ours() -> Callable[[], float]:
        made = _parts(Softcot(Softcot.Settings(soft_thoughts=n)))
        made.reasoning.register(made, [row.example for row in rows])
        made.states.states([prompt for block in questions for prompt in block], n)
        return OwnSteps(made, FrozenBackbone(settings), batches)

    def cached() -> Callable[[], float]:
        made = _parts(Softcot(Softcot.Settings(soft_thoughts=n)))
        slots, model, projector = slots_of(made), plain(made.backbone), made.reasoning.projector
        find = partial(softcot_reference.cached_states, plain(made.assistant), n=n, slot_id=slots["assistant_slot_id"])
        states = [find(q) for q in questions]
        loss = softcot_reference.cached_loss
        return ReferenceSteps(
            list(made.reasoning.parameters()),
            lambda i: loss(model, projector, batches[i], states[i], slot_id=slots["slot_id"]),
            len(batches),
            LEARNING_RATE,
        )

    shape, T = _shape(), batches[0]["prefix_BT"].shape[1] + batches[0]["target_BT"].shape[1]
    owned = sum(p.numel() for p in parts.reasoning.parameters())
    computed = training_work(shape, [Call(T, logits=T, gradient="inputs", times=size)], trained=owned, causal=False)
    return Case(
        "embedded_softcot_step",
        f"one step of the projector in front of the embedded backbone, {size} examples of the first task, {n} thoughts",
        _sizes(rows),
        [Variant(OURS, ours), Variant("cached", cached, computed)],
        needed_for_training(shape, blocks[0], parts.backbone.special["slot"], owned),
    )


def answers(device: str, quick: bool) -> Case:
    """300 answers in plain chain of thought, as every row of the accuracy matrix asks for, task by task."""
    parts, limit = _parts(Cot()), 80
    FullFinetune().prepare(parts, seed=0)  # of a backbone that learns nothing is kept from one time to the next
    rows = _rows(parts.reasoning, Phase(0, 0), 4 if quick else 300, split="test")
    prompts = [row.prefix_ids for row in rows]
    model, text = plain(parts.backbone), parts.backbone.text
    written = [g.n_tokens for g in generate(parts.reasoning, parts, rows, limit)]
    shape, lengths = _shape(), [len(p) for p in prompts]
    return Case(
        "embedded_answers",
        f"{len(rows)} greedy answers of the embedded backbone to the first task, the right ones at hand as drafts",
        _sizes(rows) | {"answer_tokens": [min(written), max(written)], "mean_answer_tokens": sum(written) / len(written)},
        [
            Variant(OURS, lambda: lambda: [g.ids for g in generate(parts.reasoning, parts, rows, limit, batch_size=300)]),
            Variant(
                "cached",
                lambda: lambda: coconut_reference.cached_answers(model, prompts, -1, text.end_ids, limit),
                padded_answering_work(shape, lengths, written),
            ),
        ],
        answering_work(shape, lengths, written),
        bound="floor",
    )


def assistant(device: str, quick: bool) -> Case:
    """The assistant's states for the questions of one task: computed, from the disk, and at hand."""
    parts, n = _parts(Cot()), 4
    rows = _rows(parts.reasoning, Phase(0, 0), 8 if quick else 800)
    prompts = [parts.states.prompt_ids(row.example.question) for row in rows]
    folder = tempfile.TemporaryDirectory()

    def states(found: AssistantStates) -> float:
        found.register(prompts)
        return float(found.states(prompts, n).abs().mean())

    def computed() -> float:
        with cache_at("off"):
            return states(AssistantStates(parts.assistant, n))

    def from_disk() -> float:
        with cache_at(folder.name):
            return states(AssistantStates(parts.assistant, n))

    def at_hand() -> Callable[[], float]:
        found = AssistantStates(parts.assistant, n)
        return lambda: states(found)

    shape = shape_of(parts.assistant.model)
    calls = [Call(len(p) + n) for p in prompts]
    return Case(
        "embedded_assistant",
        f"states of the embedded assistant for {len(prompts)} questions",
        {"thoughts": n, "prompt_tokens": [min(map(len, prompts)), max(map(len, prompts))]},
        [
            Variant(OURS, lambda: computed),
            Variant("ours, from disk", lambda: from_disk),  # its first job, which is not timed, writes
            Variant("ours, at hand", at_hand),
        ],
        [Work("thinking", operations(shape, calls, causal=True), 0.0)],
    )


# ------------------------------------------------------------------------------------------------------ material


@contextlib.contextmanager
def cache_at(place: str) -> Iterator[None]:
    """In this context the cache on disk is in a given folder, or 'off'."""
    before = os.environ.get(cache.PLACE)
    os.environ[cache.PLACE] = place
    try:
        yield
    finally:
        os.environ.pop(cache.PLACE) if before is None else os.environ.update({cache.PLACE: before})


def _parts(reasoning: Reasoning) -> Parts:
    backbone, helper = load_models(load_experiment(EXPERIMENT, []).config)
    parts = Parts(backbone.copy(), helper, reasoning)
    reasoning.build(parts, seed=0)
    return parts


def _rows(reasoning: Reasoning, phase: Phase, n: int, split: str = "train") -> list[Encoded]:
    config = load_experiment(EXPERIMENT, []).config
    text = load_models(config)[0].text
    task = make_tasks(config, next(iter(config.orders)))[0]
    return [reasoning.encode(text, e, phase, random.Random(0)) for e in task.examples(split, n, 0)]


def _shape() -> Shape:
    return shape_of(load_models(load_experiment(EXPERIMENT, []).config)[0].model)


def _sizes(rows: list[Encoded]) -> dict[str, Any]:
    prompts, targets = [len(row.prefix_ids) for row in rows], [len(row.target_ids) for row in rows]
    return {
        "model": "builtin:tiny",
        "prompt_tokens": [min(prompts), max(prompts)],
        "target_tokens": [min(targets), max(targets)],
    }
