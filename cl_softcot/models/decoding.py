"""Running a backbone piece by piece over left-padded rows, and decoding in batches.

Columns are shared, positions are each row's own::

    row 0   .  .  a  b  c  | d  e  <eos>        '.' padding: never attended to
    row 1   f  g  h  i  j  | k  <eos>           '|' where the prompt ends and writing starts, the same column in all rows
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
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
# Shares of a batch: fewer rows than these are not worth a step while others can be waited for, and more do not wait.
_FEW, WAITING = 1 / 4, 1 / 2
# Measured with the embedded models: where a batch of fewer rows, or with less padding, costs more than it saves.
_WORTH_A_BATCH, _PADDED = 32, 1.1
# Measured on a CPU: what lies between matrix products stays in a core's cache if hidden states are of so many numbers at a time,
# which takes a fifth to a third off a call. With fewer places the products themselves become slow.
_NUMBERS_IN_CACHE, _LEAST_PLACES = 2**18, 512
IGNORED = -100


class _RoomyLayer(DynamicLayer):
    """A cache layer with room for what will be written, filled in place.

    The stock layer copies all keys and values at every token, which on CPU takes longer than computing the token. Not for
    training: autograd forbids writing in place here.
    """

    def __init__(self, rows: int, room: int):
        super().__init__()
        self.rows, self.room = rows, room
        self.used = 0

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        self.dtype, self.device = key_states.dtype, key_states.device
        _, heads, _, width = key_states.shape
        self._keys = key_states.new_empty(self.rows, heads, self.room, width)
        self._values = value_states.new_empty(self.rows, heads, self.room, value_states.shape[-1])
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        self.write(slice(None), key_states, value_states)
        self.grow(key_states.shape[-2])
        return self.keys, self.values

    def write(self, rows: slice, key_states: Tensor, value_states: Tensor) -> tuple[Tensor, Tensor]:
        """New columns of some rows, which are not counted yet; all columns of these rows."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        end = self.used + key_states.shape[-2]
        if end > self.room:  # more than was foreseen: a way of thinking may add columns of its own
            self.room = 2 * end
            for name in ("_keys", "_values"):
                before = getattr(self, name)
                whole = before.new_empty(*before.shape[:2], self.room, before.shape[3])
                whole[:, :, : self.used] = before[:, :, : self.used]
                setattr(self, name, whole)
        self._keys[rows, :, self.used : end] = key_states
        self._values[rows, :, self.used : end] = value_states
        return self._keys[rows, :, :end], self._values[rows, :, :end]

    def grow(self, columns: int) -> None:
        """So many columns have been written in all rows."""
        self.used += columns
        self.keys, self.values = self._keys[:, :, : self.used], self._values[:, :, : self.used]

    def get_seq_length(self) -> int:
        return self.used

    def batch_select_indices(self, indices: Tensor) -> None:
        for name in ("_keys", "_values"):
            whole = getattr(self, name)
            some = whole.new_empty(len(indices), *whole.shape[1:])
            torch.index_select(whole[:, :, : self.used], 0, indices, out=some[:, :, : self.used])
            setattr(self, name, some)
        self.rows = len(indices)
        self.grow(0)

    @classmethod
    def joined(cls, layers: Sequence[DynamicLayer], columns: Sequence[Tensor], room: int) -> _RoomyLayer:
        """The rows of several layers in one. Of each, the columns [B, n] that are told, which then end at the same place."""
        T = max(columns_Bn.shape[1] for columns_Bn in columns)
        whole, start, first = cls(sum(map(len, columns)), T + room), 0, layers[0]
        columns = [columns_Bn.to(first.device) for columns_Bn in columns]  # layers may stand on several GPUs
        whole.dtype, whole.device, whole.is_initialized = first.dtype, first.device, True
        for mine, theirs in (("_keys", "keys"), ("_values", "values")):
            _, heads, _, width = getattr(first, theirs).shape
            setattr(whole, mine, getattr(first, theirs).new_zeros(whole.rows, heads, T + room, width))  # never NaN, even masked
        for layer, columns_Bn in zip(layers, columns, strict=True):
            rows_B1 = torch.arange(len(columns_Bn), device=columns_Bn.device)[:, None]
            there = slice(start, start + len(columns_Bn)), slice(None), slice(T - columns_Bn.shape[1], T)
            for mine, theirs in (("_keys", "keys"), ("_values", "values")):
                getattr(whole, mine)[there] = getattr(layer, theirs)[rows_B1, :, columns_Bn].transpose(1, 2)
            start += len(columns_Bn)
        whole.grow(T)
        return whole


