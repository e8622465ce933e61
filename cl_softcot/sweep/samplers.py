"""Optuna's samplers and pruners as a sweep asks for them."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

from cl_softcot.sweep import objectives
from cl_softcot.sweep.config import PrunerConfig, SamplerConfig, SearchPlan

LANES = 4  # trials side by side where the sweep does not say how many


def make_sampler(config: SamplerConfig, number: int, wanted: Mapping[str, str]) -> Any:
    import optuna

    seed = int.from_bytes(hashlib.sha256(f"{config.seed} {number}".encode()).digest()[:4], "big")
    samplers = optuna.samplers
    if config.name == "tpe":
        return samplers.TPESampler(seed=seed, n_startup_trials=config.startup_trials)
    if config.name == "nsga2":
        return samplers.NSGAIISampler(seed=seed, population_size=max(2, config.startup_trials))
    if config.name == "gp":
        return samplers.GPSampler(seed=seed, n_startup_trials=config.startup_trials)
    return samplers.RandomSampler(seed=seed)  # a grid is queued, so that nothing is sampled


def chosen_pruner(plan: SearchPlan) -> PrunerConfig:
    """As configured; otherwise median for a single objective that measures learning alone. Others favour, after early
    experiences, high rates whose forgetting shows later."""
    if plan.sweep.pruner is not None:
        return plan.sweep.pruner
    wanted = list(plan.sweep.objectives)
    return PrunerConfig(name="median" if len(wanted) == 1 and wanted[0] in objectives.OF_LEARNING_ALONE else "none")


def at_once(plan: SearchPlan) -> int:
    """How many trials a worker runs side by side. Unless the sweep says, more than one only where no trial's result decides
    anything about another."""
    wanted = plan.sweep.side_by_side
    if wanted is None:
        independent = plan.sweep.sampler.name in ("random", "grid") and chosen_pruner(plan).name == "none"
        wanted = LANES if independent else 1
    return wanted if wanted == 1 or plan.alone_because() is None else 1


def make_pruner(plan: SearchPlan) -> Any:
    import optuna

    config = chosen_pruner(plan)
    if config.name == "median":
        return optuna.pruners.MedianPruner(n_startup_trials=config.startup_trials, n_warmup_steps=config.after)
    if config.name == "halving":
        return optuna.pruners.SuccessiveHalvingPruner(min_resource=config.after, reduction_factor=2)
    return optuna.pruners.NopPruner()
