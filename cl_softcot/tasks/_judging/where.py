"""Where a text says that its answer stands.

In the order of trust: behind the last ``###`` or ``####``; behind ``Answer:`` (or ``answer`` at the start of a line or behind
``;``); in ``\\boxed{}``; behind "the answer is". Headings, and runs such as ``#### 1 #### 2 #### 3``, are no such places.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from cl_softcot.tasks._judging.numbers import numbers_in
from cl_softcot.tasks._judging.said import is_blank, is_finished, plain

Named = Callable[[str], set[str]]

_HASHES = re.compile(r"(?<!#)####?(?!#)")
_COLON = re.compile(
    r"(?<!\blong )\banswer\s*[\"'*_)]{0,4}\s*:(?!:)"
    r"|(?:^|;)[ \t]*answer(?=[ \t])(?![ \t]+(?:is|to|would|will|should|must|can|the|for|this|these|that)\b)",
    re.I | re.M,
)
_BOXED = re.compile(r"\\(?:boxed|fbox)\s*\{")
_IS = re.compile(
    r"\b(?:answer|(?:correct|right|best)\s+(?:option|choice))\**(?:\s+(?:to|for)\b[^.\n]{0,80}?)?"
    r"\s*(?:\bis\b|\bwould be\b|\bwill be\b|\bshould be\b|\bmust be\b|=)\s*:?(?!\s*(?:not\b(?!.*\bbut\b)|n't\b))",
    re.I,
)
LEAD = re.compile(
    r"(?:so|thus|hence|therefore)?[,\s]*(?:the\s+)?(?:final\s+|correct\s+)?answer\b\s*(?:is\b|=|:)?\s*(?:is\b)?\s*:?\s*", re.I
)
_SECTION = re.compile(
    r"(?:step|part|stage|case|question|problem|equation|example|method|section|option|day|week|phase)\s*#?\d", re.I
)
_NUMBERED = re.compile(r"\(?(\d{1,2})\s*[.):]\s+(\S.*)")
_ONLY_NUMBER = re.compile(r"\(?(\d{1,2})[.)]")
_MOST_SECTIONS = 20  # a heading numbered higher is not one


@dataclass(frozen=True)
class Places:
    """The pieces of a text that may hold its final answer, the most trusted first (one line each, without markup), and the
    text without its headings. ``ends``: the last thing that the text says is what such a place holds."""

    found: tuple[str, ...]
    rest: str
    ends: bool


def places(text: str, named: Named) -> Places:
    """Where the answer stands; ``named`` finds the answers that a line names."""
    text = _up_to_an_open_box(text)
    hashed, headings = _hashed(text, named)
    colons = [_first_line(text[m.end() :]) for m in _COLON.finditer(text)]
    boxes = [_boxed(text, m.end()) for m in _BOXED.finditer(text)]
    phrases = [_first_line(re.sub(r"^\s*not\b[^.\n]*?\bbut\b(?:\s+rather)?", "", text[m.end() :])) for m in _IS.finditer(text)]
    by_trust = (hashed, colons, [(box, "") for box in boxes], phrases)
    last = [next(((line, below) for line, below in reversed(pieces) if line), None) for pieces in by_trust]
    found = [piece for piece in last if piece]
    ends = any(not _substance(below) for _, below in (piece for piece in (last[0], last[1], last[3]) if piece))
    rest = "\n".join("" if i in headings else line for i, line in enumerate(text.split("\n")))
    return Places(tuple(line for line, _ in found), rest, ends)


def _first_line(text: str) -> tuple[str, str]:
    """The first line that says something, and what stands below it; "the final answer is" in front of it, or on a line of its
    own, says nothing."""
    lines = text.split("\n")
    for i, line in enumerate(lines):
        said = _without_lead(plain(line))
        if said and not is_blank(said) or re.search(r"[\[\](){}<>]", said) and not re.search(r"\\[\[\]()]|\$", line):
            return said, "\n".join(lines[i + 1 :])
    return "", ""


def _without_lead(line: str) -> str:
    lead = LEAD.match(line)
    return line[lead.end() :] if lead else line


def _substance(text: str) -> bool:
    return any(not is_blank(plain(line)) for line in text.split("\n"))


# ---------------------------------------------------------------------------------------------------------- headings


@dataclass(frozen=True)
class _Hash:
    line: str  # what is said behind it
    below: str
    number: int  # of its line in the text
    own: bool  # whether it is said on the line of the hashes themselves


def _hashed(text: str, named: Named) -> tuple[list[tuple[str, str]], set[int]]:
    """What stands behind ### and ####, headings left out; and the numbers of the lines that are headings."""
    matches = list(_HASHES.finditer(text))
    hashes = []
    for match in matches:
        own_line = text[match.end() :].split("\n", 1)[0]
        line, below = _first_line(text[match.end() :])
        hashes.append(_Hash(line, below, text.count("\n", 0, match.start()), bool(_without_lead(plain(own_line)))))
    run = _run(text, matches, named)
    kept: list[tuple[str, str]] = []
    headings: set[int] = set()
    for i, item in enumerate(hashes):
        stated = None if i >= run else _answer_of(item, named)
        if stated is None:
            headings.add(item.number)
        else:
            kept.append((stated, item.below))
    return kept, headings


