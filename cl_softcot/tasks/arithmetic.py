"""Arithmetic chains: somebody's goods change hands, how many are left? Alternative convention: every trade costs 1."""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from typing import Annotated

from pydantic import Field

from cl_softcot.tasks.base import Amount, Draft, SyntheticSettings, SyntheticTask, between, choose
from cl_softcot.tasks.words import GOODS, PEOPLE

_SIGN = {"buys": 1, "finds": 1, "sells": -1, "loses": -1}
_COMMUTES = re.compile(r"^(\d+) ([+*]) (\d+)\b")
_TRADES = ("buys", "sells")


class Settings(SyntheticSettings):
    events: Annotated[Amount, between(1, 99)] = Field([1, 2, 3, 4], description="changes to the starting number")
    largest: int = Field(50, ge=20, le=99, description="no number on the way is larger")


class Arithmetic(SyntheticTask):
    family = "arithmetic"
    conventions = {"no_fee": "no fee", "fee": "fee of 1"}
    settings: Settings
    Settings = Settings
    rewording = "sums and products with their two terms exchanged; differences stay"

    def reword(self, steps: Sequence[str]) -> list[str]:
        return [_COMMUTES.sub(r"\3 \2 \1", step) for step in steps]

    def draft(self, rng: random.Random, convention: str) -> Draft:
        events, largest = choose(rng, self.settings.events), self.settings.largest
        person, goods = rng.choice(PEOPLE), rng.choice(GOODS)
        value = rng.randint(2, largest // 2)
        told, steps = [f"{person} has {value} {goods}"], []
        plain = value  # what is possible is decided without the fee, so that a question reads the same in both conventions
        for _ in range(events):
            possible = ["buys", "finds"] if plain + 9 <= largest else []
            possible += ["sells", "loses"] if min(plain, value) >= 11 else []
            possible += ["doubles"] if 2 < plain and 2 * max(plain, value) <= largest and value > 2 else []
            action = rng.choice(possible or ["finds"])
            if action == "doubles":
                told.append("doubles")
                steps.append(f"{value} * 2 = {2 * value}")
                value, plain = 2 * value, 2 * plain
                continue
            x, sign = rng.randint(2, 9), _SIGN[action]
            fee = 1 if convention == "fee" and action in _TRADES else 0
            result = value + sign * x - fee
            told.append(f"{action} {x}")
            steps.append(f"{value} {'+' if sign > 0 else '-'} {x}{' - 1' if fee else ''} = {result}")
            value, plain = result, plain + sign * x
        question = " . ".join(told) + f" . how many {goods} ?"
        return Draft(question, tuple(steps), str(value), "|".join(told), {"hops": events})