class _SomeRows(DynamicLayer):
    """Some rows of a roomy layer, which counts the new columns when all its rows have them."""

    def __init__(self, layer: _RoomyLayer, rows: slice):
        super().__init__()
        self.layer, self.some = layer, rows

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        return self.layer.write(self.some, key_states, value_states)

    def get_seq_length(self) -> int:
        return self.layer.used


@dataclass
class State:
    """Where a batch stands.

    Attributes:
        cache: keys and values of all columns so far.
        mask_BT: which columns are real.
        position_B: the position of each row's next token.
        logits_BV: logits of the next token of each row, where it was asked for (``Reasoning.begin``).
        hidden_BD: the states that the last logits were made of, where only one a row was.
        forward_passes: calls of the backbone so far.
    """

    cache: Cache
    mask_BT: Tensor
    position_B: Tensor
    logits_BV: Tensor = field(default_factory=lambda: torch.empty(0))
    hidden_BD: Tensor = field(default_factory=lambda: torch.empty(0))
    forward_passes: int = 0

    def keep(self, rows: Tensor) -> None:
        """Drop all but these rows, in place."""
        for layer in self.cache.layers:
            keys = getattr(layer, "keys", None)
            layer.batch_select_indices(rows if keys is None else rows.to(keys.device))  # layers may stand on several GPUs
        self.mask_BT = self.mask_BT[rows]
        self.position_B = self.position_B[rows]
        self.logits_BV = self.logits_BV[rows] if len(self.logits_BV) else self.logits_BV

    def split(self, rows: Tensor, others: Tensor) -> State:
        """Keep these rows; a state of its own for the others."""
        rest = copy.copy(self)
        rest.cache = Cache(layers=[copy.copy(layer) for layer in self.cache.layers])
        rest.keep(others)
        self.keep(rows)
        return rest

    @staticmethod
    def joined(states: Sequence[State], room: int) -> State:
        """All rows of states for decoding, without the columns that none of them needs, and room for more."""
        counts_B = torch.cat([state.mask_BT.sum(1) for state in states])
        T = int(counts_B.max())
        # Each row's last T columns, its real ones at the end.
        columns = [state.mask_BT.byte().argsort(dim=1, stable=True)[:, -T:] for state in states]
        layers = [_RoomyLayer.joined(same, columns, room) for same in zip(*(state.cache.layers for state in states), strict=True)]
        return State(
            cache=Cache(layers=layers),
            mask_BT=torch.arange(T, device=counts_B.device) >= T - counts_B[:, None],
            position_B=torch.cat([state.position_B for state in states]),
        )


def new_state(backbone: LanguageModel, batch_size: int, room: int | None = None) -> State:
    """An empty state. ``room`` columns are set aside for decoding without gradients; None while training."""
    device = backbone.device
    if room is None or torch.is_grad_enabled() or not backbone.ready_mask:
        cache: Cache = DynamicCache(config=backbone.model.config)
    else:
        cache = Cache(layers=[_RoomyLayer(batch_size, room) for _ in range(backbone.config.num_hidden_layers)])
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

    def run(rows: slice, cache: Cache) -> Tensor:
        return backbone.run_core(
            embeddings_BTD[rows],
            attention_mask=_attention_mask(backbone, seen_BT[rows], T, embeddings_BTD.dtype),
            position_ids=positions_BT[rows],
            past_key_values=cache,
            use_cache=True,
        )

    some, layers = _rows_at_once(backbone, T), state.cache.layers
    if some < B and all(isinstance(layer, _RoomyLayer) for layer in layers):
        pieces = [slice(start, start + some) for start in range(0, B, some)]
        hidden_BTD = torch.cat([run(rows, Cache(layers=[_SomeRows(layer, rows) for layer in layers])) for rows in pieces])
        for layer in layers:
            layer.grow(T)
    else:
        hidden_BTD = run(slice(None), state.cache)
    state.mask_BT = seen_BT
    state.position_B = state.position_B + counts_BT[:, -1]
    state.forward_passes += 1
    return hidden_BTD


