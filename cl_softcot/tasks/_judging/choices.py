"""Yes or no (or another pair of words) in free text."""

from __future__ import annotations

import re

from cl_softcot.tasks._judging.options import REASON

_YES = ("yes", "true")
_NO = ("no", "false")
_RESULT = re.compile(r"=|\bis\b|\bevaluates\s+to\b")
# "No" in front of what there is none of. It answers a question where one of these words follows, or no word at all.
_NONE_OF = re.compile(
    r"\bno\s+(?!(?:because|since|as|it|its|they|he|she|we|you|i|there|this|that|these|those|the|a|an|not|and|or|but|so|if|is|are"
    r"|was|were|yes|no|true|false|does|do|did|can|could|cannot|would|will|should|in|on|for|by|to|when|while|however|unless|although|though)\b)"
    r"(?=[^\W\d])"
)
_UNSURE = re.compile(r"\b(?:if|whether)\b[^,.;]*")


def words_of(yes: str, no: str) -> dict[str, str]:
    """What is said for each of the two, in lower case, and which of them it says."""
    return {**dict.fromkeys(_YES, yes), **dict.fromkeys(_NO, no), yes.casefold(): yes, no.casefold(): no}


def word_pattern(yes: str, no: str) -> re.Pattern[str]:
    """Finds those words in lower-case text."""
    return re.compile(rf"\b(?:{'|'.join(map(re.escape, words_of(yes, no)))})\b")


def choices_in(place: str, yes: str, no: str) -> set[str]:
    """The first of the two words decides, so that "no, because yes ..." is no. "Yes or no" names both; "not true" is no.

    Where the place does not open with one, only what follows the last "=", "is" or "evaluates to" with such a word behind it
    is read: "not True and True = False" is no. The article of "no fish" is no answer.
    """
    words, word = words_of(yes, no), word_pattern(yes, no)
    place = _without_none_of(place.casefold())
    place = _UNSURE.sub(lambda m: " " * len(m[0]), place)
    head = REASON.split(place, maxsplit=1)[0]
    place = head if word.search(head) else place
    if not opens_with_answer(place, yes, no):
        results = [m.end() for m in _RESULT.finditer(place) if word.search(place, m.end())]
        place = place[results[-1] :] if results else place
    found = list(word.finditer(place))
    if not found:
        return set()
    said = words[found[0][0]]
    if len(found) > 1 and re.fullmatch(r"\s*(?:or|and|/|\|)\s*", place[found[0].end() : found[1].start()]):
        return {said, words[found[1][0]]}
    if not opens_with_answer(place, yes, no) and {"yes", "no"} <= {match[0] for match in found}:
        return {yes, no}  # "sometimes yes, sometimes no"
    if not re.search(r"(?:\bnot|\bcannot|n't)[\s(]+(?:\w+\s+)?$", place[: found[0].start()]):
        return {said}
    return set() if found[0][0] in ("yes", "no") else {{yes: no, no: yes}[said]}


def opens_with_answer(place: str, yes: str, no: str) -> bool:
    """Whether the first word is the answer, whatever is said behind it."""
    place = _without_none_of(place.casefold()).lstrip("\"'([ ")
    opens = word_pattern(yes, no).match(place)
    if not opens:
        return False
    behind = place[opens.end() :]
    if re.match(
        r"\s*(?:or\b|and\b|/|\||(?=yes\b|no\b))\s*(?:not\s+)?\W*(?:" + "|".join(map(re.escape, words_of(yes, no))) + r")\b",
        behind,
    ):
        return False
    return opens[0] in ("yes", "no") or bool(re.match(r"[\"')\]]*\s*(?:[,.;:!?(\n]|-\s|$)", behind))


def _without_none_of(place: str) -> str:
    return _NONE_OF.sub(lambda m: "0" * (len(m[0]) - 1) + " ", place)
