"""YAML that knows where everything stands: strict reading, inheritance (`base:`), overrides, writing.

The dialect is YAML 1.2's core: only `true` and `false` are booleans (`on`, `off`, `yes` and `no` are text), `1e-4`
is a number, there are no dates and no sexagesimal numbers. Duplicate keys, tags, several documents, and numbers
that are not finite are refused. Everything that is wrong is collected with its place; nothing stops at the first.
"""

from __future__ import annotations

import math
import os
import re
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from cl_softcot.errors import UserError, did_you_mean
from cl_softcot.files import MAX_DIGITS, read_bytes
from cl_softcot.printable import hide, holds_password, visible

Loc = tuple[str | int, ...]

_TAG = "tag:yaml.org,2002:"
_INT = re.compile(r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)")
_BOOL = re.compile(r"true|True|TRUE|false|False|FALSE")
_NULL = re.compile(r"~|null|Null|NULL|")
_CORE = (("null", _NULL), ("bool", _BOOL), ("int", _INT), ("float", _FLOAT), ("merge", re.compile("<<")))


# Far above what an experiment needs, and read in seconds.
MAX_BYTES = 1 << 20
MAX_DEPTH = 40  # maps and lists in each other
MAX_VALUES = 20_000  # of a document, with what its aliases and merge keys stand for
MAX_KEY = 200  # letters
MAX_SECONDS = 30.0
_MAX_PROBLEMS = 50  # told; the others are counted
_LARGEST = 2**63 - 1


class TooMuch(Exception):
    """A document that is beyond the bounds of what is read."""

    def __init__(self, what: str, mark: yaml.Mark | None = None):
        super().__init__(what)
        self.mark = mark


class _Loader(yaml.SafeLoader):
    yaml_implicit_resolvers: dict = {}

    def __init__(self, text: str):
        super().__init__(text)
        self._depth = self._nodes = 0
        self._end = time.monotonic() + MAX_SECONDS

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        self._depth += 1
        self._nodes += 1
        if self._depth > MAX_DEPTH:
            raise TooMuch(f"nested deeper than {MAX_DEPTH}", self.peek_event().start_mark)
        if self._nodes > 2 * MAX_VALUES:  # keys are nodes too
            raise TooMuch(f"more than {MAX_VALUES} values", self.peek_event().start_mark)
        if time.monotonic() > self._end:
            raise TooMuch(f"not read within {MAX_SECONDS:g} s", self.peek_event().start_mark)
        try:
            return super().compose_node(parent, index)
        finally:
            self._depth -= 1


for _name, _pattern in _CORE:
    _Loader.add_implicit_resolver(_TAG + _name, re.compile(rf"(?:{_pattern.pattern})\Z"), None)


