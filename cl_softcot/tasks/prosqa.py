"""ProsQA in its textual form (Coconut, arXiv 2412.06769, appendix): which of two concepts does somebody belong to?

``Every shumpus is a rempus. ... Is Davis a lempus or scrompus?`` The graphs are drawn as the paper's Algorithm 1 says, with
what it leaves open, or states otherwise, taken from the 800 published graphs: 28 nodes before lonely ones are dropped, 0.35 and
0.80 as limits of the two families, parents inside a family only, the target the deepest leaf of both families.

The published form can be guessed at without a search. What gives the answer away most is the distractor, which lies near
its own root. ``variant: hardened`` asks about two leaves that are equally often mentioned and both far from any root (see
`_hardened_pairs`); questions of three hops are left out of it, because there a look two hops far is the search itself.
"""

from __future__ import annotations

import math
import random
import re
from bisect import bisect
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Annotated, Any

from pydantic import Field

from cl_softcot.tasks._judging import AnswerKind, Stated
from cl_softcot.tasks._published import Published, PublishedSettings
from cl_softcot.tasks._sources import Row
from cl_softcot.tasks.base import SPLITS, Amount, Draft, Example, SearchGraph, TextLengths, between

ENTITIES = tuple("Alex Bob Carol Davis Eva Fae Gabriel Jack Max Oliver Polly Rex Sally Sam Stella Tom Wren".split())
CONCEPTS = tuple(
    "bompus boompus brimpus chorpus dumpus felpus fompus gerpus gorpus grimpus gwompus hilpus impus jelpus jompus kerpus "
    "lempus lorpus numpus quimpus rempus rompus rorpus scrompus shumpus sterpus storpus terpus timpus tumpus vumpus worpus "
    "wumpus yerpus yimpus yumpus zhorpus zumpus".split()
)

N_NODES = 28  # drawn; those with neither parents nor children are dropped
FAMILY_LIMITS = (0.35, 0.80)
# P(number of parents <= k), of a Poisson distribution with mean 1.5.
_PARENTS_CDF = tuple(accumulate(math.exp(-1.5) * 1.5**k / math.factorial(k) for k in range(N_NODES)))
# Of the 800 published questions; the hardened variant keeps to these shares among the hops that are asked for.
HOP_SHARES: Mapping[int, float] = {3: 0.4075, 4: 0.4375, 5: 0.13125, 6: 0.02375}
_HARDENED_HOPS = (4, 5, 6)
_NEITHER = 0  # labels are bit sets: 1 descends from node 0, 2 from node 1


class Settings(PublishedSettings):
    hops: Annotated[Amount, between(min(HOP_SHARES), max(HOP_SHARES))] | None = Field(
        None, description="length of the shortest path to the answer: 3 to 6, or a list (null: all; hardened: 4 to 6)"
    )


@dataclass(frozen=True)
class DrawnGraph:
    """A graph without names. Nodes are numbered as they arose: a parent is always before its children."""

    parents: tuple[tuple[int, ...], ...]  # of each node, in the order in which they were drawn
    root: int
    target: int
    neg_target: int

    @property
    def edges(self) -> list[list[int]]:
        return [[parent, child] for child, above in enumerate(self.parents) for parent in above]

    def a_shortest_path(self, rng: random.Random) -> list[int]:
        """From the root to the target; each of the shortest paths is equally likely."""
        hops, n_paths = {self.root: 0}, {self.root: 1}
        for node, above in enumerate(self.parents):  # parents come first, so one pass is enough
            reached = [p for p in above if p in hops]
            if reached and node != self.root:
                hops[node] = 1 + min(hops[p] for p in reached)
                n_paths[node] = sum(n_paths[p] for p in reached if hops[p] + 1 == hops[node])
        path = [self.target]
        while path[-1] != self.root:
            here = path[-1]
            nearer = [p for p in self.parents[here] if hops.get(p, N_NODES) + 1 == hops[here]]
            path += rng.choices(nearer, [n_paths[p] for p in nearer])
        return path[::-1]


