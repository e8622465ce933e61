"""What a check says: that a rule is kept, or what is wrong, where, and what to do."""

from __future__ import annotations

import inspect
import traceback
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from cl_softcot.errors import UserError


class Broken(Exception):
    """A rule that is not kept."""

    def __init__(self, what: str, fix: str = ""):
        super().__init__(what)
        self.what, self.fix = what, fix


@dataclass(frozen=True)
class Line:
    """One rule and how it fared; ``what`` is empty where it is kept."""

    rule: str
    what: str = ""
    where: str = ""
    fix: str = ""

    @property
    def ok(self) -> bool:
        return not self.what

    def __str__(self) -> str:
        if self.ok:
            return f"ok     {self.rule}"
        place, advice = f" ({self.where})" if self.where else "", f"\n       -> {self.fix}" if self.fix else ""
        return f"WRONG  {self.rule}: {self.what}{place}{advice}"


Rules = Mapping[str, Callable[[], None]]


def told(rules: Rules, cls: type) -> Iterator[Line]:
    """Each rule with what came of it; whatever goes wrong in somebody's class is told and stops no other rule."""
    for rule, check in rules.items():
        try:
            check()
        except Broken as broken:
            yield Line(rule, broken.what, place_of(cls), broken.fix)
        except UserError as error:
            yield Line(rule, error.message, error.where or place_of(cls), error.fix or "")
        except Exception as error:
            last = traceback.extract_tb(error.__traceback__)[-1]
            yield Line(rule, f"{type(error).__name__}: {error}", f"{last.filename}:{last.lineno}")
        else:
            yield Line(rule)


def place_of(cls: Any) -> str:
    """The file and line of a class or a function."""
    try:
        return f"{inspect.getsourcefile(cls)}:{inspect.getsourcelines(cls)[1]}"
    except (OSError, TypeError):
        return f"{cls.__module__}:{cls.__qualname__}"


def settings_are_described(cls: Any) -> None:
    """People see descriptions in the editor and in the reference, and nothing else."""
    missing = [name for name, info in cls.Settings.model_fields.items() if not info.description]
    if missing:
        raise Broken(f"no description of {', '.join(missing)}", "Write Field(..., description='...') for each setting.")


def gives_reasons(refuses: Callable[[Any, str], Any], settings: Any, others: list[str]) -> list[str]:
    """Those of the others that are not refused."""
    answers = {name: refuses(settings, name) for name in others}
    odd = [name for name, answer in answers.items() if answer is not None and not (isinstance(answer, str) and answer.strip())]
    if odd:
        raise Broken(f"refuses({odd[0]!r}) gives {answers[odd[0]]!r}", "Give a reason in words, or None.")
    taken = [name for name, answer in answers.items() if answer is None]
    if not taken:
        raise Broken(f"it refuses everything: {', '.join(others)}", "Nobody can ever run it.")
    return taken
