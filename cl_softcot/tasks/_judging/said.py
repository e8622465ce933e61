"""What a model says to its reader: a text without thoughts and questions of its own, and its lines without markup."""

from __future__ import annotations

import re

_THOUGHT = r"think|thinking|thought|thoughts|reasoning|reflection|scratchpad"
_OPEN = re.compile(rf"<(?:{_THOUGHT})>|<\|(?:begin_of_thought|thinking|think)\|>|\[THINK\]|\u25c1think\u25b7", re.I)
_CLOSE = re.compile(rf"</(?:{_THOUGHT})>|<\|(?:end_of_thought|/thinking|/think)\|>|\[/THINK\]|\u25c1/think\u25b7", re.I)
_WRAPPED = re.compile(r"</?(?:answer|final|final_answer|response|output|solution)>|<\|(?:begin|end)_of_solution\|>", re.I)


def without_thoughts(text: str) -> tuple[str, str]:
    """A text without its blocks of thoughts, and these. Of a block that is never closed nothing is said after it opens."""
    said: list[str] = []
    thought: list[str] = []
    at = 0
    while True:
        opened, closed = _OPEN.search(text, at), _CLOSE.search(text, at)
        if closed and (not opened or closed.start() < opened.start()):  # the chat template opened it
            thought += [*said, text[at : closed.start()]]
            said, at = [], closed.end()
            continue
        if not opened:
            said.append(text[at:])
            return _WRAPPED.sub("\n", "\n".join(said)), "\n".join(thought)
        said.append(text[at : opened.start()])
        closed = _CLOSE.search(text, opened.end())
        thought.append(text[opened.end() : closed.start() if closed else len(text)])
        if not closed:
            return _WRAPPED.sub("\n", "\n".join(said)), "\n".join(thought)
        at = closed.end()


# ------------------------------------------------------------------------------------- questions of the model's own

_TURN = re.compile(
    r"""<\|(?:im_start|im_end|user|eot_id|endoftext|end|start_header_id|assistant)\|?>|</s>|<s>|\[/?INST\]|<(?:start|end)_of_turn>
    |^[ \t]*(?:\#+[ \t]*)?[*_]*
     (?:(?:(?:next|new|another|follow-?up)[ \t]+)?(?:question|problem|exercise|instruction|input)[ \t]*
       (?:\#?\d+)?[ \t]*[*_]*[ \t]*(?::|\.[ \t]|\n)
       |(?:question|problem|exercise)[ \t]*\#?\d+\b
       |q[ \t]*\d*[ \t]*:|user[ \t]*[*_]*:|human[ \t]*[*_]*:|student[ \t]*[*_]*:)""",
    re.I | re.M | re.X,
)


def turns(text: str) -> list[str]:
    """A text up to each place where a question of the model's own may begin, the shortest first; and all of it."""
    cuts = [match.start() for match in _TURN.finditer(text)]
    return [text[:cut] for cut in cuts if text[:cut].strip()] + [text]


# ------------------------------------------------------------------------------------------------------------ markup

_SPACES = re.compile("[\u00a0\u2007\u2009\u202f]|\\{,\\}|(?<=\\d)\\\\[,;:! ](?=\\d{3}(?!\\d))")
_MINUS = re.compile("[\u2212\u2013\u2012\ufe63\uff0d]")
_LONG_DASH = re.compile("[ \t]*[\u2014\u2015]+[ \t]*")
_STYLED = r"(?:text|textbf|textit|textrm|textsf|mathrm|mathbf|mathit|mathsf|mbox|boxed|fbox|operatorname|bf|rm|emph|underline)"
_LATEX_TEXT = re.compile(rf"(-[ \t]*)?\\{_STYLED}\*?\s*\{{([^{{}}]*)\}}")
_FRACTION = re.compile(r"(\d?)(-[ \t]*)?\\[dtc]?frac\s*(?:\{([^{}]*)\}\s*\{([^{}]*)\}|(\d)\s*(\d))")
_FULL_WIDTH = {0xFF10 + i: str(i) for i in range(10)}
_VULGAR = {
    "\u00bd": "1/2", "\u00bc": "1/4", "\u00be": "3/4", "\u2153": "1/3", "\u2154": "2/3", "\u2155": "1/5", "\u2156": "2/5",
    "\u2157": "3/5", "\u2158": "4/5", "\u2159": "1/6", "\u215a": "5/6", "\u215b": "1/8", "\u215c": "3/8", "\u215d": "5/8",
    "\u215e": "7/8", "\u2150": "1/7", "\u2151": "1/9", "\u2152": "1/10",
}  # fmt: skip
_ONE_GROUP = "\u2009"  # what groups the digits of a number, whatever was written