class ProsQA(Published):
    family = "prosqa"
    typical_lengths = TextLengths(310, 34, 12, 4)
    knowledge = "skill"
    n_options = 2
    settings: Settings
    Settings = Settings
    file_names = {split: (f"prosqa_{split}.json",) for split in SPLITS}

    def __init__(self, settings: PublishedSettings, name: str):
        super().__init__(settings, name)
        hops = self.settings.hops
        asked = [hops] if isinstance(hops, int) else hops
        self._hops = frozenset(asked or (_HARDENED_HOPS if self.settings.variant == "hardened" else HOP_SHARES))

    # ------------------------------------------------------------------------------------------------- generated

    def draft(self, rng: random.Random, wanted: Callable[[str], bool]) -> Draft:
        pick = self._original if self.settings.variant == "original" else self._hardened
        problem = None
        while problem is None:
            problem = pick(rng)
        # Only the names decide about the split, so the graph can stay: a rare one need not be found again.
        while True:
            names = _names(problem, rng)
            root, *options = names[problem.root], names[problem.target], names[problem.neg_target]
            facts = [_fact(names, parent, child) for parent, child in problem.edges]
            key = _key(facts, root, *options)
            if wanted(key):
                break
        answer = _answer(root, options[0])
        rng.shuffle(facts)
        rng.shuffle(options)
        question = " ".join([*facts, f"Is {root} a {options[0]} or {options[1]}?"])
        path = problem.a_shortest_path(rng)
        steps = tuple(_fact(names, a, b) for a, b in zip(path, path[1:], strict=False))
        graph = {"edges": problem.edges, "names": names}
        graph |= {"root": problem.root, "target": problem.target, "neg_target": problem.neg_target}
        return Draft(question, steps, answer, key, _meta(steps, graph))

    def _original(self, rng: random.Random) -> DrawnGraph | None:
        graph = _Graph(rng)
        leaves = graph.leaves(0), graph.leaves(1)
        if not all(leaves):
            return None
        hops = max(d for family in leaves for d in family.values())
        if hops not in self._hops:
            return None
        root, target = rng.choice([(root, leaf) for root in (0, 1) for leaf, d in leaves[root].items() if d == hops])
        return graph.problem(root, target, rng.choice(list(leaves[1 - root])))

    def _hardened(self, rng: random.Random) -> DrawnGraph:
        (hops,) = rng.choices(sorted(self._hops), [HOP_SHARES[h] for h in sorted(self._hops)])
        while True:  # until a graph has such a pair: drawing the hops anew would favour those that are easily found
            graph = _Graph(rng)
            pairs = list(_hardened_pairs(graph, hops))
            if pairs:
                return graph.problem(*rng.choice(pairs))

    # ------------------------------------------------------------------------------------------------ from files

    def from_row(self, row: Row) -> Draft:
        question, answer, steps = row.text("question"), row.text("answer"), tuple(row.texts("steps"))
        graph = {new: row.take(old) for new, old in _GRAPH_FIELDS.items()}
        try:
            names = [graph["names"][graph[key]] for key in ("root", "target", "neg_target")]
            facts = [_fact(graph["names"], parent, child) for parent, child in graph["edges"]]
        except (TypeError, ValueError, IndexError, KeyError):
            raise row.wrong("the graph (idx_to_symbol, edges, root, target, neg_target) does not fit together") from None
        query = _QUERY.search(question)
        if not query or [query[1], *sorted(query.groups()[1:])] != [names[0], *sorted(names[1:])]:
            raise row.wrong("field 'question' should end in 'Is ROOT a X or Y?', X and Y being target and neg_target")
        if answer != _answer(*names[:2]):
            raise row.wrong(f"field 'answer' should be {_answer(*names[:2])!r} (got {answer!r})")
        return Draft(question, steps, answer, _key(facts, *names), _meta(steps, graph))

    def keeps(self, draft: Draft) -> bool:
        return draft.meta["hops"] in self._hops

    # ----------------------------------------------------------------------------------------------------- steps

    rewording = "`Every` becomes `Each`, and the other way round"

    def reword(self, steps: Sequence[str]) -> list[str]:
        return [re.sub(r"^(?:Every|Each)\b", lambda m: {"Every": "Each", "Each": "Every"}[m[0]], step) for step in steps]

    def graph_of(self, example: Example) -> SearchGraph:
        names = example.meta["names"]
        edges = tuple((names[a], names[b]) for a, b in example.meta["edges"])
        matches = [_STEP.match(step) for step in example.steps]
        stands = tuple((m[1] or "", m[2] or "") if m else ("", "") for m in matches)
        return SearchGraph(edges, names[example.meta["root"]], stands)

    # -------------------------------------------------------------------------------------------------- answers

    def answers(self, example: Example) -> AnswerKind:
        """``PERSON is a CONCEPT.``, by the option that the answer claims, or else its last concept; None for no concept, or both
        options.

        ``Davis is a lempus.``, ``a lempus`` and ``lempus, not a scrompus`` say the same.
        """
        names = example.meta["names"]
        root, *options = (names[example.meta[key]] for key in ("root", "target", "neg_target"))
        known = {*CONCEPTS, *names}
        about = re.compile(rf"\b{re.escape(root)}\b", re.I)
        # An unmarked line is about the question where it names who was asked about, or says a word or two.
        return Stated(
            lambda place: _answers(place, root, options, known), lambda line: len(line.split()) < 4 or bool(about.search(line))
        )


