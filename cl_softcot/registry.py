"""Finds plug-ins by name: a task, a way of thinking or a strategy is one file, found by the file's name.

`graph` is the one task that `cl_softcot/tasks/graph.py` defines; `my_package.my_module:MyClass` names any class that
Python can import from the folder where the command runs. The engine imports nothing pluggable otherwise, so adding
one never means touching it.
"""

from __future__ import annotations

import ast
import hashlib
import importlib
import importlib.util
import inspect
import os
import pkgutil
import re
import sys
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, Literal, overload

from cl_softcot.errors import UserError, did_you_mean

if TYPE_CHECKING:
    from cl_softcot.diagnostics.base import Diagnostic
    from cl_softcot.reasoning.base import Reasoning
    from cl_softcot.tasks.base import Task
    from strategies.base import Strategy


@dataclass(frozen=True)
class Kind:
    """Where the plug-ins of one kind live, and what each must have."""

    package: str
    base: str  # name of the base class in `<package>.base`


KINDS: Mapping[str, Kind] = {
    "task": Kind("cl_softcot.tasks", "Task"),
    "reasoning": Kind("cl_softcot.reasoning", "Reasoning"),
    "strategy": Kind("strategies", "Strategy"),
    "diagnostic": Kind("cl_softcot.diagnostics", "Diagnostic"),
}

# Avalanche's plug-ins are offered by the file that is allowed to import avalanche, as a dict of name -> class.
_AVALANCHE = "cl_softcot.learning.plugins"

# Keys of the YAML that stand beside a plug-in's own settings.
_RESERVED = {"task": {"name", "task"}, "diagnostic": {"name", "enabled"}}

_PATH = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*")


@overload
def find(kind: Literal["task"], name: str) -> type[Task]: ...
@overload
def find(kind: Literal["reasoning"], name: str) -> type[Reasoning]: ...
@overload
def find(kind: Literal["strategy"], name: str) -> type[Strategy]: ...
@overload
def find(kind: Literal["diagnostic"], name: str) -> type[Diagnostic]: ...
@overload
def find(kind: str, name: str) -> type[Any]: ...
def find(kind: str, name: str) -> type[Any]:
    """The class of a plug-in.

    Args:
        kind: 'task', 'reasoning', 'strategy', 'diagnostic' or 'plugin' (of Avalanche).
        name: a known name, or `package.module:Class`.

    Raises:
        UserError: if there is none (the nearest name is told), it needs a package that is not installed, or it
            is not what such a plug-in has to be.
    """
    if kind != "plugin" and kind not in KINDS:
        raise ValueError(f"unknown kind of plug-in {kind!r}")
    if ":" in name:
        return _checked(kind, name, _by_path(kind, name))
    if kind == "plugin":
        return _avalanche_plugin(name)
    if name == "base" or name not in _module_files(KINDS[kind].package):
        raise _unknown(kind, name)
    return _checked(kind, name, _only_class(kind, name))


def find_builtin(kind: str, name: object, *, where: str | Path | None = None) -> type[Any]:
    """One of our own plug-ins, by a name that stands in a file of data (a model's folder, a result): such a file names no code.

    Raises:
        UserError: if the name is none of ours, `package.module:Class` among them.
    """
    if isinstance(name, str) and name in known(kind):
        return find(kind, name)
    near = did_you_mean(name, known(kind)) if isinstance(name, str) else ""
    own = " (a file of data names no code; only the experiment's YAML does)" if isinstance(name, str) and ":" in name else ""
    raise UserError(f"{name!r} is no {kind} of this package{own}{near}", where=None if where is None else str(where))


_refused: ContextVar[str | None] = ContextVar("refused", default=None)


@contextmanager
def only_builtin(what: str) -> Iterator[None]:
    """Inside the block nothing is imported by `package.module:Class` or `package.module:function`; `what` is read there."""
    before = _refused.set(what)
    try:
        yield
    finally:
        _refused.reset(before)


def _refuse_code(kind: str, name: str) -> None:
    if (what := _refused.get()) is not None:
        raise UserError(f"{kind} {name!r}: {what} names no code, so that nothing is imported")


def base_of(kind: str) -> type:
    """The class that all plug-ins of a kind derive from."""
    package, name = KINDS[kind].package, KINDS[kind].base
    return getattr(_import(kind, name, f"{package}.base"), name)


