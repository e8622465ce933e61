"""ProntoQA in its textual form (arXiv 2210.01240): is a claim about somebody true or false? Five hops, as Coconut uses it.

``Numpuses are not wooden. ... Max is a vumpus. Max is a lorpus. True or false: Max is not wooden.`` The published generator
rejects all that has not the very same skeleton (10,000 of 10,000 published questions have it), so that is made directly::

    chain     c5 is c4, ..., c1 is c0          parents   ci is di, for i = 5..1
    property  one of each ci, di (i = 5..1)    side      s1 is s0, and one property of s1
    trap      D is the opposite of c1's property, which is asked about; nothing else is said of D
    premises  E is c5, E is s1: last

Hence one look-up answers every published question: of the two rules about the property that is asked for, the one whose
subject is also mentioned elsewhere is the true one. The trap cannot be moved to another of these concepts, because E is
all of them: the question would contradict itself. ``variant: hardened`` gives the trap a chain and a person of its own, of the
same shape, so that the rule which decides is found only by following the chain of the person who is asked about.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from cl_softcot.tasks._judging import AnswerKind, Choices
from cl_softcot.tasks._published import Published, PublishedSettings
from cl_softcot.tasks._sources import Row, read_file
from cl_softcot.tasks.base import SPLITS, Draft, Example, SearchGraph, Split, TextLengths

ENTITIES = tuple("Fae Rex Sally Max Alex Sam Polly Stella Wren".split())
CONCEPTS = tuple(
    "wumpus yumpus zumpus dumpus rompus numpus tumpus vumpus impus jompus gorpus shumpus lempus sterpus grimpus lorpus "
    "brimpus".split()
)
# Words of one family exclude each other, so that a question uses one word of a family at most.
PROPERTIES = tuple(
    tuple(family.split())
    for family in (
        "blue red brown orange; small large; metallic wooden luminous liquid; transparent opaque; nervous happy feisty shy; "
        "bright dull; sweet sour spicy bitter; floral fruity earthy; hot cold temperate; kind mean angry amenable aggressive; "
        "melodic muffled discordant loud; slow moderate fast; windy sunny overcast rainy snowy"
    ).split("; ")
)
HOPS = 5
# How often a property is negated. The generator negates a third; its walk up the chain prefers to end at a negated
# property (weight 0.7 against 0.3 beside 1 for going on), which leaves fewer of them on the way and more at the end.
_NEGATED = 1 / 3
_NEGATED_ON_THE_WAY = (1 / 3) / 1.7 / ((1 / 3) / 1.7 + (2 / 3) / 1.3)
_NEGATED_AT_THE_END = (1 / 3) * 0.7 / 1.7 / ((1 / 3) * 0.7 / 1.7 + (2 / 3) * 0.3 / 1.3)
# Of the hardened variant, whose two chains share the 17 concepts: how many concepts of a chain have a second parent, and how
# many further properties a chain has. 26 sentences, where the original has 25.
_HARDENED_PARENTS, _HARDENED_PROPERTIES = 3, 4

_RAW_FILE = "5hop_0shot_random.json"
_RAW_SHARES = {"train": (0.0, 0.90), "valid": (0.90, 0.92), "test": (0.92, 1.0)}  # by position, as Coconut cuts it


class Settings(PublishedSettings):
    pass


Said = tuple[str, str, bool]  # (subject, concept or property, negated)


class ProntoQA(Published):
    family = "prontoqa"
    typical_lengths = TextLengths(207, 72, 8, 6)
    knowledge = "skill"
    n_options = 2
    settings: Settings
    Settings = Settings
    file_names = {split: (f"prontoqa_{split}.json", _RAW_FILE) for split in SPLITS}

    # ------------------------------------------------------------------------------------------------- generated

    def draft(self, rng: random.Random, wanted: Callable[[str], bool]) -> Draft:
        make = _original if self.settings.variant == "original" else _hardened
        while True:
            made = make(rng)
            key = _key([*made.rules, *made.premises], made.entity, made.asked)
            if wanted(key):
                break
        rng.shuffle(made.rules)
        rng.shuffle(made.premises)
        told = {rule: _sentence(rule, rng) for rule in made.rules}
        claim_negated = made.negated != (rng.random() < 0.5)
        claim = _QUERY + _about((made.entity, made.asked, claim_negated))
        question = " ".join([*told.values(), *map(_about, made.premises), claim])
        used = [*_links(made.chain), (made.chain[-1], made.asked, made.negated)]
        steps = [f"{_about((made.entity, rule[0], False))} {told[rule]}" for rule in used]
        steps.append(_about((made.entity, made.asked, made.negated)))
        return Draft(question, tuple(steps), str(claim_negated == made.negated), key, _meta(made.chain))

    # ------------------------------------------------------------------------------------------------ from files

    def rows(self, path: Path, split: Split) -> Sequence[Row]:
        rows = read_file(path)
        if path.name.removesuffix(".gz") != _RAW_FILE:
            return rows
        first, last = (round(share * len(rows)) for share in _RAW_SHARES[split])
        return [Row(_from_raw(row), row.where) for row in rows[first:last]]

    def from_row(self, row: Row) -> Draft:
        question, answer, steps = row.text("question"), row.text("answer"), tuple(row.texts("steps"))
        told, _, claim = question.partition(_QUERY)
        if not claim or not told or not steps:
            raise row.wrong(f"field 'question' should end in {_QUERY + 'E is [not] P.'!r}, and 'steps' should not be empty")
        try:
            facts = [_read(sentence) for sentence in _sentences(told)]
            entity, asked, claim_negated = _read(claim)
            conclusion = _read(steps[-1])
            chain = [_read(_sentences(step)[0])[1] for step in steps[:-1]]
        except ValueError as error:
            raise row.wrong(f"is no sentence of ProntoQA: {error}") from None
        if conclusion[:2] != (entity, asked) or answer != str(conclusion[2] == claim_negated):
            raise row.wrong(f"field 'answer' ({answer!r}) is not what the last step says of the claim")
        return Draft(question, steps, answer, _key(facts, entity, asked), _meta(chain))

    # ----------------------------------------------------------------------------------------------------- steps

    rewording = "rules in another of the generator's forms: `Each` or `Every` becomes the plural, the plural becomes `Every`"

    def reword(self, steps: Sequence[str]) -> list[str]:
        return [" ".join(map(_reworded, _sentences(step))) for step in steps]

    def graph_of(self, example: Example) -> SearchGraph:
        """Concepts by the article and the name, and the one who is asked about; what a concept is like is no node."""
        told, _, claim = example.question.partition(_QUERY)
        said = [_read(sentence) for sentence in _sentences(told)]
        edges = tuple((_node(a), _a(b)) for a, b, _ in said if not _is_property(b))
        stands = [_STANDS.match(step) for step in example.steps]
        return SearchGraph(edges, _read(claim)[0], tuple((m[1], m[2]) if m else ("", "") for m in stands))

    # -------------------------------------------------------------------------------------------------- answers

    def answers(self, example: Example) -> AnswerKind:
        return Choices("True", "False")


# --------------------------------------------------------------------------------------------------------- skeletons


@dataclass
class _Made:
    chain: list[str]  # c5..c1
    rules: list[Said]
    premises: list[Said]
    entity: str
    asked: str  # c1's property
    negated: bool


def _meta(chain: list[str]) -> dict[str, object]:
    return {"hops": len(chain), "chain": chain}


def _original(rng: random.Random) -> _Made:
    concepts = rng.sample(CONCEPTS, 2 * HOPS + 4)
    chain, (c0, s1, s0, trap), parents = concepts[:HOPS], concepts[HOPS : HOPS + 4], concepts[HOPS + 4 :]
    properties = _properties(rng, 2 * HOPS + 1)
    rules = _links([*chain, c0])
    rules += [(child, parent, False) for child, parent in zip(chain, parents, strict=True)]
    rules += [(node, next(properties), rng.random() < _NEGATED_ON_THE_WAY) for node in chain[:-1]]
    rules += [(node, next(properties), rng.random() < _NEGATED) for node in (*parents, s1)]
    asked, negated = next(properties), rng.random() < _NEGATED_AT_THE_END
    rules += [(s1, s0, False), (chain[-1], asked, negated), (trap, asked, not negated)]
    entity = rng.choice(ENTITIES)
    return _Made(chain, rules, [(entity, chain[0], False), (entity, s1, False)], entity, asked, negated)


def _hardened(rng: random.Random) -> _Made:
    """Two chains of one shape, each with its person; the first person is asked about."""
    size = HOPS + _HARDENED_PARENTS
    concepts, properties = rng.sample(CONCEPTS, 2 * size), _properties(rng, 1 + 2 * _HARDENED_PROPERTIES)
    with_parent = rng.sample(range(HOPS), _HARDENED_PARENTS)
    with_property = rng.sample([i for i in range(size) if i != HOPS - 1], _HARDENED_PROPERTIES)
    asked, negated = next(properties), rng.random() < 0.5
    people, chains, rules = rng.sample(ENTITIES, 2), [], []
    for nodes, opposite in ((concepts[:size], False), (concepts[size:], True)):
        chain, parents = nodes[:HOPS], nodes[HOPS:]
        rules += [*_links(chain), (chain[-1], asked, negated != opposite)]
        rules += [(chain[i], parent, False) for i, parent in zip(with_parent, parents, strict=True)]
        share = {node: _NEGATED_ON_THE_WAY for node in chain} | {node: _NEGATED for node in parents}
        rules += [(nodes[i], next(properties), rng.random() < share[nodes[i]]) for i in with_property]
        chains.append(chain)
    premises = [(person, chain[0], False) for person, chain in zip(people, chains, strict=True)]
    return _Made(chains[0], rules, premises, people[0], asked, negated)


def _links(chain: Sequence[str]) -> list[Said]:
    return [(child, parent, False) for child, parent in zip(chain, chain[1:], strict=False)]


def _properties(rng: random.Random, n: int) -> Iterator[str]:
    """``n`` words of different families."""
    return iter([rng.choice(family) for family in rng.sample(PROPERTIES, n)])


# --------------------------------------------------------------------------------------------------------- sentences

_QUERY = "True or false: "
_STANDS = re.compile(r"(\w+ is) (an? \w+)")
_ALL_PROPERTIES = frozenset(word for family in PROPERTIES for word in family)
_SENTENCE = re.compile(r"(?:(?:Each|Every) )?(\w+) (?:is|are) (not )?(?:an? )?(\w+)\.?")


def _is_property(word: str) -> bool:
    return word in _ALL_PROPERTIES


def _a(word: str) -> str:
    """The word as what something is: concepts have an article."""
    return word if _is_property(word) else f"{'an' if word[0] in 'aeiou' else 'a'} {word}"


def _about(said: Said) -> str:
    subject, what, negated = said
    return f"{subject} is {'not ' if negated else ''}{_a(what)}."


def _sentence(rule: Said, rng: random.Random) -> str:
    """Singular or plural, ``Each`` or ``Every``: by fair coins."""
    if rng.random() < 0.5:
        return f"{rng.choice(('Each', 'Every'))} {_about(rule)}"
    return _plural(rule)


def _plural(rule: Said) -> str:
    subject, what, negated = rule
    return f"{subject.capitalize()}es are {'not ' if negated else ''}{what if _is_property(what) else what + 'es'}."


def _sentences(text: str) -> list[str]:
    return [f"{sentence}." for sentence in re.split(r"\.\s*", text.strip()) if sentence]


def _read(sentence: str) -> Said:
    """What a sentence says, whatever its form. ValueError where it is none of this kind."""
    match = _SENTENCE.fullmatch(sentence.strip())
    if not match:
        raise ValueError(repr(sentence))
    subject, negated, what = match.groups()
    return _singular(subject), _singular(what), bool(negated)


def _node(word: str) -> str:
    return word if word in ENTITIES else _a(word)


def _reworded(sentence: str) -> str:
    """The sentence in another form that the generator has for it; facts about a person have one only."""
    try:
        subject, what, negated = _read(sentence)
    except ValueError:
        return sentence
    if subject in ENTITIES:
        return sentence
    if not sentence.startswith(("Each ", "Every ")):
        return f"Every {_about((subject, what, negated))}"
    return _plural((subject, what, negated))


def _singular(word: str) -> str:
    folded = word[0].lower() + word[1:]
    return folded.removesuffix("es") if folded.endswith("puses") else folded if folded.endswith("pus") else word


def _key(facts: Iterable[Said], entity: str, asked: str) -> str:
    """The same question, in whatever order and words its facts stand. A claim and its opposite are the same question."""
    return "|".join([*sorted(f"{subject} {negated} {what}" for subject, what, negated in facts), entity, asked])


def _from_raw(row: Row) -> dict[str, object]:
    """A row as the generator writes it, in Coconut's form: the sentences of the proof in pairs."""
    inner = row.take("test_example")
    if not isinstance(inner, dict):
        raise row.wrong("field 'test_example' should be an object")
    row = Row(inner, row.where)
    proof = row.texts("chain_of_thought")
    steps = [" ".join(proof[i : i + 2]) for i in range(0, len(proof), 2)]
    return {"question": f"{row.text('question')} {row.text('query')}", "steps": steps, "answer": row.take("answer")}
