"""Keys and values of what a frozen backbone reads before the first thought, computed once for all who read it again.

    row of a batch     .  .  instruction question | t_1 ... t_N <bot>   steps, answer
                             the prefix: kept       '|' the first input that a method trains, or an edit changes

They are the same at every optimiser step, in every row of the accuracy matrix, for every projector, learning rate and number of
thoughts: every method of this process whose backbone has the same weights in memory reads them from here. Once one of the weights
changes, nothing that was computed with it is used again.

The store is bounded (``CL_SOFTCOT_PREFIX_MEMORY``), and what it holds never changes a number: a prefix has the same bits,
whether it was kept or is computed anew, whatever ran before. Rounding depends on the shape of a call, so each prefix is computed
in a call whose shape follows from its own length alone (``_shape``), padded on the right. Who stands in the other rows makes no
difference then; ``tests/models/test_frozen_prefix.py`` checks that to the bit.
"""

from __future__ import annotations

import os
import weakref
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from cl_softcot.cache import parse_size
from cl_softcot.models.language_model import LanguageModel
from cl_softcot.models.running import State, forward, new_state

MEMORY = "CL_SOFTCOT_PREFIX_MEMORY"
_ON_CPU = 512 * 10**6
_SHARE_OF_FREE = 1 / 8  # of a GPU's memory, when the first prefix is kept there
_SHARE_OF_NEWEST = 1 / 4
# Tokens that a call computes: fewer leave a processor idle, more are wasted where few prefixes of a length are missing at a time.
_TOKENS, _MOST_ROWS = 512, 16
# A prefix makes room for another only after this many times as many were asked for as are kept. Without it a stream of prompts
# that is read again and again and does not fit would push out each one just before it is needed.
_PATIENCE = 4
# Kinds of rotary embedding whose angles do not depend on what comes later.
_FIXED_ANGLES = frozenset({"default", "linear", "llama3", "yarn"})

Ids = tuple[int, ...]


def can_keep(backbone: LanguageModel) -> bool:
    """Whether prefixes of this backbone are always the same, and laid out as they are kept here.

    They are not while it learns, or carries what is not its own (which can be switched off); layers on several devices, windows
    and other kinds of caches are left alone.
    """
    if not backbone.ready_mask or not backbone.frozen:
        return False
    rope = getattr(backbone.config, "rope_parameters", None) or {}
    if rope.get("rope_type", "default") not in _FIXED_ANGLES:
        return False
    if any(module.training for module in backbone.core.modules()):  # dropout may be on
        return False
    return len({p.device for p in backbone.model.parameters()}) == 1


@torch.no_grad()
def read_prefixes(backbone: LanguageModel, state: State, prefixes: Sequence[Ids], used: Sequence[int], columns: int) -> None:
    """Put the beginnings of prefixes into a state that is empty, as if ``forward`` had read them.

    Args:
        prefixes: of each row, all plain tokens before its first thought, even if not all of them are used.
        used: how many of them each row has read; they end at the last of ``columns``, behind padding.
        columns: of the state afterwards.
    """
    kept_B = prefixes_of(backbone, prefixes)
    B, (L, _, H, _, d) = len(prefixes), kept_B[0].shape
    both_LBHPd = [kept_B[0].new_empty(L, B, H, columns, d) for _ in range(2)]
    for b, (kept, n) in enumerate(zip(kept_B, used, strict=True)):
        for which, values_LBHPd in enumerate(both_LBHPd):
            values_LBHPd[:, b, :, : columns - n] = 0
            values_LBHPd[:, b, :, columns - n :] = kept[:, which, :, :n]
    for layer, (keys_BHPd, values_BHPd) in enumerate(zip(*both_LBHPd, strict=True)):
        state.cache.update(keys_BHPd, values_BHPd, layer)
    position_B = torch.tensor(list(used), device=state.position_B.device)
    state.mask_BT = torch.arange(columns, device=position_B.device) >= columns - position_B[:, None]
    state.position_B = position_B