def kind_of(cls: type) -> str | None:
    """What kind of plug-in a class is, by what it derives from; None if it is none."""
    above = {f"{base.__module__}.{base.__qualname__}" for base in cls.__mro__}
    return next((kind for kind, its in KINDS.items() if f"{its.package}.base.{its.base}" in above), None)


def any_kind(name: str) -> type | ModuleType:
    """A plug-in whose kind is not told: the class `package.module:Class`, or one of ours by its name; a module `package.module`.

    Raises:
        UserError: there is none, or the class derives from the base class of no kind.
    """
    if ":" not in name:
        kinds = [kind for kind in KINDS if name in known(kind)]
        return find(kinds[0], name) if kinds else _import("metric", name, name)
    kind = kind_of(_by_path("plug-in", name))
    if kind is None:
        bases = ", ".join(f"{its.package}.base.{its.base}" for its in KINDS.values())
        raise UserError(f"{name!r} is no plug-in: it derives from none of {bases}", fix="Derive it from the one that is meant.")
    return find(kind, name)


def find_function(kind: str, name: str) -> Callable[..., Any]:
    """A function by `package.module:function`; ``kind`` says in messages what it is for.

    Raises:
        UserError: if there is none.
    """
    if not _PATH.fullmatch(name):
        raise UserError(f"{name!r} does not name a {kind}", fix=f"A {kind} of your own is named package.module:function.")
    _refuse_code(kind, name)
    module_name, _, function_name = name.partition(":")
    module = _import(kind, name, module_name)
    found = getattr(module, function_name, None)
    if found is None:
        functions = [n for n, f in vars(module).items() if inspect.isfunction(f) and n[0] != "_"]
        told = f"module {module_name!r} has no function {function_name!r}{did_you_mean(function_name, functions)}"
        raise UserError(told, where=getattr(module, "__file__", None))
    if not callable(found):
        raise UserError(f"{name} cannot be called, so it cannot be a {kind}", where=getattr(module, "__file__", None))
    return found


def known(kind: str) -> list[str]:
    """The names that `find` knows, sorted. Nothing is imported, except for Avalanche's plug-ins."""
    if kind == "plugin":
        return sorted(getattr(_import(kind, "its list", _AVALANCHE), "PLUGINS", {}))
    parsed = {name: _classes_in(path) for name, path in _module_files(KINDS[kind].package).items()}
    folder = _package_folder(KINDS[kind].package)
    helpers = [_classes_in(path) for path in sorted(folder.glob("_*.py"))] if folder else []
    bases = {cls: above for classes in (*parsed.values(), *helpers) for cls, above in classes.items()}

    def descends(cls: str, seen: frozenset[str] = frozenset()) -> bool:
        above = bases.get(cls, ())
        return KINDS[kind].base in above or any(descends(b, seen | {cls}) for b in above if b not in seen | {cls})

    return sorted(
        name for name, classes in parsed.items() if name != "base" and any(not c.startswith("_") and descends(c) for c in classes)
    )


# Packages whose versions stand in the record of every run, Python's own among them: what they define is known by that.
_VERSIONED = sys.stdlib_module_names | {"cl_softcot", "strategies", "avalanche", "torch", "transformers", "peft", "numpy"}
_sources: weakref.WeakKeyDictionary[ModuleType, str] = weakref.WeakKeyDictionary()


def user_modules(classes: Iterable[type]) -> dict[str, str]:
    """SHA-256 of the source file of every module of somebody's own that these classes, or those they derive from, are written
    in: as it was when it was first asked for, which is when it was imported."""
    found = {}
    for name in sorted({above.__module__ for cls in classes for above in cls.__mro__}):
        module, path = sys.modules.get(name), source_file(name)
        if name.split(".")[0] in _VERSIONED or module is None or path is None:
            continue
        if module not in _sources:
            _sources[module] = hashlib.sha256(path.read_bytes()).hexdigest()
        found[name] = _sources[module]
    return found


def modules_named(texts: Iterable[str]) -> dict[str, str]:
    """The same of whatever these texts name as `package.module:Name` and was imported for it: classes, what they derive from, and
    functions. A module without a source of Python is listed by the hash of its file, or as ``no file``."""
    found: dict[str, str] = {}
    for name, _, inside in (text.partition(":") for text in texts if _PATH.fullmatch(text)):
        module = sys.modules.get(name)
        if module is None or name.split(".")[0] in _VERSIONED or not hasattr(module, inside):
            continue
        cls = getattr(module, inside)
        found |= user_modules([cls]) if inspect.isclass(cls) else {}
        file = Path(getattr(module, "__file__", None) or "")
        if name not in found and module not in _sources:
            _sources[module] = hashlib.sha256(file.read_bytes()).hexdigest() if file.is_file() else "no file"
        found.setdefault(name, _sources.get(module, ""))
    return dict(sorted(found.items()))