_GRAPH_FIELDS = {"edges": "edges", "names": "idx_to_symbol", "root": "root", "target": "target", "neg_target": "neg_target"}
_STEP = re.compile(r"(?:(Every) )?(\w+) is an? \w+")
_QUERY = re.compile(r"Is (\w+) an? (\w+) or (?:an? )?(\w+)\?\s*$")
_NEGATED = re.compile(r"\b(?:not|no|never|isn't|than)\s+(?:(?:a|an|the)\s+)?(\w+)", re.I)


def _answers(place: str, root: str, options: Sequence[str], concepts: Collection[str]) -> set[str]:
    """What a place says that somebody is: the options that it names without denying them, or else its last concept."""
    place = place.replace("’", "'")
    denied = {match.start(1) for match in _NEGATED.finditer(place)}
    words = [(m.start(), m[0]) for m in re.finditer(r"\w+", place)]
    claimed = [word.casefold() for at, word in words if word.casefold() in concepts and at not in denied]
    people = [word.capitalize() for _, word in words if word.capitalize() in (*ENTITIES, root)]
    person = people[-1] if people and root not in people else root
    return {_answer(person, concept) for concept in {*claimed} & {*options} or {*claimed[-1:]}}


def _answer(root: str, target: str) -> str:
    return f"{root} is a {target}."


def _fact(names: list[str], parent: int, child: int) -> str:
    subject = names[parent] if names[parent] in ENTITIES else f"Every {names[parent]}"
    return f"{subject} is a {names[child]}."


def _key(facts: Sequence[str], root: str, *options: str) -> str:
    """The same question, in whatever order its facts and options stand."""
    return "|".join([*sorted(facts), root, *sorted(options)])


def _meta(steps: Sequence[str], graph: Mapping[str, Any]) -> dict[str, Any]:
    return {"hops": len(steps), "n_nodes": len(graph["names"]), **graph}


def _names(problem: DrawnGraph, rng: random.Random) -> list[str]:
    """Nodes that nothing leads to are people."""
    people = rng.sample(ENTITIES, sum(not above for above in problem.parents))
    concepts = rng.sample(CONCEPTS, len(problem.parents) - len(people))
    return [concepts.pop() if above else people.pop() for above in problem.parents]


