"""Graph reachability, as in ProsQA (Coconut, arXiv 2412.06769, appendix): which of two concepts does somebody belong to?

ProsQA's shortcuts (fewer mentions, a parent near the root, nobody else above the target: up to .84 without a search)
cannot work here: two people stand above two components of the same shape, so that the same facts answer the same
question about the other person with the other option.
"""

from __future__ import annotations

import random

from pydantic import Field

from cl_softcot.tasks.base import Draft, SyntheticSettings, SyntheticTask, choose
from cl_softcot.tasks.words import CONCEPTS, PEOPLE


class Settings(SyntheticSettings):
    hops: int | list[int] = Field([1, 2, 3], description="edges from the person's concept to the answer")
    branches: int | list[int] = Field([0, 1], description="dead ends in each of the two components")


class Graph(SyntheticTask):
    family = "graph"
    conventions = {"by_name": "by name", "by_position": "by position"}
    Settings = Settings

    def draft(self, rng: random.Random, convention: str) -> Draft:
        hops, branches = choose(rng, self.settings.hops), choose(rng, self.settings.branches)
        concepts = iter(rng.sample(CONCEPTS, 2 * (hops + 1 + branches)))
        attach = [rng.randrange(hops) for _ in range(branches)]  # the same depths in both components
        people, paths, edges = rng.sample(PEOPLE, 2), [], []
        for _ in range(2):
            path = [next(concepts) for _ in range(hops + 1)]
            edges += list(zip(path, path[1:], strict=False)) + [(path[depth], next(concepts)) for depth in attach]
            paths.append(path)
        facts = [f"{parent} is {child}" for parent, child in edges]
        rng.shuffle(facts)
        places = [f"{person} is {path[0]}" for person, path in zip(people, paths, strict=True)]
        rng.shuffle(places)
        options = [path[-1] for path in paths]
        rng.shuffle(options)
        person, path = people[0], paths[0]
        question = " . ".join(facts + places) + f" . is {person} {options[0]} or {options[1]} ?"
        steps = [f"{person} is {path[0]}"] + [f"{a} is {b}" for a, b in zip(path, path[1:], strict=False)]
        answer = path[-1] if convention == "by_name" else ("first", "second")[options.index(path[-1])]
        key = "|".join([*sorted(facts), *sorted(places), *sorted(options), person])
        return Draft(question, tuple(steps), answer, key, {"hops": hops})