def prefixes_of(backbone: LanguageModel, prefixes: Sequence[Ids]) -> list[Tensor]:
    """Keys and values of each prefix, [L, 2, H, T, d]: from the store, or computed and offered to it."""
    store = store_on(backbone.device)
    owner = store.owner(backbone)
    looked_up = {ids: store.find(owner, ids) for ids in dict.fromkeys(prefixes)}
    found = {ids: kept for ids, kept in looked_up.items() if kept is not None}
    missing = [ids for ids in looked_up if ids not in found]
    for ids, kept in _computed(backbone, missing):
        found[ids] = kept
        store.offer(owner, ids, kept)
    return [found[ids] for ids in prefixes]


def _computed(backbone: LanguageModel, prefixes: Iterable[Ids]) -> Iterable[tuple[Ids, Tensor]]:
    """Each prefix with its keys and values, in calls of fixed shapes."""
    of_shape: dict[tuple[int, int], list[Ids]] = {}
    for ids in prefixes:
        of_shape.setdefault(_shape(len(ids)), []).append(ids)
    for (R, T), group in of_shape.items():
        for start in range(0, len(group), R):
            rows = group[start : start + R]
            # Attention is causal: what stands behind a prefix does not reach it, so any token will do.
            filled = [list(ids) + [0] * (T - len(ids)) for ids in rows]
            ids_RT = torch.tensor(filled + [[0] * T] * (R - len(rows)))
            state = new_state(backbone, R)
            forward(backbone, state, backbone.embed(ids_RT))
            layers = [torch.stack([layer.keys, layer.values]) for layer in state.cache.layers]
            for r, ids in enumerate(rows):
                yield ids, torch.stack([both_2RHTd[:, r, :, : len(ids)] for both_2RHTd in layers])


