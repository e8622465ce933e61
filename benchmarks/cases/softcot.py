"""SoftCoT on Llama shapes: a frozen backbone of 6 x 256, an assistant of 4 x 128, 32 thoughts in training, 4 in evaluation."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch

from benchmarks.cases.coconut import sizes, smaller
from benchmarks.cases.steps import OwnSteps, ReferenceSteps
from benchmarks.flops import Call, Shape, Work, answering_work, operations, padded_answering_work, shape_of, training_work
from benchmarks.measure import OURS, Case, Variant
from benchmarks.models import ModelSize, plain, random_examples, random_model
from benchmarks.references import softcot as reference
from cl_softcot.models import frozen_prefix
from cl_softcot.models.assistant import AssistantStates
from cl_softcot.models.batch import Batch, Encoded
from cl_softcot.models.writing import generate
from cl_softcot.reasoning.base import Parts, Phase
from cl_softcot.reasoning.softcot import Softcot
from strategies.frozen_backbone import FrozenBackbone

VOCABULARY = 50264
BACKBONE = ModelSize("llama", 6, 256, 8, VOCABULARY, kv_heads=4, feed_forward=768)
ASSISTANT = ModelSize("llama", 4, 128, 4, VOCABULARY, feed_forward=384)
LEARNING_RATE = 1e-3
BATCHES = 16  # different ones in turn: nothing that was computed for an earlier one helps


def training(device: str, quick: bool) -> Case:
    """One step of the projector; the assistant's states are at hand."""
    return training_case("softcot_training", BACKBONE, ASSISTANT, device, quick, bars={"published": 3.0})


def training_case(
    name: str,
    backbone: ModelSize,
    assistant: ModelSize,
    device: str,
    quick: bool,
    *,
    bars: Mapping[str, float],
    batch_size: int = 4,
    dtype: torch.dtype = torch.float32,
) -> Case:
    """The same for other sizes: prompts of 260 tokens, answers of 220, 32 thoughts."""
    n, question, steps = 32, 260, (12, 17, 14)
    if quick:
        backbone, assistant, n, batch_size, question, steps = smaller(backbone), smaller(assistant), 4, 2, 20, (2, 3, 2)
    step_count, step_tokens, answer = steps  # 12 * 17 + 14 and two more: 220 tokens
    examples = random_examples(
        BATCHES * batch_size,
        backbone.vocabulary,
        question=(question, question),
        steps=step_count,
        step_tokens=step_tokens,
        answer_tokens=answer,
    )
    make_parts = partial(parts_of, backbone, assistant, n, device, dtype)
    encode = meta_parts(backbone, assistant, n)
    rows = [encode.reasoning.encode(encode.backbone.text, e, Phase(0, 0), random.Random(0)) for e in examples]
    blocks = [rows[i : i + batch_size] for i in range(0, len(rows), batch_size)]
    batches = [encode.reasoning.collate(block).to(device) for block in blocks]
    questions = [[encode.states.prompt_ids(row.example.question) for row in block] for block in blocks]
    strategy = FrozenBackbone.Settings(learning_rate=LEARNING_RATE)

    def ours(used: Sequence[Batch]) -> Callable[[], Callable[[], float]]:
        def make() -> Callable[[], float]:
            parts = make_parts()
            parts.reasoning.register(parts, examples)
            parts.states.states([prompt for block in questions for prompt in block], n)  # warm
            return OwnSteps(parts, FrozenBackbone(strategy), used)

        return make

    def published() -> Callable[[], float]:
        parts = make_parts()
        models = plain(parts.backbone), plain(parts.assistant), parts.reasoning.projector
        slots = slots_of(parts)
        return ReferenceSteps(
            list(parts.reasoning.parameters()),
            lambda i: reference.published_loss(*models, batches[i], questions[i], **slots),
            len(batches),
            LEARNING_RATE,
        )

    def cached() -> Callable[[], float]:
        parts = make_parts()
        slots, helper = slots_of(parts), plain(parts.assistant)
        states = [reference.cached_states(helper, q, n, slots["assistant_slot_id"]) for q in questions]
        model, projector, slot = plain(parts.backbone), parts.reasoning.projector, slots["slot_id"]
        return ReferenceSteps(
            list(parts.reasoning.parameters()),
            lambda i: reference.cached_loss(model, projector, batches[i], states[i], slot_id=slot),
            len(batches),
            LEARNING_RATE,
        )

    shape, helper = shape_of(encode.backbone.model), shape_of(encode.assistant.model)
    owned, size = (assistant.width + 1) * backbone.width, dtype.itemsize
    T = batches[0]["prefix_BT"].shape[1] + batches[0]["target_BT"].shape[1]
    whole = training_work(
        shape, [Call(T, logits=T, gradient="inputs", times=batch_size)], trained=owned, causal=False, bytes_a_number=size
    )
    again = operations(helper, [Call(question + n, logits=question + n, times=batch_size)], causal=False)
    thinking = Work("thinking", again, float(size * helper.total))
    must = needed_for_training(shape, blocks[0], encode.backbone.special["slot"], owned, bytes_a_number=size)
    return Case(
        name,
        f"one step of the projector, {batch_size} examples, {n} thoughts, warm assistant cache",
        sizes(backbone, rows) | {"assistant": f"{assistant.layers}x{assistant.width}", "batch": batch_size, "thoughts": n},
        [
            Variant(OURS, ours(batches)),  # every prompt for the first time
            Variant("ours, seen before", ours(batches[:1])),
            Variant("published", published, [*whole, thinking], every=2),
            Variant("cached", cached, whole),
        ],
        must,
        bars,
        dtype=dtype,
    )


