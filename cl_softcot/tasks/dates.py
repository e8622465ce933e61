"""Days of the week: which day is it after waiting and going back? Alternative convention: the first day counts too."""

from __future__ import annotations

import random
from typing import Annotated

from pydantic import Field

from cl_softcot.tasks.base import Amount, Draft, SyntheticSettings, SyntheticTask, between, choose
from cl_softcot.tasks.words import DAYS


class Settings(SyntheticSettings):
    events: Annotated[Amount, between(1, 99)] = Field([1, 2, 3], description="moves in time")


class Dates(SyntheticTask):
    family = "dates"
    conventions = {"from_tomorrow": "from tomorrow", "from_today": "from today"}
    settings: Settings
    Settings = Settings

    def draft(self, rng: random.Random, convention: str) -> Draft:
        events = choose(rng, self.settings.events)
        day = rng.randrange(7)
        told, steps = [f"today is {DAYS[day]}"], []
        for _ in range(events):
            x, back = rng.randint(2, 12), rng.random() < 0.4
            told.append(f"{'back' if back else 'wait'} {x}")
            moved = x - 1 if convention == "from_today" else x
            then = (day - moved if back else day + moved) % 7
            steps.append(f"{DAYS[day]} {'-' if back else '+'} {moved} = {DAYS[then]}")
            day = then
        question = " . ".join(told) + " . which day ?"
        return Draft(question, tuple(steps), DAYS[day], "|".join(told), {"hops": events})
