"""Numbers in free text.

Conventions: a comma groups digits (1,234; also 1,20,000), a full stop is the decimal point. So 1.000 is one, as in English,
and 1,5 (which may be a decimal comma) is not read at all. A percentage is its number. (5) is five, not minus five, and the
dash of "- 5" is a list's. A number that is only the start of something else is none: 3 + 4 without a result, 05/01/2021, 3:30,
18 dozen. Behind an = only its right side counts; several different numbers are no answer.
"""

from __future__ import annotations

import re
from fractions import Fraction

_DIGITS = r"(?:\d{1,3}(?:[ ]\d{3})+(?![\d/])|\d+(?:[,\u2009_']\d+)*)"
_GROUPED = re.compile(r"\d{1,3}(?:[,\u2009_']\d{2,3})*[,\u2009_']\d{3}")
_CURRENCY = "$\u00a3\u20ac\u20b9\u00a5"
_NUMBER = re.compile(
    rf"""
    (?P<sign>(?<![\w.)\]])(?:-(?=[{_CURRENCY}\d.])|\b(?:minus|negative)\s+))?
    [{_CURRENCY}]?\s?(?P<inner>(?<![\w.)\]])-)?
    (?:
        (?P<whole>\d+)[ ]+(?P<over>\d+)/(?P<under>\d+)            # 1 1/2
      | (?P<top>{_DIGITS})\s*/\s*(?P<bottom>{_DIGITS})            # 3/4
      | (?P<plain>{_DIGITS}(?:\.\d+)?|(?<![A-Za-z.])\.\d+)
        (?:[eE](?P<exponent>[+-]?\d+)\b
          |\s*(?:[x\u00d7*])\s*10\s*(?:\^|\*\*)\s*\{{?\s*(?P<power>[+-]?\d+)\s*\}}?
          |(?P<scale>\s?(?:hundred|thousand|million|billion|trillion|lakh|crore|k)\b(?:\s(?:thousand|million|billion|trillion)\b)?
            |\s?(?:mn|bn|mio|mil)\b|(?-i:[MB]|MM)\b)
        )?
        (?P<half>\s+and\s+(?:a\s+|one\s+|three\s+)?(?:half|quarters?|third)\b)?
    )
    """,
    re.X | re.I,
)
_SCALE = {
    "hundred": 2, "thousand": 3, "k": 3, "lakh": 5, "million": 6, "m": 6, "mm": 6, "mn": 6, "mio": 6, "mil": 6, "crore": 7,
    "billion": 9, "b": 9, "bn": 9, "trillion": 12,
}  # fmt: skip
_PART = {"half": Fraction(1, 2), "quarter": Fraction(1, 4), "third": Fraction(1, 3)}
_OPERATION = re.compile(rf"\s*%?\s*(?:[-+*\u00d7\u00f7/^]|x(?=\s*\d))\s*[{_CURRENCY}(]*\s*[\d.]")
# What makes another value of the number in front of it.
_CHANGES = re.compile(
    r"\s*(?:dozens?|score|squared|cubed|hundred|thousand|million|billion|trillion|lakh|crore)\b|(?-i:T|\s[MB])\b|\s*\^"
    r"|[\u00b2\u00b3\u00b9\u2070\u2074-\u2079]|\s*[\u221a\u03c0\u00b1]"
    r"|\s*\\(?:sqrt|pi|pm|ln|log|sin|cos|tan|theta|alpha)(?![A-Za-z])|\s+and\s+(?:a\s+|one\s+|three\s+)?(?:half|quarter|third)",
    re.I,
)
# What it is not, beside what it is.
_CONTRAST = re.compile(
    r",?\s+(?:and\s+)?(?:not|rather than|instead of|unlike|as opposed to)\s+[^,.;\d]*\d[^,;]*?(?=\bbut\b|[,;]|\.(?!\d)|$)", re.I
)
_IN_BRACKETS = re.compile(r"(?<![-+*/=^\u00d7\u00f7(])\s\([^()]*(?:\)|$)")
_BECAUSE = re.compile(r",?\s(?:because|since)\b")
_NEXT_CLAUSE = re.compile(r"\s-\s(?=\D)|\.\s+(?=[^\W\d])")


