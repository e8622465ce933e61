"""Encoded examples, padded batches of them, and edits of the thoughts in a batch."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from cl_softcot.tasks.base import Example


Edit = Callable[[Tensor, "Place"], Tensor]  # thoughts [B, K, D] and where they stand -> thoughts [B, K, D]


@dataclass
class Encoded:
    """An example as token ids; the prefix holds the tokens that thoughts stand at."""

    example: Example
    prefix_ids: list[int]
    target_ids: list[int]
    task_id: int = 0


class Batch(dict):
    """Padded tensors of a batch, under names: prefix_BT, prefix_mask_BT, target_BT, labels, task_ids; and the ``encoded``.

    It also answers to Avalanche's (x, y, ..., t): ``batch[0]`` is itself, ``batch[1]`` the labels, ``batch[-1]`` the task ids.
    """

    def __getitem__(self, key: Any) -> Any:
        if key == 0:
            return self
        if key == 1:
            return super().__getitem__("labels")
        return super().__getitem__("task_ids" if key == -1 else key)

    def __len__(self) -> int:
        """B, the number of examples."""
        return len(super().__getitem__("encoded"))

    def to(self, device: Any, non_blocking: bool = False) -> Batch:
        """The batch on a device."""
        moved = {k: v.to(device, non_blocking=non_blocking) if torch.is_tensor(v) else v for k, v in self.items()}
        return Batch(moved)

    def pin_memory(self) -> Batch:
        """The batch in memory that a GPU can read by itself."""
        return Batch({k: v.pin_memory() if torch.is_tensor(v) else v for k, v in self.items()})

    def rows(self, rows: slice) -> Batch:
        """Some of the examples, padded as in the whole batch."""
        return Batch({k: v[rows] for k, v in self.items()})

    def split(self, n: int | None) -> Iterator[Batch]:
        """Micro-batches of at most ``n`` examples, in order; None: the whole batch."""
        for start in range(0, len(self), n or len(self)):
            yield self.rows(slice(start, start + (n or len(self))))


@dataclass(frozen=True)
class Place:
    """Whose thoughts an edit is given, and which of them.

    Attributes:
        batch: its ``encoded`` are the rows.
        index_BK: which of its row's thoughts each one is, from 0 on; -1 where it is none (Coconut asks for one column after
            the other, and a row may have no thought in it).
    """

    batch: Batch
    index_BK: Tensor
