"""Deduction along a chain of rules, as in ProntoQA (arXiv 2210.01240): is a claim about somebody true or false?

ProntoQA's shortcut (believe the rule whose subject is mentioned elsewhere: 10,000 of 10,000) cannot work here: the
opposite property sits at the end of a second person's chain of the same length, so that the rule which decides is found
only by following the chain of the person who is asked about.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Annotated

from pydantic import Field

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
    premises_reversed,
)
from cl_softcot.tasks.words import CONCEPTS, PEOPLE, PROPERTIES

_ANSWERS = {"true_false": ("true", "false"), "yes_no": ("yes", "no")}


class Settings(SyntheticSettings):
    hops: Annotated[Amount, between(1, len(CONCEPTS) // 2)] = Field(
        [1, 2, 3, 4], description="rules from the person's concept to the property"
    )
    distractors: Annotated[Amount, between(0, len(PROPERTIES) - 1)] = Field(
        [0, 1], description="further rules, each about another property, in each chain"
    )


class Deduction(SyntheticTask):
    family = "deduction"
    n_options = 2
    conventions = {"true_false": "true or false", "yes_no": "yes or no"}
    settings: Settings
    Settings = Settings
    rewording = "the rules on the way, all but the conclusion, are told in the opposite order"

    def reword(self, steps: Sequence[str]) -> list[str]:
        return premises_reversed(steps)

    def graph_of(self, example: Example) -> SearchGraph:
        """Concepts and the people who are one; what a concept is like (a property) is no node."""
        person = example.question.rpartition(" . claim ")[2].split(" ", 1)[0]
        return facts_graph(example.question, example.steps, person, CONCEPTS)

    def draft(self, rng: random.Random, convention: str) -> Draft:
        hops, distractors = choose(rng, self.settings.hops), choose(rng, self.settings.distractors)
        concepts = rng.sample(CONCEPTS, 2 * hops)
        asked, *others = rng.sample(PROPERTIES, 1 + max(1, distractors))  # one each: rules never contradict each other
        people = rng.sample(PEOPLE, 2)
        negated = rng.random() < 0.5
        chains = [concepts[:hops], concepts[hops:]]
        rules = []
        for chain, negative in zip(chains, (negated, not negated), strict=True):
            rules += [f"{a} is {b}" for a, b in zip(chain, chain[1:], strict=False)]
            rules.append(f"{chain[-1]} is {_said(asked, negative)}")
            rules += [f"{rng.choice(chain)} is {_said(other, rng.random() < 0.5)}" for other in others[:distractors]]
        rng.shuffle(rules)
        places = [f"{person} is {chain[0]}" for person, chain in zip(people, chains, strict=True)]
        rng.shuffle(places)
        claim_negated = rng.random() < 0.5
        claim = f"{people[0]} is {_said(asked, claim_negated)}"
        question = " . ".join(rules + places) + f" . claim {claim} ?"
        chain, conclusion = chains[0], _said(asked, negated)
        steps = [f"{people[0]} is {chain[0]}", *(f"{a} is {b}" for a, b in zip(chain, chain[1:], strict=False))]
        steps += [f"{chain[-1]} is {conclusion}", f"{people[0]} is {conclusion}"]
        answer = _ANSWERS[convention][0 if claim_negated == negated else 1]
        key = "|".join([*sorted(rules), *sorted(places), claim])
        return Draft(question, tuple(steps), answer, key, {"hops": hops})


def _said(prop: str, negated: bool) -> str:
    return f"not {prop}" if negated else prop