def needed_for_training(shape: Shape, rows: Sequence[Encoded], slot: int, owned: int, bytes_a_number: int = 4) -> list[Work]:
    """The prompt without gradients, thoughts and target with gradients of the inputs, logits at the target only."""
    calls = []
    for row in rows:
        first, target = row.prefix_ids.index(slot), len(row.target_ids)
        behind = len(row.prefix_ids) - first + target - 1
        calls += [Call(first), Call(behind, first, logits=target, gradient="inputs", frozen=first)]
    return training_work(shape, calls, trained=owned, bytes_a_number=bytes_a_number)


def evaluation(device: str, quick: bool) -> Case:
    """64 greedy answers of 220 tokens, as long as those of training, to questions that nobody has read before."""
    return _evaluation("softcot_evaluation", 220, None, device, quick)


def evaluation_short(device: str, quick: bool) -> Case:
    """The same with answers of about 20 tokens, where reading the questions is most of the work."""
    return _evaluation("softcot_evaluation_short", 64, 32, device, quick)


def _evaluation(name: str, limit: int, end_after: int | None, device: str, quick: bool) -> Case:
    """Also once more when both models have read the questions."""
    backbone, assistant, n, count, question = BACKBONE, ASSISTANT, 4, 64, 260
    if quick:
        backbone, assistant, count, question, limit = smaller(BACKBONE), smaller(ASSISTANT), 3, 20, 6
    examples = random_examples(count, backbone.vocabulary, question=(question - question // 10, question))
    make_parts = partial(parts_of, backbone, assistant, n, device, end_after=end_after)
    parts = make_parts()
    rows = [parts.reasoning.encode(parts.backbone.text, e, Phase(0, 0), random.Random(0)) for e in examples]
    prompts = [row.prefix_ids for row in rows]
    questions = [parts.states.prompt_ids(e.question) for e in examples]

    def ours(cold: bool) -> Callable[[], Callable[[], list[list[int]]]]:
        def make() -> Callable[[], list[list[int]]]:
            made = make_parts()

            def answers() -> list[list[int]]:
                if cold:
                    forget_prefixes()
                    made.states = made.reasoning._states = AssistantStates(made.assistant, n)
                return [g.ids for g in generate(made.reasoning, made, rows, limit)]

            return answers

        return make

    def limits(made: Parts) -> dict[str, Any]:
        return {"end_ids": made.backbone.text.end_ids, "max_new_tokens": limit}

    def published() -> Callable[[], list[list[int]]]:
        made = make_parts()
        models, slots = (plain(made.backbone), plain(made.assistant), made.reasoning.projector), slots_of(made)
        return lambda: reference.published_answers(*models, prompts, questions, **slots, **limits(made))

    def cached() -> Callable[[], list[list[int]]]:
        made = make_parts()
        model, helper, projector, slots = plain(made.backbone), plain(made.assistant), made.reasoning.projector, slots_of(made)

        def answers() -> list[list[int]]:
            states_BNA = reference.cached_states(helper, questions, n, slots["assistant_slot_id"])
            return reference.cached_answers(model, projector, prompts, states_BNA, slot_id=slots["slot_id"], **limits(made))

        return answers

    shape, helper = shape_of(parts.backbone.model), shape_of(parts.assistant.model)
    written = [g.n_tokens for g in generate(parts.reasoning, parts, rows, limit)]
    lengths = [len(p) for p in prompts]
    needed = answering_work(shape, lengths, written)
    needed.append(Work("thinking", operations(helper, [Call(len(q) + n) for q in questions], causal=True), 0.0))
    longest = max(map(len, questions)) + n
    alone = operations(helper, [Call(len(q) + n, logits=len(q) + n) for q in questions], causal=False)
    together = operations(helper, [Call(longest, times=count)], causal=False)
    return Case(
        name,
        f"{count} greedy answers of {round(sum(written) / count)} tokens on average, {n} thoughts",
        sizes(backbone, rows)
        | {"assistant": f"{assistant.layers}x{assistant.width}", "thoughts": n, "answer_tokens": [min(written), max(written)]}
        | {"mean_answer_tokens": sum(written) / count},
        [
            Variant(OURS, ours(cold=True)),
            Variant("ours, seen before", ours(cold=False)),
            Variant("published", published, [*one_by_one(shape, lengths, written), Work("thinking", alone, 0.0)], every=7),
            Variant("cached", cached, [*padded_answering_work(shape, lengths, written), Work("thinking", together, 0.0)]),
        ],
        needed,
        {"published": 6.0},
        bound="floor",
    )


def one_by_one(shape: Shape, prompts: Sequence[int], written: Sequence[int]) -> list[Work]:
    """With a cache and without padding: every prompt reads the weights again for every token."""
    alone = [answering_work(shape, [n], [m]) for n, m in zip(prompts, written, strict=True)]
    return [work for works in alone for work in works]


def parts_of(
    backbone: ModelSize,
    assistant: ModelSize,
    n: int,
    device: str,
    dtype: torch.dtype = torch.float32,
    end_after: int | None = 32,
) -> Parts:
    """Random models and a projector between them."""
    made = random_model(backbone, answer_tokens=end_after, device=device, dtype=dtype)
    parts = Parts(made, random_model(assistant, seed=1, device=device, dtype=dtype), Softcot(Softcot.Settings(soft_thoughts=n)))
    parts.reasoning.build(parts, seed=0)
    return parts


def meta_parts(backbone: ModelSize, assistant: ModelSize, n: int) -> Parts:
    """The same without numbers, to encode with and to count."""
    models = random_model(backbone, device="meta"), random_model(assistant, device="meta")
    return Parts(*models, Softcot(Softcot.Settings(soft_thoughts=n)))


def forget_prefixes() -> None:
    """As in a new process: no frozen backbone has read anything yet."""
    frozen_prefix.forget()


def slots_of(parts: Parts) -> dict[str, int]:
    """Ids of the slots of both models, by the references' names."""
    return {"slot_id": parts.backbone.special["slot"], "assistant_slot_id": parts.assistant.special["slot"]}
