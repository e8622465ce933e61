"""The trained map from the assistant's width A to the backbone's width D."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Projector(nn.Module):
    """``Linear(A, D)``, or ``Linear(A, hidden) - GELU - Linear(hidden, D)``; always fp32.

    In pure bf16 most weights would not move at all at the usual learning rates: the steps are below its resolution.
    """

    def __init__(self, assistant_width: int, width: int, hidden: int | None = None):
        super().__init__()
        if hidden is None:
            self.inner: nn.Module = nn.Identity()
            self.outer = nn.Linear(assistant_width, width)
        else:
            self.inner = nn.Sequential(nn.Linear(assistant_width, hidden), nn.GELU())
            self.outer = nn.Linear(hidden, width)
        self.float()

    def forward(self, states_BKA: Tensor) -> Tensor:
        """[B, K, A] -> [B, K, D], in fp32 also under autocast."""
        with torch.autocast(states_BKA.device.type, enabled=False):
            return self.outer(self.inner(states_BKA.float()))

    @torch.no_grad()
    def calibrate(self, states_BKA: Tensor, std: float) -> None:
        """Scale the outputs to a standard deviation of ``std``, measured on the given states."""
        nn.init.zeros_(self.outer.bias)
        scale = self.forward(states_BKA).std(correction=0)
        if torch.isfinite(scale) and scale > 0:
            self.outer.weight.mul_(std / scale)
