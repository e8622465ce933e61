"""The law: does forgetting follow from drift alone? The analysis here was written down before the runs that it judges.

RL's Razor (Shenfeld et al. 2025, arXiv 2509.04259) reports that what a fine-tuned model loses is a quadratic function of
KL(base‖model) on the new task's inputs, whatever the method (R² .96 on ParityMNIST, .71 on a language model); 'Retaining by
doing' (arXiv 2510.18874) finds exceptions. So it is a hypothesis, and any value below is a result.

**Fixed beforehand.** Points are grouped by view, inputs and outcome (see ``points.Point``) and never mixed. The headline is
*as used, new task, base's abilities, forward KL*. In each group, for KL(base‖model) and KL(model‖base) = x each:

* ``quadratic``: f = a + b·x + c·x², least squares; ``through_zero``: f = b·x + c·x², since no drift means no forgetting;
  ``monotone``: the best non-decreasing function (isotonic regression, pool adjacent violators), between its knots on a line and
  beyond the last one constant.
* R² = 1 - Σ(f - f̂)² / Σ(f - f̄)², for all forms about the mean, so that it is negative where a form does worse than the mean.
* Spearman's rank correlation.
* ``leave_one_method_out``: each method's points are predicted from a fit to all others', R² = 1 - Σ(f - f̂₋ₘ)² / Σ(f - f̄)² over
  all points together. This is what a law promises: that a new method's forgetting can be read off its drift. It may be far below
  zero. ``bias`` is the mean of f - f̂₋ₘ for each method: above 0 it forgets more than its drift says.
* Intervals: percentile bootstrap over **runs**. Checkpoints of one run are not independent; treating them as such makes
  intervals too short. None with fewer than three runs, or where more than a tenth of the resamples leave a number undefined. What
  runs have in common besides (a base, a seed's data) they leave out, and a flexible form's R² lies high in resamples of few runs.
* Runs that did not move at all (KL and forgetting exactly 0 at every checkpoint, as frozen weights alone do) are counted and
  shown, but not fitted: they would agree with any law through zero, as many times as one likes to run them.
* The same for each method family and for the named unions of families.

``accuracy_matched`` asks the other way round: at equal accuracy on the new task, who forgot less? Along each run's own trajectory
(at least two checkpoints) forgetting and drift are interpolated at the first crossing of each of a grid of accuracies; a method's
value there is the mean over its runs that cross it. Where runs have one checkpoint each, the runs of a method on one task, sorted
by accuracy, take the trajectory's place (and there is no interval). Pairs of methods without a common accuracy are not compared.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cl_softcot.files import jsonable
from cl_softcot.law.points import INPUTS, OUTCOMES, VIEWS, Point, moved

Values = NDArray[np.floating]
Predictor = Callable[[Values], Values]

DIRECTIONS = ("forward_kl", "reverse_kl")
TARGETS = np.round(np.arange(0.02, 1.001, 0.02), 2)
_FEWEST_RUNS = 3
_MOST_PAIRS = 45  # of which the text tells
_FEWEST_POINTS = 5  # a quadratic goes through any three


# ------------------------------------------------------------------------------------------------------------ the forms


def quadratic(x: Values, y: Values, w: Values, *, constant: bool = True) -> Values | None:
    """Coefficients [a, b, c] of a + b·x + c·x² by weighted least squares; a = 0 without ``constant``. None: not determined."""
    if len(np.unique(x[w > 0])) < 2 + constant:
        return None
    scale = np.abs(x[w > 0]).max()
    powers = np.stack([(x / scale) ** k for k in range(0 if constant else 1, 3)])
    try:
        found = np.linalg.solve((powers * w) @ powers.T, (powers * w) @ y)
    except np.linalg.LinAlgError:
        return None
    full = found if constant else np.concatenate([[0.0], found])
    return full / scale ** np.arange(3)


def monotone(x: Values, y: Values, w: Values) -> tuple[Values, Values] | None:
    """Knots (x, f) of the best non-decreasing function by weighted least squares. None: nothing to fit."""
    from scipy.optimize import isotonic_regression

    used = w > 0
    if len(np.unique(x[used])) < 2:
        return None
    places, inverse = np.unique(x[used], return_inverse=True)  # points at one place get one value: their mean
    weights = np.bincount(inverse, w[used])
    means = np.bincount(inverse, w[used] * y[used]) / weights
    return places, isotonic_regression(means, weights=weights).x


def _quadratic(x: Values, y: Values, w: Values) -> Predictor | None:
    found = quadratic(x, y, w)
    return None if found is None else lambda new: np.polyval(found[::-1], new)


def _through_zero(x: Values, y: Values, w: Values) -> Predictor | None:
    found = quadratic(x, y, w, constant=False)
    return None if found is None else lambda new: np.polyval(found[::-1], new)


def _monotone(x: Values, y: Values, w: Values) -> Predictor | None:
    found = monotone(x, y, w)
    return None if found is None else lambda new: np.interp(new, *found)


FORMS: dict[str, Callable[[Values, Values, Values], Predictor | None]] = {
    "quadratic": _quadratic,
    "through_zero": _through_zero,
    "monotone": _monotone,
}


def r_squared(y: Values, predicted: Values, w: Values) -> float:
    """1 - Σ w(y - ŷ)² / Σ w(y - ȳ)²; NaN where all y are equal."""
    total = float(w @ (y - np.average(y, weights=w)) ** 2)
    return 1 - float(w @ (y - predicted) ** 2) / total if total > 1e-15 else float("nan")


def spearman(x: Values, y: Values, w: Values) -> float:
    """Rank correlation; whole weights count a point several times. NaN where one side is constant."""
    a, b = _ranks(x, w), _ranks(y, w)
    a, b = a - np.average(a, weights=w), b - np.average(b, weights=w)
    spread = float(np.sqrt((w @ a**2) * (w @ b**2)))
    return float(w @ (a * b)) / spread if spread > 0 else float("nan")


def _ranks(values: Values, w: Values) -> Values:
    """Mid-ranks among the values, each counted ``w`` times."""
    _, inverse = np.unique(values, return_inverse=True)
    counts = np.bincount(inverse, w)
    return (np.cumsum(counts) - counts / 2)[inverse]


# ----------------------------------------------------------------------------------------------------------- one cloud


@dataclass(frozen=True)
class _Cloud:
    """Points of one group in one direction, as arrays [n]; ``run`` and ``method`` are numbers."""

    x: Values
    y: Values
    run: NDArray[np.int64]
    method: NDArray[np.int64]
    runs: list[str]
    methods: list[str]

    @classmethod
    def of(cls, points: Sequence[Point], direction: str) -> _Cloud:
        points = [p for p in points if _known(getattr(p, direction))]
        runs, methods = sorted({p.run for p in points}), sorted({p.method for p in points})
        return cls(
            np.array([getattr(p, direction) for p in points], dtype=np.float64),
            np.array([p.forgetting for p in points], dtype=np.float64),
            np.array([runs.index(p.run) for p in points], dtype=np.int64),
            np.array([methods.index(p.method) for p in points], dtype=np.int64),
            runs,
            methods,
        )

    def statistics(self, w: Values) -> dict[str, float]:
        """Every number that gets an interval; NaN where undefined."""
        found = {"spearman": spearman(self.x, self.y, w)}
        for form, fit in FORMS.items():
            predict = fit(self.x, self.y, w)
            found[f"r2/{form}"] = float("nan") if predict is None else r_squared(self.y, predict(self.x), w)
            found |= {f"{key}/{form}": value for key, value in self._leave_one_method_out(fit, w).items()}
        return found

    def _leave_one_method_out(self, fit: Callable[..., Predictor | None], w: Values) -> dict[str, float]:
        biases = {f"bias/{name}": float("nan") for name in self.methods}
        predicted = np.full(len(self.y), np.nan)
        for m, name in enumerate(self.methods):
            own = (self.method == m) & (w > 0)
            predict = fit(self.x, self.y, np.where(self.method == m, 0.0, w)) if own.any() else None
            if predict is not None:
                predicted[own] = predict(self.x[own])
                biases[f"bias/{name}"] = float(np.average((self.y - predicted)[own], weights=w[own]))
        used = w > 0
        whole = len(self.methods) > 1 and not np.isnan(predicted[used]).any()
        return {"left_out": r_squared(self.y[used], predicted[used], w[used]) if whole else float("nan"), **biases}

    def intervals(self, bootstrap: int, seed: int, level: float) -> dict[str, list[float] | None]:
        """Percentile intervals of ``statistics``, runs drawn with replacement."""
        n, rng = len(self.runs), np.random.default_rng(seed)
        if n < _FEWEST_RUNS or bootstrap < 1:
            return {}
        drawn = [self.statistics(counts[self.run]) for counts in rng.multinomial(n, np.full(n, 1 / n), size=bootstrap) + 0.0]
        return {key: _interval(np.array([d[key] for d in drawn]), level) for key in drawn[0]}


def _known(value: float | None) -> bool:
    return value is not None and bool(np.isfinite(value))


def _interval(values: Values, level: float) -> list[float] | None:
    finite = values[np.isfinite(values)]
    if len(finite) < 0.9 * len(values):
        return None
    return [float(q) for q in np.quantile(finite, [(1 - level) / 2, (1 + level) / 2])]


def _fit_cloud(points: Sequence[Point], direction: str, bootstrap: int, seed: int, level: float) -> dict[str, Any]:
    cloud = _Cloud.of(points, direction)
    sizes = {"points": len(cloud.y), "runs": len(cloud.runs), "methods": cloud.methods}
    if len(cloud.y) < _FEWEST_POINTS:
        return {**sizes, "why_none": f"{len(cloud.y)} point{'s' * (len(cloud.y) != 1)}: a fit needs at least {_FEWEST_POINTS}"}
    ones = np.ones(len(cloud.y))
    values, ends = cloud.statistics(ones), cloud.intervals(bootstrap, seed, level)
    number = lambda key: {"value": values[key], "interval": ends.get(key)}  # noqa: E731
    curves: dict[str, Any] = {form: {"r2": number(f"r2/{form}")} for form in FORMS}
    for form, constant in (("quadratic", True), ("through_zero", False)):
        found = quadratic(cloud.x, cloud.y, ones, constant=constant)
        curves[form]["coefficients"] = None if found is None else dict(zip("abc", found.tolist(), strict=True))
    knots = monotone(cloud.x, cloud.y, ones)
    curves["monotone"]["knots"] = None if knots is None else _corners(*knots)
    left_out = {
        form: {"r2": number(f"left_out/{form}"), "bias": {m: number(f"bias/{m}/{form}") for m in cloud.methods}} for form in FORMS
    }
    return {**sizes, "spearman": number("spearman"), "fits": curves, "leave_one_method_out": left_out}


def _corners(x: Values, f: Values) -> list[list[float]]:
    """The knots without those inside a level stretch."""
    inner = np.r_[True, (np.diff(f)[:-1] != 0) | (np.diff(f)[1:] != 0), True] if len(f) > 2 else np.full(len(f), True)
    return [[float(a), float(b)] for a, b in zip(x[inner], f[inner], strict=True)]


# ------------------------------------------------------------------------------------------------------------- the law


def fit_law(
    points: Iterable[Point],
    *,
    unions: Mapping[str, Sequence[str]] | None = None,
    bootstrap: int = 1000,
    seed: int = 0,
    level: float = 0.95,
) -> dict[str, Any]:
    """The whole analysis of the module's docstring, as JSON data.

    Args:
        unions: further sets of families that are fitted together, each under a name.
        bootstrap: resamples of the runs for the intervals (0: no intervals); ``level`` is their coverage.

    Returns:
        ``groups``: one entry for each (view, inputs, outcome) that has points, the headline first: counts, ``zero_runs``, and
        for each of ``everything``, the ``unions`` and the ``families`` a fit in both directions; and ``accuracy_matched``.
    """
    options = (bootstrap, seed, level)
    points = list(points)
    groups = []
    for view in VIEWS:
        for inputs in INPUTS:
            for outcome in OUTCOMES:
                chosen = [p for p in points if (p.view, p.inputs, p.outcome) == (view, inputs, outcome)]
                if chosen:
                    groups.append({"view": view, "inputs": inputs, "outcome": outcome, **_group(chosen, unions or {}, options)})
    return jsonable({"bootstrap": bootstrap, "seed": seed, "level": level, "clusters": "runs", "groups": groups})


def _group(points: Sequence[Point], unions: Mapping[str, Sequence[str]], options: tuple[int, int, float]) -> dict[str, Any]:
    fitted, still = moved(points)
    both = lambda some: {direction: _fit_cloud(some, direction, *options) for direction in DIRECTIONS}  # noqa: E731
    of = lambda families: [p for p in fitted if p.family in families]  # noqa: E731
    return {
        "points": len(points),
        "runs": len({p.run for p in points}),
        "zero_runs": still,
        "not_measured": {d: sum(not _known(getattr(p, d)) for p in fitted) for d in DIRECTIONS},
        "everything": both(fitted),
        "unions": {name: {"of": list(families), **both(of(families))} for name, families in unions.items()},
        "families": {family: both(of([family])) for family in sorted({p.family for p in fitted})},
        "accuracy_matched": accuracy_matched(fitted, *options),
    }


# ------------------------------------------------------------------------------------------------- at equal accuracy


def accuracy_matched(points: Sequence[Point], bootstrap: int = 1000, seed: int = 0, level: float = 0.95) -> dict[str, Any]:
    """Forgetting and drift of the methods at equal accuracy on the new task, along their own trajectories.

    Returns:
        ``methods``: for each method {accuracy: {forgetting, forward_kl, reverse_kl, runs}} where it was crossed;
        ``pairs``: for each two methods with accuracies in common, which (``accuracies``) and the mean difference a - b over them
        with its interval; ``not_compared``: the pairs without.
    """
    lines = _trajectories([p for p in points if _known(p.accuracy)])
    by_method: dict[str, list[tuple[str | None, Values]]] = {}
    for method, run, line in lines:
        crossed = np.array([_at(line, target) for target in TARGETS])  # [targets, 3]
        by_method.setdefault(method, []).append((run, crossed))
    means = {method: _mean_line(np.stack([c for _, c in found])) for method, found in by_method.items()}
    pairs, apart = [], []
    for a, b in combinations(sorted(by_method), 2):
        shared = np.isfinite(means[a][:, 0]) & np.isfinite(means[b][:, 0])
        if shared.any():
            pairs.append(_pair(a, b, by_method, shared, bootstrap, seed, level))
        else:
            apart.append([a, b])
    return {"methods": {m: _by_accuracy(by_method[m], means[m]) for m in sorted(means)}, "pairs": pairs, "not_compared": apart}


_COLUMNS = ("forgetting", "forward_kl", "reverse_kl")


def _trajectories(points: Sequence[Point]) -> list[tuple[str, str | None, Values]]:
    """(method, run or None, [checkpoints, 4]: accuracy and ``_COLUMNS``), in the order in which they were passed."""
    row = lambda p: [p.accuracy, *(np.nan if getattr(p, c) is None else getattr(p, c) for c in _COLUMNS)]  # noqa: E731
    runs: dict[Any, list[Point]] = {}
    for p in points:
        runs.setdefault((p.method, p.run, p.experience), []).append(p)
    lines: list[tuple[str, str | None, Values]] = []
    single: dict[Any, list[Point]] = {}
    for (method, run, experience), found in runs.items():
        found = sorted(found, key=lambda p: p.checkpoint)
        if len(found) == 1:
            single.setdefault((method, experience, found[0].task), []).append(found[0])
            continue
        start = [[found[0].start_accuracy, 0.0, 0.0, 0.0]] if experience == 1 and _known(found[0].start_accuracy) else []
        lines.append((method, run, np.array([*start, *map(row, found)], dtype=np.float64)))
    for (method, *_), found in single.items():
        if len({p.accuracy for p in found}) > 1:
            rows = np.array([row(p) for p in found], dtype=np.float64)
            places = np.unique(rows[:, 0])
            lines.append((method, None, np.array([rows[rows[:, 0] == place].mean(0) for place in places])))
    return lines


def _at(line: Values, target: float) -> list[float]:
    """``_COLUMNS`` at the first crossing of an accuracy; NaN where the trajectory never crosses it."""
    for before, after in pairwise(line):
        low, high = sorted((before[0], after[0]))
        if low <= target <= high:
            share = 0.0 if low == high else (target - before[0]) / (after[0] - before[0])
            return list(before[1:] + share * (after[1:] - before[1:]))
    return [float("nan")] * len(_COLUMNS)


def _mean_line(crossed: Values, w: Values | None = None) -> Values:
    """Weighted mean over trajectories, of those that are there: [n, targets, 3], w [..., n] -> [..., targets, 3]."""
    w = np.ones(len(crossed)) if w is None else w
    there = np.isfinite(crossed)
    weights = np.tensordot(w, there, 1)
    return np.where(weights > 0, np.tensordot(w, np.where(there, crossed, 0.0), 1) / np.maximum(weights, 1e-12), np.nan)


def _by_accuracy(found: Sequence[tuple[str | None, Values]], mean: Values) -> dict[str, dict[str, float]]:
    runs = np.isfinite(np.stack([crossed for _, crossed in found])[:, :, 0]).sum(0)
    return {
        f"{target:.2f}": {**dict(zip(_COLUMNS, mean[t].tolist(), strict=True)), "trajectories": int(runs[t])}
        for t, target in enumerate(TARGETS)
        if runs[t]
    }


def _pair(
    a: str,
    b: str,
    lines: Mapping[str, Sequence[tuple[str | None, Values]]],
    shared: NDArray,
    bootstrap: int,
    seed: int,
    level: float,
) -> dict[str, Any]:
    sides = [np.stack([crossed[shared] for _, crossed in lines[m]]) for m in (a, b)]
    value = (_mean_line(sides[0]) - _mean_line(sides[1])).mean(0)
    ends: list[Any] = [None] * len(_COLUMNS)
    whole_runs = all(run is not None for m in (a, b) for run, _ in lines[m])
    if bootstrap and whole_runs and min(map(len, sides)) >= _FEWEST_RUNS:
        drawn = _drawn_differences(sides, bootstrap, seed)
        ends = [_interval(drawn[:, c], level) for c in range(len(_COLUMNS))]
    differences = {c: {"value": v, "interval": e} for c, v, e in zip(_COLUMNS, value.tolist(), ends, strict=True)}
    return {"a": a, "b": b, "accuracies": [float(t) for t in TARGETS[shared]], "difference": differences}


def _drawn_differences(sides: Sequence[Values], bootstrap: int, seed: int) -> Values:
    """The difference on resamples of each side's runs, over the accuracies that both still cross: [bootstrap, 3]."""
    rng = np.random.default_rng(seed)
    counts = [rng.multinomial(len(side), np.full(len(side), 1 / len(side)), size=bootstrap) + 0.0 for side in sides]
    gaps = _mean_line(sides[0], counts[0]) - _mean_line(sides[1], counts[1])
    there = np.isfinite(gaps[..., :1])
    return np.where(there, gaps, 0.0).sum(1) / np.where(there.any(1), there.sum(1), np.nan)


