"""Coconut on GPT-2 shapes with a vocabulary of 50k: prompts as long as ProsQA's, three thoughts, a short rest of the chain."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any

from benchmarks.cases.steps import OwnSteps, ReferenceSteps
from benchmarks.flops import Call, Shape, Work, answering_work, operations, padded_answering_work, shape_of, training_work
from benchmarks.measure import OURS, Case, Variant
from benchmarks.models import ModelSize, plain, random_examples, random_model
from benchmarks.references import coconut as reference
from cl_softcot.models.batch import Batch, Encoded
from cl_softcot.models.writing import generate
from cl_softcot.reasoning.base import Parts, Phase
from cl_softcot.reasoning.coconut import Coconut
from strategies.full_finetune import FullFinetune

VOCABULARY = 50260
LEARNING_RATE = 1e-4  # the paper's


def training_2x64(device: str, quick: bool) -> Case:
    """2 layers of width 64: the vocabulary is nearly all of the work."""
    return training("coconut_training_2x64", ModelSize("gpt2", 2, 64, 4, VOCABULARY), 8.0, device, quick)


def training_4x256(device: str, quick: bool) -> Case:
    """4 layers of width 256."""
    return training("coconut_training_4x256", ModelSize("gpt2", 4, 256, 4, VOCABULARY), 6.0, device, quick)


def training(
    name: str,
    size: ModelSize,
    bar: float,
    device: str,
    quick: bool,
    *,
    batch_size: int = 8,
    thoughts: int = 3,
    question: tuple[int, int] = (300, 560),
) -> Case:
    """One optimiser step of full fine-tuning at stage ``thoughts``, in fp32."""
    if quick:
        size, question, batch_size = smaller(size), (20, 40), 4
    rows = encoded_rows(size, thoughts, batch_size, question)
    settings = FullFinetune.Settings(learning_rate=LEARNING_RATE)
    batch = Coconut().collate(rows).to(device)

    def ours() -> Callable[[], float]:
        return OwnSteps(parts_of(size, thoughts, device), FullFinetune(settings), [batch])

    def references(loss: Callable[[Any, Batch, int], Any]) -> Callable[[], Callable[[], float]]:
        def make() -> Callable[[], float]:
            backbone = parts_of(size, thoughts, device).backbone
            model, latent = plain(backbone).requires_grad_(True), backbone.special["latent"]
            return ReferenceSteps(list(model.parameters()), lambda _: loss(model, batch, latent), 1, LEARNING_RATE)

        return make

    shape = shape_of(random_model(size, device="meta").model)
    computed = training_work(shape, passes(batch, thoughts, "weights"), trained=shape.total, causal=False)
    columns = [(len(row.prefix_ids) + len(row.target_ids) - 1, len(row.target_ids)) for row in rows]
    needed = [Call(n, logits=labels, gradient="weights") for n, labels in columns]
    return Case(
        name,
        f"one step of full fine-tuning, {batch_size} examples, {thoughts} thoughts",
        sizes(size, rows) | {"batch": batch_size, "thoughts": thoughts},
        [
            Variant(OURS, ours),
            Variant("published", references(reference.published_loss), computed, every=3),
            Variant("cached", references(reference.cached_loss), computed),
        ],
        training_work(shape, needed, trained=shape.total),
        {"published": bar},
    )


def generation(device: str, quick: bool) -> Case:
    """Greedy answers behind six thoughts."""
    size, thoughts, n, question, limit = ModelSize("gpt2", 2, 64, 4, VOCABULARY), 6, 8, (300, 560), 48
    if quick:
        size, n, question, limit = smaller(size), 2, (20, 40), 6
    rows = encoded_rows(size, thoughts, n, question)
    prompts = [row.prefix_ids for row in rows]

    def ours() -> Callable[[], list[list[int]]]:
        made = parts_of(size, thoughts, device)
        FullFinetune().prepare(made, seed=0)  # of a backbone that learns nothing is kept from one time to the next
        return lambda: [g.ids for g in generate(made.reasoning, made, rows, limit)]

    def references(answers: Callable[..., list[list[int]]]) -> Callable[[], Callable[[], list[list[int]]]]:
        def make() -> Callable[[], list[list[int]]]:
            backbone = parts_of(size, thoughts, device).backbone
            model = plain(backbone)
            return lambda: answers(model, prompts, backbone.special["latent"], backbone.text.end_ids, limit)

        return make

    made = parts_of(size, thoughts, device)
    shape = shape_of(made.backbone.model)
    written = [g.n_tokens for g in generate(made.reasoning, made, rows, limit)]
    lengths = [len(p) for p in prompts]
    padded = padded_answering_work(shape, lengths, written, passes=thoughts + 1)
    return Case(
        "coconut_generation",
        f"{n} greedy answers behind {thoughts} thoughts",
        sizes(size, rows) | {"thoughts": thoughts, "answer_tokens": written},
        [
            Variant(OURS, ours),
            Variant("published", references(reference.published_answers), published_work(shape, lengths, written), every=3),
            Variant("cached", references(reference.cached_answers), padded),
        ],
        answering_work(shape, lengths, written, passes=thoughts + 1),
        {"published": 30.0},
        bound="floor",
    )


# ------------------------------------------------------------------------------------------------------ material


def smaller(size: ModelSize) -> ModelSize:
    """A size for a look at whether all works."""
    return ModelSize(size.family, 2, 32, 2, 997, context=size.context)


def parts_of(size: ModelSize, thoughts: int, device: str) -> Parts:
    """A random model that thinks; the markers are rows of its table, as in the official code."""
    settings = Coconut.Settings(max_stage=thoughts, markers="table")
    parts = Parts(random_model(size, answer_tokens=24, device=device), None, Coconut(settings))
    parts.reasoning.build(parts, seed=0)
    return parts


def encoded_rows(size: ModelSize, thoughts: int, n: int, question: tuple[int, int]) -> list[Encoded]:
    """Rows at the last stage: one step more is written than was replaced."""
    parts = parts_of(size, thoughts, "meta")
    examples = random_examples(n, size.vocabulary, question=question, steps=thoughts + 1)
    return [parts.reasoning.encode(parts.backbone.text, e, Phase(thoughts, 0), random.Random(0)) for e in examples]


def sizes(size: ModelSize, rows: Sequence[Encoded]) -> dict[str, Any]:
    """What is kept of a case's size."""
    prompts, targets = [len(row.prefix_ids) for row in rows], [len(row.target_ids) for row in rows]
    return {
        "model": f"{size.family} {size.layers}x{size.width}, vocabulary {size.vocabulary}",
        "prompt_tokens": [min(prompts), max(prompts)],
        "target_tokens": [min(targets), max(targets)],
    }


# ---------------------------------------------------------------------------------- what the references compute


def passes(batch: Batch, thoughts: int, gradient: str) -> list[Call]:
    """The calls of both references for a batch: one up to the first thought, one for each, the last with what follows."""
    (B, prefix), target = batch["prefix_BT"].shape, batch["target_BT"].shape[1]
    first = prefix - thoughts - 1  # the end marker is the prefix's last column
    edges = [0, *range(first, first + thoughts), prefix + target]
    return [Call(b - a, a, logits=b - a, gradient=gradient, times=B) for a, b in zip(edges, edges[1:], strict=False)]


def published_work(shape: Shape, prompts: Sequence[int], written: Sequence[int]) -> list[Work]:
    """One by one: the prompt, then all places again for every further token, logits everywhere."""
    calls = [Call(n + t, logits=n + t) for n, m in zip(prompts, written, strict=True) for t in range(m)]
    return [Work("writing", operations(shape, calls, causal=False), 4.0 * (shape.linear + shape.head) * len(calls))]