def source_file(module: str) -> Path | None:
    """The file that an imported module is written in; None where it has none."""
    path = getattr(sys.modules.get(module), "__file__", None)
    return Path(path) if path and path.endswith(".py") and Path(path).is_file() else None


def modules_of(package: str) -> dict[str, ModuleType]:
    """Every file of one of our folders, imported: its name -> the module, sorted; helpers (``_name.py``) left out."""
    folder = importlib.import_module(package)
    names = sorted(name for _, name, _ in pkgutil.iter_modules(folder.__path__) if not name.startswith("_"))
    return {name: importlib.import_module(f"{package}.{name}") for name in names}


def build_plugin(config: Mapping[str, Any], global_batch_size: int) -> Any:
    """An Avalanche plugin from its entry in the YAML, made by the file that knows avalanche.

    Raises:
        UserError: if it is unknown, its arguments are wrong, or it cannot work here.
    """
    return _import("plugin", str(config["name"]), _AVALANCHE).build_plugin(config, global_batch_size)


def _unknown(kind: str, name: str) -> UserError:
    fix = "A class of your own is named package.module:Class, with a colon before the class." if "." in name else None
    return UserError(f"unknown {kind} {name!r}{did_you_mean(name, known(kind))}", fix=fix)


# --- by the file's name ----------------------------------------------------------------------------


def _package_folder(package: str) -> Path | None:
    """The folder of a package, without importing it."""
    _see_working_folder()
    try:
        spec = importlib.util.find_spec(package)
    except ModuleNotFoundError:
        return None
    places = list(spec.submodule_search_locations or ()) if spec else []
    return Path(places[0]) if places else None


def _module_files(package: str) -> dict[str, Path]:
    folder = _package_folder(package)
    if folder is None:
        return {}
    return {path.stem: path for path in sorted(folder.glob("*.py")) if not path.stem.startswith("_")}


def _classes_in(path: Path) -> dict[str, tuple[str, ...]]:
    """Top-level classes of a source file, each with the last names of its bases."""
    return _parse_classes(path, path.stat().st_mtime_ns)


@cache
def _parse_classes(path: Path, changed_ns: int) -> dict[str, tuple[str, ...]]:
    try:
        module = ast.parse(path.read_bytes())
    except (SyntaxError, ValueError):  # importing it will tell more
        return {path.stem: tuple(k.base for k in KINDS.values())}
    return {node.name: tuple(_last_name(base) for base in node.bases) for node in module.body if isinstance(node, ast.ClassDef)}


def _last_name(base: ast.expr) -> str:
    """`Task` of `Task`, `base.Task` and `Task[int]`."""
    return ast.unparse(base).split("[")[0].split(".")[-1]


def _only_class(kind: str, name: str) -> type:
    """The single public concrete subclass of the kind's base class that a module defines."""
    package, base_name = KINDS[kind].package, KINDS[kind].base
    base = base_of(kind)
    module = _import(kind, name, f"{package}.{name}")
    offered = [
        cls
        for attribute, cls in vars(module).items()
        if inspect.isclass(cls)
        and cls.__module__ == module.__name__
        and attribute == cls.__name__  # an alias is not a second one
        and not attribute.startswith("_")
        and issubclass(cls, base)
        and not inspect.isabstract(cls)
    ]
    if len(offered) == 1:
        return offered[0]
    if not offered and name not in known(kind):  # a helper beside the plug-ins
        raise _unknown(kind, name)
    names = ", ".join(cls.__name__ for cls in offered) or "none"
    raise UserError(
        f"the file of {kind} {name!r} should define one public {base_name} class; it defines {names}",
        where=getattr(module, "__file__", None),
        fix=f"Name the class: {module.__name__}:Class." if offered else f"Derive it from {package}.base.{base_name}.",
    )


# --- by path ---------------------------------------------------------------------------------------


