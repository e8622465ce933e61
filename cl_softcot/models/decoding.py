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

from cl_softcot.models.language_model import LanguageModel

if TYPE_CHECKING:
    from cl_softcot.reasoning.base import Encoded, Parts, Reasoning

# Dropping finished rows copies the cache once; measured to pay from a third of the rows on.
_DROP_SHARE = 1 / 3
_MIN_ROWS = 8


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
        logits_BV: logits of the next token of each row.
        forward_passes: calls of the backbone so far.
    """

    cache: Cache
    mask_BT: Tensor
    position_B: Tensor
    logits_BV: Tensor = field(default_factory=lambda: torch.empty(0))
    forward_passes: int = 0

    def keep(self, rows: Tensor) -> None:
        """Drop all but these rows, in place."""
        self.cache.batch_select_indices(rows)
        self.mask_BT = self.mask_BT[rows]
        self.position_B = self.position_B[rows]
        self.logits_BV = self.logits_BV[rows]


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
    with backbone.autocast():
        hidden_BTD = backbone.core(
            inputs_embeds=embeddings_BTD,
            attention_mask=_attention_mask(backbone, seen_BT, T, embeddings_BTD.dtype),
            position_ids=positions_BT,
            past_key_values=state.cache,
            use_cache=True,
        ).last_hidden_state
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
    mask_dtype = dtype if backbone.compute_dtype == torch.float32 else backbone.compute_dtype
    zeros = torch.zeros((), dtype=mask_dtype, device=seen_BT.device)
    return zeros.expand(hidden_B1NT.shape).masked_fill(hidden_B1NT, torch.finfo(mask_dtype).min)


# ------------------------------------------------------------------------------------------------------ decoding


@dataclass(frozen=True)
class Generation:
    """One written answer.

    Attributes:
        ids: the tokens written, end-of-text left out.
        text: the same as text.
        n_tokens: tokens written, end-of-text included; thoughts are not among them.
        forward_passes: calls of the backbone for this answer: prompt and thoughts, and one a token after the first.
        finished: False where the limit came before the end-of-text token.
    """

    ids: list[int]
    text: str
    n_tokens: int
    forward_passes: int
    finished: bool


@torch.no_grad()
def generate(
    reasoning: Reasoning,
    parts: Parts,
    encoded: Sequence[Encoded],
    max_new_tokens: int,
    *,
    sample: torch.Generator | None = None,
    batch_size: int = 256,
) -> list[Generation]:
    """Answer every prompt; greedy, or sampled at temperature 1 with the given generator. Order is kept.

    Raises:
        UserError: a prompt and ``max_new_tokens`` do not fit into the backbone's context.
    """
    text = parts.backbone.text
    for item in encoded:
        text.check_fits(item.example.id, len(item.prefix_ids), max_new_tokens)
    # Rows of one length need no padding, and a family's answers tend to end together.
    order = sorted(range(len(encoded)), key=lambda i: (len(encoded[i].prefix_ids), i))
    results: dict[int, Generation] = {}
    for start in range(0, len(order), batch_size):
        rows = order[start : start + batch_size]
        written = _write(reasoning, parts, [encoded[i] for i in rows], max_new_tokens, sample)
        results.update(zip(rows, written, strict=True))
    return [results[i] for i in range(len(encoded))]


def _write(
    reasoning: Reasoning, parts: Parts, encoded: Sequence[Encoded], max_new_tokens: int, sample: torch.Generator | None
) -> list[Generation]:
    """One batch: ids_BT is filled column by column; ``alive`` maps the rows still in the state to its rows."""
    backbone = parts.backbone
    batch = reasoning.collate(encoded).to(backbone.device)
    state = reasoning.begin(parts, batch, room=max_new_tokens)
    passes_before = state.forward_passes
    B, eos = len(encoded), backbone.eos_id
    ids_BT = torch.full((B, max_new_tokens), eos, device=backbone.device)
    alive = torch.arange(B, device=backbone.device)
    running = torch.ones(B, dtype=torch.bool, device=backbone.device)
    for t in range(max_new_tokens):
        ids_B = _choose(state.logits_BV, sample)
        ids_BT[alive, t] = torch.where(running, ids_B, eos)
        running = running & (ids_B != eos)
        left = int(running.sum())
        if left == 0 or t + 1 == max_new_tokens:
            break
        if len(alive) - left >= max(_MIN_ROWS, _DROP_SHARE * len(alive)):
            kept = running.nonzero()[:, 0]
            state.keep(kept)
            alive, running, ids_B = alive[kept], running[kept], ids_B[kept]
        state.logits_BV = reasoning.step(parts, state, ids_B)
    return [_generation(backbone, row, passes_before, max_new_tokens) for row in ids_BT.tolist()]


def _choose(logits_BV: Tensor, sample: torch.Generator | None) -> Tensor:
    if sample is None:
        return logits_BV.argmax(-1)
    return torch.multinomial(logits_BV.float().softmax(-1), 1, generator=sample)[:, 0]


def _generation(backbone: LanguageModel, row: list[int], passes_before: int, max_new_tokens: int) -> Generation:
    finished = backbone.eos_id in row
    ids = row[: row.index(backbone.eos_id)] if finished else row
    n_tokens = len(ids) + finished
    return Generation(ids, backbone.text.decode(ids), n_tokens, passes_before + n_tokens - 1, finished)
