"""Reads the answer out of free text: numbers, options, yes or no. And writes options the way they are read.

Where the answer stands, in the order of trust: behind the last ``###`` or ``####``; behind ``Answer:`` (or ``answer`` at the
start of a line or behind ``;``); in ``\\boxed{}``; behind "the answer is". The first of these places that names an answer
decides; a text without any is unanswered, and so is one whose place names two different answers.

Conventions of numbers: a comma groups digits (1,234; also 1,20,000), a full stop is the decimal point. So 1.000 is one, as
in English, and 1,5 (which may be a decimal comma) is not read at all. A percentage is its number. (5) is five, not minus five,
and the dash of "- 5" is a list's. A number that is only the start of something else is none: 3 + 4 without a result,
05/01/2021, 3:30. Behind an = only its right side counts; several different numbers are no answer.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from typing import Any

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"

# ------------------------------------------------------------------------------------------- where the answer stands

_HASHES = re.compile(r"(?<!#)####?(?!#)")
_COLON = re.compile(
    r"\banswer\s*\*{0,2}\s*:|(?:^|;)[ \t]*answer(?=[ \t])(?![ \t]+(?:is|to|would|will|should|must|can|the)\b)", re.I | re.M
)
_BOXED = re.compile(r"\\(?:boxed|fbox)\s*\{")
_IS = re.compile(
    r"\b(?:answer|(?:correct|right|best)\s+(?:option|choice))(?:\s+(?:to|for)\b[^.\n]{0,80}?)?"
    r"\s*(?:\bis\b|\bwould be\b|\bwill be\b|\bshould be\b|\bmust be\b|=)\s*:?",
    re.I,
)
_LEAD = re.compile(r"(?:so|thus|hence|therefore)?[,\s]*(?:the\s+)?(?:final\s+|correct\s+)?answer\s*(?:is\b|=|:)?\s*:?\s*", re.I)
_HEADING = re.compile(r"(?:step|part|stage|case|question|problem|equation|example|method|section)\s*#?\d", re.I)
_SPACES = re.compile("[\u00a0\u2007\u2009\u202f]")
_MINUS = re.compile("[\u2212\u2013\u2012\ufe63\uff0d]")
_LATEX_TEXT = re.compile(r"\\(?:text|textbf|textit|mathrm|mathbf|mbox|boxed|fbox)\s*\{([^{}]*)\}")


def places(text: str) -> list[str]:
    """The pieces of a text that may hold its final answer, the most trusted first. One line each, without markup."""
    found = []
    for marker in (_HASHES, _COLON):
        ends = [match.end() for match in marker.finditer(text)]
        # Models write headings with ### too: those that only number a section are passed over.
        lines = (_first_line(text[end:]) for end in reversed(ends))
        found += [line for line in lines if line and not _HEADING.match(line)][:1]
    boxes = [_boxed(text, match.end()) for match in _BOXED.finditer(text)]
    found += [box for box in boxes[-1:] if box]
    phrases = [match.end() for match in _IS.finditer(text)]
    found += [line for line in (_first_line(text[end:]) for end in phrases[-1:]) if line]
    return found


def read_with(text: str, named: Callable[[str], set[str]]) -> str | None:
    """The one answer that ``named`` finds at the most trusted place where it finds any; None for none, or for several."""
    for place in places(text):
        found = named(place)
        if found:
            return found.pop() if len(found) == 1 else None
    return None


def _first_line(text: str) -> str:
    """The first line that says something; "the final answer is" in front of it, or on a line of its own, says nothing."""
    for line in map(_plain, text.split("\n")):
        lead = _LEAD.match(line)
        said = line[lead.end() :] if lead else line
        if said:
            return said
    return ""


def _boxed(text: str, start: int) -> str:
    depth = 1
    for end in range(start, len(text)):
        depth += {"{": 1, "}": -1}.get(text[end], 0)
        if depth == 0:
            return _plain(text[start:end])
    return _plain(text[start:])


def _plain(text: str) -> str:
    """A line without Markdown and LaTeX markup, and with one kind of space and of minus."""
    text = _MINUS.sub("-", _SPACES.sub("\u2009", text))
    for _ in range(3):  # nested, as in \boxed{\text{18}}
        text = _LATEX_TEXT.sub(r" \1 ", text)
    text = re.sub(r"\\[dt]?frac\s*\{([^{}]*)\}\s*\{([^{}]*)\}", r" \1/\2 ", text)
    text = re.sub(r"\\(?:times|cdot)\b", "*", text)
    text = re.sub(r"\\[()\[\],;!% ]|\\(?=\$)|\*\*|__|`", lambda m: "%" if m[0] == "\\%" else "", text)
    return text.strip(" \t\r\u2009*#")


# ---------------------------------------------------------------------------------------------------------- numbers

_DIGITS = r"(?:\d{1,3}(?:[ ]\d{3})+(?![\d/])|\d+(?:[,\u2009]\d+)*)"
_GROUPED = re.compile(r"\d{1,3}(?:[,\u2009]\d{2,3})*[,\u2009]\d{3}")
_NUMBER = re.compile(
    rf"""
    (?P<sign>(?<![\w.)\]])(?:-(?=[$\u00a3\u20ac\d.])|\b(?:minus|negative)\s+))?
    [$\u00a3\u20ac]?\s?(?P<inner>(?<![\w.)\]])-)?
    (?:
        (?P<whole>\d+)[ ]+(?P<over>\d+)/(?P<under>\d+)            # 1 1/2
      | (?P<top>{_DIGITS})\s*/\s*(?P<bottom>{_DIGITS})            # 3/4
      | (?P<plain>{_DIGITS}(?:\.\d+)?|\.\d+)
        (?:[eE](?P<exponent>[+-]?\d+)\b
          |\s*(?:[x\u00d7*])\s*10\s*(?:\^|\*\*)\s*\{{?\s*(?P<power>[+-]?\d+)\s*\}}?
          |\s?(?P<scale>thousand|million|billion|k)\b
        )?
    )
    """,
    re.X | re.I,
)
_SCALE = {"thousand": 3, "k": 3, "million": 6, "billion": 9}
_OPERATION = re.compile(r"\s*%?\s*(?:[-+*\u00d7\u00f7/^]|x(?=\s*\d))\s*[$\u00a3\u20ac(]*\s*[\d.]")
_IN_BRACKETS = re.compile(r"(?<![-+*/=^\u00d7\u00f7(])\s\([^()]*(?:\)|$)")
_BECAUSE = re.compile(r",?\s(?:because|since)\b")
_NEXT_CLAUSE = re.compile(r"\s-\s(?=\D)|\.\s+(?=[^\W\d])")


def numbers_in(place: str) -> set[str]:
    """The numbers that a place states, each as the shortest text for its value (``numeral``); empty where there is none.

    Of sums and equations only what follows the last ``=`` is read, of a number with an aside only the number.
    """
    for without_aside in (lambda s: _IN_BRACKETS.sub("", s), lambda s: _BECAUSE.split(s, maxsplit=1)[0]):
        rest = without_aside(place)
        place = rest if re.search(r"\d", rest) else place
    before, equals, after = place.rpartition("=")
    if equals:
        place = after if re.search(r"\d", after) else before
    if re.match(r"\W*\d", place):  # opens with it: what is said in a clause of its own is an aside
        place = _NEXT_CLAUSE.split(place, maxsplit=1)[0]
    matches = [m for m in _NUMBER.finditer(place) if not _inside_a_word(place, m)]
    values = [None if _goes_on(place, m.end()) else _value(m) for m in matches]
    if not values or values[0] is None:
        return set()
    # A later one that cannot be read is still another one: the place does not state the first alone.
    return {m[0] if value is None else numeral(value) for m, value in zip(matches, values, strict=True)}


def number_in(text: str) -> str | None:
    """The number that is a text's final answer."""
    return read_with(text, numbers_in)


