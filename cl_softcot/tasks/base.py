"""What every task is: examples of a split, and a judge that tells right, wrong and unanswered apart."""

from __future__ import annotations

import hashlib
import random
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from cl_softcot.errors import UserError, did_you_mean
from cl_softcot.tasks._judging import AnswerKind, Words, answer_of

Split = Literal["train", "valid", "test"]
SPLITS: tuple[Split, ...] = ("train", "valid", "test")
Outcome = Literal["right", "wrong", "unanswered"]


@dataclass(frozen=True)
class Example:
    """One question with its written steps and its answer; ``meta`` holds what results are broken down by (hops, ...)."""

    id: str
    task: str
    question: str
    steps: tuple[str, ...]
    answer: str
    meta: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Verdict:
    """How one written answer is judged. ``extracted`` is the answer that was read out of the text, if there was one."""

    outcome: Outcome
    extracted: str | None


@dataclass(frozen=True)
class SearchGraph:
    """The directed graph that a question describes, for tasks whose steps walk through one.

    Attributes:
        edges: (from, to), by the nodes' names as they stand in a step.
        root: where the walk begins.
        stands: for each written step the words before the node at which it stands, and that node.
    """

    edges: tuple[tuple[str, str], ...]
    root: str
    stands: tuple[tuple[str, str], ...]

    @property
    def candidates(self) -> list[str]:
        """The nodes that an edge leads to, sorted."""
        return sorted({child for _, child in self.edges})

    def depths(self) -> dict[str, int]:
        """Edges on the shortest path from the root, of each node that is reachable."""
        children: dict[str, list[str]] = {}
        for parent, child in self.edges:
            children.setdefault(parent, []).append(child)
        depths, layer = {self.root: 0}, [self.root]
        while layer:
            found = [child for parent in layer for child in children.get(parent, ())]
            layer = [child for child in dict.fromkeys(found) if child not in depths]
            depths.update({child: 1 + max(depths.values()) for child in layer})
        return depths


@dataclass(frozen=True)
class TextLengths:
    """Mean lengths in tokens: of a prompt with its instruction, of all written steps, and of the last line with the answer."""

    prompt: int
    steps: int
    answer: int
    step_count: int = 4


class TaskSettings(BaseModel):
    """Settings of a task; unknown keys are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    def is_here(self) -> bool:
        """Whether the data that they name need no network."""
        return True


class Task(ABC):
    """A source of examples. Subclasses set ``family`` and implement ``examples``; the judge compares words."""

    Settings: ClassVar[type[TaskSettings]] = TaskSettings
    family: str  # of the class, or of what its settings choose
    # How ``reword`` says the same in other words; None: its language has no second way to say anything.
    rewording: ClassVar[str | None] = None
    # Which splits there are. A benchmark that is for evaluation only has no "train", and cannot be in a stream.
    splits: ClassVar[tuple[Split, ...]] = SPLITS
    # What an answer needs that stands in no question: "facts" that the model has to know, or only a "skill"; None: not said.
    knowledge: ClassVar[Literal["facts", "skill"] | None] = None
    # Keys of ``meta`` by whose values accuracies are broken down too; examples without a key do not count there.
    breaks_down_by: ClassVar[tuple[str, ...]] = ("hops",)
    # Lengths of its texts without a prompt's instruction, where its data may not be at hand; None: a few examples are made and
    # measured. Ours: characters of the published files over 4.2 for prose and 3 for numbers and made-up words.
    typical_lengths: ClassVar[TextLengths | None] = None
    # How many answers a guess chooses from; None: open answers, which nobody guesses.
    n_options: int | None = None

    def __init__(self, settings: TaskSettings, name: str):
        self.settings = settings
        self.name = name

    @abstractmethod
    def examples(self, split: Split, n: int, seed: int) -> list[Example]:
        """``n`` different examples of a split, the same for the same seed. UserError where there are not that many."""

    def count(self, split: Split) -> int | None:
        """How many different examples a split has; None where they are generated and nobody has counted them."""
        return None

    def at_hand(self) -> bool:
        """Whether examples can be had now, without a network."""
        return True

    def about(self) -> str | None:
        """One line on what became of the rows that its data hold, and which revision of them it is; None: nothing to say."""
        return None

    def why_not(self, split: Split) -> str:
        """The reason why a split is not offered."""
        return "it is for evaluation only"

    def reword(self, steps: Sequence[str]) -> list[str]:
        """Written steps in other words of the same meaning, by the rule of ``rewording``; what it does not fit stays as it is."""
        return list(steps)

    def graph_of(self, example: Example) -> SearchGraph | None:
        """The graph that an example's steps walk through; None where the task is no such search."""
        return None

    def n_options_of(self, example: Example) -> int | None:
        """``n_options`` of one example, where examples differ: those that carry their options say so themselves."""
        options = example.meta.get("options")
        return len(options) if options else self.n_options

    def judge(self, example: Example, text: str) -> Verdict:
        """Compares the words after the last answer marker with the gold answer; case and spacing do not count."""
        extracted = answer_of(text)
        if extracted is None:
            return Verdict("unanswered", None)
        right = extracted.casefold().split() == example.answer.casefold().split()
        return Verdict("right" if right else "wrong", extracted)

    def judge_flexibly(self, example: Example, text: str) -> Verdict:
        """The second reading: what a person would take for the answer, whatever its format.

        A task that judges in a way of its own has only that, unless it says more.
        """
        verdict = self.judge(example, text)
        if verdict.outcome == "right" or type(self).judge is not Task.judge:
            return verdict
        words = Words(example.answer)
        extracted = words.flexible(text)
        if extracted is not None and verdict.extracted is not None and Words(extracted).same(verdict.extracted):
            return verdict
        return Verdict("unanswered" if extracted is None else "right" if words.same(extracted) else "wrong", extracted)