# ------------------------------------------------------------------------------------------------------- the graphs


class _Drawn:
    """Nodes to draw parents from. A node's weight never changes, so the running sums are kept."""

    def __init__(self) -> None:
        self.nodes: list[int] = []
        self.sums: list[float] = [0.0]

    def add(self, node: int, weight: float) -> None:
        self.nodes.append(node)
        self.sums.append(self.sums[-1] + weight)

    def draw(self, rng: random.Random, n: int) -> list[int]:
        """``n`` different nodes, or all there are, one after the other in proportion to the weights of those left."""
        nodes, sums = self.nodes, self.sums
        found: list[int] = []
        for _ in range(min(n, len(nodes))):
            node = nodes[bisect(sums, rng.random() * sums[-1]) - 1]
            while node in found:  # drawing again is drawing from those left
                node = nodes[bisect(sums, rng.random() * sums[-1]) - 1]
            found.append(node)
        return found


class _Graph:
    """Algorithm 1: nodes 0 and 1 found two families, further nodes join one, both or neither."""

    def __init__(self, rng: random.Random):
        everyone, families = _Drawn(), (_Drawn(), _Drawn())
        self.parents: list[list[int]] = [[], []]
        self.labels = [1, 2]
        self.is_parent = [False] * N_NODES
        depth = [0, 0]  # edges of the shortest path from any node without parents
        self.hops = [0, 0]  # and from the founder, for nodes that descend from one founder only
        for founder in (0, 1):
            everyone.add(founder, 1.0)
            families[founder].add(founder, 1.0)
        for node in range(2, N_NODES):
            n_parents, draw = bisect(_PARENTS_CDF, rng.random()), rng.random()
            first, second = FAMILY_LIMITS
            above = (families[0] if draw <= first else families[1] if draw <= second else everyone).draw(rng, n_parents)
            label, nearest, hops = _NEITHER, -1 if not above else N_NODES, N_NODES
            for parent in above:
                label |= self.labels[parent]
                nearest = min(nearest, depth[parent])
                hops = min(hops, self.hops[parent])
                self.is_parent[parent] = True
            self.parents.append(above)
            self.labels.append(label)
            depth.append(nearest + 1)
            self.hops.append(hops + 1)
            weight = 1.5 * depth[node] + 1
            everyone.add(node, weight)
            if label == 1 or label == 2:
                families[label - 1].add(node, weight)

    def leaves(self, founder: int) -> dict[int, int]:
        """Leaves that descend from one founder only: their shortest distance from it."""
        label = founder + 1
        return {n: self.hops[n] for n in range(2, N_NODES) if self.labels[n] == label and not self.is_parent[n]}

    def problem(self, root: int, target: int, neg_target: int) -> DrawnGraph:
        """Without the lonely nodes, numbered anew in the same order."""
        kept = [node for node in range(N_NODES) if self.parents[node] or self.is_parent[node]]
        new = {node: i for i, node in enumerate(kept)}
        parents = tuple(tuple(new[p] for p in self.parents[node]) for node in kept)
        return DrawnGraph(parents, new[root], new[target], new[neg_target])


def _hardened_pairs(graph: _Graph, hops: int) -> Iterator[tuple[int, int, int]]:
    """(root, target, neg_target) that shallow rules cannot tell apart.

    Both leaves are mentioned equally often. The target is ``hops`` away from its root, and the distractor as far from its own, or
    four hops where the target's distance is more (equal pairs are too rare). Where both are equally far, each is the target
    in one of two pairs, so that the same facts are as likely to be asked about the other root, with the other answer.
    """
    leaves = graph.leaves(0), graph.leaves(1)
    for root in (0, 1):
        for target, d in leaves[root].items():
            for neg_target, other in leaves[1 - root].items():
                if d == hops and min(hops, 4) <= other <= hops and len(graph.parents[target]) == len(graph.parents[neg_target]):
                    yield root, target, neg_target
