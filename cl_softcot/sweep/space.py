"""What is searched: distributions of dotted keys, and their values as the `key=value` of a command line.

In YAML a distribution is a list of choices, or `{low: 1e-4, high: 1e-1, log: true}`; whole numbers where both ends are. `when`
makes a key part of a trial only where others have certain values: `{low: 8, high: 128, when: {methods.a.projector: mlp}}`.
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Mapping
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from cl_softcot.files import dump_json

Space = Mapping[str, "Distribution"]


class Distribution(BaseModel):
    """What one key may be."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)

    choices: list[Any] | None = Field(
        None, description="one of these; texts, numbers, true, false, null, or whole maps and lists"
    )
    low: int | float | None = Field(None, description="smallest value")
    high: int | float | None = Field(None, description="largest value, included")
    log: bool = Field(False, description="every factor is as likely as every other, as rates want it")
    step: int | float | None = Field(None, description="distance of the values")
    when: dict[str, Any] = Field({}, description="other keys of the space -> the value at which this one matters")

    @model_validator(mode="before")
    @classmethod
    def _short(cls, data: Any) -> Any:
        return {"choices": data} if isinstance(data, list) else data

    @model_validator(mode="after")
    def _possible(self) -> Self:
        if self.choices is not None:
            if self.log or (self.low, self.high, self.step) != (None, None, None):
                raise ValueError("either choices, or low and high")
            if not self.choices:
                raise ValueError("the list of choices is empty")
            if len({_label(choice) for choice in self.choices}) < len(self.choices):
                raise ValueError("a choice comes twice")
            return self
        if self.low is None or self.high is None:
            raise ValueError("should be a list of choices, or {low: ..., high: ...}")
        if self.low >= self.high:
            raise ValueError(f"the range is empty: low ({self.low}) should be less than high ({self.high})")
        if self.log and self.low <= 0:
            raise ValueError(f"with log, low should be above 0 (it is {self.low})")
        if self.log and self.step is not None:
            raise ValueError("log and step do not go together")
        if self.step is not None:
            steps = (self.high - self.low) / self.step if self.step > 0 else 0.5
            if not math.isclose(steps, round(steps), rel_tol=1e-9):
                raise ValueError(f"step ({self.step}) should be above 0 and lead from low ({self.low}) to high ({self.high})")
            if self.whole and not isinstance(self.step, int):
                raise ValueError("with whole numbers step is one too")
        return self

    @property
    def whole(self) -> bool:
        return isinstance(self.low, int) and isinstance(self.high, int)

    @property
    def ends(self) -> tuple[int | float, int | float]:
        """(low, high) of a range; a list of choices has none."""
        assert self.low is not None and self.high is not None, "a list of choices has no ends"
        return self.low, self.high

    def grid(self) -> list[Any]:
        """All values; [] where there is no end of them."""
        if self.choices is not None:
            return list(self.choices)
        low, high = self.ends
        if self.step is not None:
            return [low + i * self.step for i in range(round((high - low) / self.step) + 1)]
        return list(range(low, high + 1)) if isinstance(low, int) and isinstance(high, int) and not self.log else []

    def optuna(self) -> Any:
        """The same as an Optuna distribution."""
        from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

        if self.choices is not None:
            return CategoricalDistribution([_label(choice) for choice in self.choices])
        if self.whole:
            return IntDistribution(self.low, self.high, log=self.log, step=self.step or 1)
        return FloatDistribution(self.low, self.high, log=self.log, step=self.step)

    def value(self, stored: Any) -> Any:
        """The value behind what Optuna stores."""
        if self.choices is None:
            return stored
        return next(choice for choice in self.choices if _label(choice) == stored)

    def stored(self, value: Any) -> Any:
        """What Optuna stores for a value."""
        return _label(value) if self.choices is not None else value


def _label(choice: Any) -> Any:
    """Optuna's choices are scalars: maps and lists are stored as their JSON; numbers that are equal are told apart."""
    return choice if choice is None or isinstance(choice, str | bool | int | float) else dump_json(choice)


def samples(distribution: Distribution) -> list[Any]:
    """The ends of a range, or all choices: what must be allowed as a value of the key."""
    return list(distribution.choices) if distribution.choices is not None else [distribution.low, distribution.high]


def matters(distribution: Distribution, params: Mapping[str, Any]) -> bool:
    """Whether a key is part of a trial that has these values of the keys before it."""
    return all(key in params and _same(params[key], value) for key, value in distribution.when.items())


def _same(a: Any, b: Any) -> bool:
    return dump_json(a) == dump_json(b)


def suggest(trial: Any, space: Space) -> dict[str, Any]:
    """The values of a trial: what a retry brings along, otherwise what the sampler proposes (an Optuna `Trial`)."""
    params: dict[str, Any] = {}
    for key, distribution in space.items():
        if matters(distribution, params):
            optuna = distribution.optuna()
            if distribution.choices is not None:
                stored = trial.suggest_categorical(key, optuna.choices)
            elif distribution.whole:
                stored = trial.suggest_int(key, optuna.low, optuna.high, step=optuna.step, log=optuna.log)
            else:
                stored = trial.suggest_float(key, optuna.low, optuna.high, step=optuna.step, log=optuna.log)
            params[key] = distribution.value(stored)
    return params


def values_of(stored: Mapping[str, Any], space: Space) -> dict[str, Any]:
    """The values of a trial that the storage holds."""
    return {key: distribution.value(stored[key]) for key, distribution in space.items() if key in stored}


def grid(space: Space) -> list[dict[str, Any]]:
    """Every combination once, the last key fastest."""
    found: dict[str, dict[str, Any]] = {}
    for combination in itertools.product(*(distribution.grid() for distribution in space.values())):
        params: dict[str, Any] = {}
        for (key, distribution), value in zip(space.items(), combination, strict=True):
            if matters(distribution, params):
                params[key] = value
        found[dump_json(params)] = params
    return list(found.values())


def as_override(key: str, value: Any) -> str:
    """`key=value` for the command line: JSON, which is YAML, and bare where YAML reads a bare text as the same text."""
    text = dump_json(value)
    if isinstance(value, str):
        from cl_softcot.config import yaml

        try:
            tree = yaml.parse(value, "value")
            if tree.data == value and not tree.problems:
                text = value
        except Exception:  # not YAML as it stands: quoted, then
            pass
    return f"{key}={text}"


def shown(params: Mapping[str, Any]) -> str:
    """A trial's values for people: last parts of keys where they tell them apart, short numbers."""
    last = [key.rsplit(".", 1)[-1] for key in params]
    keys = last if len(set(last)) == len(last) else list(params)
    return ", ".join(f"{key}={_short(value)}" for key, value in zip(keys, params.values(), strict=True))


def _short(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.3g}"
    return value if isinstance(value, str) else json.dumps(value)
