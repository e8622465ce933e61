"""What the frozen assistant thinks: its last hidden states at placeholder tokens, computed once a prompt.

Assistant's input::

    [ instruction + question ]  <slot> <slot> ... <slot>      one parallel forward; state k is the one AT slot k

Attention is causal and all slots stand at the end, so the states for N slots begin with those for every smaller N.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from cl_softcot.models.decoding import forward, new_state
from cl_softcot.models.language_model import LanguageModel

_BLOCK = 64


class AssistantStates:
    """Soft thoughts [N, A] and the mean prompt state [A] of prompts, kept in memory.

    Args:
        assistant: the frozen model.
        n: the largest number of slots that will be asked for (see ``reserve``).

    Rounding may depend on which prompts share a forward. ``register`` fixes the companions of a prompt before any is computed,
    so its states have the same bits in an interrupted and in an uninterrupted run. Prompts that were never registered are
    computed in the company in which they are asked for.
    """

    def __init__(self, assistant: LanguageModel, n: int = 1):
        self.assistant = assistant
        self.n = n
        self._slots: dict[tuple[int, ...], Tensor] = {}
        self._means: dict[tuple[int, ...], Tensor] = {}
        self._block_of: dict[tuple[int, ...], list[tuple[int, ...]]] = {}

    def prompt_ids(self, question: str, instruction: str = "cot") -> list[int]:
        """The assistant's own prompt up to where the slots stand (without them)."""
        slot = self.assistant.special["slot"]
        ids = self.assistant.text.prompt_ids(question, instruction, ["slot"], "before_turn")
        return ids[: ids.index(slot)]

    def register(self, prompts: Iterable[Sequence[int]]) -> None:
        """Make known which prompts belong together; nothing is computed yet. Prompts known before keep their companions."""
        new = list(dict.fromkeys(key for p in prompts if (key := tuple(p)) not in self._block_of))
        new.sort(key=lambda key: (len(key), key))
        for start in range(0, len(new), _BLOCK):
            block = new[start : start + _BLOCK]
            self._block_of.update((key, block) for key in block)

    def reserve(self, n: int) -> None:
        """At least ``n`` slots from now on. What was computed for fewer is too short, and forgotten."""
        if n > self.n:
            self.n = n
            self._slots.clear()

    def states(self, prompts: Sequence[Sequence[int]], n: int | None = None) -> Tensor:
        """Soft thoughts of the prompts, [B, N, A] in fp32; ``n`` slots (default: all)."""
        n = self.n if n is None else n
        self.reserve(n)
        keys = self._ensure(prompts)
        return torch.stack([self._slots[key] for key in keys])[:, :n]

    def means(self, prompts: Sequence[Sequence[int]]) -> Tensor:
        """Mean of the last hidden states over each prompt's tokens, [B, A] in fp32."""
        return torch.stack([self._means[key] for key in self._ensure(prompts)])

    def typical(self) -> Tensor:
        """States of a prompt that is all slots, [1, N, A]: the scale of the assistant's outputs, without any example."""
        return self.states([[self.assistant.special["slot"]]])

    def _ensure(self, prompts: Sequence[Sequence[int]]) -> list[tuple[int, ...]]:
        keys = [tuple(p) for p in prompts]
        missing = [key for key in dict.fromkeys(keys) if key not in self._slots]
        loose = sorted((key for key in missing if key not in self._block_of), key=lambda key: (len(key), key))
        for start in range(0, len(loose), _BLOCK):
            self._compute(loose[start : start + _BLOCK])
        for key in missing:
            if key not in self._slots:
                self._compute(self._block_of[key])
        return keys

    @torch.no_grad()
    def _compute(self, keys: list[tuple[int, ...]]) -> None:
        """One forward over left-padded prompts with their slots behind."""
        assistant, slot = self.assistant, self.assistant.special["slot"]
        T = max(map(len, keys))
        for key in keys:
            assistant.text.check_fits(assistant.text.decode(key), len(key), self.n)
        ids_BT = torch.tensor([[assistant.pad_id] * (T - len(k)) + list(k) + [slot] * self.n for k in keys])
        mask_BT = torch.tensor([[False] * (T - len(k)) + [True] * (len(k) + self.n) for k in keys])
        ids_BT, mask_BT = ids_BT.to(assistant.device), mask_BT.to(assistant.device)
        state = new_state(assistant, len(keys), room=T + self.n)
        hidden_BTA = forward(assistant, state, assistant.embed(ids_BT), mask_BT).float()
        inside_BT1 = mask_BT[:, :T, None]
        means_BA = (hidden_BTA[:, :T] * inside_BT1).sum(1) / inside_BT1.sum(1)
        for row, key in enumerate(keys):
            self._slots[key] = hidden_BTA[row, T:].clone()
            self._means[key] = means_BA[row].clone()
