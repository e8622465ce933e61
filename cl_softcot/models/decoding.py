"""Running a backbone piece by piece over left-padded rows, and decoding in batches.

Columns are shared, positions are each row's own::

    row 0   .  .  a  b  c  | d  e  <eos>        '.' padding: never attended to
    row 1   f  g  h  i  j  | k  <eos>           '|' where the prompt ends and writing starts, the same column in all rows
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import Cache, DynamicLayer

from cl_softcot.models.head import LOGITS_AT_ONCE
from cl_softcot.models.language_model import LanguageModel
from cl_softcot.side_by_side import hand_on

if TYPE_CHECKING:
    from cl_softcot.reasoning.base import Batch, Edit, Encoded, Parts, Reasoning

# Dropping finished rows copies what the others have in the cache. Measured, for small models and for large vocabularies: that
# takes about as long as a step of the rows that are copied.
_COPY = 1.0
_DRAFT_SHARE = 1 / 2
# Measured with the embedded models: where a batch of fewer rows, or with less padding, costs more than it saves.
_WORTH_A_BATCH, _PADDED = 32, 1.3
IGNORED = -100


class _RoomyLayer(DynamicLayer):
    """A cache layer with room for what will be written, filled in place.

    The stock layer copies all keys and values at every token, which on CPU takes longer than computing the token. Not for
    training: autograd forbids writing in place here.
    """

    def __init__(self, room: int):
        super().__init__()
        self.room = room
        self.used = 0

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        self.dtype, self.device = key_states.dtype, key_states.device
        B, heads, _, width = key_states.shape
        self._keys = key_states.new_empty(B, heads, self.room, width)
        self._values = value_states.new_empty(B, heads, self.room, value_states.shape[-1])
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        start, self.used = self.used, self.used + key_states.shape[-2]
        self._keys[:, :, start : self.used] = key_states
        self._values[:, :, start : self.used] = value_states
        self.keys, self.values = self._keys[:, :, : self.used], self._values[:, :, : self.used]
        return self.keys, self.values

    def get_seq_length(self) -> int:
        return self.used

    def batch_select_indices(self, indices: Tensor) -> None:
        self._keys, self._values = self._keys[indices], self._values[indices]
        self.keys, self.values = self._keys[:, :, : self.used], self._values[:, :, : self.used]


@dataclass
class State:
    """Where a batch stands.

    Attributes:
        cache: keys and values of all columns so far.
        mask_BT: which columns are real.
        position_B: the position of each row's next token.
        logits_BV: logits of the next token of each row, where it was asked for (``Reasoning.begin``).
        forward_passes: calls of the backbone so far.
    """

    cache: Cache
    mask_BT: Tensor
    position_B: Tensor
    logits_BV: Tensor = field(default_factory=lambda: torch.empty(0))
    forward_passes: int = 0

    def keep(self, rows: Tensor) -> None:
        """Drop all but these rows, in place."""
        for layer in self.cache.layers:
            keys = getattr(layer, "keys", None)
            layer.batch_select_indices(rows if keys is None else rows.to(keys.device))  # layers may stand on several GPUs
        self.mask_BT = self.mask_BT[rows]
        self.position_B = self.position_B[rows]
        self.logits_BV = self.logits_BV[rows] if len(self.logits_BV) else self.logits_BV


def new_state(backbone: LanguageModel, batch_size: int, room: int | None = None) -> State:
    """An empty state. ``room`` columns are set aside for decoding without gradients; None while training."""
    device = backbone.device
    if room is None or torch.is_grad_enabled() or not backbone.ready_mask:
        cache: Cache = DynamicCache(config=backbone.model.config)
    else:
        cache = Cache(layers=[_RoomyLayer(room) for _ in range(backbone.config.num_hidden_layers)])
    return State(
        cache=cache,
        mask_BT=torch.zeros(batch_size, 0, dtype=torch.bool, device=device),
        position_B=torch.zeros(batch_size, dtype=torch.long, device=device),
    )


def forward(backbone: LanguageModel, state: State, embeddings_BTD: Tensor, mask_BT: Tensor | None = None) -> Tensor:
    """Append columns to ``state`` and return their hidden states after the final norm, [B, T, D].

    Args:
        mask_BT: which of the new columns are real; None: all of them.
    """
    B, T, _ = embeddings_BTD.shape
    if mask_BT is None:
        mask_BT = torch.ones(B, T, dtype=torch.bool, device=embeddings_BTD.device)
    seen_BT = torch.cat([state.mask_BT, mask_BT], 1)
    counts_BT = mask_BT.long().cumsum(1)
    # Padding has no position of its own; it must only stay inside the tables of models with learned positions.
    positions_BT = (state.position_B[:, None] + counts_BT - 1).clamp(0, backbone.max_length - 1)
    hidden_BTD = backbone.run_core(
        embeddings_BTD,
        attention_mask=_attention_mask(backbone, seen_BT, T, embeddings_BTD.dtype),
        position_ids=positions_BT,
        past_key_values=state.cache,
        use_cache=True,
    )
    state.mask_BT = seen_BT
    state.position_B = state.position_B + counts_BT[:, -1]
    state.forward_passes += 1
    return hidden_BTD


def _attention_mask(backbone: LanguageModel, seen_BT: Tensor, n_new: int, dtype: torch.dtype) -> Tensor:
    """The 2D mask, or the additive [B, 1, n_new, T] one where the architecture takes it ready-made (saves work a call)."""
    if not backbone.ready_mask:
        return seen_BT.long()
    T = seen_BT.shape[1]
    hidden_B1NT = ~seen_BT[:, None, None, :]
    if n_new > 1:
        later_NT = torch.ones(n_new, T, dtype=torch.bool, device=seen_BT.device).triu(T - n_new + 1)
        hidden_B1NT = hidden_B1NT | later_NT
    mask_dtype = dtype if backbone.compute_dtype in (torch.float32, torch.float64) else backbone.compute_dtype
    zeros = torch.zeros((), dtype=mask_dtype, device=seen_BT.device)
    # fp64's lowest would be -inf in models whose softmax is fp32, and rows of padding would be NaN.
    lowest = max(torch.finfo(mask_dtype).min, torch.finfo(torch.float32).min)
    return zeros.expand(hidden_B1NT.shape).masked_fill(hidden_B1NT, lowest)


# ------------------------------------------------------------------------------------------------------ decoding
#
# Every row brings a draft: the text that a method which has learned its task would write (its target). It is read in one call,
# and all tokens up to the first that the model would not have written are its answer's beginning; from there on one token a call.
# The answer is the model's own whatever the draft says (speculative decoding, arXiv 2211.17192, with a guess that costs nothing):
# a wrong draft costs time, and a right one saves a call a token.


@dataclass(frozen=True)
class Generation:
    """One written answer.

    Attributes:
        ids: the tokens written, end-of-text left out.
        text: the same as text.
        n_tokens: tokens written, end-of-text included; thoughts are not among them.
        forward_passes: calls of the backbone for this answer: prompt and thoughts, and one a token after the first.
        finished: False where the limit came before the end-of-text token.
        end_id: the token that ended it (some models have several); None if none did.
    """

    ids: list[int]
    text: str
    n_tokens: int
    forward_passes: int
    finished: bool
    end_id: int | None = None


@torch.no_grad()
def generate(
    reasoning: Reasoning,
    parts: Parts,
    encoded: Sequence[Encoded],
    max_new_tokens: int,
    *,
    sample: Tensor | None = None,
    batch_size: int = 256,
    edit: Edit | None = None,
    drafts: bool = True,
) -> list[Generation]:
    """Answer every prompt; greedy, or sampled at temperature 1. Order is kept.

    Args:
        sample: what ``random_numbers`` drew for these prompts; None: greedy.
        edit: changes the thoughts of a batch before the backbone reads them.
        drafts: take ``target_ids`` for a guess of the answer. Nothing but the time depends on it (and, by rounding, a tie).

    Raises:
        UserError: a prompt and ``max_new_tokens`` do not fit into the backbone's context.
    """
    text = parts.backbone.text
    for item in encoded:
        text.check_fits(item.example.id, len(item.prefix_ids), max_new_tokens)
    results: dict[int, Generation] = {}
    for rows in alike([(len(item.prefix_ids),) for item in encoded], batch_size):
        numbers_BT = None if sample is None else sample[rows].to(parts.backbone.device)
        written = _write(reasoning, parts, [encoded[i] for i in rows], max_new_tokens, numbers_BT, edit, drafts)
        results.update(zip(rows, written, strict=True))
        hand_on()
    return [results[i] for i in range(len(encoded))]


def alike(lengths: Sequence[tuple[int, ...]], batch_size: int) -> list[list[int]]:
    """Rows that go through a model together: at most ``batch_size``, of similar lengths, so that little is padding.

    Args:
        lengths: of the parts of each row that are padded for themselves; rows are sorted by the first, then by the next.
    """
    batches: list[list[int]] = []
    longest: list[int] = []
    real = 0
    for i in sorted(range(len(lengths)), key=lambda i: (lengths[i], i)):
        grown = [max(pair) for pair in zip(longest, lengths[i], strict=True)] if longest else list(lengths[i])
        rows = len(batches[-1]) if batches else batch_size
        wasteful = rows >= _WORTH_A_BATCH and (rows + 1) * sum(grown) > _PADDED * (real + sum(lengths[i]))
        if rows == batch_size or wasteful:
            batches.append([])
            grown, real = list(lengths[i]), 0
        batches[-1].append(i)
        longest, real = grown, real + sum(lengths[i])
    return batches


def random_numbers(n: int, max_new_tokens: int, seed: int) -> Tensor:
    """One number in [0, 1) for each token of each of ``n`` answers, [n, max_new_tokens]: an answer's sample depends on its place
    among them, on no batch and no device."""
    return torch.rand(n, max_new_tokens, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def _choose(logits_NV: Tensor, numbers_N: Tensor | None) -> Tensor:
    """The likeliest tokens; or those at given numbers in [0, 1) of the cumulated probabilities: a sample at temperature 1."""
    if numbers_N is None:
        return logits_NV.argmax(-1)
    wide = torch.float32 if logits_NV.device.type == "mps" else torch.float64
    cumulated_NV = logits_NV.to(wide).softmax(-1).cumsum(-1)
    found_N1 = torch.searchsorted(cumulated_NV, numbers_N[:, None].to(wide) * cumulated_NV[:, -1:], right=True)
    return found_N1[:, 0].clamp_max(logits_NV.shape[-1] - 1)


def _write(
    reasoning: Reasoning,
    parts: Parts,
    encoded: Sequence[Encoded],
    max_new_tokens: int,
    numbers_BT: Tensor | None,
    edit: Edit | None,
    drafts: bool,
) -> list[Generation]:
    """One batch. ids_BT holds what is written, written_B how much of it; ``alive`` maps the state's rows to its rows."""
    backbone = parts.backbone
    B, device = len(encoded), backbone.device
    batch = reasoning.collate(encoded).to(device)
    # Masked columns inside a row would count in a sliding window.
    begin = _begin_with_drafts if drafts and backbone.ready_mask and reasoning.takes_drafts() else _begin
    state, ids_BT, written_B = begin(reasoning, parts, batch, numbers_BT, edit, max_new_tokens)
    passes_before = state.forward_passes
    alive = torch.arange(B, device=device)
    idle = 0  # steps of rows that had ended, since rows were last dropped
    while True:
        last_B = ids_BT[alive, written_B[alive] - 1]
        running = ~_is_one_of(last_B, backbone.text.end_ids) & (written_B[alive] < max_new_tokens)
        left = int(running.sum())
        if left == 0:
            break
        idle += len(alive) - left
        # Once as much time has gone into rows that had ended as dropping them takes: at most twice what the best choice costs.
        if idle >= _COPY * left:
            kept = running.nonzero()[:, 0]
            state.keep(kept)
            alive, running, last_B, idle = alive[kept], running[kept], last_B[kept], 0
        logits_BV = reasoning.step(parts, state, last_B)
        # A row that has ended goes on with the others until it is dropped; what it would write is not looked at.
        places_B = written_B[alive].clamp_max(max_new_tokens - 1)
        ids_B = _choose(logits_BV, None if numbers_BT is None else numbers_BT[alive, places_B])
        ids_BT[alive, places_B] = torch.where(running, ids_B, ids_BT[alive, places_B])
        written_B[alive] += running.long()
    return [_generation(backbone, row[:n], passes_before) for row, n in zip(ids_BT.tolist(), written_B.tolist(), strict=True)]