def _rows_at_once(backbone: LanguageModel, columns: int) -> int:
    """How many rows a call without a gradient had better have; on a GPU all."""
    if backbone.device.type != "cpu" or columns == 1:
        return 2**62
    return max(1, max(_LEAST_PLACES, _NUMBERS_IN_CACHE // backbone.width) // columns)


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
# Every row brings a draft: the text that a method which has learned its task would write (its target). If the first token is the
# draft's, the draft is read in one call, and all tokens up to the first that the model would not have written are its answer's;
# from there on one token a call. The answer is the model's own whatever the draft says (speculative decoding, arXiv 2211.17192,
# with a guess that costs nothing): a wrong draft costs time, and a right one saves a call a token.
#
# Answers end at different times (continuous batching, Orca, OSDI 2022): once few rows of a batch are left they wait for those of
# other batches, and go on together with them.


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
        states_TD: the states that each token was chosen by, where they were asked for and can be had.
        draft_states_TD: the states that predict each token of the draft, likewise.
    """

    ids: list[int]
    text: str
    n_tokens: int
    forward_passes: int
    finished: bool
    end_id: int | None = None
    states_TD: Tensor | None = field(default=None, compare=False, repr=False)
    draft_states_TD: Tensor | None = field(default=None, compare=False, repr=False)


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
    states: bool = False,
) -> list[Generation]:
    """Answer every prompt; greedy, or sampled at temperature 1. Order is kept.

    Args:
        sample: what ``random_numbers`` drew for these prompts; None: greedy.
        edit: changes the thoughts of a batch before the backbone reads them.
        drafts: take ``target_ids`` for a guess of the answer. Nothing but the time depends on it (and, by rounding, a tie).
        states: keep the hidden states too, of the answers and of all drafts, which are then read whether they fit or not.

    Raises:
        UserError: a prompt and ``max_new_tokens`` do not fit into the backbone's context.
    """
    text = parts.backbone.text
    for item in encoded:
        text.check_fits(item.example.id, len(item.prefix_ids), max_new_tokens)
    writer = _Writer(reasoning, parts, encoded, max_new_tokens, sample, batch_size, edit, drafts, states)
    for rows in alike([(len(item.prefix_ids),) for item in encoded], batch_size):
        writer.begin(rows)
        hand_on()
    writer.finish()
    return writer.answers()


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


@dataclass
class _Writing:
    """Rows that go on side by side: their state, and their places, [B], among all answers."""

    state: State
    rows_B: Tensor


_Places = tuple[Tensor, Tensor, Tensor]  # rows [n] and places [n] of states [n, D]


class _Writer:
    """The answers of one call of ``generate``: what is written of each in ids_NT, how much of it in written_N.

    Attributes:
        waiting: rows of earlier batches that were too few to go on alone.
    """

    def __init__(
        self,
        reasoning: Reasoning,
        parts: Parts,
        encoded: Sequence[Encoded],
        max_new_tokens: int,
        sample_NT: Tensor | None,
        batch_size: int,
        edit: Edit | None,
        drafts: bool,
        states: bool,
    ):
        self.reasoning, self.parts, self.encoded = reasoning, parts, encoded
        self.max_new_tokens, self.batch_size, self.edit = max_new_tokens, batch_size, edit
        device = parts.backbone.device
        self.sample_NT = None if sample_NT is None else sample_NT.to(device)
        # Rows are only moved about where their columns may have gaps: those would count in a sliding window.
        self.free = parts.backbone.ready_mask and reasoning.takes_drafts()
        self.drafts = drafts and self.free
        self.ids_NT = torch.full((len(encoded), max_new_tokens), parts.backbone.eos_id, device=device)
        self.written_N = torch.ones(len(encoded), dtype=torch.long, device=device)
        self.passes = [0] * len(encoded)  # calls of the backbone before the first token
        self.waiting: list[_Writing] = []
        self.keeps = states and self.drafts
        self.states: list[_Places] = []
        self.draft_states: list[_Places] = []

    def begin(self, rows: Sequence[int]) -> None:
        """Read the prompts of a batch, and write until few of its answers go on."""
        batch = self.reasoning.collate([self.encoded[i] for i in rows]).to(self.parts.backbone.device)
        drafts_BT = batch["target_BT"][:, : self.max_new_tokens]
        room = self.max_new_tokens + (drafts_BT.shape[1] if self.drafts else 0)
        state = self.reasoning.begin(self.parts, batch, self.edit, room=room)
        for i in rows:
            self.passes[i] = state.forward_passes
        writing = _Writing(state, torch.tensor(list(rows), device=self.written_N.device))
        self.ids_NT[writing.rows_B, 0] = self._choose(state.logits_BV, writing.rows_B, 0)
        self.keeps = self.keeps and len(state.hidden_BD) == len(rows)  # not every way of thinking tells them
        if self.keeps:
            first = writing.rows_B, torch.zeros_like(writing.rows_B), state.hidden_BD
            self.states.append(first)
            self.draft_states.append(first)
        state.logits_BV = torch.empty(0)  # waiting rows would hold those of the whole batch
        parts = self._read_drafts(writing, batch) if self.drafts and drafts_BT.shape[1] > 1 else [writing]
        few = int(_FEW * self.batch_size) if self.free else 0
        for part in parts:
            self._go_on(part, few)
        while sum(len(writing.rows_B) for writing in self.waiting) > WAITING * self.batch_size:
            self._go_on(self._together(), few)

    def finish(self) -> None:
        """Write all that is waiting to its end."""
        if self.waiting:
            self._go_on(self._together(), 0)

    def answers(self) -> list[Generation]:
        """In the order of the prompts."""
        lengths = self.written_N.tolist()
        written = zip(self.ids_NT.tolist(), lengths, self.passes, strict=True)
        found = [_generation(self.parts.backbone, ids[:n], passes) for ids, n, passes in written]
        if not self.keeps:
            return found
        drafted = [min(len(item.target_ids), self.max_new_tokens) for item in self.encoded]
        kept = zip(found, _in_order(self.states, lengths), _in_order(self.draft_states, drafted), strict=True)
        return [replace(g, states_TD=own_TD, draft_states_TD=draft_TD) for g, own_TD, draft_TD in kept]

    def _together(self) -> _Writing:
        """All that is waiting."""
        waiting, self.waiting = self.waiting, []
        if len(waiting) == 1:
            return waiting[0]
        rows_B = torch.cat([writing.rows_B for writing in waiting])
        room = self.max_new_tokens - int(self.written_N[rows_B].min())
        return _Writing(State.joined([writing.state for writing in waiting], room), rows_B)

    def _go_on(self, writing: _Writing, few: int) -> None:
        """One token a call, until at most ``few`` rows are left to wait."""
        state, rows_B = writing.state, writing.rows_B
        idle = 0  # steps of rows that had ended, since rows were last dropped
        while True:
            last_B = self.ids_NT[rows_B, self.written_N[rows_B] - 1]
            running_B = ~_is_one_of(last_B, self.parts.backbone.text.end_ids) & (self.written_N[rows_B] < self.max_new_tokens)
            left = int(running_B.sum())
            idle += len(rows_B) - left
            # Once as much time has gone into rows that had ended as dropping them takes: at most twice the best choice's costs.
            if left <= few or idle >= _COPY * left:
                if left == 0:
                    return
                if left < len(rows_B):
                    kept = running_B.nonzero()[:, 0]
                    state.keep(kept)
                    rows_B, running_B, last_B, idle = rows_B[kept], running_B[kept], last_B[kept], 0
                if left <= few:
                    self.waiting.append(_Writing(state, rows_B))
                    return
            logits_BV = self.reasoning.step(self.parts, state, last_B)
            # A row that has ended goes on with the others until it is dropped; what it would write is not looked at.
            places_B = self.written_N[rows_B].clamp_max(self.max_new_tokens - 1)
            ids_B = self._choose(logits_BV, rows_B, places_B)
            self.ids_NT[rows_B, places_B] = torch.where(running_B, ids_B, self.ids_NT[rows_B, places_B])
            if self.keeps:
                self.states.append((rows_B[running_B], places_B[running_B], state.hidden_BD[running_B]))
            self.written_N[rows_B] += running_B.long()

    def _choose(self, logits_NV: Tensor, rows_N: Tensor, places: Tensor | int) -> Tensor:
        return _choose(logits_NV, None if self.sample_NT is None else self.sample_NT[rows_N, places])

    def _read_drafts(self, writing: _Writing, batch: Batch) -> list[_Writing]:
        """Those whose draft is read, with all that the model would have written of it; and the others."""
        drafts_BT, real_BT = (batch[name][:, : self.max_new_tokens] for name in ("target_BT", "labels"))
        real_BT = real_BT != IGNORED
        ends_BT = _is_one_of(drafts_BT, self.parts.backbone.text.end_ids)
        alike_B = real_BT[:, 1]
        if not self.keeps:
            alike_B = alike_B & (self.ids_NT[writing.rows_B, 0] == drafts_BT[:, 0]) & ~ends_BT[:, 0]
        right, others = alike_B.nonzero()[:, 0], (~alike_B).nonzero()[:, 0]
        if not len(right):
            return [writing]
        rest = [_Writing(writing.state.split(right, others), writing.rows_B[others])] if len(others) else []
        writing.rows_B = writing.rows_B[right]
        T = int(real_BT[right].sum(1).max())
        self._read_draft(writing, drafts_BT[right, :T], real_BT[right, :T], ends_BT[right, :T])
        return [writing, *rest]

    def _read_draft(self, writing: _Writing, drafts_BT: Tensor, real_BT: Tensor, ends_BT: Tensor) -> None:
        """Writes what the model would have written of the drafts, and the token that it writes in place of the next."""
        backbone, state, rows_B, T = self.parts.backbone, writing.state, writing.rows_B, drafts_BT.shape[1]
        start, position_B = state.mask_BT.shape[1], state.position_B
        hidden_BTD = forward(backbone, state, backbone.embed(drafts_BT[:, :-1]), real_BT[:, :-1])
        found_BT = self.ids_NT[rows_B, :T]
        rows_N, places_N = real_BT[:, 1:].nonzero(as_tuple=True)
        fits_N = (found_BT[:, 0] == drafts_BT[:, 0])[rows_N]
        some = max(1, LOGITS_AT_ONCE // backbone.vocab_size)
        for rows, places in zip(rows_N[fits_N].split(some), places_N[fits_N].split(some), strict=True):
            found_BT[rows, places + 1] = self._choose(backbone.logits(hidden_BTD[rows, places]), rows_B[rows], places + 1)
        goes_on_BT = (found_BT == drafts_BT) & real_BT & ~ends_BT
        written_B = (goes_on_BT.long().cumprod(1).sum(1) + 1).minimum(real_BT.sum(1))
        self.ids_NT[rows_B, :T], self.written_N[rows_B] = found_BT, written_B
        if self.keeps:
            states_ND = hidden_BTD[rows_N, places_N]
            self.draft_states.append((rows_B[rows_N], places_N + 1, states_ND))
            own_N = places_N + 1 < written_B[rows_N]
            self.states.append((rows_B[rows_N[own_N]], places_N[own_N] + 1, states_ND[own_N]))
        # The token written last has not been read yet, whatever more of the draft has.
        state.mask_BT[:, start:] &= torch.arange(T - 1, device=written_B.device) < (written_B - 1)[:, None]
        state.position_B = position_B + written_B - 1


def _is_one_of(ids: Tensor, end_ids: Sequence[int]) -> Tensor:
    found = ids == end_ids[0]
    for end in end_ids[1:]:
        found = found | (ids == end)
    return found


def _in_order(pieces: Sequence[_Places], lengths: Sequence[int]) -> Sequence[Tensor]:
    """The states of each row, by place."""
    rows_N, places_N, states_ND = (torch.cat(parts) for parts in zip(*pieces, strict=True))
    return states_ND[(rows_N * (max(lengths) + 1) + places_N).argsort()].split(list(lengths))


def _generation(backbone: LanguageModel, written: list[int], passes_before: int) -> Generation:
    end = written[-1] if written[-1] in backbone.text.end_ids else None
    ids = written if end is None else written[:-1]
    return Generation(ids, backbone.text.decode(ids), len(written), passes_before + len(written) - 1, end is not None, end)