def _shape(length: int) -> tuple[int, int]:
    """Rows and columns of the call that computes a prefix of this length: at most a quarter, or seven columns, wider than it."""
    step = max(8, 2 ** length.bit_length() // 8)
    T = max(1, -(-length // step)) * step
    rows = min(_MOST_ROWS, max(1, _TOKENS // T))
    return 2 ** (rows.bit_length() - 1), T  # a power of two, as batches mostly are: few rows of the last call are nobody's


# --------------------------------------------------------------------------------------------------------- the store


@dataclass
class _Kept:
    both: Tensor  # keys and values, [L, 2, H, T, d]
    used: int  # the store's clock when it was last asked for


class _Weights:
    """The weights of a backbone, as they were when this was made, and everything else that decides what it computes.

    They are recognised by their place in memory and by the number of times that they were written to (which every operation of
    torch counts but those on a parameter's ``data``), since hashing large ones at every step is out of the question.
    """

    def __init__(self, backbone: LanguageModel):
        self._settings = self._settings_of(backbone)
        self._weights = [(weakref.ref(p), p._version, p.data_ptr()) for p in backbone.model.parameters()]

    @staticmethod
    def _settings_of(backbone: LanguageModel) -> tuple[Any, ...]:
        return backbone.compute_dtype, backbone.config._attn_implementation, backbone.core_scale, backbone.max_length

    def unchanged(self) -> bool:
        """Whether all are still there, as they were."""
        for reference, version, place in self._weights:
            weight = reference()
            if weight is None or weight._version != version or weight.data_ptr() != place:
                return False
        return True

    def are_those_of(self, backbone: LanguageModel) -> bool:
        """Whether this backbone computes with them, given that they are unchanged."""
        here = list(backbone.model.parameters())
        return (
            len(here) == len(self._weights)
            and all(reference() is weight for (reference, _, _), weight in zip(self._weights, here, strict=True))
            and self._settings == self._settings_of(backbone)
        )


class PrefixStore:
    """Keys and values of prefixes on one device, at most ``limit`` bytes. Use ``read_prefixes``.

    A part of the room is for the newest, so that runs side by side find what the first of them computed. What leaves that part
    stays if there is room, or something that was not asked for in a long time.

    Attributes:
        asked, computed: prefixes, so far.
    """

    def __init__(self, limit: int):
        self.limit = limit
        self.asked = self.computed = 0
        self._owners: dict[int, _Weights] = {}
        self._new_owner = 0
        self._newest = _Shelf(int(limit * _SHARE_OF_NEWEST))
        self._lasting = _Shelf(limit - self._newest.limit)

    @property
    def size(self) -> int:
        """Bytes that are kept."""
        return self._newest.size + self._lasting.size

    def owner(self, backbone: LanguageModel) -> int:
        """A number for the backbone's weights as they are now. What belongs to weights that are no longer there is dropped."""
        gone = {number for number, weights in self._owners.items() if not weights.unchanged()}
        if gone:
            self._owners = {number: weights for number, weights in self._owners.items() if number not in gone}
            for shelf in (self._newest, self._lasting):
                for key in [key for key in shelf.kept if key[0] in gone]:
                    shelf.take(key)
        for number, weights in self._owners.items():
            if weights.are_those_of(backbone):
                return number
        self._new_owner += 1
        self._owners[self._new_owner] = _Weights(backbone)
        return self._new_owner

    def find(self, owner: int, ids: Ids) -> Tensor | None:
        """What is kept for a prefix; None if nothing is."""
        self.asked += 1
        for shelf in (self._newest, self._lasting):
            found = shelf.kept.get((owner, ids))
            if found is not None:
                found.used = self.asked
                shelf.kept.move_to_end((owner, ids))
                return found.both
        return None

    def offer(self, owner: int, ids: Ids, both: Tensor) -> None:
        """Keep what was computed, as far as there is room."""
        self.computed += 1
        self._newest.put((owner, ids), _Kept(both, self.asked))
        while self._newest.full:
            self._settle(*self._newest.oldest())

    def _settle(self, key: tuple[int, Ids], entry: _Kept) -> None:
        """What was among the newest stays, or is dropped."""
        self._newest.take(key)
        lasting = self._lasting
        while lasting.kept and lasting.size + entry.both.nbytes > lasting.limit:
            oldest, other = lasting.oldest()
            if self.asked - other.used < _PATIENCE * len(lasting.kept):
                return
            lasting.take(oldest)
        if lasting.size + entry.both.nbytes <= lasting.limit:
            lasting.put(key, entry)


class _Shelf:
    """A part of a store; what was not asked for the longest stands first."""

    def __init__(self, limit: int):
        self.limit = limit
        self.size = 0
        self.kept: OrderedDict[tuple[int, Ids], _Kept] = OrderedDict()

    @property
    def full(self) -> bool:
        return self.size > self.limit

    def oldest(self) -> tuple[tuple[int, Ids], _Kept]:
        return next(iter(self.kept.items()))

    def put(self, key: tuple[int, Ids], entry: _Kept) -> None:
        self.kept[key] = entry
        self.size += entry.both.nbytes

    def take(self, key: tuple[int, Ids]) -> None:
        self.size -= self.kept.pop(key).both.nbytes


_stores: dict[torch.device, PrefixStore] = {}


def store_on(device: torch.device) -> PrefixStore:
    """The device's store; a new one has the bound that the environment says by then."""
    if device not in _stores:
        _stores[device] = PrefixStore(_limit(device))
    return _stores[device]


def stores() -> Mapping[torch.device, PrefixStore]:
    """The stores of this process."""
    return _stores


def forget() -> None:
    """As in a new process: no frozen backbone has read anything yet."""
    _stores.clear()


def _limit(device: torch.device) -> int:
    """Bytes, as the environment says or else by what there is.

    Raises:
        UserError: the environment variable is no size.
    """
    said = os.environ.get(MEMORY, "").strip()
    if said:
        return 0 if said.lower() == "off" else parse_size(said, f"the environment variable {MEMORY}")
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0] * _SHARE_OF_FREE)
    return _ON_CPU