def numbers_in(place: str) -> set[str]:
    """The numbers that a place states, each as the shortest text for its value (``numeral``); empty where there is none.

    Of sums and equations only what follows the last ``=`` is read, of a number with an aside only the number.
    """
    place = without_contrast(place) if re.search(r"\d", without_contrast(place)) else place
    for without_aside in (lambda s: _IN_BRACKETS.sub("", s), lambda s: _BECAUSE.split(s, maxsplit=1)[0]):
        rest = without_aside(place)
        place = rest if re.search(r"\d", rest) else place
    before, equals, after = place.rpartition("=")
    if equals:
        place = after if re.search(r"\d", after) else before
    if re.match(r"\W*\d", place):  # opens with it: what is said in a clause of its own is an aside
        place = _NEXT_CLAUSE.split(place, maxsplit=1)[0]
    found = written_numbers(place)
    if not found or found[0][1] is None:
        return set()
    # A later one that cannot be read is still another one: the place does not state the first alone.
    return {text if value is None else numeral(value) for text, value in found}


def without_contrast(sentence: str) -> str:
    """A sentence without the numbers that it names to say that it is another: "6, not 5", "9 rather than 10"."""
    return _CONTRAST.sub("", sentence)


def written_numbers(place: str) -> list[tuple[str, Fraction | None]]:
    """Every number of a line as it is written, with its value; None for what cannot be read whole."""
    found: list[tuple[str, Fraction | None]] = []
    open_at = None  # where a sum, a date or a time that is not read goes on
    for match in _NUMBER.finditer(place):
        if _inside_a_word(place, match):
            continue
        goes_on = _goes_on(place, match)
        joined = open_at is not None and not re.search(r"[^\W\d]|[=;?!]|\.\s", place[open_at : match.start()])
        found.append((match[0], None if goes_on or joined else _value(match)))
        open_at = match.end() if goes_on else None
    return found


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
    return place[start].isdigit() and re.search(r"[^\W\d](?:-|\^\{?|_\{?)?$", place[:start]) is not None


def _goes_on(place: str, match: re.Match[str]) -> bool:
    rest = place[match.end() :]
    if _CHANGES.match(rest):
        return True
    return bool(_OPERATION.match(rest) or re.match(r"[/:.,]\d|[,\u2009_']\d", rest))


def _value(match: re.Match[str]) -> Fraction | None:
    sign = -1 if bool(match["sign"]) != bool(match["inner"]) else 1
    if match["whole"]:
        return _ratio(Fraction(match["over"]), Fraction(match["under"]), sign, Fraction(match["whole"]))
    if match["top"]:
        top, bottom = _ungrouped(match["top"]), _ungrouped(match["bottom"])
        return None if top is None or bottom is None else _ratio(top, bottom, sign)
    value = _ungrouped(match["plain"])
    if value is not None and match["half"]:
        *_, times, part = match["half"].lower().split()
        value += {"three": 3}.get(times, 1) * _PART[part.rstrip("s")]
    power = int(match["exponent"] or match["power"] or 0) + sum(_SCALE[w] for w in (match["scale"] or "").lower().split())
    return None if value is None or abs(power) > 50 else sign * value * Fraction(10) ** power


def _ratio(top: Fraction, bottom: Fraction, sign: int, whole: Fraction | int = 0) -> Fraction | None:
    return None if bottom == 0 else sign * (whole + top / bottom)


def _ungrouped(digits: str) -> Fraction | None:
    before, point, after = digits.replace(" ", "\u2009").partition(".")
    if not before.isdigit() and before and not _GROUPED.fullmatch(before):
        return None
    before = re.sub(r"[,\u2009_']", "", before)
    return Fraction(f"{before or 0}{point}{after}")
