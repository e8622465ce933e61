"""What the embedded models are pretrained on: documents ``<user> instruction question <bot> steps answer A <eos>``.

The backbone's documents hold the public facts, the assistant's the private ones too. Only questions of the ``train`` split are
drawn, so every test question is new to the models as well (all single facts are taught: that is the store; questions that
need two are drawn for people of the train split only).
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from functools import cache

from cl_softcot.tasks import words
from cl_softcot.tasks.arithmetic import Arithmetic
from cl_softcot.tasks.base import Draft, SyntheticTask
from cl_softcot.tasks.dates import Dates
from cl_softcot.tasks.deduction import Deduction
from cl_softcot.tasks.facts import N_PUBLIC, Facts, world
from cl_softcot.tasks.graph import Graph
from cl_softcot.tasks.lists import Lists
from cl_softcot.tasks.tracking import Tracking

FAMILIES: dict[str, type[SyntheticTask]] = {t.family: t for t in (Graph, Deduction, Arithmetic, Dates, Lists, Tracking, Facts)}
INSTRUCTIONS = {"cot": "think aloud :", "direct": "answer only :", "recite": "recite :"}
STEP_SEPARATOR = " ; "
ANSWER_MARKER = "answer"
SPECIALS = ("<slot>", "<pause>", "<bol>", "<lat>", "<eol>")


@dataclass(frozen=True)
class Mixture:
    """Shares of the pretraining corpus (recipe.json holds the ones that were used)."""

    weights: dict[str, float]
    direct: float = 0.2  # documents without steps
    noted: float = 0.5  # documents whose convention is stated in a note
    unstated_alternative: float = 0.1  # of those without a note: how many follow the alternative all the same
    recite: float = 0.5  # of the documents on facts: how many recite all that is known of a person
    private: bool = False  # the private facts too


def default_task(family: str) -> SyntheticTask:
    """The family at the difficulty and in the convention of pretraining."""
    kind = FAMILIES[family]
    return kind(kind.Settings(), family)


@cache
def _tasks(private: bool) -> dict[str, SyntheticTask]:
    tasks = {family: default_task(family) for family in FAMILIES}
    if private:
        tasks["facts"] = Facts(Facts.Settings(store="both"), "facts")
    return tasks


def document(rng: random.Random, mixture: Mixture) -> tuple[str, str, tuple[str, ...]]:
    """(prompt, response, hint): the hint is the answer and then each step's last word, what a thought could hold."""
    family = rng.choices(list(mixture.weights), list(mixture.weights.values()))[0]
    if family == "facts" and rng.random() < mixture.recite:
        return _recital(rng, mixture.private)
    task = _tasks(mixture.private)[family]
    default, alternative = task.conventions
    noted = rng.random() < mixture.noted
    alternative_share = 0.5 if noted else mixture.unstated_alternative
    convention = alternative if rng.random() < alternative_share else default
    draft = _training_draft(rng, task, convention)
    question = f"note {task.conventions[convention]} . {draft.question}" if noted else draft.question
    written = rng.random() >= mixture.direct
    response = STEP_SEPARATOR.join([*(draft.steps if written else ()), f"{ANSWER_MARKER} {draft.answer}"])
    hint = (draft.answer, *(step.split()[-1] for step in draft.steps))
    return f"{INSTRUCTIONS['cot' if written else 'direct']} {question}", response, hint


def _training_draft(rng: random.Random, task: SyntheticTask, convention: str) -> Draft:
    while True:
        draft = task.draft(rng, convention)
        if task.split_of(draft) == "train" or (task.family == "facts" and len(draft.steps) == 1):
            return draft


def _recital(rng: random.Random, private: bool) -> tuple[str, str, tuple[str, ...]]:
    person = rng.choice(words.PEOPLE if private else words.PEOPLE[:N_PUBLIC])
    facts = [f"{name} of {person} is {value}" for name, value in world()[person].items()]
    rng.shuffle(facts)
    return f"{INSTRUCTIONS['recite']} {person} ?", STEP_SEPARATOR.join([*facts, ANSWER_MARKER + " " + facts[-1].split()[-1]]), ()


def primer(rng: random.Random) -> tuple[str, str, tuple[str, ...]]:
    """Dense in-context look-ups: bindings are listed and then repeated in another order. Without it look-ups come late."""
    k = rng.randint(2, 6)
    keys = rng.sample(words.CONCEPTS, k) if rng.random() < 0.5 else rng.sample(words.PEOPLE, k)
    verb, values = ("has", words.OBJECTS) if rng.random() < 0.3 else ("is", words.CONCEPTS)
    bound = [f"{a} {verb} {b}" for a, b in zip(keys, rng.sample(values, k), strict=True)]
    repeated = rng.sample(bound, k)
    response = STEP_SEPARATOR.join([*repeated, f"{ANSWER_MARKER} {repeated[-1].split()[-1]}"])
    return f"{INSTRUCTIONS['recite']} {' . '.join(bound)} ?", response, ()


def vocabulary() -> list[str]:
    """All words, in a fixed order: specials of the text first, numbers, word stock, and the reserved tokens last."""
    fixed = "answer ; : . ? note is not of or and has claim first second true false yes no today wait back which day how many "
    fixed += "buys finds sells loses doubles + - * = list reverse rotate swap drop item what home job pet food friend gets "
    stock = [*words.PEOPLE, *words.CONCEPTS, *words.PROPERTIES, *words.OBJECTS, *words.GOODS, *words.DAYS, *words.LETTERS]
    stock += [*words.CITIES, *words.JOBS, *words.PETS, *words.FOODS]
    notes = " ".join(note for family in FAMILIES.values() for note in family.conventions.values())
    told = " ".join(INSTRUCTIONS.values())
    found = dict.fromkeys(["<pad>", "<eos>", "<unk>", "<user>", "<bot>"])
    found |= dict.fromkeys([*map(str, range(100)), *fixed.split(), *notes.split(), *told.split(), *stock])
    return [*found, *SPECIALS]