# --------------------------------------------------------------------------------------------------------------- words


def law_table(law: Mapping[str, Any]) -> str:
    """The analysis as plain text."""
    return "\n\n".join(_group_table(group, law) for group in law["groups"]) + "\n"


def _group_table(group: Mapping[str, Any], law: Mapping[str, Any]) -> str:
    lines = [
        f"{group['view']}, drift on {group['inputs']}, forgetting of {group['outcome']}: {group['points']} points of "
        f"{group['runs']} runs ({len(group['zero_runs'])} of them never moved: shown, not fitted); "
        f"{law['level']:.0%} intervals over runs",
        f"  {'':24}{'points':>7}{'runs':>5}  {'R² quadratic':22}{'R² through zero':22}{'R² monotone':22}{'Spearman':22}"
        f"{'left out: quadratic':22}{'left out: monotone':22}",
    ]
    few = [label for label, both in _clouds(group)[1:] if all("why_none" in both[d] for d in DIRECTIONS)]
    for label, both in _clouds(group):
        for direction in DIRECTIONS if label not in few else ():
            lines.append(_cloud_line(f"{label}, {direction.split('_')[0]}", both[direction]))
    if few:
        lines.append(f"  fewer than {_FEWEST_POINTS} points: {', '.join(few)}")
    headline = group["everything"][DIRECTIONS[0]].get("leave_one_method_out")
    if headline:
        lines.append("  each method's forgetting minus what the others' quadratic says of its forward KL:")
        lines += [f"    {m:22}{_shown(bias)}" for m, bias in headline["quadratic"]["bias"].items()]
    return "\n".join([*lines, *_matched_lines(group["accuracy_matched"])])


