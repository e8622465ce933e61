"""Decoding in batches, over left-padded rows, whatever way of thinking writes.

Columns are shared, positions are each row's own::

    row 0   .  .  a  b  c  | d  e  <eos>        '.' padding: never attended to
    row 1   f  g  h  i  j  | k  <eos>           '|' where the prompt ends and writing starts, the same column in all rows
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from cl_softcot.machine.lanes import hand_on
from cl_softcot.models.head import LOGITS_AT_ONCE
from cl_softcot.models.language_model import LanguageModel
from cl_softcot.models.running import IGNORED, State, forward

if TYPE_CHECKING:
    from cl_softcot.models.batch import Batch, Edit, Encoded
    from cl_softcot.models.thinker import HasBackbone, Thinker

# Dropping finished rows copies what the others have in the cache. Measured, for small models and for large vocabularies: that
# takes about as long as a step of the rows that are copied.
_COPY = 1.0
# Shares of a batch: fewer rows than these are not worth a step while others can be waited for, and more do not wait.
FEW, WAITING = 1 / 4, 1 / 2
# Measured with the embedded models: where a batch of fewer rows, or with less padding, costs more than it saves.
_WORTH_A_BATCH, _PADDED = 32, 1.1
_TELL = 4  # tokens between two words to whoever watches

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


Watch = Callable[[int, float], None]  # answers that are whole, and how much is written, in answers, the begun ones in part
_watch: ContextVar[Watch | None] = ContextVar("watch", default=None)


@contextmanager
def watched(watch: Watch) -> Iterator[None]:
    """``watch`` is told now and then how far a call of ``generate`` inside is, counted from its own beginning."""
    before = _watch.set(watch)
    try:
        yield
    finally:
        _watch.reset(before)


@torch.no_grad()
def generate(
    reasoning: Thinker,
    parts: HasBackbone,
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
        reasoning: Thinker,
        parts: HasBackbone,
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
        self.watch, self.ended, self.steps = _watch.get(), torch.zeros(len(encoded), dtype=torch.bool, device=device), 0
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
        few = int(FEW * self.batch_size) if self.free else 0
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
            if self.watch is not None:
                self._tell(self.watch, rows_B[~running_B], ended=left == 0)
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

    def _tell(self, watch: Watch, ended_B: Tensor, *, ended: bool) -> None:
        """What is begun counts as if it went on to the limit, so that the number never falls."""
        self.ended[ended_B] = True
        self.steps += 1
        if ended or self.steps % _TELL == 1:
            n = int(self.ended.sum())
            watch(n, n + float((self.written_N[~self.ended] - 1).sum()) / self.max_new_tokens)

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
