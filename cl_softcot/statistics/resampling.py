"""Resampling, and degrees of freedom of a sum of variances."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Values = NDArray[np.float64]
DRAWN = 20_000_000  # numbers drawn at a time


def satterthwaite(parts: Sequence[float], dfs: Sequence[float]) -> float:
    """Degrees of freedom of a sum of variances."""
    spread = sum(v**2 / df for v, df in zip(parts, dfs, strict=True))
    return max(sum(parts) ** 2 / spread, 1.0) if spread else float(min(dfs))


def chunks(n_boot: int, numbers: int) -> list[int]:
    """Sizes of the parts that resamples are drawn in, so that memory stays bounded."""
    rows = max(1, DRAWN // numbers)
    return [min(rows, n_boot - done) for done in range(0, n_boot, rows)]
