"""Rules that answer graph and deduction questions without following the chain. Each gives a guess, or None where it is undecided.

The same rules run on the generated tasks (where they must be at chance) and on ProsQA and ProntoQA (where they must score what is
known of them, which shows that they are the rules they are meant to be).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Graph:
    """``edges`` in the order of the text, as (node, its concept); people are nodes that nothing leads to."""

    edges: tuple[tuple[str, str], ...]
    person: str
    options: tuple[str, str]
    answer: str

    def distances(self, start: str, backwards: bool = False) -> dict[str, int]:
        found, queue = {start: 0}, [start]
        for here in queue:
            for parent, child in self.edges:
                a, b = (child, parent) if backwards else (parent, child)
                if a == here and b not in found:
                    found[b] = found[here] + 1
                    queue.append(b)
        return found

    def people(self) -> set[str]:
        return {a for a, _ in self.edges} - {b for _, b in self.edges}

    def parents(self, node: str) -> list[str]:
        return [a for a, b in self.edges if b == node]


@dataclass(frozen=True)
class Deduction:
    """``rules`` in the order of the text, as (subject, concept or property, negated), the people's places among them."""

    rules: tuple[tuple[str, str, bool], ...]
    person: str
    asked: str
    claim_negated: bool
    answer: bool

    def deciding(self) -> list[tuple[str, str, bool]]:
        return [rule for rule in self.rules if rule[1] == self.asked]

    def mentions(self, node: str) -> int:
        return sum(node in rule[:2] for rule in self.rules)

    def graph(self) -> Graph:
        return Graph(tuple((a, b) for a, b, _ in self.rules), self.person, ("", ""), "")


def read_graph(question: str, answer: str) -> Graph:
    *facts, query = question.removesuffix(" ?").split(" . ")
    _, person, a, _, b = query.split()
    return Graph(tuple(tuple(f.split(" is ")) for f in facts), person, (a, b), answer)


def read_deduction(question: str, answer: str) -> Deduction:
    *facts, query = question.removesuffix(" ?").split(" . ")
    rules = tuple(_rule(*f.split(" is ")) for f in facts)
    person, asked, negated = _rule(*query.removeprefix("claim ").split(" is "))
    return Deduction(rules, person, asked, negated, answer == "true")


def _rule(subject: str, said: str) -> tuple[str, str, bool]:
    return subject, said.removeprefix("not "), said.startswith("not ")


def read_prosqa(row: dict) -> Graph:
    told, person, a, b = re.fullmatch(r"(.*\.) Is (\w+) an? (\w+) or (\w+)\?", row["question"]).groups()
    edges = [re.fullmatch(r"(?:Every )?(\w+) is an? (\w+)", s.strip()).groups() for s in told.split(".") if s.strip()]
    return Graph(tuple(edges), person, (a, b), row["answer"].removesuffix(".").split()[-1])


def read_prontoqa(row: dict) -> Deduction:
    told, query = row["question"].split(" True or false: ")
    person, asked, negated = _prontoqa_rule(query)
    rules = tuple(_prontoqa_rule(s) for s in told.split(".") if s.strip())
    return Deduction(rules, person, asked, negated, row["answer"] == "True")


def _prontoqa_rule(sentence: str) -> tuple[str, str, bool]:
    words = [w.lower().removesuffix("es") if w.lower().endswith("puses") else w.lower() for w in sentence.strip(" .").split()]
    words = [w for w in words if w not in ("each", "every", "a", "an", "is", "are")]
    return words[0], words[-1], "not" in words


# ------------------------------------------------------------------------------------------------ graph: which option


def _one_that(graph: Graph, holds: Callable[[str], bool]) -> str | None:
    found = [option for option in graph.options if holds(option)]
    return found[0] if len(found) == 1 else None


def _least(graph: Graph, value: Callable[[str], float]) -> str | None:
    a, b = (value(option) for option in graph.options)
    return None if a == b else graph.options[a > b]


def _place(graph: Graph, option: str) -> int:
    return next(i for i, (_, child) in enumerate(graph.edges) if child == option)


def _of_person(graph: Graph) -> int:
    return next(i for i, (node, _) in enumerate(graph.edges) if node == graph.person)


