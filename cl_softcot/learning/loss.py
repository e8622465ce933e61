"""Losses are summed over tokens and divided once, by the tokens of the whole global batch."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from cl_softcot.errors import UserError


def mean_over_tokens(loss_sum: Tensor, n_tokens: int | Tensor) -> Tensor:
    """Nats per token. The only place where a loss is divided: by the tokens of all that it is the loss of."""
    return loss_sum / n_tokens


def labelled_tokens(batch: Mapping[str, Any]) -> int:
    """How many tokens of the batch carry a loss.

    Raises:
        UserError: if none does.
    """
    n_tokens = int((batch["labels"] != -100).sum())
    if n_tokens == 0:
        raise UserError("no token of this batch carries a loss", fix="Check that the examples have answers.")
    return n_tokens


def merge_losses(losses: Sequence[Any]) -> Any:
    """The ``Loss`` of a global batch from those of its micro-batches."""
    if len(losses) == 1:
        return losses[0]
    return dataclasses.replace(
        losses[0],
        loss_sum=sum(loss.loss_sum for loss in losses),
        n_tokens=sum(int(loss.n_tokens) for loss in losses),
        per_example_B=torch.cat([loss.per_example_B for loss in losses]),
    )


def detached(loss: Any) -> Any:
    return dataclasses.replace(loss, loss_sum=loss.loss_sum.detach(), per_example_B=loss.per_example_B.detach())
