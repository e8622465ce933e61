"""The two readings of a text: what it says that its answer is (strict), and what a person would take for it (flexible).

docs/guide/judging.md says what each of them reads; `where` finds the places that the strict one trusts.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from cl_softcot.tasks._judging.choices import choices_in, opens_with_answer, word_pattern
from cl_softcot.tasks._judging.numbers import numbers_in
from cl_softcot.tasks._judging.options import by_letter, denied, is_bare_option, marked_right, options_in, without_lists
from cl_softcot.tasks._judging.said import is_blank, is_finished, plain, sentences, turns, without_thoughts
from cl_softcot.tasks._judging.unmarked_numbers import number_told
from cl_softcot.tasks._judging.where import LEAD, places


@dataclass(frozen=True)
class Found:
    """``answer`` as it was found; ``stated``: at a marked place; ``settled``: nothing else in the text can be the answer."""

    answer: str | None
    stated: bool = False
    settled: bool = False


class AnswerKind(ABC):
    """What the answers to a question are, and how to read one out of a text. None: there is none, or there are several."""

    def strict(self, text: str) -> str | None:
        """The answer of a text that follows the format: the most trusted place that names any decides."""
        return self.stated(self._own_turn(text)).answer

    def flexible(self, text: str) -> str | None:
        """What a person would take for the answer: the strict reading, or else what the text says without saying that it is."""
        found = self._of(self._own_turn(text))
        if found.answer is None or found.stated:
            return found.answer
        # A bare answer behind thoughts that state another one: which of them holds is not said.
        considered = self.stated(without_thoughts(text)[1])
        return None if considered.settled and considered.answer != found.answer else found.answer

    @abstractmethod
    def named(self, place: str) -> set[str]:
        """The answers that a marked line names."""

    @abstractmethod
    def told(self, lines: Sequence[str], raw: Sequence[str]) -> str | None:
        """What lines without a mark say that the answer is: ``lines`` without markup, and ``raw`` with it."""

    def partly(self, place: str) -> bool:
        """Whether a line that names no answer holds a piece of one."""
        return False

    # -------------------------------------------------------------------------------------------------------------

    def _own_turn(self, text: str) -> str:
        """What was said up to a question of the model's own, where an answer stands in front of that."""
        said, _ = without_thoughts(text)
        return next((turn for turn in turns(said) if self._of(turn).settled), said)

    def stated(self, said: str) -> Found:
        """What the most trusted place of a text's own turn names."""
        for place in places(said, self.named).found:
            names = self.named(place)
            if names:
                return Found(names.pop() if len(names) == 1 else None, stated=True, settled=True)
        return Found(None)

    def _of(self, said: str) -> Found:
        stated = self.stated(said)
        if stated.settled:
            return stated
        where = places(said, self.named)
        if any(map(self.partly, where.found)) or (where.ends and where.found):
            return Found(None, settled=True)
        raw = _lines(where.rest)
        lines = [line for line in map(_plain_line, raw) if line]
        answer = None if lines and _REFUSES.search(lines[-1]) else self.told(lines, raw)
        return Found(answer, settled=answer is not None)


_REFUSES = re.compile(
    r"\b(?:impossible|not possible|unable|cannot|can't|could not|couldn't)\s+(?:\w+\s+){0,3}?"
    r"(?:determined?|answer(?:ed)?|say|tell|solved?|calculated?|known?|find|figure)\b"
    r"|\b(?:not enough|insufficient)\s+(?:information|data|facts)\b",
    re.I,
)
_CLOSING = re.compile(
    r"\W*(?:let me know|i hope|hope (?:this|that|it)|feel free|please (?:let|feel|note)|if you (?:have|need|want|would)|good luck"
    r"|great (?:job|question)|well done|you'?re welcome|is there anything|thanks?\b|thank you|have a (?:great|nice|good)|happy to"
    r"|would you like|do you (?:want|have|need)|best regards|(?:sure|of course|certainly|okay)[,!.]?\W*$)",
    re.I,
)
_ENUMERATED = re.compile(r"(?:(?:step|part)\s*\d+\s*[:.)-]+|\(?\d{1,2}[.)](?=\s+[^\W\d])|[-*+\u2022\u00b7](?=\s))\s*", re.I)
_HEADING = re.compile(
    r"\s*(?:#{1,6}\s|(?:\*\*|__)[^*]*[:?](?:\*\*|__)\s*$|(?:\*\*|__)(?:step|part)\s*\d[^*]*(?:\*\*|__):?\s*$|```|\|)", re.I
)


def _lines(text: str) -> list[str]:
    """The lines that say something: no headings, tables, rules, and no courtesies."""
    kept = [line for line in text.split("\n") if not _HEADING.match(line) or re.fullmatch(r"\s*#+\s*[^\w\s]*\w+[.)]?\s*", line)]
    return [line for line in kept if not is_blank(plain(line)) and not _CLOSING.match(plain(line))]


def _plain_line(line: str) -> str:
    line = re.sub(r"^(?:sure|of course|certainly|okay|great question|absolutely)[!.]\s+(?=\S)", "", plain(line), flags=re.I)
    line = _ENUMERATED.sub("", line, count=1) if _ENUMERATED.match(line) else line
    return "" if LEAD.fullmatch(line) else line


