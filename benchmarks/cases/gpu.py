"""What needs a GPU: ``python -m benchmarks --device cuda``. Weights are random, and drawn on the GPU.

With ``--quick`` they run on a CPU too, at a tiny size, to see that they work.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import torch

from benchmarks.cases import coconut, softcot
from benchmarks.flops import answering_work, padded_answering_work, shape_of
from benchmarks.measure import FLOOR, OURS, Case, Variant
from benchmarks.models import ModelSize, plain, random_examples, random_model
from benchmarks.references.coconut import cached_answers
from cl_softcot.models.scratch import SHAPES
from cl_softcot.models.writing import generate
from cl_softcot.reasoning.base import Parts, Phase
from cl_softcot.reasoning.cot import Cot


def size_of(name: str, context: int = 2048) -> ModelSize:
    """A published model's sizes (``cl_softcot.models.scratch``), its vocabulary rounded up for the special tokens."""
    shape = SHAPES[name]
    return ModelSize(
        shape["family"],
        shape["layers"],
        shape["width"],
        shape["heads"],
        shape["vocabulary"] + 7,
        context,
        shape["kv_heads"],
        shape["feed_forward"],
    )


def coconut_gpt2_small(device: str, quick: bool) -> Case:
    """Coconut's own model and batch, questions as long as GSM8K's, fp32 as its configuration has it."""
    size = size_of("gpt2-small", 1024)
    name = "gpu_coconut_gpt2_small"
    return coconut.training(name, size, 4.0, device, quick, batch_size=128, thoughts=6, question=(40, 120))


def softcot_training_8b(device: str, quick: bool) -> Case:
    """A projector between models of the paper's sizes."""
    sizes = size_of("llama-8b"), size_of("llama-1b")
    return softcot.training_case(
        "gpu_softcot_training_8b", *sizes, device, quick, bars={FLOOR: 0.45}, batch_size=16, dtype=torch.bfloat16
    )


def decoding_8b(device: str, quick: bool) -> Case:
    """32 answers side by side."""
    size, n, question, limit = size_of("llama-8b"), 32, (200, 260), 128
    if quick:
        size, n, question, limit = coconut.smaller(size), 3, (20, 40), 6
    text = random_model(size, device="meta").text
    examples = random_examples(n, size.vocabulary, question=question)
    rows = [Cot().encode(text, e, Phase(0, 0), random.Random(0)) for e in examples]
    prompts = [row.prefix_ids for row in rows]

    def model() -> Any:
        return random_model(size, device=device, dtype=torch.bfloat16)

    def ours() -> Callable[[], None]:
        parts = Parts(model(), None, Cot())
        parts.backbone.text.end_ids = (-1,)  # nothing ends by itself
        return lambda: _no_value(generate(parts.reasoning, parts, rows, limit))

    def cached() -> Callable[[], None]:
        made = plain(model())
        return lambda: _no_value(cached_answers(made, prompts, -1, (-1,), limit))

    shape, lengths = shape_of(random_model(size, device="meta").model), [len(p) for p in prompts]
    return Case(
        "gpu_decoding_8b",
        f"{n} greedy answers of {limit} tokens",
        coconut.sizes(size, rows) | {"answer_tokens": limit},
        [
            Variant(OURS, ours),
            Variant("cached", cached, padded_answering_work(shape, lengths, [limit] * n, bytes_a_number=2)),
        ],
        answering_work(shape, lengths, [limit] * n, bytes_a_number=2),
        {FLOOR: 0.6},
        bound="floor",
        dtype=torch.bfloat16,
    )


def _no_value(_answers: Any) -> None:
    """In bf16 two ways of adding up choose other tokens now and then: they are not compared."""
