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

Only hidden states are kept of the base, D numbers a token in place of V.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import takewhile
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from cl_softcot.metrics import Meaning

if TYPE_CHECKING:
    from cl_softcot.answering.policy import Policy
    from cl_softcot.models.writing import Generation

DIRECTIONS = ("forward_kl", "reverse_kl")

Head = Callable[[Tensor], Tensor]


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
    shared: slice | Tensor
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


def written_ids(policy: Policy, examples: Sequence[Any], max_new_tokens: int, sample_seed: int | None = None) -> list[list[int]]:
    """Token ids of a policy's texts as continuations to measure on.

    With the end-of-text token where the policy ended a text by itself: to stop is a choice too.
    """
    return [_whole(policy, generation) for generation in policy.generate(list(examples), max_new_tokens, sample_seed=sample_seed)]


def _whole(policy: Policy, generation: Generation) -> list[int]:
    ids = [int(token) for token in generation.ids]
    end = policy.eos_id if generation.end_id is None else generation.end_id  # some models have several
    return [*ids, int(end)] if generation.finished and end is not None else ids


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
        base_policy: Policy,
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
        return cls(name, examples, ids, _states(base_policy.reference_states, examples, ids))


@torch.no_grad()
def drift(
    policy: Policy,
    base_policy: Policy,
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
    rows = [
        _Row(reference.name, *row, measure_identical or not _same(policy, base_policy, row[0]))
        for reference in references
        for row in zip(reference.examples, reference.continuations, reference.hidden, strict=True)
    ]
    compare = _Comparison(policy, base_policy, shared_vocab, chunk)
    forward, reverse = (direction in directions for direction in DIRECTIONS)
    samples = [_Sample([])] * len(rows)
    on_base: list[TokenKL | None] = [None] * len(rows)
    if reverse:
        samples = _samples(policy, base_policy, rows, max_new_tokens, sample_seed, shared_vocab, read=forward)
    values: dict[str, float | int | None] = {}
    if forward:
        read = [replace(row, policy_states_TD=sample.read_TD) for row, sample in zip(rows, samples, strict=True)]
        on_base = compare([row if row.moved else None for row in read])
        _collect(values, "forward_kl", rows, [len(row.continuation) for row in rows], on_base)
    if reverse:
        # Where the sample is the very text of the forward direction, the places are the same and so is what was found there.
        known = [found if s.ids == row.continuation else None for row, s, found in zip(rows, samples, on_base, strict=True)]
        asked = [
            row.with_text(sample) if row.moved and found is None else None
            for row, sample, found in zip(rows, samples, known, strict=True)
        ]
        found = [k or f for k, f in zip(known, compare(asked), strict=True)]
        _collect(values, "reverse_kl", rows, [len(sample.ids) for sample in samples], found)
    return values


@dataclass(frozen=True)
class _Row:
    """An example of a set, a text to measure on, and both sides' states there, where they are known."""

    set: str
    example: Any
    continuation: list[int]
    base_states_TD: Tensor | None
    moved: bool
    policy_states_TD: Tensor | None = None

    def with_text(self, sample: _Sample) -> _Row:
        return replace(self, continuation=sample.ids, base_states_TD=None, policy_states_TD=sample.states_TD)


class _Sample(NamedTuple):
    """A text of the policy's own; and where they were kept, its states there and at the base's text."""

    ids: list[int]
    states_TD: Tensor | None = None
    read_TD: Tensor | None = None


@dataclass(frozen=True)
class _Comparison:
    """Both KL sums of each row that is asked for; all rows go through the models together."""

    policy: Policy
    base_policy: Policy
    shared_vocab: Tensor | Sequence[int] | None
    chunk: int

    def __call__(self, rows: Sequence[_Row | None]) -> list[TokenKL | None]:
        asked = [row for row in rows if row is not None and row.continuation]
        if not asked:
            return [None] * len(rows)
        examples, texts = [row.example for row in asked], [row.continuation for row in asked]
        base = _if_all([row.base_states_TD for row in asked])
        if base is None:
            base = _states(self.base_policy.hidden_states, examples, texts)
        states = _if_all([row.policy_states_TD for row in asked])
        if states is None:
            states = _states(self.policy.hidden_states, examples, texts)
        kl = kl_from_hidden(
            torch.cat(base), self.base_policy.head, torch.cat(states), self.policy.head, self.shared_vocab, self.chunk
        )
        lengths = list(map(len, texts))
        sums = iter([TokenKL(f.sum(), r.sum()) for f, r in zip(*(d.split(lengths) for d in kl), strict=True)])
        return [next(sums) if row is not None and row.continuation else None for row in rows]


def _collect(
    values: dict[str, float | int | None],
    direction: str,
    rows: Sequence[_Row],
    lengths: Sequence[int],
    found: Sequence[TokenKL | None],
) -> None:
    """Adds a direction's mean, and the tokens behind it, for every set."""
    for name in dict.fromkeys(row.set for row in rows):
        mine = [i for i, row in enumerate(rows) if row.set == name]
        moved = any(rows[i].moved for i in mine)
        tokens = sum(lengths[i] for i in mine)
        nats = sum(float(getattr(found[i], direction)) for i in mine if found[i] is not None)
        values[f"{direction}/{name}"] = nats / tokens if tokens else (None if moved else 0.0)
        values[f"n_tokens/{direction}/{name}"] = tokens


def _samples(
    policy: Policy,
    base_policy: Policy,
    rows: Sequence[_Row],
    max_new_tokens: int,
    seed: int,
    shared_vocab: Tensor | Sequence[int] | None,
    *,
    read: bool,
) -> list[_Sample]:
    """The policy's own texts, each up to its first token that the base cannot read; none in sets where nothing moved."""
    moved = {row.set for row in rows if row.moved}
    asked = [row for row in rows if row.set in moved]
    if not asked:
        return [_Sample([]) for _ in rows]
    shared: Container[int]
    if shared_vocab is None:
        state_TD = asked[0].base_states_TD
        assert state_TD is not None, "references hold the base's states"
        shared = range(base_policy.head(state_TD[:1]).shape[-1])
    else:
        shared = set(torch.as_tensor(shared_vocab).tolist())
    together = read and policy.keeps_states and all(len(r.continuation) <= max_new_tokens for r in asked)
    options = {"read": [row.continuation for row in asked]} if together else {}
    written = iter(policy.generate([row.example for row in asked], max_new_tokens, sample_seed=seed, **options))

    def sample(row: _Row, generation: Generation) -> _Sample:
        ids = list(takewhile(shared.__contains__, _whole(policy, generation)))
        if generation.states_TD is None or generation.draft_states_TD is None:
            return _Sample(ids)
        return _Sample(ids, generation.states_TD[: len(ids)], generation.draft_states_TD[: len(row.continuation)])

    return [sample(row, next(written)) if row.set in moved else _Sample([]) for row in rows]


def _if_all(states: Sequence[Tensor | None]) -> list[Tensor] | None:
    """The states if all of them are known."""
    known = [state for state in states if state is not None]
    return known if len(known) == len(states) else None


def _states(states_of: Callable[..., Sequence[Tensor]], examples: list[Any], continuations: list[list[int]]) -> list[Tensor]:
    states = list(states_of(examples, continuations))
    lengths, expected = [len(state) for state in states], [len(ids) for ids in continuations]
    if lengths != expected:
        raise ValueError(f"hidden_states must give one state a continuation token: {lengths[:4]}… for {expected[:4]}…")
    return states


def _same(policy: Policy, base_policy: Policy, example: Any) -> bool:
    if policy is base_policy:
        return True
    mine, theirs = policy.fingerprint_for(example), base_policy.fingerprint_for(example)
    return mine is not None and mine == theirs


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