def _by_path(kind: str, name: str) -> type:
    if not _PATH.fullmatch(name):
        raise UserError(f"{name!r} does not name a {kind}", fix="A class of your own is named package.module:Class.")
    _refuse_code(kind, name)
    module_name, _, class_name = name.partition(":")
    module = _import(kind, name, module_name)
    found = getattr(module, class_name, None)
    if inspect.isclass(found):
        return found
    if found is not None:
        raise UserError(f"{name} is not a class, so it cannot be a {kind}", where=getattr(module, "__file__", None))
    classes = [n for n, c in vars(module).items() if inspect.isclass(c) and c.__module__ == module_name and n[0] != "_"]
    raise UserError(
        f"module {module_name!r} has no class {class_name!r}{did_you_mean(class_name, classes)}",
        where=getattr(module, "__file__", None),
    )


def _see_working_folder() -> None:
    """Console scripts and pytest, other than `python -m`, do not look for modules where they run."""
    here = os.getcwd()
    if "" not in sys.path and here not in sys.path:
        sys.path.append(here)


def _import(kind: str, name: str, module_name: str) -> ModuleType:
    _see_working_folder()
    try:
        return importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        absent = error.name or ""
        if absent and f"{module_name}.".startswith(f"{absent}."):
            raise UserError(
                f"{kind} {name!r}: there is no module {absent!r}",
                fix="Run in the folder that holds it, or install its package.",
            ) from None
        raise UserError(
            f"{kind} {name!r} needs the package {absent.split('.')[0]!r}, which is not installed",
            fix=f"Install it: pip install {absent.split('.')[0]}",
        ) from error
    except Exception as error:  # a mistake in the plug-in's own code: its author needs the traceback
        error.add_note(f"while importing {module_name} for {kind} {name!r}")
        raise


# --- commands --------------------------------------------------------------------------------------


def commands() -> dict[str, str]:
    """The commands, sorted, each with what it does in a line; none is imported.

    A package with ``__main__.py`` is one, and a file with ``main`` beside this one. The line is the first of the file's
    docstring, without what stands before ``: `` in it.
    """
    here, found = Path(__file__).parent, {}
    files = {path.stem: path for path in here.glob("*.py") if path.stem != "__main__"}
    for name, path in sorted({**files, **{path.parent.name: path for path in here.glob("*/__main__.py")}}.items()):
        module = ast.parse(path.read_bytes())
        if any(isinstance(node, ast.FunctionDef) and node.name == "main" for node in module.body) or path.stem == "__main__":
            line = (ast.get_docstring(module) or "").partition("\n")[0]
            found[name] = line.rpartition("``: ")[2]
    return found


def command(name: str) -> Callable[[list[str]], int]:
    """``main(argv)`` of a command that ``commands`` lists."""
    package = (Path(__file__).parent / name / "__main__.py").exists()
    _see_working_folder()
    return importlib.import_module(f"cl_softcot.{name}.__main__" if package else f"cl_softcot.{name}").main


# --- checks ----------------------------------------------------------------------------------------


def _checked(kind: str, name: str, cls: type) -> type:
    """Says in words what a class lacks to be a plug-in of its kind."""
    from pydantic import BaseModel  # not above: commands are found without it

    if kind == "plugin":
        return cls
    where = f"{cls.__module__}:{cls.__qualname__}"
    base = base_of(kind)
    if not issubclass(cls, base):
        path = f"{base.__module__}.{base.__qualname__}"
        raise UserError(f"{name!r} is not a {kind}: it does not derive from {path}", where=where, fix=f"Derive it from {path}.")
    if inspect.isabstract(cls):
        lacks = " and no ".join(sorted(getattr(cls, "__abstractmethods__", ())))
        raise UserError(f"{name!r} is not a whole {kind}: it has no {lacks}", where=where, fix="Write what is missing.")
    settings = getattr(cls, "Settings", None)
    if not (inspect.isclass(settings) and issubclass(settings, BaseModel)):
        raise UserError(f"{kind} {name!r} has no nested class Settings (a pydantic model)", where=where)
    clash = sorted(_RESERVED.get(kind, {"name"}) & set(settings.model_fields))
    if clash:
        raise UserError(
            f"{kind} {name!r} has a setting called {clash[0]!r}, which the YAML uses for something else",
            where=where,
        )
    return cls


def _avalanche_plugin(name: str) -> type:
    plugins: Mapping[str, type] = getattr(_import("plugin", name, _AVALANCHE), "PLUGINS", {})
    if name not in plugins:
        raise UserError(
            f"unknown plugin {name!r}{did_you_mean(name, plugins)}",
            fix="A class of your own, or one of Avalanche's, is named package.module:Class.",
        )
    return plugins[name]