def _begin(
    reasoning: Reasoning,
    parts: Parts,
    batch: Batch,
    numbers_BT: Tensor | None,
    edit: Edit | None,
    max_new_tokens: int,
    room_for_drafts: int = 0,
) -> tuple[State, Tensor, Tensor]:
    """The state behind the prompts, the first tokens in [B, max_new_tokens], and how much is written so far, [B]."""
    state = reasoning.begin(parts, batch, edit, room=max_new_tokens + room_for_drafts)
    ids_BT = torch.full((len(batch), max_new_tokens), parts.backbone.eos_id, device=parts.backbone.device)
    ids_BT[:, 0] = _choose(state.logits_BV, None if numbers_BT is None else numbers_BT[:, 0])
    return state, ids_BT, torch.ones_like(ids_BT[:, 0])


def _begin_with_drafts(
    reasoning: Reasoning, parts: Parts, batch: Batch, numbers_BT: Tensor | None, edit: Edit | None, max_new_tokens: int
) -> tuple[State, Tensor, Tensor]:
    """As ``_begin``, with what the model would have written of the drafts, and the token that it writes in place of the next.

    Questions of one kind are answered together, and where the first token is not the draft's the rest seldom is: a draft is only
    read if half of the rows begin as theirs do.
    """
    drafts_BT, real_BT = (batch[name][:, :max_new_tokens] for name in ("target_BT", "labels"))
    real_BT, T = real_BT != IGNORED, drafts_BT.shape[1]
    state, ids_BT, written_B = _begin(reasoning, parts, batch, numbers_BT, edit, max_new_tokens, T)
    if T <= 1 or (ids_BT[:, 0] == drafts_BT[:, 0]).float().mean() < _DRAFT_SHARE:
        return state, ids_BT, written_B
    start, position_B = state.mask_BT.shape[1], state.position_B
    embeddings_BTD = parts.backbone.embed(drafts_BT[:, :-1])
    hidden_BTD = forward(parts.backbone, state, embeddings_BTD, real_BT[:, :-1])
    rows_N, places_N = real_BT[:, 1:].nonzero(as_tuple=True)
    some = max(1, LOGITS_AT_ONCE // parts.backbone.vocab_size)
    for rows, places in zip(rows_N.split(some), places_N.split(some), strict=True):
        logits_NV = parts.backbone.logits(hidden_BTD[rows, places])
        ids_BT[rows, places + 1] = _choose(logits_NV, None if numbers_BT is None else numbers_BT[rows, places + 1])
    goes_on_BT = (ids_BT[:, :T] == drafts_BT) & real_BT & ~_is_one_of(drafts_BT, parts.backbone.text.end_ids)
    written_B = (goes_on_BT.long().cumprod(1).sum(1) + 1).minimum(real_BT.sum(1).clamp_min(1))
    # The token written last has not been read yet, whatever more of the draft has.
    state.mask_BT[:, start:] &= torch.arange(T - 1, device=written_B.device) < (written_B - 1)[:, None]
    state.position_B = position_B + written_B - 1
    state.forward_passes -= 1  # an answer's passes are those of one token after the other
    return state, ids_BT, written_B


def _is_one_of(ids: Tensor, end_ids: Sequence[int]) -> Tensor:
    found = ids == end_ids[0]
    for end in end_ids[1:]:
        found = found | (ids == end)
    return found


def _generation(backbone: LanguageModel, written: list[int], passes_before: int) -> Generation:
    end = written[-1] if written[-1] in backbone.text.end_ids else None
    ids = written if end is None else written[:-1]
    return Generation(ids, backbone.text.decode(ids), len(written), passes_before + len(written) - 1, end is not None, end)
