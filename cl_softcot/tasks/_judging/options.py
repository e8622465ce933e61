"""Options in free text, named by their letter or by their words. And questions with options, written as they are read."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any

from cl_softcot.tasks._judging.numbers import numbers_in
from cl_softcot.tasks._judging.said import plain

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


def with_options(stem: str, options: Mapping[str, str], hint: bool) -> str:
    """A question with its options, ``(A) text`` a line, and a last line that says how to answer."""
    lines = [stem, *(f"({letter}) {text}" for letter, text in options.items())]
    return "\n".join([*lines, *(["Give the letter of one option as your answer."] if hint else [])])


def lettered(texts: Sequence[str]) -> dict[str, str]:
    """Texts as options A, B, C, ..."""
    return dict(zip(LETTERS, texts, strict=False))


def options_meta(options: Mapping[str, str], letter: str) -> dict[str, Any]:
    """What the judge needs to know of an example: its options, and the other letters under which the right text stands."""
    right = _squeezed(options.get(letter, ""))  # that the letter is none of them, the check of gold answers tells
    twins = [other for other, text in options.items() if other != letter and _squeezed(text) == right]
    return {"options": dict(options), **({"accept": twins} if twins else {})}


def options_in(place: str, options: Mapping[str, str]) -> set[str]:
    """The letters that a place names. The article "a" and the pronoun "I" name none.

    Letters go before words, unless the words are exactly another option's: then both are named.
    """
    bare = place.strip(" \t.,;:!\"'()[]{}$")
    if bare.upper() in options:
        return {bare.upper()}
    stated = _exactly(place, options)
    if stated:
        return _one_of(stated, options)
    opening = _BRACKETS.match(place) or _FIRST.match(place)
    if opening and opening[1].upper() in options and opening[1].upper() in _exactly(place[opening.end() :], options):
        return {opening[1].upper()}
    head = REASON.split(place, maxsplit=1)[0]  # the reasons may name the other options
    if head != place and (named := options_in(head, options)):
        return named
    others = _ALL_BUT.search(place)
    if others and not any(_key(others[0]) in _key(text) for text in options.values()):
        return options_in(place[: others.start()], options)
    lettered, rest = by_letter(place, options)
    if lettered:
        contrary = _exactly(rest, options)
        if len(lettered) == 1 and contrary and not contrary & lettered:
            return lettered | contrary
        return _one_of(lettered, options)
    return _one_of(_worded(place, options) or _by_value(place, options), options)


def _exactly(place: str, options: Mapping[str, str]) -> set[str]:
    """Options whose text is the whole place, to the letter if there are such."""
    same = {o for o, text in options.items() if _squeezed(text) == _squeezed(place)}
    return same or {o for o, text in options.items() if _key(text) and _key(text) == _key(place)}


def _squeezed(text: str) -> str:
    return " ".join(text.split())


def _one_of(letters: set[str], options: Mapping[str, str]) -> set[str]:
    """Options with the same text are one answer, not two."""
    return {min(letters)} if letters and len({_squeezed(options[letter]) for letter in letters}) == 1 else letters


REASON = re.compile(r",?\s(?:because|since)\b", re.I)
# "Neither A nor B" and "all except B" name the options that are not meant.
_ALL_BUT = re.compile(r"\bneither\b.*?\bnor\b|\b(?:(?:all|any|every\w*|each)\b[^.;]*?)?\bexcept\b|\ball\s+but\b", re.I)
_DATE = re.compile(r"(?<![\d/])0?(\d{1,2})/0?(\d{1,2})/(\d{4})(?![\d/])")
_BRACKETS = re.compile(r"(?<!\b[Nn]ot )(?<!\bNOT )(?<!n't )[(\[]\s*([A-Za-z])\s*[)\]]")
_FIRST = re.compile(r"([A-Za-z])\s*(?:[).:]|\s-\s)(?:\s+|$)")
_NAMED = re.compile(r"\b(?:option|choice|letter|answer)\s+([A-Za-z])\b(?!')", re.I)
_ALONE = re.compile(r"(?<!\b[Nn]ot )(?<!\bNOT )(?<!n't )(?<![\w'.])([A-Z])(?![\w'])(?!\.\w)")
# What may follow an option's letter; any other word behind "A" makes it the article.
_AFTER_LETTER = re.compile(
    r"\s+(?:is|was|are|as|and|or|because|since|for|with|would|seems|looks|must|should|fits|matches|from|by)\b"
)


def by_letter(place: str, options: Mapping[str, str]) -> tuple[set[str], str]:
    """The letters that are named as such, and what is left of the place without the first of them."""
    brackets = [m for m in _BRACKETS.finditer(place) if m[1].upper() in options]
    if brackets:
        rest = place[brackets[0].end() :]
        return {m[1].upper() for m in brackets}, rest
    first = _FIRST.match(place)
    if first and first[1].upper() in options:
        return {first[1].upper()}, place[first.end() :]
    named = [m for m in _NAMED.finditer(place) if m[1].upper() in options and not _is_article(place, m)]
    if named:
        return {m[1].upper() for m in named}, place[named[0].end() :]
    hidden = _without_texts(place, options)
    alone = [m for m in _ALONE.finditer(hidden) if m[1] in options and not _is_article(hidden, m)]
    if not alone and (m := re.match(r"([a-z])(?=\s)", hidden)) and m[1].upper() in options and not _is_article(hidden, m):
        alone = [m]
    return {m[1].upper() for m in alone}, place[alone[0].end() :] if alone else ""


def _is_article(place: str, match: re.Match[str]) -> bool:
    if match[1].upper() not in ("A", "I"):
        return False
    behind = place[match.end(1) :]
    if match[1].upper() == "I":
        return bool(re.match(r"\s+\w|'", behind))
    return bool(re.match(r"[\s]+[\"'(]?\w", behind)) and not _AFTER_LETTER.match(behind)


def _key(text: str) -> str:
    """What makes two option texts the same: words and signs, whatever their case, spacing and closing full stop.

    5/1/2021 and 05/01/2021 are one date.
    """
    text = unicodedata.normalize("NFKC", plain(text)).casefold()
    text = re.sub(r"(?<=\d)\s*:\s*(?=\d)", ":", text)  # ratios
    text = _DATE.sub(r"\1/\2/\3", re.sub(r"(?<=\d),(?=\d{3})", "", text))
    return " ".join(text.split()).strip(" .;:!?\"'").removeprefix("the ").removeprefix("an ").removeprefix("a ")


def _pattern(text: str) -> re.Pattern[str] | None:
    key = _key(text)
    return re.compile(rf"(?<![\w.]){re.escape(key)}(?!\w|[.,/]\d)") if key else None


def _worded(place: str, options: Mapping[str, str]) -> set[str]:
    """Options whose whole text stands in the place, but not only as a part of a longer option's text."""
    here = _key(place)
    found: dict[str, list[tuple[int, int]]] = {}
    for letter in sorted(options, key=lambda o: -len(_key(options[o]))):
        pattern = _pattern(options[letter])
        if pattern is None:
            continue
        spans = [m.span() for m in pattern.finditer(here)]
        longer = [s for other, taken in found.items() if _key(options[other]) != _key(options[letter]) for s in taken]
        spans = [(a, b) for a, b in spans if not any(c <= a and b <= d for c, d in longer)]
        if spans:
            found[letter] = spans
    return set(found)


