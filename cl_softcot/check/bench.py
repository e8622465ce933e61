"""What plug-ins are tried on: the embedded models, questions of a family that they know, and a few plain steps of training."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor

from cl_softcot import registry
from cl_softcot.models.batch import Encoded
from cl_softcot.models.language_model import LanguageModel, load_language_model
from cl_softcot.reasoning.base import Parts, Reasoning
from cl_softcot.tasks.base import Example


@cache
def models() -> tuple[LanguageModel, LanguageModel]:
    """Backbone and assistant, never changed by anybody."""
    found = load_language_model("builtin:tiny"), load_language_model("builtin:tiny-assistant")
    for model in found:
        assert model.fingerprint
    return found


def begin() -> None:
    """Whole models for the next plug-in: one that breaks the rules may have changed those that all share."""
    if any(model.weights_sha256() != model.fingerprint for model in models()):
        models.cache_clear()


@cache
def examples(n: int) -> list[Example]:
    """Of the first family that the backbone was made with."""
    backbone, _ = models()
    assert backbone.marker is not None
    family, name = next(iter(backbone.marker["families"].items()))
    task = registry.find("task", name)
    return task(task.Settings(), family).examples("train", n, 0)


def news(n: int, turn: int = 0) -> list[Example]:
    """Questions with the steps and answers of others: nothing that anybody knows already, so that there is something to learn."""
    found = examples(2 * n)
    others = found[turn + 1 :] + found[: turn + 1]
    pairs = zip(found, others, strict=True)
    return [dataclasses.replace(e, steps=other.steps, answer=other.answer) for e, other in pairs][:n]


def prepared(strategy: type, reasoning: type, strategy_settings: Any = None, reasoning_settings: Any = None) -> tuple[Parts, Any]:
    """A method as a run begins: its own copy where the strategy wants one, thoughts built, strategy prepared."""
    backbone, assistant = models()
    learns: Any = strategy(strategy_settings)
    thinks: Reasoning = reasoning(reasoning_settings)
    parts = Parts(backbone.copy(share_weights=not learns.writes_weights), assistant, thinks)
    thinks.build(parts, 0)
    learns.prepare(parts, 0)
    return parts, learns


def encoded(parts: Parts, items: Sequence[Example], *, answering: bool = False) -> list[Encoded]:
    reasoning = parts.reasoning
    reasoning.register(parts, items)
    phase = dataclasses.replace(reasoning.final_phase(), answering=answering)
    return [reasoning.encode(parts.backbone.text, e, phase, random.Random(0)) for e in items]


def train(parts: Parts, strategy: Any, items: Sequence[Example], steps: int) -> list[float]:
    """Plain steps on one batch; the losses, in nats per token."""
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


def kept(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in tensors.items()}
