"""AdamW, its learning rate over a turn, and its state as named tensors."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from cl_softcot.errors import UserError
from cl_softcot.machine import processes


def learning_rate_factor(step: int, steps: int, warmup_fraction: float, decay_fraction: float) -> float:
    """Linear warm-up, plateau, linear decay over one turn, as a factor of the learning rate.

    Neither end reaches zero: the first step has 1/warm-up steps, the last 1/decay steps.
    """
    warmup = (step + 1) / max(1.0, warmup_fraction * steps)
    decay = (steps - step) / max(1.0, decay_fraction * steps)
    return min(1.0, warmup, decay)


def make_adamw(groups: list[dict[str, Any]], train: Any) -> torch.optim.Optimizer:
    """AdamW (arXiv 1711.05101) as ``train.optimizer`` says; weight decay is in the groups.

    Raises:
        UserError: if the 8-bit one cannot be had.
    """
    if train.optimizer == "adamw":
        return torch.optim.AdamW(groups, betas=tuple(train.betas), weight_decay=0.0, fused=_can_fuse(groups))
    fix = "pip install 'cl-softcot[quantization]', or set train.optimizer: adamw."
    try:
        from bitsandbytes.optim import AdamW8bit
    except ImportError as error:
        raise UserError(f"train.optimizer: adamw_8bit needs the package bitsandbytes ({error})", fix=fix) from None
    return AdamW8bit(groups, betas=tuple(train.betas), weight_decay=0.0)


def _can_fuse(groups: list[dict[str, Any]]) -> bool:
    """One kernel for all of AdamW's arithmetic; a split weight is no plain tensor."""
    return all(p.is_floating_point() and not processes.is_sharded(p) for group in groups for p in group["params"])


def leaves(state: Mapping[Any, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    """Everything in an optimiser's state as ``parameter/key``, or ``parameter/key/inner key``."""
    for key, value in state.items():
        if isinstance(value, Mapping):
            yield from leaves(value, f"{above}{key}/")
        else:
            yield f"{above}{key}", value


def put_leaf(state: dict[Any, Any], name: str, value: Any) -> None:
    number, *keys, last = name.split("/")
    inner = state.setdefault(int(number), {})
    for key in keys:
        inner = inner.setdefault(key, {})
    inner[last] = value


def check_trainable(model: nn.Module, trained: Sequence[Tensor]) -> dict[str, nn.Parameter]:
    """The trained parameters by name; what is trained and what requires a gradient must be the same.

    Raises:
        ValueError: if not. Both ways round it is a silent mistake: a frozen weight that moves with weight
            decay, or a gradient that is computed, never used and never cleared.
    """
    if not trained:
        raise ValueError("this strategy trains nothing: it has no turns to learn")
    named = {name: p for name, p in model.named_parameters() if p.requires_grad}
    given = {id(p) for p in trained}
    frozen = sum(not p.requires_grad for p in trained)
    forgotten = [name for name, p in named.items() if id(p) not in given]
    if frozen or forgotten:
        raise ValueError(
            f"trainable() must give exactly the parameters that require a gradient: {frozen} of those given "
            f"do not, and these are left out: {forgotten[:5]}"
        )
    return named