# ------------------------------------------------------------------------------------------------------------ kinds


class Numbers(AnswerKind):
    """A number, by its value (``numbers``)."""

    def named(self, place: str) -> set[str]:
        return numbers_in(place)

    def partly(self, place: str) -> bool:
        return bool(re.search(r"\d", place))

    def told(self, lines: Sequence[str], raw: Sequence[str]) -> str | None:
        return number_told(lines, raw)


@dataclass(frozen=True)
class Options(AnswerKind):
    """One of the options, by its letter or its words (``options``)."""

    options: Mapping[str, str]

    def named(self, place: str) -> set[str]:
        return options_in(place, self.options)

    def told(self, lines: Sequence[str], raw: Sequence[str]) -> str | None:
        marked = marked_right(lines, self.options)
        if marked:
            return marked
        lines = [re.sub(r"^A\s*:\s*(?=[(\[]?[A-Za-z][)\].]?$)", "", line) for line in without_lists(lines, self.options)]
        if not lines:
            return None
        first, last = sentences(lines[0]), sentences(lines[-1])[::-1]
        bare = next((piece for piece in (lines[0], first[0]) if is_bare_option(piece, self.options)), None)
        if not is_bare_option(lines[-1], self.options) and not is_finished(lines[-1]):
            names = self.named(bare) if bare else set()  # cut, but perhaps behind its answer
            return next(iter(names)) if len(names) == 1 and bare != lines[-1] else None
        if bare:
            opening = self.named(bare)
            closing = next((self._by_letter(s) for s in last if self._by_letter(s)), opening) if len(lines) > 1 else opening
            return next(iter(opening)) if len(opening) == 1 and closing == opening else None
        for order in (last, first):
            lettered = [found for s in order if not _RULED_OUT.search(s) and (found := self._by_letter(s))]
            if lettered:
                return next(iter(lettered[0])) if len(lettered[0]) == 1 else None
        for order in (last, first):
            worded = [found for s in order if (found := self.named(s) - denied(s, self.options))]
            if worded:
                return next(iter(worded[0])) if len(worded[0]) == 1 else None
        return None

    def _by_letter(self, sentence: str) -> set[str]:
        names = self.named(sentence) if by_letter(sentence, self.options)[0] else set()
        if len(names) > 1 and len(clauses := _CONCLUSION.split(sentence)) > 1:
            return self.named(clauses[-1])
        return names


_RULED_OUT = re.compile(
    r"\b(?:wrong|incorrect|ruled out|eliminated?|(?:is|are) (?:not|false)|isn't|can't be|cannot be)\b[^,;]*$", re.I
)
_CONCLUSION = re.compile(r"\b(?:so|therefore|thus|hence|which leaves|leaving|leaves)\b", re.I)


@dataclass(frozen=True)
class Choices(AnswerKind):
    """One of two words, or yes/true and no/false for them (``choices``)."""

    yes: str
    no: str

    def named(self, place: str) -> set[str]:
        return choices_in(place, self.yes, self.no)

    def told(self, lines: Sequence[str], raw: Sequence[str]) -> str | None:
        if not lines:
            return None
        first, last = sentences(lines[0])[0], sentences(lines[-1])[-1]
        opening = self.named(first) if opens_with_answer(first, self.yes, self.no) else set()
        if len(lines) > 1 and not is_finished(lines[-1]):
            return self._one(opening)
        closing = self.named(last) if self._closes(last) else set()
        if opening or closing:
            return self._one(opening | closing)
        return self._one(self.named(last)) or self._one(self.named(first))

    def _closes(self, sentence: str) -> bool:
        """Whether a sentence comes to an answer: "so yes", "the statement is false"."""
        word = word_pattern(self.yes, self.no).pattern
        ends = re.search(rf"(?:{word})\W*$", sentence.casefold())
        return bool(ends) or opens_with_answer(sentence, self.yes, self.no)

    @staticmethod
    def _one(names: set[str]) -> str | None:
        return next(iter(names)) if len(names) == 1 else None


@dataclass(frozen=True)
class Stated(AnswerKind):
    """Answers of a task's own: ``names`` finds those that a line names; ``counts`` says whether an unmarked line may name one."""

    names: Callable[[str], set[str]]
    counts: Callable[[str], bool] = lambda line: True

    def named(self, place: str) -> set[str]:
        return self.names(place)

    def told(self, lines: Sequence[str], raw: Sequence[str]) -> str | None:
        if not lines or not is_finished(lines[-1]):
            return None
        for line in (sentences(lines[-1])[-1], sentences(lines[0])[0]):
            found = self.names(line) if self.counts(line) else set()
            if found:
                return found.pop() if len(found) == 1 else None
        return None


# ---------------------------------------------------------------------------------------------------------- by name


def number_in(text: str) -> str | None:
    """The number that a person would take for a text's answer."""
    return Numbers().flexible(text)


def option_in(text: str, options: Mapping[str, str]) -> str | None:
    """The letter of the option that a person would take for a text's answer."""
    return Options(options).flexible(text)


def choice_in(text: str, yes: str, no: str) -> str | None:
    """``yes`` or ``no`` (these are what is returned), whichever a person would take for a text's answer."""
    return Choices(yes, no).flexible(text)
