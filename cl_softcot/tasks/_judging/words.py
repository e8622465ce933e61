"""Answers that are words, told by comparing them with the right ones."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from cl_softcot.tasks._judging.readings import AnswerKind, Found
from cl_softcot.tasks._judging.said import is_finished, plain, sentences

_MARKER = re.compile(r"(?:^|(?<=\s))(?:####?|answer|Answer(?=:))(?=\s|:|$):?")
_IN_PROSE = re.compile(r"(?:is|to|for|would|will|should|must|can|could|the)\b", re.I)
_HASHED_LINE = re.compile(r"(?:^|(?<=\s))####?(?=\s|:|$):?\s*[^\n]*")
_LATER_MARKER = re.compile(r"^\W*(?:final\s+)?answer\s*\W*:|;[ \t]*answer\s|^answer\s", re.I | re.M)


def answer_of(text: str) -> str | None:
    """The words after the last answer marker: ``answer`` (as a word), ``Answer:``, ``###`` or ``####``.

    None where nothing follows or there is no marker. It is how the embedded models were taught to answer.
    """
    markers = list(_MARKER.finditer(text))
    return " ".join(text[markers[-1].end() :].split()) or None if markers else None


def _marked(text: str) -> str | None:
    """``answer_of``, and behind ### only the first line; None where the marker is none but a word of a sentence."""
    lines = list(_HASHED_LINE.finditer(text))
    if lines and not _LATER_MARKER.search(text, lines[-1].end()):
        text = text[: lines[-1].end()]
    markers = list(_MARKER.finditer(text))
    if markers and markers[-1][0] == "answer" and not re.search(r"(?:^|[;\n])[ \t]*$", text[: markers[-1].start()]):
        return None
    found = answer_of(text)
    return None if found is None or _IN_PROSE.match(found) else found


@dataclass(frozen=True)
class Words(AnswerKind):
    """Words that are told by comparing them: ``gold`` is the right ones."""

    gold: str

    def stated(self, said: str) -> Found:
        marked = _marked(said)
        if marked is None:
            return super().stated(said)
        names = self.named(marked)
        return Found(next(iter(names)) if len(names) == 1 else None, stated=True, settled=bool(names))

    def named(self, place: str) -> set[str]:
        if self._says(place):
            return {_same(self.gold)}
        either = re.split(r"\bor\b", _same(place)) if not re.search(r"\bor\b", self.gold, re.I) else [_same(place)]
        return {piece.strip(" ,") for piece in either} - {""}

    def told(self, lines: Sequence[str], raw: Sequence[str]) -> str | None:
        if not lines or not is_finished(lines[-1]):
            return None
        gold = _same(self.gold)
        if len(lines) == 1 and (len(lines[0].split()) <= max(4, len(gold.split()) + 1)):
            return gold if self._says(lines[0]) else _same(lines[0])
        for sentence in (sentences(lines[-1])[-1], sentences(lines[0])[0]):
            if self._says(sentence):
                return gold
            tail = _same(re.split(r"\b(?:is|are|was|were|called|named|by)\b|[:=]", sentence)[-1])
            if tail and tail != _same(sentence) and len(tail.split()) <= max(3, len(gold.split())):
                return tail
        return None

    def same(self, words: str) -> bool:
        """Whether words are the right ones: case, spacing and marks around them do not tell them apart."""
        return _same(words) == _same(self.gold)

    def _says(self, sentence: str) -> bool:
        """Whether a sentence is the right words, begins with them and a verb, or ends in them."""
        said, gold = _same(sentence), re.escape(_same(self.gold))
        ends = re.search(rf"(?:^|(?<!not )\b(?:{_IN_FRONT})\s+|[:=]\s*)[\"'(]?{gold}$", said)
        opens = re.match(rf"(?:(?:so|yes|therefore|thus)[,\s]+)?(?:the\s+)?{gold}(?:\s+(?:{_BEHIND})\b(?!\s+not\b)|\s*\()", said)
        return bool(ends) or bool(opens)


# Between a sentence and the words that answer in it.
_IN_FRONT = (
    "is|are|was|were|be|been|called|named|by|in|at|on|to|from|with|of|a|an|the|into|than|has|have|chose|choose|probably|likely"
)
_BEHIND = r"is|are|was|were|has|have|had|became|wrote|because|since|(?:,\s*)?(?:which|who)"


def _same(words: str) -> str:
    """Words without what does not tell answers apart: case, spacing, marks around them."""
    return re.sub(r"(?<=\S)[.!]+$", "", " ".join(plain(words).casefold().split()).strip(" \"'"))
