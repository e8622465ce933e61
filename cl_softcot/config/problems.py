"""What is wrong with a configuration, in words: from pydantic's errors to sentences that fit a YAML file."""

from __future__ import annotations

import difflib
import inspect
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, get_args

from pydantic import BaseModel, ValidationError
from pydantic_core import InitErrorDetails, PydanticCustomError

from cl_softcot.config.yaml import Loc
from cl_softcot.errors import UserError, did_you_mean
from cl_softcot.files import dump_json

LABEL = r"^[a-z0-9_]+$"
SLUG = r"^[A-Za-z0-9][A-Za-z0-9_-]*$"  # no dots: they part a run's name and the keys of an override


class Collected:
    """Gathers errors of several validations into one `ValidationError`, each worded for the person who reads it."""

    def __init__(self, model: type[BaseModel], also: Iterable[str] = ()):
        self.model = model
        self.also = tuple(also)  # further keys that may stand in the same map
        self.details: list[InitErrorDetails] = []

    @contextmanager
    def inside(self) -> Iterator[None]:
        """Gathers the ValidationError of the block, if it raises one."""
        try:
            yield
        except ValidationError as error:
            for one in error.errors(include_url=False):
                text = worded(one, self.model, self.also)
                self._add(one["type"], text, one["loc"], one["input"])

    def extend(self, errors: Iterable[tuple[Loc, str, Any]]) -> None:
        for loc, text, given in errors:
            self._add("said", text, loc, given)

    def _add(self, kind: str, text: str, loc: Loc, given: Any) -> None:
        said = PydanticCustomError(kind, "{said}", {"said": text})
        self.details.append(InitErrorDetails(type=said, loc=loc, input=given))

    def raise_if_any(self) -> None:
        if self.details:
            raise ValidationError.from_exception_data(self.model.__name__, self.details)


@contextmanager
def located(loc: Loc, given: Any) -> Iterator[None]:
    """Turns a UserError of the block into a ValidationError at `loc`."""
    try:
        yield
    except UserError as error:
        problems = Collected(BaseModel)
        problems.extend([(loc, told(error), given)])
        problems.raise_if_any()


def told(error: UserError) -> str:
    """A UserError as one line."""
    where = f" ({error.where})" if error.where else ""
    fix = f" -- {error.fix}" if error.fix else ""
    return f"{error.message}{where}{fix}"


def read_model(model: type[BaseModel], data: Mapping[str, Any], also: Iterable[str] = ()) -> BaseModel:
    """Plain data as a model of anybody's: unknown keys refused, nothing converted that JSON tells apart.

    As JSON, since there a list may become a tuple and a text a path while `"5"` and `true` stay what they are.
    """
    problems = Collected(model, also)
    result = None
    with problems.inside():
        result = model.model_validate_json(dump_json(data), strict=True, extra="forbid")
    problems.raise_if_any()
    assert result is not None
    return result


_WORDS = {
    "model_type": "should be a map (key: value)",
    "model_attributes_type": "should be a map (key: value)",
    "dict_type": "should be a map (key: value)",
    "list_type": "should be a list",
    "tuple_type": "should be a list",
    "string_type": "should be text",
    "int_type": "should be a whole number",
    "int_from_float": "should be a whole number",
    "float_type": "should be a number",
    "bool_type": "should be true or false",
    "finite_number": "should be a finite number",
    "string_too_short": "should not be empty",
}


def worded(error: Any, model: type[BaseModel], also: Sequence[str] = ()) -> str:
    """What one of pydantic's errors says, in words that fit a YAML file."""
    kind, context, given = error["type"], error.get("ctx") or {}, error["input"]
    if "said" in context:
        return context["said"]
    if kind == "extra_forbidden":
        unknown, known = error["loc"][-1], _fields_at(model, error["loc"][:-1])
        if len(error["loc"]) == 1:
            known = [*known, *(key for key in also if key not in known)]
        return f"unknown key {unknown!r}{did_you_mean(unknown, known)}"
    if kind == "missing":
        info = _field_at(model, error["loc"])
        return f"is missing: {info.description}" if info is not None and info.description else "is missing"
    if kind == "value_error":
        return str(context.get("error", error["msg"]))
    if kind == "literal_error":
        return f"should be {context['expected']} (got {_shown(given)}){_nearest(given, context['expected'])}"
    if kind == "union_tag_invalid":
        known = [tag.strip(" '") for tag in context["expected_tags"].split(",")]
        return f"unknown {context['discriminator'].strip(chr(39))} {context['tag']!r}{did_you_mean(context['tag'], known)}"
    if kind == "string_pattern_mismatch" and context.get("pattern") == LABEL:
        return f"a label consists of lower-case letters, digits and '_' (got {_shown(given)})"
    if kind == "string_pattern_mismatch" and context.get("pattern") == SLUG:
        return f"a label consists of letters, digits, '_' and '-' (got {_shown(given)})"
    if kind == "too_short":
        return f"should have at least {context['min_length']} entry (has {context['actual_length']})"
    said = _WORDS.get(kind) or error["msg"].removeprefix("Input ").replace("String should", "should")
    return f"{said} (got {_shown(given)})"


def _nearest(given: Any, expected: str) -> str:
    choices = [choice.strip(" '") for choice in expected.replace(" or ", ", ").split(", ")]
    near = difflib.get_close_matches(str(given), choices, n=1)
    return f"; did you mean '{near[0]}'?" if near else ""


def _shown(value: Any) -> str:
    """A value as a person would write it in YAML, cut where it gets long."""
    if isinstance(value, Mapping):
        return "a map"
    if isinstance(value, list | tuple):
        return "a list"
    if isinstance(value, bool) or value is None:
        return {None: "nothing", True: "true", False: "false"}[value]
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    """The models that an annotation mentions, inside of lists, maps and unions too."""
    if inspect.isclass(annotation) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for part in get_args(annotation) for model in _models_in(part)]


def _models_at(model: type[BaseModel], loc: Loc) -> list[type[BaseModel]]:
    models = [model]
    for part in loc:  # indices, keys of free maps and pydantic's tags of unions lead nowhere else
        inner = [m for outer in models if part in outer.model_fields for m in _models_in(outer.model_fields[part].annotation)]
        models = inner or models
    return models


def _fields_at(model: type[BaseModel], loc: Loc) -> list[str]:
    models = _models_at(model, loc)
    return [name for m in models for name in m.model_fields if name not in getattr(m, "not_in_yaml", ())]


def _field_at(model: type[BaseModel], loc: Loc) -> Any:
    return next((m.model_fields[loc[-1]] for m in _models_at(model, loc[:-1]) if loc[-1] in m.model_fields), None)


def alternatives(said: list[str]) -> str:
    """Ways in which a value could have been right, as one sentence that tells once what it is instead."""
    return ", or ".join([*(re.sub(r" \(got [^()]*\)$", "", text) for text in said[:-1]), said[-1]])