def numeral(value: Fraction) -> str:
    """The shortest exact text: ``12``, ``-0.75``, and ``1/3`` where decimals do not end."""
    if value.denominator == 1:
        return str(value.numerator)
    rest, places_needed = value.denominator, 0
    while rest % 10 == 0 or rest % 2 == 0 or rest % 5 == 0:
        rest //= 10 if rest % 10 == 0 else 2 if rest % 2 == 0 else 5
        places_needed += 1
    if rest != 1:
        return str(value)
    scaled = abs(value) * 10**places_needed
    digits = str(scaled.numerator).zfill(places_needed + 1)
    return f"{'-' if value < 0 else ''}{digits[:-places_needed]}.{digits[-places_needed:].rstrip('0')}"


def _inside_a_word(place: str, match: re.Match[str]) -> bool:
    """H2O, x1, B-12 and cm^2 hold digits, not numbers."""
    start = match.start("plain") if match["plain"] else match.start()
    return place[start].isdigit() and re.search(r"[^\W\d](?:-|\^\{?)?$", place[:start]) is not None


def _goes_on(place: str, end: int) -> bool:
    rest = place[end:]
    return bool(_OPERATION.match(rest) or re.match(r"[/:.,]\d|[,\u2009]\d", rest))


def _value(match: re.Match[str]) -> Fraction | None:
    sign = -1 if bool(match["sign"]) != bool(match["inner"]) else 1
    if match["whole"]:
        return _ratio(Fraction(match["over"]), Fraction(match["under"]), sign, Fraction(match["whole"]))
    if match["top"]:
        top, bottom = _ungrouped(match["top"]), _ungrouped(match["bottom"])
        return None if top is None or bottom is None else _ratio(top, bottom, sign)
    value = _ungrouped(match["plain"])
    power = int(match["exponent"] or match["power"] or 0) + _SCALE.get((match["scale"] or "").lower(), 0)
    return None if value is None or abs(power) > 50 else sign * value * Fraction(10) ** power


