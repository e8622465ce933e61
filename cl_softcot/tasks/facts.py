"""Closed-book facts: attributes of invented people that stand in no question, only in what a model was pretrained on.

This is the knowledge *store* that new behaviour may overwrite. Public people are known to the embedded backbone and its
assistant, private people to the assistant only, so that soft thoughts can carry what the backbone does not know. Splits are
groups of people: a friend is always of the same group, so no test person's facts stand in training data.
Alternative convention: every question is meant about the person's friend.
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from functools import cache
from typing import Annotated, Literal

from pydantic import Field

from cl_softcot.tasks.base import SPLITS, Amount, Draft, Split, SyntheticSettings, SyntheticTask, between, choose
from cl_softcot.tasks.words import CITIES, FOODS, JOBS, PEOPLE, PETS

Store = Literal["public", "private", "both"]
VALUES = {"home": CITIES, "job": JOBS, "pet": PETS, "food": FOODS}
RELATION = "friend"
N_PUBLIC = 96
_SHARE = {"train": 0.5, "valid": 0.15, "test": 0.35}


@cache
def world() -> dict[str, dict[str, str]]:
    """person -> attribute -> value; the same in every process and for ever (the embedded models have learned it)."""
    rng = random.Random("cl_softcot facts 1")
    people = {person: {name: rng.choice(values) for name, values in VALUES.items()} for person in PEOPLE}
    for store in ("public", "private"):
        for split in SPLITS:
            group = list(group_of(store, split))
            rng.shuffle(group)
            for person, friend in zip(group, group[1:] + group[:1], strict=True):  # one ring: nobody is their own friend
                people[person][RELATION] = friend
    return people


def group_of(store: str, split: str) -> tuple[str, ...]:
    """The people of one store and split."""
    people = PEOPLE[:N_PUBLIC] if store == "public" else PEOPLE[N_PUBLIC:]
    first = 0
    for name in SPLITS:
        last = len(people) if name == SPLITS[-1] else first + round(_SHARE[name] * len(people))
        if name == split:
            return people[first:last]
        first = last
    raise KeyError(split)


@cache
def _home_group() -> dict[str, tuple[str, Split]]:
    return {p: (store, split) for store in ("public", "private") for split in SPLITS for p in group_of(store, split)}


class Settings(SyntheticSettings):
    lookups: Annotated[Amount, between(1, 8)] = Field([1, 2], description="facts that one answer needs")
    store: Store = Field("public", description="public: the backbone knows them; private: only the assistant does")


class Facts(SyntheticTask):
    family = "facts"
    knowledge = "facts"
    breaks_down_by = ("hops", "store")
    conventions = {"literal": "literal", "about_friend": "about the friend"}
    settings: Settings
    Settings = Settings
    rewording = "`pet of ann is cat` becomes `cat is pet of ann`"

    def reword(self, steps: Sequence[str]) -> list[str]:
        return [re.sub(r"^(\w+ of \w+) is (\w+)$", r"\2 is \1", step) for step in steps]

    def draft(self, rng: random.Random, convention: str, person: str | None = None) -> Draft:
        store = self.settings.store
        if person is None:
            pool = {"public": PEOPLE[:N_PUBLIC], "private": PEOPLE[N_PUBLIC:], "both": PEOPLE}[store]
            person = rng.choice(pool)
        lookups = choose(rng, self.settings.lookups)
        attribute = rng.choice([*VALUES, RELATION])
        asked = " of ".join([attribute, *[RELATION] * (lookups - 1), person])
        path = [RELATION] * (lookups - 1 + (convention == "about_friend")) + [attribute]
        steps, here = [], person
        for name in path:
            steps.append(f"{name} of {here} is {world()[here][name]}")
            here = world()[here][name]
        home = _home_group()[person][0]
        return Draft(f"{asked} ?", tuple(steps), here, asked, {"hops": lookups, "store": home, "person": person})

    def split_of(self, draft: Draft) -> Split:
        return _home_group()[draft.meta["person"]][1]

    def count(self, split: Split) -> int:
        """A closed set: each person of the split with each attribute, over each number of look-ups."""
        stores = ("public", "private") if self.settings.store == "both" else (self.settings.store,)
        lookups = {self.settings.lookups} if isinstance(self.settings.lookups, int) else set(self.settings.lookups)
        return sum(len(group_of(store, split)) for store in stores) * (len(VALUES) + 1) * len(lookups)
