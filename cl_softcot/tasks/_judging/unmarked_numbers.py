"""The number that a text without any mark comes to."""

from __future__ import annotations

import re
from collections.abc import Sequence

from cl_softcot.tasks._judging.numbers import numbers_in, numeral, without_contrast, written_numbers
from cl_softcot.tasks._judging.said import is_finished, plain, sentences

_CONCLUDES = re.compile(r"=|\b(?:so|thus|hence|therefore|total|in all|altogether)\b", re.I)
_UNITS = re.compile(r"(?:\s*[-/]?\s*[^\W\d_]+[.\u00b2\u00b3]?){0,3}", re.I)
_NEAR = re.compile(r"(?:rs|usd|eur|inr|about|approximately|around|roughly|only|just)\b\.?", re.I)
_CONCLUSION = re.compile(r"\W*(?:so|thus|hence|therefore|total|in all|altogether)\b", re.I)
_LIST = re.compile(r"\d\S*,\s*(?:and\s+)?\S*\d\S*,\s*(?:and\s+)?\S*\d\S*$")
_ROW = re.compile(r"(?:\b\d+[.,;)]?\s+){3,}\d+[.,;)]?\s*$")
_ASIDE = re.compile(r"(?<=[\da-z])\s*\([^()]*\)\s*\.?$")
_VERB = re.compile(r"\b(?:is|are|was|were|has|have|had|will|would|can|do|does|did|and|or|of|in|on|from|for)\b", re.I)


def number_told(lines: Sequence[str], raw: Sequence[str]) -> str | None:
    """The number that lines without a mark come to: one that stands alone, one in bold, or the last of a finished text."""
    if not lines:
        return None
    bare = [_bare_number(line) for line in lines]
    if _ROW.fullmatch(lines[-1].strip()) and len(numbers_in(lines[-1])) != 1:
        return None
    if len(lines) > 1 and all(bare):
        return bare[0] if len(set(bare)) == 1 else None
    finished = is_finished(raw[-1]) and (bare[-1] is not None or _ends_like_a_sentence(raw[-1]) or _ends_with_number(lines))
    last = (bare[-1] or _bold_number(raw) or _last_number(lines)) if finished else None
    if not bare[0] or last == bare[0]:
        return last
    if last is None or not _CONCLUDES.search(lines[-1]):
        return bare[0]
    return last if len(lines) > 2 and _CONCLUSION.match(lines[-1]) else None


def _bare_number(line: str) -> str | None:
    """The number where a line holds nothing else, but for its unit."""
    found = written_numbers(line.split("(")[0])
    if len(found) != 1 or found[0][1] is None:
        return None
    before, _, after = line.partition(found[0][0])
    after = re.sub(r"\([^)]*\)?$", "", after).strip(" .!%\"')]$}")
    if _NEAR.sub("", before).strip(" $\u00a3\u20ac\u20b9(\"'[{:~=+."):
        return None
    return numeral(found[0][1]) if _UNITS.fullmatch(after) and not _VERB.search(after) else None


def _ends_like_a_sentence(raw: str) -> bool:
    return bool(re.search(r"[.!?)\"'\]}\u201d`]\W*$", raw.rstrip(" \t*_$")))


def _ends_with_number(lines: Sequence[str]) -> bool:
    """Whether the last line ends with a number; with a unit too where it concludes, or where the text has no other number."""
    alone = sum(len(written_numbers(line)) for line in lines) == 1
    words = "{0,3}" if alone or _CONCLUDES.search(lines[-1]) else "{0,0}"
    return bool(re.search(rf"\d[\d,.]*\s*(?:[^\W\d_]+\s*){words}[%\W]*$", lines[-1]))


def _bold_number(raw: Sequence[str]) -> str | None:
    """The one number that is set in bold in the last line with any."""
    for line in reversed(raw):
        if re.search(r"\d", line):
            spans = re.findall(r"\*\*([^*]+)\*\*|__([^_]+)__", line)
            found = [numbers_in(plain(a or b)) for a, b in spans if re.search(r"\d", a or b)]
            values = {v for names in found for v in names}
            return values.pop() if len(values) == 1 and all(len(n) == 1 for n in found) else None
    return None


def _last_number(lines: Sequence[str]) -> str | None:
    """The last number of the last sentence that holds any; None where that is only one of two."""
    line = next((line for line in reversed(lines) if re.search(r"\d", line)), None)
    if line is None:
        return None
    sentence = next(s for s in reversed(sentences(line)) if re.search(r"\d", s))
    sentence = without_contrast(sentence)
    names = numbers_in(sentence)
    if len(names) == 1 and written_numbers(sentence):
        return names.pop() if all(v is not None for _, v in written_numbers(sentence)[-1:]) or "=" in sentence else None
    _, equals, after = sentence.rpartition("=")
    piece = after if equals and re.search(r"\d", after) else sentence
    without_aside = _ASIDE.sub("", piece)
    piece = without_aside if re.search(r"\d", without_aside) else piece
    found = written_numbers(piece)
    if not found or found[-1][1] is None:
        return None
    if (
        _LIST.search(piece)
        or _ROW.search(line)
        or (len(found) > 1 and found[-2][1] != found[-1][1] and _are_two(piece, found[-2][0], found[-1][0]))
    ):
        return None
    return numeral(found[-1][1])


def _are_two(piece: str, one: str, other: str) -> bool:
    """Whether the last two numbers stand beside each other: 7 or 8, 3 to 5, between 3 and 5."""
    between = piece[piece.rindex(one) + len(one) : piece.rindex(other)]
    if re.fullmatch(r"\s*(?:\w+\s+)?(?:or|to)\s*(?:even\s+|maybe\s+)?[$]?", between):
        return True
    return bool(re.fullmatch(r"[^.;]*?\band\s*[$]?\s*", between) and re.search(r"\bbetween\b", piece, re.I))
