"""A way of thinking names its own special tokens: no list of the engine's, no row of the model, no number of anybody else."""

from __future__ import annotations

import random

import pytest
import torch
from model_fakes import chat_model, examples, gpt2_model, parts_of, words_model
from torch import nn

from cl_softcot.answering.policy import BasePolicy, MethodPolicy
from cl_softcot.reasoning.base import Parts, Reasoning
from strategies.frozen_backbone import FrozenBackbone

MODELS = {"words": words_model, "chat": chat_model, "gpt2": gpt2_model}


class Marked(Reasoning):
    """Two vectors of its own, each at a token of its own."""

    tokens = ("first-mark", "second-mark")
    thought = "second-mark"
    owns_parts = True

    def build(self, parts: Parts, seed: int) -> None:
        row_D = parts.backbone.embed(torch.tensor(parts.backbone.special["first-mark"]))
        self.marks_2D = nn.Parameter(row_D.detach().clone().repeat(2, 1))

    def thoughts(self, stage: int) -> list[str]:
        return list(self.tokens)

    def embed(self, parts: Parts, ids_BT: torch.Tensor) -> torch.Tensor:
        embeddings_BTD = parts.backbone.embed(ids_BT)
        for name, row_D in zip(self.tokens, self.marks_2D, strict=True):
            embeddings_BTD = torch.where((ids_BT == parts.backbone.special[name])[..., None], row_D, embeddings_BTD)
        return embeddings_BTD


class MarkedBehind(Marked):
    where = "after_turn"


@pytest.mark.parametrize("kind", [Marked, MarkedBehind])
@pytest.mark.parametrize("model", MODELS)
def test_tokens_of_its_own(model, kind, tmp_path):
    pristine = MODELS[model](tmp_path)
    base, special = BasePolicy(pristine), dict(pristine.special)
    before = pristine.fingerprint, base.generate(examples(3), 6), pristine.vocab_size
    backbone, strategy = pristine.copy(share_weights=True), FrozenBackbone()
    parts = parts_of(backbone, kind())
    strategy.prepare(parts, 0)
    items, reasoning = examples(3), parts.reasoning
    encoded = [reasoning.encode(backbone.text, e, reasoning.final_phase(), random.Random(0)) for e in items]
    marks = [backbone.special[name] for name in kind.tokens]
    assert len({*backbone.special.values()}) == len(special) + 2
    assert all([i for i in e.prefix_ids if i in marks] == marks for e in encoded)
    reasoning.loss(parts, reasoning.collate(encoded)).loss_sum.backward()
    assert bool((reasoning.marks_2D.grad != 0).any(1).all())
    assert len(MethodPolicy(parts, strategy).generate(items, 6)) == 3
    # What others have is as it was: no row, no token that could be written.
    assert pristine.special == special and pristine.text.special == special
    assert (pristine.weights_sha256(), BasePolicy(pristine).generate(examples(3), 6), backbone.vocab_size) == before
    assert backbone.weights_sha256() == before[0]
