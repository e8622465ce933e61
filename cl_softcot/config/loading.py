"""Reading an experiment: base files, overrides, chosen methods, and the place of every error."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import (
    ValidationError,
)

from cl_softcot.config import yaml
from cl_softcot.config.experiment import Experiment
from cl_softcot.config.problems import alternatives, worded
from cl_softcot.config.settings import APPENDABLE, SHORT_FORMS, name_of
from cl_softcot.config.yaml import Mark, Problem, Tree
from cl_softcot.errors import UserError, did_you_mean


@dataclass(frozen=True)
class Loaded:
    """An experiment as it was asked for.

    Attributes:
        config: everything resolved.
        source_path: the file that was named.
        sources: every file that was read: `source_path`, then its bases.
        overrides: the `key=value` texts, in order.
    """

    config: Experiment
    source_path: Path
    sources: tuple[Path, ...]
    overrides: tuple[str, ...]


def load_experiment(path: str | Path, overrides: Sequence[str] = ()) -> Loaded:
    """Reads, overrides and validates an experiment.

    Args:
        path: the YAML file. `base: other.yaml` in it is read first (maps are merged, lists and everything else are
            replaced; `methods_add:` and `tasks_add:` append; `methods_only: [a, b]` keeps those methods). `name` and
            `output_dir` are not inherited, so that two files never share the folder of their results by accident.
        overrides: `dotted.key=value`, the value being YAML; entries of lists are addressed by index or by name:
            `methods.full_coconut.train.steps=60`.

    Raises:
        UserError: with everything that is wrong, one problem a line: `file:line:col: key: what`.
    """
    path = Path(path).expanduser()
    overrides = tuple(overrides)
    tree, files = yaml.read_file(path, APPENDABLE)
    for key in ("name", "output_dir"):
        if key in tree.data and tree.mark((key,), key=True).name != str(path):
            tree.forget((key,))
            del tree.data[key]
    tree.data.setdefault("name", path.stem)
    for text in overrides:
        yaml.override(tree, text, SHORT_FORMS, source=len(files))
    _choose_methods(tree)
    config, problems = validated(tree, Experiment)
    if problems:
        raise UserError(yaml.told(problems))
    assert config is not None
    return Loaded(config, path, tuple(files), overrides)


def _choose_methods(tree: Tree) -> None:
    """`methods_only: [a, b]` keeps those methods, in the order of `methods`."""
    wanted = tree.data.pop("methods_only", None)
    if wanted is None:
        return
    mark, methods = tree.mark(("methods_only",)), tree.data.get("methods")
    if not isinstance(methods, list):
        return  # that is told by itself
    known = [name_of(entry) for entry in methods]
    if not isinstance(wanted, list) or not wanted:
        tree.problems.append(Problem(mark, "methods_only: should be a list of methods, such as [first, second]"))
        return
    for name in wanted:
        if name not in known:
            tree.problems.append(Problem(mark, f"methods_only: unknown method {name!r}{did_you_mean(name, filter(None, known))}"))
    kept = [i for i, name in enumerate(known) if name in wanted]
    if kept:
        before = Tree(tree.data, dict(tree.keys), dict(tree.values))
        tree.forget(("methods",))
        tree.values["methods",] = before.mark(("methods",))
        for new, old in enumerate(kept):
            tree.adopt(before, ("methods", old), ("methods", new))
        tree.data["methods"] = [methods[i] for i in kept]


def validated(tree: Tree, model: type[Any]) -> tuple[Any, list[Problem]]:
    """The data of a tree as a model, and everything that is wrong with them, each with its place."""
    problems, config = set(tree.problems), None
    already = {problem.mark for problem in problems}  # what follows from those would only confuse
    try:
        # A copy: a validator of somebody's may change what it is given.
        config = model.model_validate(copy.deepcopy(tree.data))
    except ValidationError as error:
        texts: dict[tuple[Mark, str], list[str]] = {}
        for one in error.errors(include_url=False):
            mark, label = _place(tree, one)
            said = texts.setdefault((mark, label), [])
            text = worded(one, model)
            if text not in said:
                said.append(text)
        # Several errors about one value are the ways in which it could have been right.
        problems |= {
            Problem(mark, f"{label}: {alternatives(said)}" if label else alternatives(said))
            for (mark, label), said in texts.items()
            if mark not in already
        }
    return config, sorted(problems)


def _place(tree: Tree, error: Any) -> tuple[Mark, str]:
    """Where an error is, and how the command line would address that."""
    loc, here, found = tuple(error["loc"]), tree.data, 0
    for part in loc:
        if not yaml.has(here, part):
            break
        here, found = here[part], found + 1
    known = loc[:found]  # without what is missing, and without pydantic's tags of unions
    if error["type"] == "missing":
        return tree.mark(known), tree.label(loc)
    return tree.mark(known, key=error["type"] == "extra_forbidden"), tree.label(known)
