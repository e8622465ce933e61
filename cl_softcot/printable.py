"""What may be printed of a text: no password of an address, no character that a terminal would obey.

``hide`` masks passwords wherever a message could carry one, ``visible`` shows control characters instead of sending them, and
``markdown`` keeps names of other people's from being read as markup.
"""

from __future__ import annotations

import os
import re
import unicodedata
from typing import Any
from urllib.parse import unquote, urlsplit

MASK = "***"

_KEY = r"(?:ssl)?pass(?:word|wd|phrase)?|pwd|passw|secret|(?:access_|auth_)?token|api_?key"
# From `://` to the last @ before white space: a password may itself hold / @ : and %.
_USERINFO = re.compile(r"([A-Za-z][\w+.-]*://)(\[[^\]\s]*\]|[^\s:@/]*?)(?::|%3[aA])(\S*)@")
_HTTP_USER = re.compile(r"(https?://)[^\s/@:?#]+@", re.IGNORECASE)
_PARAMETER = re.compile(rf"(?i)((?:[?&;#\s,({{]|^)(?:{_KEY})\s*=\s*)('[^']*'|\"[^\"]*\"|[^\s&;,#'\")}}]+)")
_ENCODED = re.compile(rf"(?i)((?:[?&;#]|%3[bf]|%26)(?:{_KEY})%3d)((?:(?!%3b|%26)[^\s&;#])+)")
_HTTP_PORT = re.compile(r"\d{1,5}(/|$)")
# Variables whose values are never shown, and those that hold an address of which the password is not.
_SECRETS = ("PGPASSWORD", "MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN", "HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")
_ADDRESS = re.compile(r"\w[\w+.-]*://\S")


def holds_password(text: str) -> bool:
    """Whether an address in a text has a password: in front of its host, or among its parameters.

    >>> holds_password("postgresql://me@host/db?sslmode=require"), holds_password("postgresql://me:a/b@host/db")
    (False, True)
    """
    if "://" not in text:
        return False
    for _ in range(3):  # a parameter may itself be an address, encoded
        if _in_userinfo(text) or any(_PARAMETER.search(part) for part in text.split() if "://" in part):
            return True
        text, before = unquote(text), text
        if text == before:
            break
    return False


def _in_userinfo(text: str) -> bool:
    # An address with a blank in it is a password with a blank in it.
    whole = re.match(r"\s*[A-Za-z][\w+.-]*://\S*\s\S*@\S+\s*$", text)
    return any(_masked(found) != found[0] for found in _USERINFO.finditer(re.sub(r"\s", "", text) if whole else text))


def hide(text: str) -> str:
    """A text without passwords: of the addresses in it, and of those in the environment, whole or in the pieces that an error
    message may break them into.

    >>> hide("cannot reach postgresql://me:se/cr@et@host/db?password=x")
    'cannot reach postgresql://me:***@host/db?password=***'
    """
    for secret in _known_secrets():
        if secret in text:  # as a word of its own: a weak password is a part of many words
            text = re.sub(rf"(?<!\w){re.escape(secret)}(?!\w)", MASK, text)
    if "=" in text or "://" in text or "%3" in text:
        text = _USERINFO.sub(_masked, text)
        text = _HTTP_USER.sub(rf"\1{MASK}@", text)
        text = _PARAMETER.sub(rf"\1{MASK}", text)
        text = _ENCODED.sub(rf"\1{MASK}", text)
    return text


def _masked(found: re.Match[str]) -> str:
    scheme, user, password = found.groups()
    if not password or password == MASK:
        return found[0]
    inside = user.startswith("[")  # a host with a port, and an @ further on
    if inside or (scheme.lower().startswith("http") and _HTTP_PORT.match(password)):
        return found[0]
    return f"{scheme}{user}:{MASK}@"


def _known_secrets() -> list[str]:
    found: set[str] = set()
    for name, value in os.environ.items():
        if name in _SECRETS:
            found.add(value)
        elif "://" in value and len(value) < 4096 and _ADDRESS.match(value):
            found |= _pieces(value)
    return sorted((secret for secret in found if len(secret) >= 3), key=len, reverse=True)


def _pieces(address: str) -> set[str]:
    """The password of an address as it is written, as it reads, and in the pieces of a parser that takes / or @ for its end."""
    written = {m[3] for m in _USERINFO.finditer(address) if _masked(m) != m[0]} | {m[2] for m in _PARAMETER.finditer(address)}
    whole = {text for secret in written for text in (secret, unquote(secret), unquote(unquote(secret)))}
    return whole | {part for text in whole for part in re.split(r"[/@:?#&%\s]", text)}


def without_user(address: str) -> str:
    """An address for messages: neither user nor password."""
    masked = hide(address)
    try:
        parts = urlsplit(masked)
    except ValueError:
        return masked
    return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl() if "@" in parts.netloc else masked


# ------------------------------------------------------------------------------------------------------------- characters

_HARMFUL = {"Cc", "Cf", "Cs", "Co", "Zl", "Zp"}
_ORDINARY = re.compile(r"[\x20-\x7e\n\t]*")
_JOINERS = "\u200c\u200d"  # inside words of many scripts, and of emoji


def visible(text: str, *, lines: bool = True) -> str:
    r"""A text whose control characters, directions and lone surrogates are written as ``\x1b``, so that no terminal obeys them.

    ``lines``: whether line breaks and tabs stay.
    """
    if _ORDINARY.fullmatch(text):
        return text if lines else text.replace("\n", " ").replace("\t", " ")
    return "".join(_seen(letter, lines) for letter in text)


def _seen(letter: str, lines: bool) -> str:
    if letter in "\n\t":
        return letter if lines else " "
    if letter in _JOINERS or unicodedata.category(letter) not in _HARMFUL:
        return letter
    return letter.encode("unicode_escape", "backslashreplace").decode("ascii")


def printable(text: str) -> str:
    """A message as it may be printed: ``hide`` and ``visible``."""
    return visible(hide(text))


_TICK = re.compile(r"\$\\mathdefault\{[-−+\d.^{}\s]*(\\times)?[-−+\d.^{}\s]*\}\$")


def plain_figure(figure: Any) -> Any:
    """A drawing of matplotlib's in which names with ``$`` are no formulas, which might not even be ones; ticks' powers are."""
    for text in figure.findobj(lambda artist: hasattr(artist, "set_parse_math")):
        if "$" in text.get_text() and not _TICK.fullmatch(text.get_text()):
            text.set_parse_math(False)
    return figure


_MARKS = re.compile(
    r"[`*]"  # code, emphasis
    r"|(?<![^\W_])_|_(?![^\W_])"  # emphasis again; inside of a word an underscore is one
    r"|<(?=[A-Za-z/!?])"  # HTML, and addresses
    r"|\](?=[(\[:])"  # links, pictures, and what links refer to
    r"|\\(?=[^\w\s])"
    r"|(?<=[A-Za-z])~|~(?=~)"
)
_FIRST = re.compile(r"^(\s*)(#|>|[-+=](?=\s|$)|[-=+]{3,}|~{3,})")
_NUMBERED = re.compile(r"^(\s*\d+)([.)])(?=\s)")


def markdown(text: str) -> str:
    """A text in which nothing is read as Markdown or HTML: one line. Pipes are left to tables."""
    text = visible(text, lines=False)
    text = re.sub(r"&(?=#?\w+;)", "&amp;", _MARKS.sub(lambda mark: "\\" + mark[0], text))
    return _FIRST.sub(r"\1\\\2", _NUMBERED.sub(r"\1\\\2", text))
