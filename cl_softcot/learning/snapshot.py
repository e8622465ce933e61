"""What a resumed turn needs, and whether it is the same turn of the same data."""

from __future__ import annotations

import dataclasses
import hashlib
import random
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cl_softcot.errors import UserError
from cl_softcot.learning.stream import Turn, experiences_of
from cl_softcot.machine import processes

Snapshot = dict[str, dict[str, Any]]
"""``{"tensors": {name: Tensor}, "state": JSON data}``: what ``checkpoint.save`` takes."""
START_OVER = "Start over with --restart."


class LossDiverged(UserError):
    """The loss or a gradient is no longer a number; training stopped before the step was taken.

    The trained weights are back at the last good state.

    Attributes:
        turn: index of the turn, from 0.
        step: the step that failed, from 0.
        last_good_step: how many steps of the turn the restored weights have seen (0 = as the turn began).
    """

    turn: int = -1
    step: int = -1
    last_good_step: int = 0


@dataclasses.dataclass(frozen=True)
class TurnReport:
    """What a turn took.

    Attributes:
        steps: optimiser steps.
        examples_seen: examples in all steps, replayed ones included.
        replayed: how many of them a plugin added from earlier turns.
        tokens: target tokens that the loss was taken over.
        losses: mean loss in nats per token of every ten steps.
        train_seconds: wall time, the part before an interruption included.
    """

    steps: int
    examples_seen: int
    replayed: int
    tokens: int
    losses: list[float]
    train_seconds: float


def seed_everything(key: str) -> None:
    """Seeds torch's, NumPy's and Python's global generators from a text."""
    number = int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big")
    torch.manual_seed(number)
    np.random.seed(number % 2**32)
    random.seed(number)


def load_weights(into: Mapping[str, Tensor], weights: Mapping[str, Tensor]) -> None:
    """Copies weights into the tensors of the same names.

    Raises:
        UserError: unless names and shapes are the same.
    """
    wrong = sorted(into.keys() ^ weights.keys())
    if not wrong:
        for name, tensor in into.items():
            value = weights[name]  # once: it may come from another process
            if value.shape != tensor.shape:
                wrong = [name]
                break
            processes.put(tensor, value)
    if wrong:
        raise UserError(f"the checkpoint is of another method: '{wrong[0]}' does not fit", fix=START_OVER)


# --- identity --------------------------------------------------------------------------------------


def identity_of_turn(turn: Turn) -> dict[str, Any]:
    return {"index": turn.index, "name": turn.name, "data": turn.experience.fingerprint}


def same_turn(saved: Mapping[str, Any], turn: Turn) -> None:
    if (saved["index"], saved["name"]) != (turn.index, turn.name):
        raise UserError(
            f"the checkpoint is of turn {saved['index'] + 1} ({saved['name']}), not of turn {turn.index + 1} ({turn.name})",
            fix=START_OVER,
        )
    same_data(saved, experiences_of(turn))


def same_data(saved: Mapping[str, Any], experiences: Sequence[Any]) -> None:
    index = saved["index"]
    if index >= len(experiences) or experiences[index].fingerprint != saved["data"]:
        raise UserError(
            f"the training data of turn {index + 1} ({saved['name']}) are not those of the checkpoint",
            fix=START_OVER,
        )


class Under(Mapping):
    """The tensors whose names begin with a prefix, without it. Looked up when asked for: they may be many and far away."""

    def __init__(self, prefix: str, tensors: Mapping[str, Tensor]):
        self._prefix, self._tensors = prefix, tensors

    def __getitem__(self, name: str) -> Tensor:
        return self._tensors[self._prefix + name]

    def __iter__(self) -> Iterator[str]:
        return (name.removeprefix(self._prefix) for name in self._tensors if name.startswith(self._prefix))

    def __len__(self) -> int:
        return sum(1 for _ in self)