# ------------------------------------------------------------------------------------------------------- benchmarks


class Benchmark(Task):
    """A closed set of examples, and a judge that reads the answer's kind (a number, an option, yes or no) from free text.

    Subclasses implement ``load`` (called once a split, never while the task is made) with ``make``, and ``answers`` or ``read``.
    ``meta["accept"]`` of an example lists further answers that are as right as its ``answer``.
    """

    def __init__(self, settings: Any, name: str):
        super().__init__(settings, name)
        self._loaded: dict[str, tuple[Example, ...]] = {}

    def require_known(self, setting: str, value: str, known: Sequence[str]) -> None:
        """UserError where a part of the data set is asked for that it does not have."""
        if value not in known:
            raise UserError(f"task {self.name!r}: unknown {setting} {value!r}{did_you_mean(value, known)}")

    @abstractmethod
    def load(self, split: Split) -> Iterable[Example]:
        """Every example of one of ``splits``, in a fixed order."""

    def answers(self, example: Example) -> AnswerKind:
        """What the answers to an example are, and how each reading finds one in a text. Not needed by who overrides ``read``."""
        raise NotImplementedError(f"{type(self).__name__} says neither `answers` nor `read`")

    def read(self, example: Example, text: str) -> str | None:
        """The one answer that a text states, written as answers to this example are; None where there is no such thing."""
        return self.answers(example).strict(text)

    def read_flexibly(self, example: Example, text: str) -> str | None:
        """The one answer that a person would take a text to give; None where there is no such thing."""
        if type(self).answers is Benchmark.answers:
            return self.read(example, text)
        return self.answers(example).flexible(text)

    def make(
        self,
        split: Split,
        key: object,
        question: str,
        steps: Iterable[str],
        answer: str,
        *,
        where: str,
        field: str = "answer",
        hops: int | None = None,
        **meta: Any,
    ) -> Example:
        """One example, checked: an answer that the judge cannot read could never be given.

        Args:
            key: what names the row in its split.
            where: place of the row, and ``field`` the name of its answer, for what has to be said about them.
            hops: how many steps the answer takes, where that is known.

        Raises:
            UserError: if ``### answer`` is not readable as an answer.
        """
        meta = {"family": self.family, **({} if hops is None else {"hops": hops}), **meta}
        one_line_each = tuple(" ".join(step.split()) for step in steps)
        example = Example(f"{self.name}/{split}/{key}", self.name, question, one_line_each, answer, meta)
        if None in self._golds(example):
            raise UserError(
                f"task {self.name!r}: the judge cannot read the gold answer {answer!r} in field {field!r}, so nothing is right",
                where=where,
                fix="correct that field, or leave the row out",
            )
        return example

    def at_hand(self) -> bool:
        return self.settings.is_here()

    def all(self, split: Split) -> tuple[Example, ...]:
        """Every example of a split; read once. UserError where the split is not offered or its rows cannot be used."""
        if split not in self.splits:
            offered = " and ".join(self.splits)
            fix = f"it has {offered} examples: list it under `evaluate.retention_tasks`, not under `tasks`"
            raise UserError(f"task {self.name!r} has no {split} examples: {self.why_not(split)}", fix=fix)
        if split not in self._loaded:
            self._loaded[split] = tuple(self.load(split))
        return self._loaded[split]

    def count(self, split: Split) -> int | None:
        return len(self.all(split)) if split in self.splits else 0

    def examples(self, split: Split, n: int, seed: int) -> list[Example]:
        rows = self.all(split)
        if n > len(rows):
            raise UserError(
                f"task {self.name!r} has {len(rows)} {split} examples, {n} are asked for",
                fix="ask for fewer (train.examples, evaluate.test, evaluate.retention, evaluate.drift)",
            )
        order = list(range(len(rows)))
        random.Random(f"{type(self).__name__}|{split}|{seed}").shuffle(order)  # not the label: it names the same data
        return [rows[i] for i in order[:n]]

    def judge(self, example: Example, text: str) -> Verdict:
        """Right if what ``read`` finds is what it finds in a gold answer that is written behind ``###``."""
        return self._verdict(example, self.read(example, text))

    def judge_flexibly(self, example: Example, text: str) -> Verdict:
        return self._verdict(example, self.read_flexibly(example, text))

    def _verdict(self, example: Example, extracted: str | None) -> Verdict:
        if extracted is None:
            return Verdict("unanswered", None)
        return Verdict("right" if extracted in self._golds(example) else "wrong", extracted)

    def _golds(self, example: Example) -> set[str | None]:
        return {self.read(example, f"### {gold}") for gold in (example.answer, *example.meta.get("accept", ()))}


