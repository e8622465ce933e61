"""What the frozen assistant thinks: its last hidden states at placeholder tokens, computed once a prompt.

Assistant's input::

    [ instruction + question ]  <slot> <slot> ... <slot>      state k is the one AT slot k

Attention is causal and all slots stand at the end, so the states for N slots begin with those for every smaller N. To the bit:
the prompt and the first four slots are one parallel forward, every further four another one, whatever N is. So states that were
computed for one N, in this run or an earlier one (see ``frozen_states``), serve every smaller one.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Generic, TypeVar

import torch
from torch import Tensor

from cl_softcot.models.frozen_states import AssistantCache, tally
from cl_softcot.models.language_model import LanguageModel
from cl_softcot.models.running import forward, new_state

_BLOCK = 64
_SLOTS_AT_ONCE = 4  # with another number rounding, and so every result with soft thoughts, is another


Prompt = TypeVar("Prompt", str, tuple[int, ...])


class Companions(Generic[Prompt]):
    """Which prompts are computed together.

    Rounding may depend on which prompts share a forward. ``register`` fixes the companions of a prompt before any is computed,
    so what is computed for it has the same bits in an interrupted and in an uninterrupted run. Prompts that were never
    registered are computed in the company in which they are asked for. Prompts are sequences: short ones go together.
    """

    def __init__(self) -> None:
        self._block_of: dict[Prompt, list[Prompt]] = {}

    def register(self, prompts: Iterable[Prompt]) -> None:
        """Make known which prompts belong together. Prompts known before keep their companions."""
        for block in _blocks(dict.fromkeys(p for p in prompts if p not in self._block_of)):
            self._block_of.update((p, block) for p in block)

    def blocks(self, missing: Iterable[Prompt]) -> Iterator[list[Prompt]]:
        """Lists of prompts to compute, that hold all the missing ones."""
        missing = list(dict.fromkeys(missing))
        yield from _blocks(p for p in missing if p not in self._block_of)
        yield from {id(block): block for p in missing if (block := self._block_of.get(p))}.values()

    def knows(self, block: Sequence[Prompt]) -> bool:
        """Whether a list from ``blocks`` was registered: it is the same list in every run with the same prompts."""
        return block[0] in self._block_of


def _blocks(prompts: Iterable[Prompt]) -> list[list[Prompt]]:
    ordered = sorted(prompts, key=lambda p: (len(p), p))
    return [ordered[start : start + _BLOCK] for start in range(0, len(ordered), _BLOCK)]


class AssistantStates:
    """Soft thoughts [N, A] and the mean prompt state [A] of prompts, computed once and kept on the CPU.

    Registered prompts are taken from the cache on disk where they are in it, and put there where they are not.

    Args:
        assistant: the frozen model.
        n: the largest number of slots that will be asked for (see ``reserve``).
    """

    def __init__(self, assistant: LanguageModel, n: int = 1):
        self.assistant = assistant
        self.n = n
        self._slots: dict[tuple[int, ...], Tensor] = {}
        self._means: dict[tuple[int, ...], Tensor] = {}
        self._companions: Companions[tuple[int, ...]] = Companions()
        self._cache = AssistantCache(assistant)

    def prompt_ids(self, question: str, instruction: str = "cot") -> list[int]:
        """The assistant's own prompt up to where the slots stand (without them)."""
        slot = self.assistant.special["slot"]
        ids = self.assistant.text.prompt_ids(question, instruction, ["slot"], "before_turn")
        return ids[: ids.index(slot)]

    def register(self, prompts: Iterable[Sequence[int]]) -> None:
        """Make known which prompts belong together (see ``Companions``); nothing is computed yet."""
        self._companions.register(tuple(p) for p in prompts)

    def reserve(self, n: int) -> None:
        """At least ``n`` slots from now on. What was computed for fewer is too short, and forgotten."""
        if n > self.n:
            self.n = n
            self._slots.clear()

    def states(self, prompts: Sequence[Sequence[int]], n: int | None = None) -> Tensor:
        """Soft thoughts of the prompts, [B, N, A] in fp32; ``n`` slots (default: all).

        Raises:
            UserError: a prompt and its slots do not fit into the assistant's context.
        """
        n = self.n if n is None else n
        self.reserve(n)
        return self._on_device([self._slots[key][:n] for key in self._ensure(prompts)])

    def means(self, prompts: Sequence[Sequence[int]]) -> Tensor:
        """Mean of the last hidden states over each prompt's tokens, [B, A] in fp32."""
        return self._on_device([self._means[key] for key in self._ensure(prompts)])

    def typical(self) -> Tensor:
        """States of a prompt that is all slots, [1, N, A]: the scale of the assistant's outputs, without any example."""
        prompt = [self.assistant.special["slot"]]
        self.register([prompt])
        return self.states([prompt])

    def _on_device(self, rows: list[Tensor]) -> Tensor:
        return torch.stack(rows).to(self.assistant.device).float()

    def _ensure(self, prompts: Sequence[Sequence[int]]) -> list[tuple[int, ...]]:
        keys = [tuple(p) for p in prompts]
        missing = [key for key in keys if key not in self._slots]
        if missing:
            with tally.timed():
                for block in self._companions.blocks(missing):
                    if not self._load(block):
                        self._compute(block)
        return keys

    def _load(self, block: list[tuple[int, ...]]) -> bool:
        """Takes a block from the disk, if it is there."""
        longest = max(block, key=len)
        self.assistant.text.check_fits(self.assistant.text.decode(longest), len(longest), self.n)
        found = self._cache.read(block, self.n) if self._companions.knows(block) else None
        if found is None:
            return False
        self._remember(block, *found)
        tally.cached += len(block)
        return True

    def _compute(self, block: list[tuple[int, ...]]) -> None:
        slots_BNA, means_BA = self._think(block)
        self._remember(block, slots_BNA, means_BA)
        tally.computed += len(block)
        if self._companions.knows(block):
            self._cache.write(block, slots_BNA, means_BA)

    def _remember(self, block: list[tuple[int, ...]], slots_BNA: Tensor, means_BA: Tensor) -> None:
        self._slots.update(zip(block, slots_BNA, strict=True))
        self._means.update(zip(block, means_BA, strict=True))

    @torch.no_grad()
    def _think(self, block: list[tuple[int, ...]]) -> tuple[Tensor, Tensor]:
        """Left-padded prompts with their slots behind: slots [B, N', A] as the assistant computes them, N' being the next
        multiple of ``_SLOTS_AT_ONCE`` from N on, and means [B, A] in fp32.
        """
        assistant, slot, K = self.assistant, self.assistant.special["slot"], _SLOTS_AT_ONCE
        T = max(map(len, block))
        ids_BT = torch.tensor([[assistant.pad_id] * (T - len(p)) + list(p) + [slot] * K for p in block])
        mask_BT = torch.tensor([[False] * (T - len(p)) + [True] * (len(p) + K) for p in block])
        ids_BT, mask_BT = ids_BT.to(assistant.device), mask_BT.to(assistant.device)
        # No room is set aside: the layout of the cache must be the same for every N.
        state = new_state(assistant, len(block))
        hidden_BTA = forward(assistant, state, assistant.embed(ids_BT), mask_BT)
        inside_BT1 = mask_BT[:, :T, None]
        means_BA = (hidden_BTA[:, :T].float() * inside_BT1).sum(1) / inside_BT1.sum(1)
        slots = [hidden_BTA[:, T:]]
        more_BKA = assistant.embed(ids_BT[:, T:])
        while len(slots) * K < self.n:
            slots.append(forward(assistant, state, more_BKA))
        return torch.cat(slots, 1).cpu(), means_BA.cpu()