def _ratio(top: Fraction, bottom: Fraction, sign: int, whole: Fraction | int = 0) -> Fraction | None:
    return None if bottom == 0 else sign * (whole + top / bottom)


def _ungrouped(digits: str) -> Fraction | None:
    before, point, after = digits.replace(" ", "\u2009").partition(".")
    if not before.isdigit() and before and not _GROUPED.fullmatch(before):
        return None
    before = re.sub(r"[,\u2009]", "", before)
    return Fraction(f"{before or 0}{point}{after}")


# ---------------------------------------------------------------------------------------------------------- options


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


def option_in(text: str, options: Mapping[str, str]) -> str | None:
    """The letter of the option that is a text's final answer, named by its letter or by its words."""
    return read_with(text, lambda place: options_in(place, options))


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
    head = _REASON.split(place, maxsplit=1)[0]  # the reasons may name the other options
    if head != place and (named := options_in(head, options)):
        return named
    others = _ALL_BUT.search(place)
    if others and not any(_key(others[0]) in _key(text) for text in options.values()):
        return options_in(place[: others.start()], options)
    lettered, rest = _by_letter(place, options)
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


_REASON = re.compile(r",?\s(?:because|since)\b", re.I)
# "Neither A nor B" and "all except B" name the options that are not meant.
_ALL_BUT = re.compile(r"\bneither\b.*?\bnor\b|\b(?:(?:all|any|every\w*|each)\b[^.;]*?)?\bexcept\b|\ball\s+but\b", re.I)
_DATE = re.compile(r"(?<![\d/])0?(\d{1,2})/0?(\d{1,2})/(\d{4})(?![\d/])")
_BRACKETS = re.compile(r"(?<!not )(?<!n't )[(\[]\s*([A-Za-z])\s*[)\]]")
_FIRST = re.compile(r"([A-Za-z])\s*(?:[).:]|\s-\s)(?:\s+|$)")
_NAMED = re.compile(r"\b(?:option|choice|letter|answer)\s+([A-Za-z])\b(?!')", re.I)
_ALONE = re.compile(r"(?<!not )(?<!n't )(?<![\w'.])([A-Z])(?![\w'])(?!\.\w)")
# What may follow an option's letter; any other word behind "A" makes it the article.
_AFTER_LETTER = re.compile(
    r"\s+(?:is|was|are|as|and|or|because|since|for|with|would|seems|looks|must|should|fits|matches|from|by)\b"
)


def _by_letter(place: str, options: Mapping[str, str]) -> tuple[set[str], str]:
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
    text = unicodedata.normalize("NFKC", _plain(text)).casefold()
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
    return {o for o, text in options.items() if stated and whole.fullmatch(text) and numbers_in(_plain(text)) == stated}


# -------------------------------------------------------------------------------------------------------- yes or no

_YES = ("yes", "true")
_NO = ("no", "false")
_RESULT = re.compile(r"=|\bis\b|\bevaluates\s+to\b")


def choice_in(text: str, yes: str, no: str) -> str | None:
    """``yes`` or ``no`` (these are what is returned) where the final answer is one of them, or as much as yes/true, no/false."""
    return read_with(text, lambda place: choices_in(place, yes, no))


def choices_in(place: str, yes: str, no: str) -> set[str]:
    """The first of the two words decides, so that "no, because yes ..." is no. "Yes or no" names both; "not true" is no.

    Where the place does not open with one, only what follows the last "=", "is" or "evaluates to" with such a word behind it
    is read: "not True and True = False" is no.
    """
    words = {**dict.fromkeys(_YES, yes), **dict.fromkeys(_NO, no), yes.casefold(): yes, no.casefold(): no}
    word = re.compile(rf"\b(?:{'|'.join(map(re.escape, words))})\b")
    place = place.casefold()
    head = _REASON.split(place, maxsplit=1)[0]
    place = head if word.search(head) else place
    opens = word.match(place)
    if not (opens and re.match(r"\s*(?:[,.;:!]|$)", place[opens.end() :])):
        results = [m.end() for m in _RESULT.finditer(place) if word.search(place, m.end())]
        place = place[results[-1] :] if results else place
    found = list(word.finditer(place))
    if not found:
        return set()
    said = words[found[0][0]]
    if len(found) > 1 and re.fullmatch(r"\s*(?:or|and|/|\|)\s*", place[found[0].end() : found[1].start()]):
        return {said, words[found[1][0]]}
    negated = re.search(r"(?:\bnot|n't)[\s(]+(?:\w+\s+)?$", place[: found[0].start()])
    return {({yes: no, no: yes}[said]) if negated and found[0][0] not in ("yes", "no") else said}
