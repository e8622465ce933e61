"""Optimiser steps as the product makes them, and as the references do."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from cl_softcot.config.settings import TrainConfig
from cl_softcot.learning.loss import mean_over_tokens
from cl_softcot.learning.optimiser import make_adamw
from cl_softcot.models.batch import Batch
from cl_softcot.reasoning.base import Parts


class OwnSteps:
    """One step a call, over batches in turn: loss, backward pass, update. Returns the loss before the update."""

    def __init__(self, parts: Parts, strategy: Any, batches: Sequence[Batch]):
        strategy.prepare(parts, seed=0)
        self.parts, self.batches, self.done = parts, batches, 0
        self.optimizer = make_adamw(strategy.trainable(parts), TrainConfig())

    def __call__(self) -> float:
        batch = self.batches[self.done % len(self.batches)]
        self.done += 1
        loss = self.parts.reasoning.loss(self.parts, batch)
        mean = mean_over_tokens(loss.loss_sum, loss.n_tokens)
        self.optimizer.zero_grad()
        mean.backward()
        self.optimizer.step()
        return float(mean.detach())


class ReferenceSteps:
    """The same with torch's own AdamW.

    Args:
        loss: index of the batch -> mean loss.
    """

    def __init__(self, parameters: Sequence[Tensor], loss: Callable[[int], Tensor], n_batches: int, learning_rate: float):
        self.optimizer = torch.optim.AdamW(parameters, lr=learning_rate, weight_decay=0.0)
        self.loss, self.n_batches, self.done = loss, n_batches, 0

    def __call__(self) -> float:
        mean = self.loss(self.done % self.n_batches)
        self.done += 1
        self.optimizer.zero_grad()
        mean.backward()
        self.optimizer.step()
        return float(mean.detach())
