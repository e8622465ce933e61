"""Many comparisons: corrections and verdicts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from statistics import NormalDist
from typing import Any, Literal

import numpy as np

from cl_softcot.errors import UserError
from cl_softcot.statistics.paired import PairedDifference, Scores, paired_difference
from cl_softcot.statistics.resampling import Values


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's adjusted p-values (1979): max over the smaller ones of (m - rank) p. They bound the chance of *any* false claim."""
    p = _p_values(p_values)
    order = np.argsort(p, kind="stable")
    steps = np.maximum.accumulate(p[order] * (p.size - np.arange(p.size)))
    adjusted = np.empty_like(p)
    adjusted[order] = np.minimum(steps, 1.0)
    return adjusted.tolist()


def benjamini_hochberg(p_values: Sequence[float]) -> list[float]:
    """Adjusted p-values of Benjamini & Hochberg (1995). They bound the expected *share* of false claims among all claims."""
    p = _p_values(p_values)
    order = np.argsort(p, kind="stable")
    steps = np.minimum.accumulate((p[order] * p.size / np.arange(1, p.size + 1))[::-1])[::-1]
    adjusted = np.empty_like(p)
    adjusted[order] = np.minimum(steps, 1.0)
    return adjusted.tolist()


def _p_values(p_values: Sequence[float]) -> Values:
    p = np.asarray(p_values, dtype=np.float64)
    if p.ndim != 1 or not ((p >= 0) & (p <= 1)).all():
        raise ValueError("p-values lie between 0 and 1")
    return p


_CORRECTIONS = {"holm": holm, "bh": benjamini_hochberg, "none": lambda p: list(p)}


@dataclass(frozen=True)
class Comparison:
    """One line of :func:`compare`.

    Attributes:
        difference: A - B, its standard error, interval and p-value, not corrected.
        p_adjusted: corrected for all comparisons of the call; None where there is no p-value.
        verdict: "<A> better", "<B> better" or "no difference shown".
        smallest_shown: the smallest difference, either way, that would have been shown with this spread and number of runs and
            questions, if all comparisons count (Bonferroni's bound). Differences below it may well exist.
        smallest_with_power_80: the true difference that data like these show four times out of five.
    """

    a: str
    b: str
    difference: PairedDifference
    p_adjusted: float | None
    verdict: str
    smallest_shown: float | None
    smallest_with_power_80: float | None

    def to_data(self) -> dict[str, Any]:
        """As plain data for a file."""
        return asdict(self)


def compare(
    methods: Mapping[str, Scores],
    pairs: Sequence[tuple[str, str]] | None = None,
    *,
    correction: Literal["holm", "bh", "none"] = "holm",
    higher_is_better: bool = True,
    level: float = 0.95,
    how: Literal["closed", "bootstrap"] = "closed",
    seed: int = 0,
) -> list[Comparison]:
    """Paired differences between methods (all pairs, unless given), with corrected p-values and a verdict each.

    A verdict follows the corrected p-value at 1 - ``level``; the intervals are each by itself, so one may leave zero out where
    no difference is shown. See :func:`paired_difference` for what is compared and what an interval covers.

    Raises:
        UserError: as :func:`paired_difference`; or if a pair names an unknown method.
    """
    pairs = list(combinations(methods, 2)) if pairs is None else list(pairs)
    unknown = [name for pair in pairs for name in pair if name not in methods]
    if unknown:
        raise UserError(f"there is no method {unknown[0]!r} to compare", fix=f"known: {', '.join(methods)}")
    differences = [paired_difference(methods[a], methods[b], how=how, seed=seed, level=level) for a, b in pairs]
    tested = [d.p for d in differences if d.p is not None]
    adjusted = iter(_CORRECTIONS[correction](tested))
    alpha = (1 - level) / (1 if correction == "none" else max(len(tested), 1))
    lines = []
    for (a, b), difference in zip(pairs, differences, strict=True):
        p = None if difference.p is None else next(adjusted)
        verdict = "no difference shown"
        if p is not None and p < 1 - level:
            verdict = f"{a if (difference.value > 0) == higher_is_better else b} better"
        lines.append(Comparison(a, b, difference, p, verdict, *_smallest(difference, alpha)))
    return lines


def _smallest(difference: PairedDifference, alpha: float) -> tuple[float | None, float | None]:
    if difference.spread is None or difference.se is None:
        return None, None
    critical = difference.spread.half_width(alpha)
    return critical, critical + NormalDist().inv_cdf(0.8) * difference.se
