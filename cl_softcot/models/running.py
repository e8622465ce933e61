"""Running a backbone piece by piece over left-padded rows.

Columns are shared, positions are each row's own::

    row 0   .  .  a  b  c  | d  e  <eos>        '.' padding: never attended to
    row 1   f  g  h  i  j  | k  <eos>           '|' where the prompt ends and writing starts, the same column in all rows
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import Cache, DynamicLayer

from cl_softcot.errors import UserError

if TYPE_CHECKING:
    from cl_softcot.models.language_model import LanguageModel

# Measured on a CPU: what lies between matrix products stays in a core's cache if hidden states are of so many numbers at a time,
# which takes a fifth to a third off a call. With fewer places the products themselves become slow.
NUMBERS_IN_CACHE, LEAST_PLACES = 2**18, 512
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
            there = rows if keys is None else rows.to(keys.device)  # layers may stand on several GPUs
            if hasattr(layer, "recurrent_states"):  # beside keys and values, or in their place
                layer.reorder_cache(there)
            else:
                layer.batch_select_indices(there)
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

    Raises:
        UserError: a gradient would have to go back through a recurrent state, which the library overwrites.
    """
    B, T, _ = embeddings_BTD.shape
    _check_gradient(backbone, state, embeddings_BTD)
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


def _check_gradient(backbone: LanguageModel, state: State, embeddings_BTD: Tensor) -> None:
    recurrent = any(any(getattr(layer, "is_recurrent_states_initialized", {}).values()) for layer in state.cache.layers)
    if recurrent and torch.is_grad_enabled() and (embeddings_BTD.requires_grad or not backbone.frozen):
        raise UserError(
            f"{backbone.name} is a model of a kind ({backbone.config.model_type}) with recurrent layers, and no gradient goes "
            "back through their state: it cannot learn a way of thinking that reads a text in pieces",
            fix="take a way of thinking without continuous thoughts, or a decoder with attention in every layer",
        )


def _rows_at_once(backbone: LanguageModel, columns: int) -> int:
    """How many rows a call without a gradient had better have; on a GPU all."""
    if backbone.device.type != "cpu" or columns == 1:
        return 2**62
    return max(1, max(LEAST_PLACES, NUMBERS_IN_CACHE // backbone.width) // columns)


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
