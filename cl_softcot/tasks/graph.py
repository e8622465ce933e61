"""Graph reachability, as in ProsQA (Coconut, arXiv 2412.06769, appendix): which of two concepts does somebody belong to?

ProsQA's shortcuts (fewer mentions, a parent near the root, nobody else above the target: up to .84 without a search)
cannot work here: two people stand above two components of the same shape, so that the same facts answer the same
question about the other person with the other option. (With one or two hops, a rule that looks two hops far is the whole search.)
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Annotated

from pydantic import Field, model_validator

from cl_softcot.tasks.base import (
    Amount,
    Draft,
    Example,
    SearchGraph,
    SyntheticSettings,
    SyntheticTask,
    between,
    choose,
    facts_graph,
    largest_of,
    premises_reversed,
)
from cl_softcot.tasks.words import CONCEPTS, PEOPLE

_ROOM = len(CONCEPTS) // 2 - 1  # edges that one of the two components has concepts for


class Settings(SyntheticSettings):
    hops: Annotated[Amount, between(1, _ROOM)] = Field([1, 2, 3], description="edges from the person's concept to the answer")
    branches: Annotated[Amount, between(0, _ROOM - 1)] = Field([0, 1], description="dead ends in each of the two components")

    @model_validator(mode="after")
    def _enough_concepts(self) -> Settings:
        if largest_of(self.hops) + largest_of(self.branches) > _ROOM:
            raise ValueError(f"hops and branches together can be {_ROOM} at most: there are {len(CONCEPTS)} concepts")
        return self


class Graph(SyntheticTask):
    family = "graph"
    n_options = 2
    conventions = {"by_name": "by name", "by_position": "by position"}
    settings: Settings
    Settings = Settings
    rewording = "the facts on the way, all but the last, are told in the opposite order"

    def reword(self, steps: Sequence[str]) -> list[str]:
        return premises_reversed(steps)

    def graph_of(self, example: Example) -> SearchGraph:
        person = example.question.rpartition(" . is ")[2].split(" ", 1)[0]
        return facts_graph(example.question, example.steps, person, CONCEPTS)

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
