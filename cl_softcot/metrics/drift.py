"""Drift: how far a policy's next-token distributions have moved from the base model's, in nats per token.

With p the base's and q the policy's distribution of the next token, at the same place of the same
continuation:

* ``forward_kl`` KL(base‖model) = Σ_v p(v) log(p(v)/q(v)), averaged over the tokens of fixed continuations:
  the base's own greedy text (RL's Razor, arXiv 2509.04259, on new-task prompts). Large where the policy lost
  what the base would say.
* ``reverse_kl`` KL(model‖base) = Σ_v q(v) log(q(v)/p(v)), averaged over the tokens of the policy's own
  samples (temperature 1, fixed seed) (Fast-Slow Training, arXiv 2605.12484). Large where the policy says what
  the base would not.

At every place the sum over the vocabulary is exact: only the continuations are sampled (the Rao-Blackwellised
estimator of Amini et al. 2025, arXiv 2504.10637). Tokens that only one of the two vocabularies has are left
out and both distributions renormalised over the rest. Prompts are each side's own: the base answers in plain
CoT, the policy with all that it brings (thoughts, adapters, routing). Lower is nearer; drift is not
forgetting, but a hypothesis about it.

A *policy* is anything with

* ``hidden_states(examples, continuations) -> list of [T_i, D]``: for example i the states that predict each
  of the T_i tokens of ``continuations[i]`` (the first one sits at the end of the prompt),
* ``head([N, D]) -> logits [N, V]`` (a method that composes logits returns those as its states, with the
  identity as head; so does one in which examples have heads of their own),
* ``generate(examples, max_new_tokens, sample_seed=None) -> list`` of objects with ``ids`` (greedy without a
  seed); where they also say that the text is ``finished``, ``eos_id`` is what ended it and was left out of
  ``ids``,
* ``fingerprint_for(example) -> str`` or ``fingerprint: str``: equal for equal weights and equal way of
  answering.

Only hidden states are kept of the base, D numbers a token in place of V.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from cl_softcot.metrics import Meaning

DIRECTIONS = ("forward_kl", "reverse_kl")

Head = Callable[[Tensor], Tensor]


class Generated(Protocol):
    ids: Sequence[int]


class DriftPolicy(Protocol):
    """What this file asks of a policy; besides, where it has them: ``eos_id``, ``fingerprint_for``,
    ``fingerprint``.
    """

    def hidden_states(self, examples: Sequence[Any], continuations: Sequence[list[int]]) -> Sequence[Tensor]: ...

    def head(self, hidden_ND: Tensor) -> Tensor: ...

    def generate(self, examples: Sequence[Any], max_new_tokens: int, sample_seed: int | None = None) -> Sequence[Generated]: ...


class TokenKL(NamedTuple):
    """Nats at each of N places; float64 [N] each."""

    forward_kl: Tensor  # KL(base‖model)
    reverse_kl: Tensor  # KL(model‖base)


def kl_from_logits(base_NV: Tensor, model_NW: Tensor, shared_vocab: Tensor | Sequence[int] | None = None) -> TokenKL:
    """Both directions of the KL divergence between two rows of logits, for each of N places.

    ``shared_vocab``: the token ids that both vocabularies have; None: those below the smaller size (added
    tokens come last). Both distributions are renormalised over them. Computed in float64 (float32 on devices
    without it). A token that one side gives probability 0 adds nothing to the sum weighted by that side, and
    makes the other direction infinite.
    """
    if shared_vocab is None:
        shared = slice(min(base_NV.shape[-1], model_NW.shape[-1]))
    else:
        shared = torch.as_tensor(shared_vocab, dtype=torch.long, device=base_NV.device)
    wide = torch.float32 if base_NV.device.type == "mps" else torch.float64
    log_p = base_NV[:, shared].to(wide).log_softmax(-1)
    log_q = model_NW[:, shared].to(base_NV.device, wide).log_softmax(-1)
    return TokenKL(_weighted_gap(log_p, log_q), _weighted_gap(log_q, log_p))


def _weighted_gap(log_p: Tensor, log_q: Tensor) -> Tensor:
    """Σ_v p log(p/q) with 0·log 0 = 0; rounding may leave -1e-17, which no divergence is."""
    gaps = torch.where(log_p == -torch.inf, 0.0, log_p.exp() * (log_p - log_q))
    return gaps.sum(-1).clamp_min(0.0)


@torch.no_grad()
def kl_from_hidden(
    h_base: Tensor,
    head_base: Head,
    h_model: Tensor,
    head_model: Head,
    shared_vocab: Tensor | Sequence[int] | None = None,
    chunk: int = 256,
) -> TokenKL:
    """:func:`kl_from_logits` of ``head_base(h_base)`` [N, V] and ``head_model(h_model)`` [N, V'], ``chunk``
    places at a time.

    h_base [N, D] and h_model [N, D'] are the states at the same N places. Memory: a few times chunk * V
    doubles.
    """
    if len(h_base) != len(h_model):
        raise ValueError(f"the two sides differ in places: {len(h_base)} and {len(h_model)}")
    parts = [
        kl_from_logits(head_base(base_ND), head_model(model_ND), shared_vocab)
        for base_ND, model_ND in zip(h_base.split(chunk), h_model.split(chunk), strict=True)
    ]
    return TokenKL(*(torch.cat([part[i].cpu().double() for part in parts]) for i in (0, 1)))


def written_ids(
    policy: DriftPolicy, examples: Sequence[Any], max_new_tokens: int, sample_seed: int | None = None
) -> list[list[int]]:
    """Token ids of a policy's texts as continuations to measure on.

    With the end-of-text token where the policy ended a text by itself: to stop is a choice too.
    """
    texts = []
    for generation in policy.generate(list(examples), max_new_tokens, sample_seed=sample_seed):
        ids = [int(token) for token in generation.ids]
        texts.append([*ids, int(policy.eos_id)] if getattr(generation, "finished", False) else ids)
    return texts


@dataclass(frozen=True)
class DriftReference:
    """A prompt set with the base's side of the forward KL.

    Computed once, used after every experience of every method.
    """

    name: str
    examples: list[Any]
    continuations: list[list[int]]
    hidden: list[Tensor]  # [T_i, D] each: the base's states at the places that predict continuations[i]

    @classmethod
    @torch.no_grad()
    def build(
        cls,
        name: str,
        base_policy: DriftPolicy,
        examples: Sequence[Any],
        max_new_tokens: int,
        continuations: Sequence[Sequence[int]] | None = None,
    ) -> DriftReference:
        """Continuations: the base's greedy text, unless given (from an earlier :func:`written_ids`, say)."""
        if not examples:
            raise ValueError(f"the prompt set {name!r} is empty")
        examples = list(examples)
        if continuations is None:
            continuations = written_ids(base_policy, examples, max_new_tokens)
        if len(continuations) != len(examples):
            raise ValueError(f"{name}: {len(continuations)} continuations for {len(examples)} examples")
        ids = [[int(token) for token in continuation] for continuation in continuations]
        return cls(name, examples, ids, _states(base_policy, examples, ids))


@torch.no_grad()
def drift(
    policy: DriftPolicy,
    base_policy: DriftPolicy,
    references: Iterable[DriftReference],
    *,
    max_new_tokens: int,
    sample_seed: int = 0,
    shared_vocab: Tensor | Sequence[int] | None = None,
    chunk: int = 256,
    directions: Sequence[str] = DIRECTIONS,
    measure_identical: bool = False,
) -> dict[str, float | int | None]:
    """Both drifts of ``policy`` from ``base_policy`` on each prompt set.

    Returns ``forward_kl/<set>`` and ``reverse_kl/<set>`` in nats per token (mean over all tokens of the set,
    so long continuations count for more), None where nothing was written, and the tokens behind each as
    ``n_tokens/forward_kl/<set>`` and ``n_tokens/reverse_kl/<set>``.

    Examples that the policy answers exactly as the base does (equal fingerprints: the bare frozen weights,
    unseen tasks of a per-task method) count with exactly 0.0 nats and are not computed; where that holds for
    a whole set nothing is sampled, and its n_tokens of the reverse is 0. ``measure_identical`` computes them
    all the same: for tests of the fingerprints.
    """
    unknown = sorted(set(directions) - set(DIRECTIONS))
    if unknown:
        raise ValueError(f"unknown direction {unknown[0]!r}; known: {', '.join(DIRECTIONS)}")
    options = {"shared_vocab": shared_vocab, "chunk": chunk}
    values: dict[str, float | int | None] = {}
    for reference in references:
        examples = reference.examples
        moved = [i for i, e in enumerate(examples) if measure_identical or not _same(policy, base_policy, e)]
        for direction in directions:
            if direction == "forward_kl":
                texts, base_states = reference.continuations, reference.hidden
            else:
                texts, base_states = [], None
                if moved:
                    texts = _samples(policy, base_policy, reference, max_new_tokens, sample_seed, shared_vocab)
            written = [i for i in moved if texts[i]]
            nats, tokens = 0.0, sum(map(len, texts))
            if written:
                prompts, ids = [examples[i] for i in written], [texts[i] for i in written]
                base = [base_states[i] for i in written] if base_states else _states(base_policy, prompts, ids)
                nats = _nats(direction, base_policy, base, policy, _states(policy, prompts, ids), **options)
            values[f"{direction}/{reference.name}"] = nats / tokens if tokens else (None if moved else 0.0)
            values[f"n_tokens/{direction}/{reference.name}"] = tokens
    return values


def _nats(
    direction: str,
    base_policy: DriftPolicy,
    base_states: list[Tensor],
    policy: DriftPolicy,
    states: list[Tensor],
    **options: Any,
) -> float:
    """Sum of one direction's KL over all places."""
    kl = kl_from_hidden(torch.cat(base_states), base_policy.head, torch.cat(states), policy.head, **options)
    return float(getattr(kl, direction).sum())


def _samples(
    policy: DriftPolicy,
    base_policy: DriftPolicy,
    reference: DriftReference,
    max_new_tokens: int,
    seed: int,
    shared_vocab: Tensor | Sequence[int] | None,
) -> list[list[int]]:
    """The policy's own texts, each up to its first token that the base lacks and cannot read."""
    if shared_vocab is None:
        shared = range(base_policy.head(torch.cat(reference.hidden)[:1]).shape[-1])
    else:
        shared = set(torch.as_tensor(shared_vocab).tolist())
    texts = written_ids(policy, reference.examples, max_new_tokens, seed)
    return [list(takewhile(shared.__contains__, ids)) for ids in texts]


def _states(policy: DriftPolicy, examples: list[Any], continuations: list[list[int]]) -> list[Tensor]:
    states = list(policy.hidden_states(examples, continuations))
    lengths, expected = [len(state) for state in states], [len(ids) for ids in continuations]
    if lengths != expected:
        raise ValueError(f"hidden_states must give one state a continuation token: {lengths[:4]}… for {expected[:4]}…")
    return states


def _same(policy: Any, base_policy: Any, example: Any) -> bool:
    if policy is base_policy:
        return True
    mine, theirs = _fingerprint(policy, example), _fingerprint(base_policy, example)
    return mine is not None and mine == theirs


def _fingerprint(policy: Any, example: Any) -> str | None:
    of_example = getattr(policy, "fingerprint_for", None)
    return of_example(example) if of_example is not None else getattr(policy, "fingerprint", None)


CATALOGUE: dict[str, Meaning] = {
    "forward_kl/<set>": Meaning(
        "mean over tokens of base continuations of Σ_v p_base log(p_base/p_model)",
        "RL's Razor (arXiv 2509.04259)",
        "nats per token",
        "lower is nearer to the base",
    ),
    "reverse_kl/<set>": Meaning(
        "mean over tokens of the model's samples of Σ_v p_model log(p_model/p_base)",
        "Fast-Slow Training (arXiv 2605.12484); estimator: Amini et al. 2025 (arXiv 2504.10637)",
        "nats per token",
        "lower is nearer to the base",
    ),
}
