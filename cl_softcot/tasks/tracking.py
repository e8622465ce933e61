"""Object tracking: people swap what they hold, what does somebody hold in the end?
Alternative convention: the newest swap is told first.

Each written step restates its event and then the full state: ``2 ann has key bob has cup : bob gets key ann gets cup
eve has hat``. Every word needs one look-up only: the number says which swap is meant, the two holdings stand before they are
exchanged, and the last step says what was asked for. Without, the first object after a swap and the answer need two look-ups
at once, and the family was never learned (measured: none of 100 chains right where other families had nearly all).
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from typing import Annotated

from pydantic import Field

from cl_softcot.tasks.base import Amount, Draft, SyntheticSettings, SyntheticTask, between, choose
from cl_softcot.tasks.words import OBJECTS, PEOPLE

_SWAP = re.compile(r"^(\d+ )(\w+ has \w+) (\w+ has \w+) : (\w+ gets \w+) (\w+ gets \w+)")


class Settings(SyntheticSettings):
    events: Annotated[Amount, between(1, 99)] = Field([1, 2, 3], description="swaps")
    people: Annotated[Amount, between(2, len(OBJECTS))] = Field(3, description="people who hold something")


class Tracking(SyntheticTask):
    family = "tracking"
    conventions = {"oldest_first": "oldest first", "newest_first": "newest first"}
    settings: Settings
    Settings = Settings
    rewording = "in each swap the other of the two is named first, before it and after it"

    def reword(self, steps: Sequence[str]) -> list[str]:
        return [_SWAP.sub(r"\1\3 \2 : \5 \4", step) for step in steps]

    def __init__(self, settings: SyntheticSettings, name: str):
        super().__init__(settings, name)
        people = self.settings.people
        self.n_options = people if isinstance(people, int) else min(people)  # the objects that the question names

    def draft(self, rng: random.Random, convention: str) -> Draft:
        events, n_people = choose(rng, self.settings.events), choose(rng, self.settings.people)
        people, objects = rng.sample(PEOPLE, n_people), rng.sample(OBJECTS, n_people)
        holds = dict(zip(people, objects, strict=True))
        swaps: list[tuple[int, str, str]] = []
        for i in range(1, events + 1):
            a, b = rng.sample(people, 2)
            swaps.append((i, a, b))
        asked = rng.choice(people)
        told = [f"{person} has {thing}" for person, thing in holds.items()] + [f"swap {i} {a} {b}" for i, a, b in swaps]
        steps = []
        for i, a, b in swaps if convention == "oldest_first" else swaps[::-1]:
            before = f"{i} {a} has {holds[a]} {b} has {holds[b]}"
            holds[a], holds[b] = holds[b], holds[a]
            others = [f"{person} has {holds[person]}" for person in people if person not in (a, b)]
            steps.append(" ".join([before, ":", f"{b} gets {holds[b]} {a} gets {holds[a]}", *others]))
        steps.append(f"{asked} has {holds[asked]}")
        question = " . ".join(told) + f" . what has {asked} ?"
        # Who is named first, among the holders and in a swap, does not make it another question.
        key = "|".join([*sorted(told[:n_people]), *(" ".join(["swap", str(i), *sorted(pair)]) for i, *pair in swaps), asked])
        return Draft(question, tuple(steps), holds[asked], key, {"hops": events})