GRAPH_RULES: dict[str, Callable[[Graph], str | None]] = {
    "fewer mentions": lambda g: _least(g, lambda x: len(g.parents(x))),
    "a parent within two hops of the root": lambda g: _one_that(g, lambda x: _any_near(g, g.parents(x))),
    "nobody else within two hops backwards": lambda g: _one_that(
        g, lambda x: not any(n in g.people() - {g.person} for n, d in g.distances(x, backwards=True).items() if d <= 2)
    ),
    "first option": lambda g: g.options[0],
    "named first in the facts": lambda g: _least(g, lambda x: _place(g, x)),
    "named nearest to the person": lambda g: _least(g, lambda x: abs(_place(g, x) - _of_person(g))),
    "parent named more often": lambda g: _least(g, lambda x: -_mentions(g, g.parents(x)[0])),
    "more brothers and sisters": lambda g: _least(g, lambda x: -sum(a in g.parents(x) for a, _ in g.edges)),
    "first in the alphabet": lambda g: _least(g, lambda x: sorted(g.options).index(x)),
    "fact before its parent's": lambda g: _one_that(g, lambda x: _place(g, x) < _place(g, g.parents(x)[0])),
    "options in the order of the people": lambda g: g.options[[a for a, _ in g.edges if a in g.people()].index(g.person) % 2],
}
# Rules that look a part of the way: where the chain is no longer than what they see they are the search itself.
LOOKING = {"a parent within two hops of the root": 3, "nobody else within two hops backwards": 2}


def _any_near(graph: Graph, nodes: Sequence[str]) -> bool:
    distance = graph.distances(graph.person)
    return any(distance.get(node, 99) <= 2 for node in nodes)


def _mentions(graph: Graph, node: str) -> int:
    return sum(node in edge for edge in graph.edges)


# ------------------------------------------------------------------------------------------- deduction: true or false


def _believe(d: Deduction, rules: Sequence[tuple[str, str, bool]]) -> bool | None:
    """The answer if these rules are the ones to believe; None where they contradict each other or there are none."""
    said = {negated for _, _, negated in rules}
    return (said == {d.claim_negated}) if len(said) == 1 else None


def _extreme(d: Deduction, value: Callable[[tuple[str, str, bool]], float]) -> bool | None:
    best = min(map(value, d.deciding()))
    return _believe(d, [rule for rule in d.deciding() if value(rule) == best])


def _nots(d: Deduction) -> int:
    return sum(negated for _, asked, negated in d.rules if asked != d.asked)


def _place_of(d: Deduction, person: str) -> int:
    return next(i for i, rule in enumerate(d.rules) if rule[0] == person)


DEDUCTION_RULES: dict[str, Callable[[Deduction], bool | None]] = {
    "subject mentioned elsewhere": lambda d: _believe(d, [rule for rule in d.deciding() if d.mentions(rule[0]) > 1]),
    "subject mentioned most": lambda d: _extreme(d, lambda rule: -d.mentions(rule[0])),
    "subject mentioned least": lambda d: _extreme(d, lambda rule: d.mentions(rule[0])),
    "always true": lambda d: True,
    "positive claims are true": lambda d: not d.claim_negated,
    "the first rule": lambda d: _believe(d, d.deciding()[:1]),
    "the last rule": lambda d: _believe(d, d.deciding()[-1:]),
    "the rule nearest to the person": lambda d: _extreme(d, lambda rule: abs(d.rules.index(rule) - _place_of(d, d.person))),
    "other rules are negative, so is this": lambda d: None if not _nots(d) else d.claim_negated,
    "subject first in the alphabet": lambda d: _extreme(d, lambda rule: sorted(r[0] for r in d.deciding()).index(rule[0])),
    "rules in the order of the people": lambda d: _believe(
        d, [d.deciding()[[a for a, _, _ in d.rules if a in d.graph().people()].index(d.person) % 2]]
    ),
    "subject within two steps of the person": lambda d: _believe(
        d, [rule for rule in d.deciding() if d.graph().distances(d.person).get(rule[0], 99) <= 2]
    ),
    "nobody else within two steps behind the subject": lambda d: _believe(
        d,
        [
            rule
            for rule in d.deciding()
            if not any(n in d.graph().people() - {d.person} for n, k in d.graph().distances(rule[0], True).items() if k <= 2)
        ],
    ),
}


def score(rule: Callable, problems: Sequence[Graph] | Sequence[Deduction]) -> float:
    """Accuracy of a rule; where it is undecided it counts one half."""
    guesses = [(rule(problem), problem.answer) for problem in problems]
    return sum(0.5 if guess is None else float(guess == answer) for guess, answer in guesses) / len(guesses)