# --------------------------------------------------------------------------------------------------- synthetic tasks


def premises_reversed(steps: Sequence[str]) -> list[str]:
    """Steps that are facts by themselves, all but the last in the opposite order."""
    return [*reversed(steps[:-1]), *steps[-1:]]


def facts_graph(question: str, steps: Sequence[str], asked: str, nodes: Collection[str]) -> SearchGraph:
    """The graph of a question whose facts ``a is b`` are parted by `` . ``; ``asked``: who is asked about.

    Args:
        nodes: words that can be what somebody or something is; other facts are no edges.
    """
    facts = [fact.split(" is ") for fact in question.split(" . ")]
    edges = tuple((f[0], f[1]) for f in facts if len(f) == 2 and len(f[0].split()) == 1 and f[1] in nodes)
    return SearchGraph(edges, asked, tuple(("", step.split(" ", 1)[0]) for step in steps))


@dataclass(frozen=True)
class Draft:
    """A generated example before it has a name.

    ``key`` is what makes the question the same question, whatever the order of its facts or its convention: the split
    is a function of it, so that no question stands in two splits, at no seed.
    """

    question: str
    steps: tuple[str, ...]
    answer: str
    key: str
    meta: Mapping[str, Any]


class SyntheticSettings(TaskSettings):
    """Settings that all generated families share."""

    convention: str | None = Field(None, description="which convention answers follow; None: the family's default one")
    note: bool = Field(False, description="state the convention in the question")


# Shares of the question space, in hundredths.
_SHARES: tuple[tuple[int, Split], ...] = ((80, "train"), (90, "valid"), (100, "test"))


def split_of(family: str, key: str) -> Split:
    """The one split that a question belongs to: a hash of what it asks (80 / 10 / 10)."""
    bucket = int.from_bytes(hashlib.sha256(f"{family}|{key}".encode()).digest()[:4], "big") % 100
    return next(split for limit, split in _SHARES if bucket < limit)