def _clouds(group: Mapping[str, Any]) -> list[tuple[str, Mapping[str, Any]]]:
    return [("everything", group["everything"]), *group["unions"].items(), *group["families"].items()]


def _cloud_line(label: str, cloud: Mapping[str, Any]) -> str:
    head = f"  {label:24}{cloud['points']:7d}{cloud['runs']:5d}  "
    if "why_none" in cloud:
        return head + cloud["why_none"]
    left = cloud["leave_one_method_out"]
    cells = [*(cloud["fits"][form]["r2"] for form in FORMS), cloud["spearman"], left["quadratic"]["r2"], left["monotone"]["r2"]]
    return (head + "".join(f"{_shown(cell):22}" for cell in cells)).rstrip()


def _matched_lines(matched: Mapping[str, Any]) -> list[str]:
    if len(matched["pairs"]) > _MOST_PAIRS:
        return [f"  at equal accuracy on the new task: {len(matched['pairs'])} pairs of methods, in law.json"]
    lines = []
    for pair in matched["pairs"]:
        low, high = pair["accuracies"][0], pair["accuracies"][-1]
        span = f"at accuracy {low:.2f}" if low == high else f"at accuracies {low:.2f} to {high:.2f}"
        parts = [f"{c} {_shown(pair['difference'][c], sign=True)}" for c in ("forgetting", "forward_kl")]
        lines.append(f"    {pair['a']} - {pair['b']}, {span}: {', '.join(parts)}")
    if matched["not_compared"]:
        lines.append(f"    no accuracy in common: {', '.join(' and '.join(pair) for pair in matched['not_compared'])}")
    return ["  at equal accuracy on the new task:", *lines] if lines else []


def _shown(number: Mapping[str, Any], sign: bool = False) -> str:
    value, ends = number["value"], number["interval"]
    if value is None or not np.isfinite(value):
        return "–"
    form = "{:+.3f}" if sign else "{:.3f}"
    return form.format(value) + (f" [{ends[0]:.2f}, {ends[1]:.2f}]" if ends else "")