def plain(text: str) -> str:
    """A line without Markdown and LaTeX markup, and with one kind of space and of minus."""
    text = _LONG_DASH.sub(" - ", _MINUS.sub("-", _SPACES.sub(_ONE_GROUP, text.translate(_FULL_WIDTH))))
    text = re.sub(r"(\d?)([\u00bc-\u00be\u2150-\u215e])", lambda m: f"{m[1]} {_VULGAR[m[2]]}" if m[1] else _VULGAR[m[2]], text)
    text = re.sub(r"~~.*?~~", " ", text).replace("\u2044", "/").replace("\u2019", "'")
    for _ in range(4):  # nested, as in \boxed{\text{18}}
        text = _LATEX_TEXT.sub(lambda m: f" {'-' if m[1] else ''}{m[2]} ", text)
        text = _FRACTION.sub(_fraction, text)
    text = re.sub(r"\s+\^", "^", re.sub(r"\^\{(\w+)\}", r"^\1", text))
    text = re.sub(r"\\(?:times|cdot)(?![A-Za-z])", "*", text)
    text = re.sub(r"\\(?:approx|simeq)(?![A-Za-z])", " about ", text)
    text = re.sub(r"\\(?:quad|qquad|left|right|displaystyle|big|Big|bigl|bigr|dots|ldots)(?![A-Za-z])", " ", text)
    text = re.sub(r"\^\{?\\circ\}?|\u00b0", " degrees ", text)
    text = re.sub(r"\\(?:Rightarrow|implies|to|therefore)(?![A-Za-z])|[\u21d2\u2192\u2234]", " ; ", text)
    text = re.sub(r"\\[()\[\],;:!% ]|\\(?=[$#&_])|\*\*|__|`", lambda m: "%" if m[0] == "\\%" else "", text)
    text = re.sub(r"(?<!\w)_([^_\n]+)_(?!\w)", r"\1", text)
    text = re.sub(r"(?<![\w*])\*(?=[^\s*])([^*]*?)(?<=[^\s*])\*(?![\w*])", r"\1", text)  # *18*
    text = re.sub(r"([$\u00a3\u20ac\u20b9]\s?\d[\d,.]*)(m|b)\b", lambda m: m[1] + m[2].upper(), text)  # $1.2m
    text = re.sub(r"^\s*>\s+(?=[\w*$\\(-])", "", re.sub(r"(?<=\S)~(?=\S)", " ", text))
    return text.strip(" \t\r\u2009*#")


def _fraction(match: re.Match[str]) -> str:
    over, under = (match[3], match[4]) if match[3] is not None else (match[5], match[6])
    minuses = bool(match[2]) + over.strip().startswith("-") + under.strip().startswith("-")
    over, under = (part.strip().removeprefix("-").strip() for part in (over, under))
    return f"{match[1]} {'-' if minuses % 2 else ''}{over}/{under} "


def is_blank(line: str) -> bool:
    """Whether nothing is said on a line: markup of a display or a rule, or a closing of brackets."""
    return not re.sub(r"[\s$*_=~|>`.\-\[\](){}:]|\\[\[\]()]", "", line)


_UNFINISHED = re.compile(
    r"(?:[,;:=+*/<(\u00d7-]|\d\s*x|\\(?:times|cdot|div|frac|text|pm|approx)|\b(?:the|a|an|of|and|or|but|is|are|was|be|to|then|so|with|for|by|in|on|at|from|that|than|her|his|its|their"
    r"|which|who|will|would|has|have|because|since|if|per|each|into|as|not|therefore|thus|hence|equals|makes|costs|total))\s*$",
    re.I,
)


def is_finished(line: str) -> bool:
    """Whether a last line ends like a sentence, or with what it says; False where it was cut at a token limit."""
    return not _UNFINISHED.search(re.sub(r"(?:\*\*|__|[$_]|(?<=\S)\*)+\s*$", "", line.rstrip()))


_ABBREVIATION = re.compile(r"\b(?:mr|mrs|ms|dr|st|rs|no|approx|vs|e\.g|i\.e|etc|fig|eq|al|inc|ltd|u\.s|a\.m|p\.m)\.$", re.I)


def sentences(line: str) -> list[str]:
    """A line's sentences."""
    found = [""]
    for piece in re.split(r"(?<=[.!?])([\"')\]]*\s+)(?=[\"'(\[$]*[^\W_])", line):
        joins = not piece.strip() or (found[-1].strip() and _ABBREVIATION.search(found[-1].rstrip()))
        if joins or not found[-1].strip():
            found[-1] += piece
        else:
            found.append(piece)
    return [s.strip() for s in found if s.strip()]