Amount = int | list[int]  # a difficulty setting: a number, or a list of them to draw from


def between(lowest: int, highest: int) -> AfterValidator:
    """Bounds of a difficulty setting: what the word stock has room for."""

    def check(value: Amount) -> Amount:
        numbers = [value] if isinstance(value, int) else value
        if not numbers:
            raise ValueError("should not be an empty list")
        for number in numbers:
            if not lowest <= number <= highest:
                raise ValueError(f"should be between {lowest} and {highest} (got {number})")
        return value

    return AfterValidator(check)


def largest_of(value: Amount) -> int:
    """The largest number that a difficulty setting can come to."""
    return value if isinstance(value, int) else max(value)


def choose(rng: random.Random, value: int | Sequence[int]) -> int:
    """A difficulty setting is a number, or a list of them to draw from."""
    return value if isinstance(value, int) else rng.choice(list(value))


def distinct(n: int, draw: Callable[[], Draft | None], complaint: str) -> list[Draft]:
    """``n`` drafts with different keys. ``draw`` gives the next one, or None for one that is not wanted.

    Raises:
        UserError: with ``complaint``, if nothing new comes any more.
    """
    found: dict[str, Draft] = {}
    misses = 0
    while len(found) < n:
        draft = draw()
        if draft is None or draft.key in found:
            misses += 1
            if misses > 2000 + 200 * n:
                fix = "ask for fewer examples, or widen its difficulty settings"
                raise UserError(f"{complaint} (found {len(found)})", fix=fix)
            continue
        found[draft.key] = draft
    return list(found.values())


class SyntheticTask(Task):
    """A generated family: subclasses give ``conventions`` (default first, with the note that states each) and ``draft``."""

    conventions: ClassVar[Mapping[str, str]]
    knowledge: ClassVar[Literal["facts", "skill"] | None] = "skill"
    settings: SyntheticSettings
    Settings: ClassVar[type[TaskSettings]] = SyntheticSettings

    def __init__(self, settings: Any, name: str):
        super().__init__(settings, name)
        self.convention = settings.convention or next(iter(self.conventions))
        if self.convention not in self.conventions:
            known = ", ".join(self.conventions)
            raise UserError(f"task {name!r}: unknown convention {self.convention!r}", fix=f"known: {known}")

    @abstractmethod
    def draft(self, rng: random.Random, convention: str) -> Draft:
        """One example under a convention, from the family's whole question space."""

    def split_of(self, draft: Draft) -> Split:
        return split_of(self.family, draft.key)

    def examples(self, split: Split, n: int, seed: int) -> list[Example]:
        rng = random.Random(f"{self.family}|{split}|{seed}")

        def draw() -> Draft | None:
            draft = self.draft(rng, self.convention)
            return draft if self.split_of(draft) == split else None

        drafts = distinct(n, draw, f"task {self.name!r} has no {n} different {split} questions at this difficulty")
        return [self._example(draft, split, i) for i, draft in enumerate(drafts)]

    def _example(self, draft: Draft, split: Split, index: int) -> Example:
        question = draft.question
        if self.settings.note:
            question = f"note {self.conventions[self.convention]} . {question}"
        meta = {"family": self.family, "convention": self.convention, **draft.meta}
        return Example(f"{self.name}/{split}/{index}", self.name, question, draft.steps, draft.answer, meta)


def general_text(tasks: Sequence[SyntheticTask], n: int, seed: int) -> list[Example]:
    """``n`` questions of these families in turn, noted or not, from the validation split: text like that of a model's
    pretraining, on which drift is measured."""
    rng = random.Random(f"general|{seed}")
    found = []
    for i in range(n):
        task = tasks[i % len(tasks)]
        default, alternative = task.conventions
        noted = rng.random() < 0.5
        convention = alternative if noted and rng.random() < 0.5 else default
        while task.split_of(draft := task.draft(rng, convention)) != "valid":
            pass
        question = f"note {task.conventions[convention]} . {draft.question}" if noted else draft.question
        meta = {"family": task.family, **draft.meta}
        found.append(Example(f"general/{i}", "general", question, draft.steps, draft.answer, meta))
    return found
