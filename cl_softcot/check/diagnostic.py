"""The contract of a diagnostic, as far as it can be told without a run: what it measures needs an experiment."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from cl_softcot import registry
from cl_softcot.check.result import Broken, Line, settings_are_described, told
from cl_softcot.config.settings import MethodConfig
from cl_softcot.diagnostics.base import Diagnostic


def check(cls: Any, settings: Any = None) -> Iterator[Line]:
    """Every rule."""
    made = cls(settings or cls.Settings())
    rules = {
        "settings have descriptions": lambda: settings_are_described(cls),
        "it measures something": lambda: _measures(cls),
        "refuses methods with reasons": lambda: _refuses_with_reasons(cls),
        "it says when it measures": lambda: _says_when(made),
    }
    yield from told(rules, cls)


def _measures(cls: Any) -> None:
    if cls.measure is Diagnostic.measure:
        raise Broken("it has no measure()")


def _refuses_with_reasons(cls: Any) -> None:
    taken = 0
    for way in registry.known("reasoning"):
        for name in registry.known("strategy"):
            strategy, reasoning = registry.find("strategy", name), registry.find("reasoning", way)
            if strategy.refuses(strategy.Settings(), way) or reasoning.refuses(reasoning.Settings(), name):
                continue
            reason = cls.refuses(MethodConfig.model_validate({"name": "m", "reasoning": way, "strategy": name}))
            taken += reason is None
            if reason is not None and not (isinstance(reason, str) and reason.strip()):
                raise Broken(f"refuses({way} x {name}) gives {reason!r}", "Give a reason in words, or None.")
    if not taken:
        raise Broken("it refuses every method of ours")


def _says_when(made: Any) -> None:
    if not any(made.wants(row, 3) for row in range(4)):
        raise Broken("it wants no row of a run with three turns")
    thinks = registry.find("reasoning", registry.known("reasoning")[0])
    outside = [step for step in made.moments(thinks(), 100) if not 0 < step < 100]
    if outside:
        raise Broken(f"moments() names step {outside[0]} of 100", "1 to steps - 1: after the last one a row is measured.")
