"""Batches of ``Reasoning.collate`` as one padded sequence a row, and the loss that is taken over it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

IGNORED = -100


@dataclass
class Sequences:
    """Prefix and target behind each other: left padding, the row, right padding. All are [B, T]."""

    ids_BT: Tensor
    mask_BT: Tensor
    labels_BT: Tensor

    @property
    def positions_BT(self) -> Tensor:
        """Each row's own places, from 0 on; padding has place 0."""
        return (self.mask_BT.long().cumsum(1) - 1).clamp_min(0)


def sequences_of(batch: Any) -> Sequences:
    """A collated batch in one piece."""
    prefix_BT, target_BT, labels = batch["prefix_BT"], batch["target_BT"], batch["labels"]
    return Sequences(
        torch.cat([prefix_BT, target_BT], 1),
        torch.cat([batch["prefix_mask_BT"], labels != IGNORED], 1),
        torch.cat([torch.full_like(prefix_BT, IGNORED), labels], 1),
    )


def left_padded(prompts: Sequence[Sequence[int]], device: torch.device) -> tuple[Tensor, Tensor]:
    """Prompts [B, T] that end in one column, and which places are real."""
    T = max(map(len, prompts))
    ids_BT = torch.tensor([[0] * (T - len(p)) + list(p) for p in prompts], device=device)
    mask_BT = torch.tensor([[False] * (T - len(p)) + [True] * len(p) for p in prompts], device=device)
    return ids_BT, mask_BT


def mean_loss(logits_BTV: Tensor, labels_BT: Tensor) -> Tensor:
    """Cross-entropy of every next token, mean over those that have a label, from logits at every place."""
    shifted_NV = logits_BTV[:, :-1].reshape(-1, logits_BTV.shape[-1])
    return nn.functional.cross_entropy(shifted_NV.float(), labels_BT[:, 1:].reshape(-1), ignore_index=IGNORED)


def until_end(ids: Sequence[int], end_ids: Sequence[int]) -> list[int]:
    """What was written before the first token that ends an answer."""
    return list(ids[: next((i for i, token in enumerate(ids) if token in end_ids), len(ids))])
