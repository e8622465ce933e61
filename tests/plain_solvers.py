"""Reads the generated questions as a person would, from their text alone: what they ask, the written steps and the answer.

Shares no code with the generators, so that the two can disagree.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

DAYS = "monday tuesday wednesday thursday friday saturday sunday".split()
World = Mapping[str, Mapping[str, str]]


class Solved(NamedTuple):
    steps: tuple[str, ...]
    answer: str


def noted(question: str) -> bool:
    """Whether a note opens the question (somebody is called note, too: "note has 19 books", "note is wumpus")."""
    opening = question.split()
    return opening[0] == "note" and opening[1] not in ("has", "is")


def sentences(question: str) -> list[str]:
    """The sentences of a question without its note; the last one asks."""
    found = question.removesuffix(" ?").split(" . ")
    return found[1:] if noted(question) else found


def chain(facts: list[str], start: str, goal: Callable[[str], bool]) -> list[str]:
    """The shortest chain of ``a is b`` facts from ``start`` to a fact whose end is the goal."""
    paths: list[tuple[str, list[str]]] = [(start, [])]
    for here, told in paths:
        for fact in facts:
            subject, _, end = fact.partition(" is ")
            if subject == here:
                if goal(end):
                    return [*told, fact]
                paths.append((end, [*told, fact]))
    raise AssertionError(f"nothing leads from {start} to the goal")


def graph(question: str, convention: str, world: World) -> Solved:
    *facts, query = sentences(question)
    _, person, first, either, second = query.split()
    assert either == "or"
    steps = chain(facts, person, lambda end: end in (first, second))
    reached = steps[-1].split()[-1]
    if convention == "by_name":
        return Solved(tuple(steps), reached)
    return Solved(tuple(steps), "first" if reached == first else "second")


def deduction(question: str, convention: str, world: World) -> Solved:
    *facts, query = sentences(question)
    claim = query.removeprefix("claim ")
    person, _, claimed = claim.partition(" is ")
    bare = claimed.removeprefix("not ")
    steps = chain(facts, person, lambda end: end in (bare, f"not {bare}"))
    conclusion = steps[-1].partition(" is ")[2]
    words = ("true", "false") if convention == "true_false" else ("yes", "no")
    return Solved((*steps, f"{person} is {conclusion}"), words[conclusion != claimed])


def arithmetic(question: str, convention: str, world: World) -> Solved:
    start, *events, query = sentences(question)
    person, has, number, goods = start.split()
    assert has == "has" and query == f"how many {goods}"
    value, steps = int(number), []
    for event in events:
        if event == "doubles":
            left, value = f"{value} * 2", value * 2
        else:
            kind, x = event.split()
            fee = int(convention == "fee" and kind in ("buys", "sells"))
            sign = {"buys": "+", "finds": "+", "sells": "-", "loses": "-"}[kind]
            left = f"{value} {sign} {x}" + " - 1" * fee
            value += (int(x) if sign == "+" else -int(x)) - fee
        steps.append(f"{left} = {value}")
    return Solved(tuple(steps), str(value))


def dates(question: str, convention: str, world: World) -> Solved:
    start, *events, query = sentences(question)
    assert query == "which day"
    day, steps = start.removeprefix("today is "), []
    for event in events:
        kind, x = event.split()
        days = int(x) - (convention == "from_today")
        then = DAYS[(DAYS.index(day) + (days if kind == "wait" else -days)) % 7]
        steps.append(f"{day} {'+' if kind == 'wait' else '-'} {days} = {then}")
        day = then
    return Solved(tuple(steps), day)


def lists(question: str, convention: str, world: World) -> Solved:
    start, *events, query = sentences(question)
    items, steps = start.removeprefix("list ").split(), []
    for event in events:
        if event == "reverse":
            items = list(reversed(items))
        elif event == "rotate":
            items.append(items.pop(0))
        elif event == "swap":
            items[0], items[-1] = items[-1], items[0]
        else:
            assert event == "drop"
            del items[0]
        steps.append(f"{event} {' '.join(items)}")
    place = int(query.removeprefix("item "))
    item = items[place - (convention == "from_one")]
    assert place - (convention == "from_one") >= 0
    return Solved((*steps, f"item {place} is {item}"), item)


def tracking(question: str, convention: str, world: World) -> Solved:
    *told, query = sentences(question)
    holds = dict(s.split(" has ") for s in told if " has " in s)
    swaps = [s.split()[1:] for s in told if s.startswith("swap ") and " has " not in s]
    assert [int(number) for number, _, _ in swaps] == list(range(1, len(swaps) + 1))
    steps = []
    for number, a, b in swaps if convention == "oldest_first" else reversed(swaps):
        before = f"{number} {a} has {holds[a]} {b} has {holds[b]} :"
        holds[a], holds[b] = holds[b], holds[a]
        rest = "".join(f" {person} has {holds[person]}" for person in holds if person not in (a, b))
        steps.append(f"{before} {b} gets {holds[b]} {a} gets {holds[a]}{rest}")
    asked = query.removeprefix("what has ")
    return Solved((*steps, f"{asked} has {holds[asked]}"), holds[asked])


def facts(question: str, convention: str, world: World) -> Solved:
    (query,) = sentences(question)
    *path, person = query.split(" of ")
    if convention == "about_friend":
        path.append("friend")
    steps, here = [], person
    for attribute in reversed(path):
        steps.append(f"{attribute} of {here} is {world[here][attribute]}")
        here = world[here][attribute]
    return Solved(tuple(steps), here)


SOLVERS: dict[str, Callable[[str, str, World], Solved]] = {
    f.__name__: f for f in (graph, deduction, arithmetic, dates, lists, tracking, facts)
}


def family_of(question: str) -> str:
    """Which family asks so."""
    told = sentences(question)
    if len(told) == 1:
        return "facts"
    opening = {"claim": "deduction", "how": "arithmetic", "which": "dates", "item": "lists", "what": "tracking", "is": "graph"}
    return opening[told[-1].split()[0]]


def meaning(question: str) -> str:
    """What a question asks, whatever the order in which its facts are told, its options named, its swap partners listed."""
    *told, query = sentences(question)
    family = family_of(question)
    if family == "graph":
        _, person, a, _, b = query.split()
        query = f"is {person} {' or '.join(sorted((a, b)))}"
    if family in ("graph", "deduction"):
        told = sorted(told)
    if family == "tracking":
        holdings = sorted(s for s in told if " has " in s)
        swaps = [s.split() for s in told if " has " not in s]
        told = [*holdings, *(" ".join([*s[:2], *sorted(s[2:])]) for s in swaps)]
    return " . ".join([*told, query])
