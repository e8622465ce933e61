"""List operations: which item stands where after reversing, rotating, swapping the ends and dropping the first?
Alternative convention: items are counted from zero."""

from __future__ import annotations

import random
from typing import Annotated

from pydantic import Field

from cl_softcot.tasks.base import Amount, Draft, SyntheticSettings, SyntheticTask, between, choose
from cl_softcot.tasks.words import LETTERS


class Settings(SyntheticSettings):
    events: Annotated[Amount, between(1, 99)] = Field([1, 2, 3], description="operations")
    length: Annotated[Amount, between(2, len(LETTERS))] = Field([3, 4], description="items at the start")


class Lists(SyntheticTask):
    family = "lists"
    conventions = {"from_one": "from one", "from_zero": "from zero"}
    settings: Settings
    Settings = Settings

    def draft(self, rng: random.Random, convention: str) -> Draft:
        events, length = choose(rng, self.settings.events), choose(rng, self.settings.length)
        items = rng.sample(LETTERS, length)
        told, steps = ["list " + " ".join(items)], []
        for _ in range(events):
            operation = rng.choice(["reverse", "rotate", "swap"] + (["drop"] if len(items) > 3 else []))
            items = _apply(operation, items)
            told.append(operation)
            steps.append(f"{operation} " + " ".join(items))
        index = rng.randint(1, len(items) - 1)  # a valid place in both conventions
        item = items[index if convention == "from_zero" else index - 1]
        steps.append(f"item {index} is {item}")
        question = " . ".join(told) + f" . item {index} ?"
        return Draft(question, tuple(steps), item, f"{'|'.join(told)}|{index}", {"hops": events})


def _apply(operation: str, items: list[str]) -> list[str]:
    match operation:
        case "reverse":
            return items[::-1]
        case "rotate":
            return items[1:] + items[:1]
        case "swap":
            return [items[-1], *items[1:-1], items[0]]
        case _:
            return items[1:]