class _Dumper(yaml.SafeDumper):
    """Quotes what other readers of YAML (1.1) or this one would take for something else than text."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


_Dumper.yaml_implicit_resolvers = {k: list(v) for k, v in yaml.SafeDumper.yaml_implicit_resolvers.items()}
for _name, _pattern in _CORE:
    _Dumper.add_implicit_resolver(_TAG + _name, re.compile(rf"(?:{_pattern.pattern})\Z"), None)


def dump(data: Any) -> str:
    """Plain data as YAML text that `parse` reads back as the same data; the order of keys is kept."""
    return yaml.dump(data, Dumper=_Dumper, sort_keys=False, allow_unicode=True, default_flow_style=None, width=110)


@dataclass(frozen=True, order=True)
class Mark:
    """A place. `source` orders files (the one named on the command line first, then its bases, then overrides)."""

    source: int
    line: int
    column: int
    name: str

    def __str__(self) -> str:
        return f"{self.name}:{self.line}:{self.column}" if self.line else self.name


@dataclass(frozen=True, order=True)
class Problem:
    """One thing that is wrong, and where."""

    mark: Mark
    text: str

    def __str__(self) -> str:
        return f"{self.mark}: {self.text}"


def told(problems: Iterable[Problem]) -> str:
    """Everything that is wrong, a line each; of very many the first."""
    lines = list(map(str, problems))
    more = [f"... and {len(lines) - _MAX_PROBLEMS} more problems"] if len(lines) > _MAX_PROBLEMS else []
    return "\n".join([*lines[:_MAX_PROBLEMS], *more])


@dataclass
class Tree:
    """Plain data, with the place of every key and of every value in it, and what was wrong while reading."""

    data: Any
    keys: dict[Loc, Mark] = field(default_factory=dict)
    values: dict[Loc, Mark] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)

    def mark(self, loc: Loc, *, key: bool = False) -> Mark:
        """The place of a value (or of its key); for what is not in the data, the place of what should hold it."""
        for end in range(len(loc), -1, -1):
            for places in (self.keys, self.values) if key else (self.values, self.keys):
                if loc[:end] in places:
                    return places[loc[:end]]
        raise LookupError("a tree has at least the mark of its root")

    def forget(self, loc: Loc) -> None:
        """Drops the places of a value and of all inside it."""
        for places in (self.keys, self.values):
            for known in [p for p in places if p[: len(loc)] == loc]:
                del places[known]

    def adopt(self, other: Tree, loc: Loc, into: Loc) -> None:
        """Takes over the places of what stands at `loc` in another tree, as standing at `into` here."""
        for mine, theirs in ((self.keys, other.keys), (self.values, other.values)):
            mine.update({into + p[len(loc) :]: m for p, m in theirs.items() if p[: len(loc)] == loc})

    def label(self, loc: Loc) -> str:
        """A place as the command line addresses it: `methods.full_coconut.train.steps`."""
        parts, here = [], self.data
        for part in loc:
            inside = here[part] if has(here, part) else None
            name = _name_of(inside) if isinstance(here, list) and isinstance(inside, dict) else None
            unique = name is not None and [_name_of(entry) for entry in here].count(name) == 1
            parts.append(str(name if unique else part))
            here = inside
        return ".".join(parts)


def _name_of(entry: Any) -> str | None:
    """What an entry of a list is addressed by on the command line."""
    name = entry.get("name") if isinstance(entry, dict) else entry
    return name if isinstance(name, str) and name else None


def has(data: Any, part: str | int) -> bool:
    """Whether `data[part]` is there, for a list or a map."""
    if isinstance(data, list):
        return isinstance(part, int) and -len(data) <= part < len(data)
    return isinstance(data, dict) and part in data


# --- reading ---------------------------------------------------------------------------------------


def parse(text: str, name: str, source: int = 0) -> Tree:
    """Reads one YAML document; `name` is what places in it are called.

    Raises:
        UserError: if it is not YAML at all, or beyond the bounds of what is read. All else is among the tree's `problems`.
    """
    name = visible(hide(name), lines=False)
    if len(text) > MAX_BYTES:
        raise UserError(f"larger than {MAX_BYTES >> 20} MiB, which no YAML file of ours is", where=name)
    loader = None
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        return _Reader(name, source).read(node)
    except TooMuch as error:
        where = f"{name}:{error.mark.line + 1}:{error.mark.column + 1}" if error.mark else name
        raise UserError(f"more than is read as YAML: {error}", where=where) from None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        what = " ".join(str(part) for part in (error.context, error.problem) if part)
        where = f"{name}:{mark.line + 1}:{mark.column + 1}" if mark else name
        raise UserError(f"not valid YAML: {what}", where=where, fix=_yaml_hint(text, what)) from None
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        column = error.position - (text.rfind("\n", 0, error.position) + 1) + 1
        what = f"the character #x{ord(text[error.position]):04x} is not allowed"
        raise UserError(f"not valid YAML: {what}", where=f"{name}:{line}:{column}") from None
    except (RecursionError, ValueError, OverflowError) as error:  # PyYAML's own, of escapes and directives that it trusts
        raise UserError(f"not valid YAML: {error}", where=name) from None
    finally:
        if loader is not None:
            loader.dispose()


def _yaml_hint(text: str, what: str) -> str | None:
    if "\\t" in what or "'\t'" in what:
        return "YAML is indented with spaces, never with tabs."
    if "mapping values are not allowed" in what:
        return "A text with ': ' in it needs quotes; also check the indentation."
    if "expected a single document" in what:
        return "A file holds one document: remove the line '---'."
    return None


class _Reader:
    """Walks the nodes of one document once, building data, places and problems together."""

    def __init__(self, name: str, source: int):
        self.name, self.source = name, source
        self.open_nodes: list[int] = []  # to find an alias inside of its own anchor
        self.built = 0

    def read(self, node: yaml.Node | None) -> Tree:
        self.tree = Tree(None)
        if node is None:
            self.tree.values[()] = Mark(self.source, 1, 1, self.name)
        else:
            self.tree.data = self.build(node, ())
        return self.tree

    def at(self, node: yaml.Node) -> Mark:
        return Mark(self.source, node.start_mark.line + 1, node.start_mark.column + 1, self.name)

    def problem(self, node: yaml.Node, loc: Loc, text: str) -> None:
        if len(self.tree.problems) > MAX_VALUES:
            return
        path = ".".join(map(str, loc))
        self.tree.problems.append(Problem(self.at(node), f"{path}: {text}" if path else text))

    def count(self, node: yaml.Node) -> None:
        """A few aliases of aliases stand for more than a machine can hold."""
        self.built += 1
        if self.built > MAX_VALUES:
            raise TooMuch(f"more than {MAX_VALUES} values, with what aliases (*) and merge keys (<<) stand for", node.start_mark)

    def build(self, node: yaml.Node, loc: Loc) -> Any:
        self.count(node)
        if len(loc) > MAX_DEPTH:
            raise TooMuch(f"nested deeper than {MAX_DEPTH}, with what aliases (*) stand for", node.start_mark)
        self.tree.values[loc] = self.at(node)
        if id(node) in self.open_nodes:
            self.problem(node, loc, "an alias (*) inside of what it stands for")
            return None
        self.open_nodes.append(id(node))
        try:
            if isinstance(node, yaml.MappingNode) and node.tag == _TAG + "map":
                return self.build_map(node, loc)
            if isinstance(node, yaml.SequenceNode) and node.tag == _TAG + "seq":
                return [self.build(item, (*loc, i)) for i, item in enumerate(node.value)]
            if isinstance(node, yaml.ScalarNode):
                return self.build_scalar(node, loc)
            self.problem(node, loc, f"tags such as {node.tag!r} are not used here")
            return None
        finally:
            self.open_nodes.pop()

    def build_map(self, node: yaml.MappingNode, loc: Loc) -> dict[str, Any]:
        self.count(node)
        result: dict[str, Any] = {}
        merged = [value for key, value in node.value if key.tag == _TAG + "merge"]
        for source in merged:  # `<<: *defaults`: what stands in the map itself wins, then the earliest
            parts = source.value if isinstance(source, yaml.SequenceNode) else [source]
            for part in parts:
                if not isinstance(part, yaml.MappingNode):
                    self.problem(part, loc, "'<<' takes a map, or a list of maps")
                    continue
                self.fill(result, part, loc, first_wins=True)
        own: dict[str, Any] = {}
        self.fill(own, node, loc, first_wins=False)
        return {**result, **own}

    def fill(self, result: dict[str, Any], node: yaml.MappingNode, loc: Loc, *, first_wins: bool) -> None:
        seen: dict[str, int] = {}
        if first_wins:  # a merged map may itself merge others
            nested = self.build_map(node, loc) if any(k.tag == _TAG + "merge" for k, _ in node.value) else {}
            for key, value in nested.items():
                result.setdefault(key, value)
        for key_node, value_node in node.value:
            if key_node.tag == _TAG + "merge":
                continue
            if not isinstance(key_node, yaml.ScalarNode):
                self.problem(key_node, loc, "a key must be text")
                continue
            key = key_node.value  # as it is written: an order may be called 1
            if len(key) > MAX_KEY or self.is_unfit(key_node, loc):
                if len(key) > MAX_KEY:
                    self.problem(key_node, loc, f"a key of {len(key)} letters")
                continue
            here = (*loc, key)
            if key in seen:
                self.problem(key_node, here, f"duplicate key {key!r} (first at line {seen[key]})")
                continue
            seen[key] = key_node.start_mark.line + 1
            if first_wins and key in result:
                continue
            self.tree.keys[here] = self.at(key_node)
            result[key] = self.build(value_node, here)

    def is_unfit(self, node: yaml.ScalarNode, loc: Loc) -> bool:
        """Whether a text is none that may stand in a file, which is told: of a password, nothing more than that it is there."""
        text = node.value
        if "\0" in text or any("\ud800" <= letter <= "\udfff" for letter in text):
            self.problem(node, loc, "a NUL character or half a character (a lone surrogate) in a text")
        elif holds_password(text):
            self.problem(node, loc, "an address in a file must not hold a password: it belongs into the environment (url_env, "
                         "PGPASSWORD, MLFLOW_TRACKING_URI) or into ~/.pgpass")  # fmt: skip
        else:
            return False
        return True

    def build_scalar(self, node: yaml.ScalarNode, loc: Loc) -> Any:
        kind, text = node.tag.removeprefix(_TAG), node.value
        if self.is_unfit(node, loc):
            return None
        if kind in ("str", "merge"):
            return text
        if kind == "null" and _NULL.fullmatch(text):
            return None
        if kind == "bool" and _BOOL.fullmatch(text):
            return text.lower() == "true"
        if kind == "int" and _INT.fullmatch(text):
            base = 8 if text.startswith("0o") else 16 if text.startswith("0x") else 10
            if len(text) <= MAX_DIGITS and abs(whole := int(text, base)) <= _LARGEST:
                return whole
            self.problem(node, loc, f"a whole number of {len(text)} digits is too large")
            return None
        if kind == "float" and _FLOAT.fullmatch(text):
            number = float(text.replace(".inf", "inf").replace(".nan", "nan").lower()) if text.strip() else 0.0
            if math.isfinite(number):
                return number
            self.problem(node, loc, f"{text} is not a finite number")
            return None
        self.problem(node, loc, f"tags such as {node.tag!r} are not used here")
        return None


def read_text(path: Path) -> str:
    """The text of a YAML file.

    Raises:
        UserError: if there is no such file (near names are told), or it cannot be read as UTF-8.
    """
    if path.is_dir():
        raise UserError("this is a folder, not a YAML file", where=str(path))
    if "\0" not in str(path) and not os.path.lexists(path):
        folder = path.parent
        beside = sorted(p.name for p in folder.glob("*.y*ml")) if folder.is_dir() else []
        missing = path.name if folder.is_dir() else f"folder {str(folder)!r}"
        raise UserError(f"there is no {missing}{did_you_mean(path.name, beside)}", where=str(path))
    try:
        return read_bytes(path, MAX_BYTES).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"not UTF-8 text (byte {error.start})", where=str(path), fix="Save it as UTF-8.") from None


# --- inheritance -----------------------------------------------------------------------------------


def read_file(path: Path, appendable: Iterable[str] = ()) -> tuple[Tree, list[Path]]:
    """A file with its bases merged in, and the files that were read (itself first).

    `base: other.yaml` (relative to the file that says so) is read first; maps are merged, everything else is
    replaced, and `<key>_add` for each `appendable` key appends to the list that was there before.

    Raises:
        UserError: if a file is missing, empty, not YAML or not a map, or the bases form a circle.
    """
    files: list[Path] = []
    return _read_chain(path, tuple(appendable), files), files


def _read_chain(path: Path, appendable: tuple[str, ...], files: list[Path], named_at: Mark | None = None) -> Tree:
    if path.resolve() in [f.resolve() for f in files]:
        circle = " -> ".join(map(str, [*files, path]))
        raise UserError(f"base: the files name each other in a circle: {circle}", where=str(named_at))
    try:
        text = read_text(path)
    except UserError as error:
        if named_at is None:
            raise
        raise UserError(f"base: {error}", where=str(named_at)) from None
    files.append(path)
    tree = parse(text, str(path), source=len(files) - 1)
    if tree.data is None and not tree.problems:
        raise UserError("the file is empty", where=str(path), fix="It should hold a map of settings, such as 'tasks:'.")
    if not isinstance(tree.data, dict):
        raise UserError("the file should hold a map (key: value)", where=str(tree.mark(())))
    base = tree.data.pop("base", None)
    if base is None:
        return _append(tree, appendable)
    if not isinstance(base, str):
        raise UserError("base: should be the path of one YAML file", where=str(tree.mark(("base",))))
    under = _read_chain(path.parent / Path(base).expanduser(), appendable, files, tree.mark(("base",)))
    tree.forget(("base",))
    return _append(merge(under, tree), appendable)


def merge(under: Tree, over: Tree) -> Tree:
    """`over` laid upon `under`: maps are merged key by key, everything else is replaced, places included."""
    result = Tree(under.data, dict(under.keys), dict(under.values), under.problems + over.problems)

    def lay(below: Any, above: Any, loc: Loc) -> Any:
        if not (isinstance(below, dict) and isinstance(above, dict)):
            result.forget(loc)
            result.adopt(over, loc, loc)
            return above
        for places, theirs in ((result.keys, over.keys), (result.values, over.values)):
            if loc in theirs:
                places[loc] = theirs[loc]
        merged = dict(below)
        for key, value in above.items():
            merged[key] = lay(below.get(key), value, (*loc, key))
        return merged

    result.data = lay(under.data, over.data, ())
    return result


def _append(tree: Tree, appendable: tuple[str, ...]) -> Tree:
    for key in appendable:
        added_key = f"{key}_add"
        if added_key not in tree.data:
            continue
        added, mark = tree.data.pop(added_key), tree.mark((added_key,))
        before = tree.data.get(key) or []
        if not isinstance(added, list) or not isinstance(before, list):
            wrong = added_key if not isinstance(added, list) else key
            tree.problems.append(Problem(mark, f"{wrong}: should be a list"))
        else:
            for i in range(len(added)):
                tree.adopt(tree, (added_key, i), (key, len(before) + i))
            tree.values.setdefault((key,), mark)
            tree.data[key] = [*before, *added]
        tree.forget((added_key,))
    return tree


# --- overrides -------------------------------------------------------------------------------------


def override(tree: Tree, text: str, short_forms: Mapping[str, tuple[str, ...]], source: int) -> None:
    """Applies `dotted.key=value` in place; what is wrong with it joins the tree's problems.

    The value is YAML. A list is addressed by index, or by the `name` of an entry. `short_forms` says which keys
    may hold a mere text that stands for a map, and for which keys of that map (`reasoning: cot`).
    """
    mark = Mark(source, 0, 0, f"command line: {_short(visible(hide(text), lines=False))}")
    path, equals, value_text = text.partition("=")
    parts = path.strip().split(".")
    if len(parts) > MAX_DEPTH:
        tree.problems.append(Problem(mark, f"a key of {len(parts)} parts"))
        return
    if not equals or not all(parts):
        tree.problems.append(Problem(mark, "an override is written key=value, such as train.steps=60"))
        return
    try:
        value = parse(value_text, mark.name, source)
    except UserError as error:
        tree.problems.append(Problem(mark, error.message))
        return
    if value.problems:
        tree.problems.extend(Problem(mark, problem.text) for problem in value.problems)
        return
    here: Any = tree.data
    loc: Loc = ()
    for i, part in enumerate(parts):
        found = _step(tree, here, loc, part, mark)
        if found is None:
            return
        if i == len(parts) - 1:
            here[found] = value.data
            tree.forget((*loc, found))
            tree.keys[*loc, found] = tree.values[*loc, found] = mark
            return
        here = _descend(tree, here, found, loc, short_forms, mark)
        loc = (*loc, found)


def _short(text: str) -> str:
    return text if len(text) <= MAX_KEY else f"{text[:MAX_KEY]}..."


def _step(tree: Tree, here: Any, loc: Loc, part: str, mark: Mark) -> str | int | None:
    """Which key or index of `here` a part of the path means; None, and a problem, if there is none."""
    if isinstance(here, dict):
        return part
    where = tree.label(loc)
    if not isinstance(here, list):
        tree.problems.append(Problem(mark, f"{where} holds no keys, so there is no {where}.{part}"))
        return None
    names = [_name_of(entry) for entry in here]
    if names.count(part) == 1:
        return names.index(part)
    if part.isdecimal() and int(part) < len(here):
        return int(part)
    known = [name for name in names if name is not None]
    if part.isdecimal() or not known:
        wrong = f"{where} has {len(here)} entries (counted from 0), so there is no {where}.{part}"
    else:
        wrong = f"{where} has no entry {part!r}{did_you_mean(part, known)}"
    tree.problems.append(Problem(mark, wrong))
    return None


def _descend(tree: Tree, here: Any, part: str | int, loc: Loc, short_forms: Mapping[str, tuple[str, ...]], mark: Mark) -> Any:
    """The value of `here[part]`, as something that has keys: made where absent, spelt out where short."""
    inside = here.get(part) if isinstance(here, dict) else here[part]
    spelt_out = short_forms.get(str(part if isinstance(part, str) else loc[-1]))
    if inside is None:
        here[part] = {}
        tree.keys.setdefault((*loc, part), mark)
        tree.values[*loc, part] = mark
    elif isinstance(inside, str) and spelt_out:
        here[part] = dict.fromkeys(spelt_out, inside)
    elif isinstance(inside, dict | list):
        # Anchored maps are built anew at each alias, so changing one in place changes no other.
        return inside
    return here[part]
