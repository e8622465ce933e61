"""What is in a thought: read through the model's own head, and by the input embeddings that lie nearest.

A continuous thought is a last hidden state, so the head says which token it would have written. How often that token is one of
the gold step that the thought stands for, or of the answer, is set against two controls: the same tokens compared with the
step and the answer of another question, and the head's reading of states at random places of the question.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from cl_softcot.diagnostics._numbers import by_task_and_pooled, mean_of
from cl_softcot.diagnostics._thoughts import (
    log_probabilities,
    no_thoughts,
    recorded,
    some,
    thinking_about,
    thinking_of,
    thought_of,
)
from cl_softcot.diagnostics.base import Diagnostic, DiagnosticSettings
from cl_softcot.diagnostics.interventions import donors_of
from cl_softcot.metrics.intervals import stratified_mean
from cl_softcot.models.running import forward

if TYPE_CHECKING:
    from cl_softcot.answering.evaluate import Probe
    from cl_softcot.config.settings import MethodConfig
    from cl_softcot.diagnostics.base import Subject
    from cl_softcot.models.batch import Encoded
    from cl_softcot.models.language_model import LanguageModel
    from cl_softcot.models.text import TextFormat
    from cl_softcot.reasoning.base import Reasoning

_ROWS = 256  # states whose logits are made at a time
_TOKENS = 8192  # embeddings that are compared at a time


class Readout(Diagnostic):
    """Top tokens, entropy, nearest embeddings, and how often they are of the step or of the answer."""

    class Settings(DiagnosticSettings):
        n: int = Field(32, ge=2, description="examples a task")
        top: int = Field(5, ge=1, description="tokens that are told of each thought")
        examples: int = Field(3, ge=0, description="examples a task that are kept as text")

    settings: Settings

    @classmethod
    def refuses(cls, method: MethodConfig) -> str | None:
        thinking = thinking_of(method)
        if "pause" in (thinking.thought, getattr(thinking.settings, "thought", None)):
            return "pause tokens are the same for every question: there is nothing in them to read"
        return no_thoughts(method)

    def measure(self, subject: Subject) -> dict[str, Any]:
        tasks: dict[str, Any] = {}
        found: dict[str, dict[str, Reading]] = {}
        for name in subject.learned:
            with subject.answering(name):
                tasks[name], found[name] = self._task(subject, subject.probe(name))
        n_boot = subject.evaluate.bootstrap
        return by_task_and_pooled(tasks, lambda: told(list(found.values()), n_boot, subject.parts.backbone.vocab_size))

    def _task(self, subject: Subject, probe: Probe) -> tuple[dict[str, Any], dict[str, Reading]]:
        parts, top = subject.parts, self.settings.top
        encoded = thinking_about(subject, some(probe, self.settings.n))
        thoughts = recorded(subject, encoded)
        elsewhere = _states_of_questions(subject, encoded, [len(t) for t in thoughts])
        golds = [gold_tokens(parts.backbone.text, parts.reasoning, e, len(t)) for e, t in zip(encoded, thoughts, strict=True)]
        donors = donors_of(len(encoded), subject.seed)
        found = {
            "head": Reading.of(_by_head(parts.backbone, thoughts, top), golds, donors),
            "nearest": Reading.of(_by_distance(parts.backbone, thoughts, top), golds, donors),
            "random_place": Reading.of(_by_head(parts.backbone, elsewhere, top), golds, donors),
        }
        numbers = told([found], subject.evaluate.bootstrap, parts.backbone.vocab_size)
        kept = [self._as_text(parts.backbone, e, found, i) for i, e in enumerate(encoded[: self.settings.examples])]
        return numbers | {"examples": kept}, found

    def _as_text(self, backbone: LanguageModel, e: Encoded, found: dict[str, Reading], i: int) -> dict[str, Any]:
        def words(tokens: Sequence[tuple[int, float]]) -> list[list[Any]]:
            return [[backbone.tokenizer.decode([token]), round(value, 4)] for token, value in tokens]

        thoughts = [
            {"head": words(head), "entropy": entropy, "nearest": words(near)}
            for head, entropy, near in zip(
                found["head"].tops[i], found["head"].entropies[i], found["nearest"].tops[i], strict=True
            )
        ]
        return {"id": e.example.id, "steps": list(e.example.steps), "answer": e.example.answer, "thoughts": thoughts}


# ------------------------------------------------------------------------------------------------------------ reading

Tops = list[list[list[tuple[int, float]]]]  # of each example, of each thought: tokens with a probability or a cosine
Gold = list[tuple[set[int], set[int]]]  # of each thought of an example: tokens of its step, and of the answer


@dataclass
class Reading:
    """What was read, an entry for each example. ``own`` and ``others``: for each thought, whether its top token is of the
    step and whether it is of the answer; of this question, and of another one.
    """

    tops: Tops
    entropies: list[list[float]]
    own: list[list[tuple[bool, bool]]]
    others: list[list[tuple[bool, bool]]]

    @classmethod
    def of(cls, read: tuple[Tops, list[list[float]]], golds: Sequence[Gold], donors: Sequence[int]) -> Reading:
        tops, entropies = read
        compared = [
            [_compared(tops[i], golds[j]) for i, j in pairs] for pairs in (enumerate(range(len(tops))), enumerate(donors))
        ]
        return cls(tops, entropies, *compared)


def _compared(tops: list[list[tuple[int, float]]], gold: Gold) -> list[tuple[bool, bool]]:
    """A donor may have fewer thoughts: its last one stands for the rest."""
    pairs = [gold[min(k, len(gold) - 1)] for k in range(len(tops))]
    return [(top[0][0] in step, top[0][0] in answer) for top, (step, answer) in zip(tops, pairs, strict=True)]


def told(tasks: list[dict[str, Reading]], n_boot: int, vocabulary: int) -> dict[str, Any]:
    """Shares of thoughts whose top token is of the step, of the answer or of neither (a token may be of both); first the mean
    of each example's thoughts, so that intervals are over examples.
    """
    numbers: dict[str, Any] = {"n": sum(len(found["head"].tops) for found in tasks)}
    for name in tasks[0]:
        readings = [found[name] for found in tasks]
        numbers[name] = {
            "of_its_question": _shares([r.own for r in readings], n_boot),
            "of_another_question": _shares([r.others for r in readings], n_boot),
        }
        if name != "nearest":
            entropies = [[float(np.mean(e)) for e in r.entropies] for r in readings]
            value, interval = stratified_mean(entropies, (0.0, math.log(vocabulary) + 1e-3), n_boot)
            numbers[name]["entropy"] = {"value": value, "low": interval.low, "high": interval.high}
    return numbers


def _shares(strata: list[list[list[tuple[bool, bool]]]], n_boot: int) -> dict[str, Any]:
    def share(test: Any) -> dict[str, Any]:
        return mean_of([[float(np.mean([test(*flags) for flags in thoughts])) for thoughts in found] for found in strata], n_boot)

    return {
        "step": share(lambda step, answer: step),
        "answer": share(lambda step, answer: answer),
        "neither": share(lambda step, answer: not step and not answer),
    }


def gold_tokens(text: TextFormat, reasoning: Reasoning, encoded: Encoded, K: int) -> Gold:
    """For each of an example's K thoughts the tokens of the gold step that it stands for, and those of the answer.

    A continuous thought stands for the step that the stage at which it came in has replaced (no step where the chain is
    shorter); soft thoughts, that replace none, for the first step to be written.
    """
    steps, answer = encoded.example.steps, set(text.answer_ids((), encoded.example.answer)[1])
    thought = thought_of(reasoning)
    counts = [reasoning.thoughts(stage).count(thought) for stage in range(reasoning.final_phase().stage + 1)]
    gold = []
    for k in range(K):
        stage = next((s for s, count in enumerate(counts) if count > k), len(counts))
        place = max(0, stage - 1)
        gold.append((set(text.continued_ids((), "", steps[place])[0]) if place < len(steps) else set(), answer))
    return gold


def _by_head(backbone: LanguageModel, states: list[Tensor], top: int) -> tuple[Tops, list[list[float]]]:
    """Top tokens with their probabilities, and entropies in nats."""
    top = min(top, backbone.vocab_size)
    values, tokens, entropies = [], [], []
    for piece_ND in torch.cat(states).split(_ROWS):
        logp_NV = log_probabilities(backbone, piece_ND)
        best = logp_NV.topk(top, dim=1)
        values += best.values.exp().tolist()
        tokens += best.indices.tolist()
        entropies += (-(logp_NV.exp() * logp_NV).sum(1)).clamp(min=0).tolist()
    return _regrouped(tokens, values, states), _pieces(entropies, states)


def _by_distance(backbone: LanguageModel, states: list[Tensor], top: int) -> tuple[Tops, list[list[float]]]:
    """Tokens whose input embeddings have the largest cosine with a state, and that; without entropies."""
    top = min(top, backbone.vocab_size)
    wanted_ND = torch.nn.functional.normalize(torch.cat(states).float(), dim=1)
    best_NK, ids_NK = wanted_ND.new_zeros(len(wanted_ND), 0), torch.zeros(len(wanted_ND), 0, dtype=torch.long)
    for first in range(0, backbone.vocab_size, _TOKENS):
        ids_V = torch.arange(first, min(first + _TOKENS, backbone.vocab_size), device=backbone.device)
        rows_VD = torch.nn.functional.normalize(backbone.embed(ids_V).float(), dim=1)
        best_NK = torch.cat([best_NK, wanted_ND @ rows_VD.T], 1)
        ids_NK = torch.cat([ids_NK.to(ids_V.device), ids_V.expand(len(wanted_ND), -1)], 1)
        chosen = best_NK.topk(min(top, best_NK.shape[1]), dim=1)
        best_NK, ids_NK = chosen.values, ids_NK.gather(1, chosen.indices)
    return _regrouped(ids_NK.tolist(), best_NK.tolist(), states), _pieces([0.0] * len(wanted_ND), states)


def _regrouped(tokens: list[list[int]], values: list[list[float]], states: list[Tensor]) -> Tops:
    return _pieces([list(zip(t, v, strict=True)) for t, v in zip(tokens, values, strict=True)], states)


def _pieces(flat: list[Any], states: list[Tensor]) -> list[list[Any]]:
    """A flat list in pieces as long as the states of each example."""
    ends = np.cumsum([len(s) for s in states]).tolist()
    return [flat[start:end] for start, end in zip([0, *ends], ends, strict=False)]


def _states_of_questions(subject: Subject, encoded: Sequence[Encoded], counts: Sequence[int]) -> list[Tensor]:
    """Of each example as many last hidden states as it has thoughts, at random places before its first thought."""
    parts, rng = subject.parts, random.Random(subject.seed)
    backbone, reasoning, size = parts.backbone, parts.reasoning, subject.evaluate.batch_size
    found: list[Tensor] = []
    for start in range(0, len(encoded), size):
        batch = reasoning.collate(encoded[start : start + size]).to(backbone.device)
        first_B = reasoning.marked(parts, batch, thought_of(reasoning)).long().argmax(1).tolist()
        T = max(first_B)
        mask_BT = batch["prefix_mask_BT"][:, :T]
        state = reasoning.empty_state(parts, batch, None)
        hidden_BTD = forward(backbone, state, reasoning.embed(parts, batch["prefix_BT"][:, :T]), mask_BT)
        for hidden_TD, mask_T, first, n in zip(hidden_BTD, mask_BT, first_B, counts[start : start + size], strict=True):
            places = [t for t, real in enumerate(mask_T.tolist()[:first]) if real]
            found.append(hidden_TD[[rng.choice(places) for _ in range(n)]])
    return found