def _without_texts(place: str, options: Mapping[str, str]) -> str:
    """The place with each option's text replaced by a word, so that letters inside those texts are not taken for options."""
    for letter in sorted(options, key=lambda o: -len(options[o])):
        text = " ".join(options[letter].split())
        if len(text) > 1:
            place = re.sub(rf"(?<!\w){re.escape(text)}(?!\w)", "text", place, flags=re.I)
    return place


def _by_value(place: str, options: Mapping[str, str]) -> set[str]:
    """Options that are a number, by its value: 22.0 names the option 22."""
    stated = numbers_in(place)
    whole = re.compile(r"\D{0,4}[\d.,/ ]+\D{0,12}")
    return {o for o, text in options.items() if stated and whole.fullmatch(text) and numbers_in(plain(text)) == stated}


# ------------------------------------------------------------------------------------------- lines without a mark

_LISTED = re.compile(r"[-*\s]*[(\[]?([A-Z])[).:\]](?:\s|$)")


def without_lists(lines: Sequence[str], options: Mapping[str, str]) -> list[str]:
    """Lines without those that only list options one below the other."""
    letters = [m[1] if (m := _LISTED.match(line)) and m[1] in options else None for line in lines]
    kept = []
    for i, (line, letter) in enumerate(zip(lines, letters, strict=True)):
        beside = [letters[j] for j in (i - 1, i + 1) if 0 <= j < len(lines)]
        if letter is None or not any(other not in (None, letter) for other in beside):
            kept.append(line)
    return kept


_WRONG = re.compile(r"\b(?:incorrect|wrong|false|not\s+(?:correct|right|true))\b|[\u274c\u2717\u2718]", re.I)
_RIGHT = re.compile(r"\b(?:correct|right|true)\b|[\u2705\u2713\u2714]", re.I)


def marked_right(lines: Sequence[str], options: Mapping[str, str]) -> str | None:
    """The one option that a list of them marks as correct, where it marks the others as wrong."""
    listed = {m[1]: line for line in lines if (m := _LISTED.match(line)) and m[1] in options}
    right = [letter for letter, line in listed.items() if _RIGHT.search(line) and not _WRONG.search(line)]
    return right[0] if len(right) == 1 and len(listed) > 2 and sum(map(bool, map(_WRONG.search, listed.values()))) > 1 else None


def is_bare_option(line: str, options: Mapping[str, str]) -> bool:
    """Whether a line is an option and nothing else: its letter, its words, or a letter with words."""
    if line.strip(" \t.,;:!\"'()[]{}$").upper() in options or _exactly(line, options):
        return True
    opening = _BRACKETS.match(line) or _FIRST.match(line)
    if not (opening and opening[1].upper() in options):
        return False
    rest = line[opening.end() :].strip()
    return (
        not rest
        or bool(_exactly(rest, options))
        or (len(rest.split()) <= 3 and not re.match(r"\W*(?:is|are|was|can|could|would|seems|looks|and|or|has)\b", rest))
    )


_NOT = r"(?:\bnot|n't|\brather than|\binstead of|\bunlike|\bexcept)"


def denied(sentence: str, options: Mapping[str, str]) -> set[str]:
    """Options that a sentence names to say that it is another: "not a bank", "rather than a bank"."""
    here, found = _key(sentence), set()
    for letter, text in options.items():
        if _key(text) and re.search(rf"{_NOT}\s+(?:(?:a|an|the|in|at|to|on|be)\s+)*{re.escape(_key(text))}\b", here):
            found.add(letter)
    return found