def _answer_of(item: _Hash, named: Named) -> str | None:
    """What a line behind hashes states; None for a heading."""
    line = item.line
    if not item.own:
        return line  # the title stands above it
    numbered = _NUMBERED.fullmatch(line) or re.fullmatch(r"(?:step|part|section)\s*(\d{1,2})\s*[.):-]*\s+(\S.*)", line, re.I)
    if numbered and (lead := LEAD.match(numbered[2])) and "answer" in numbered[2][: lead.end()].lower():
        return numbered[2][lead.end() :] or _first_line(item.below)[0]
    if _SECTION.match(line):
        return None
    if numbered and int(numbered[1]) <= _MOST_SECTIONS and numbered[1] not in re.findall(r"\d+", numbered[2]):
        return None
    below = _substance(item.below)
    only = _ONLY_NUMBER.fullmatch(line)
    if only and below and int(only[1]) <= _MOST_SECTIONS and _goes_on(item.below):
        return None
    return None if below and _is_title(item, named) else line


def _last_line(text: str) -> str:
    return next((said for line in reversed(text.split("\n")) if (said := plain(line))), "")


def _goes_on(below: str) -> bool:
    """Whether a section follows: a line of several words."""
    return any(len(line.split()) > 2 for line in below.split("\n"))


def _is_title(item: _Hash, named: Named) -> bool:
    """Whether a line with words, and text below it, is a heading: another answer is stated below, or worked out there."""
    line, below = item.line, item.below
    here = named(line)
    if len(here) > 1 and re.search(r"\bor\b|/", line) and not re.match(r"\W*[^\W\d]{2}", line):
        return False  # two answers, which what follows cannot take back
    if re.match(r"\W*[A-Z][).:]\s", line) and not is_finished(_last_line(below)):
        return True
    if not re.search(r"[^\W\d_]{2}", line) and not re.match(r"\W*[A-Za-z]\W*$", line) and here:
        return False  # nothing but the answer
    if re.fullmatch(r"\W*[A-Za-z]\W*", line):
        return False
    if line.endswith(":") and here:
        return True
    later = [_first_line(below[m.end() :])[0] for marker in (_COLON, _IS) for m in marker.finditer(below)]
    later += [_boxed(below, m.end()) for m in _BOXED.finditer(below)]
    stated = [found for place in later if (found := named(place))]
    if stated:
        return stated[-1] != here
    results = [line for line in map(plain, below.split("\n")) if re.search(r"=\s*\S*\d", line)]
    if results and re.search(r"\d", line):
        return named(results[-1]) != here
    words_in_front = re.match(r"\W*[^\W\d]{2,}[^\d]*\d", line) and not re.match(
        r"\W*(?:rs|usd|eur|inr|about|approximately)\b", line, re.I
    )
    return bool(words_in_front and re.search(r"\d", below))


def _run(text: str, matches: Sequence[re.Match[str]], named: Named) -> int:
    """From which of the hashes on they only count: several different answers on one line, or three and more in order."""
    ends = [*(m.start() for m in matches), len(text)][1:]
    lines = [plain(text[m.end() : end].split("\n", 1)[0]) for m, end in zip(matches, ends, strict=True)]
    said = [numbers_in(line) or named(line) for line in lines]
    values = [next(iter(s)) if len(s) == 1 else None for s in said]
    numbers = [text.count("\n", 0, m.start()) for m in matches]
    for first in range(len(values)):
        rest, at = values[first:], numbers[first:]
        if len(set(rest)) > 1 and None not in rest:
            if len(set(at)) == 1 and (len(set(rest)) > 2 or _in_order(rest)) or len(rest) > 2 and _in_order(rest):
                return first
    return len(values)


def _in_order(values: Sequence[str | None]) -> bool:
    """1, 2, 3 or A, B, C."""
    ranks = [int(v) if v and v.isdigit() and len(v) < 4 else ord(v) if v and len(v) == 1 else None for v in values]
    return all(a is not None and b is not None and b - a == 1 for a, b in zip(ranks, ranks[1:], strict=False))


def _up_to_an_open_box(text: str) -> str:
    """A text without a box that is never closed: what stands in it may be the beginning of something."""
    for match in _BOXED.finditer(text):
        depth = 1
        for sign in text[match.end() :]:
            depth += {"{": 1, "}": -1}.get(sign, 0)
            if depth == 0:
                break
        if depth:
            return text[: match.start()]
    return text


def _boxed(text: str, start: int) -> str:
    depth = 1
    for end in range(start, len(text)):
        depth += {"{": 1, "}": -1}.get(text[end], 0)
        if depth == 0:
            return re.sub(r"^-\s+(?=\d)", "-", plain(text[start:end]))
    return re.sub(r"^-\s+(?=\d)", "-", plain(text[start:]))
