"""Writes what README.md and docs/ take from elsewhere: ``python tools/update_docs.py`` (``--check``: only compares).

* tables of the kept results and of the embedded models' scores, in ``<!-- table: NAME -->`` ... ``<!-- end -->`` blocks;
* ``docs/reference/``: settings from the JSON schema, numbers from the catalogue of metrics, commands from their parsers, and the
  fields of ``result.json``; ``docs/design/numbers-that-moved.md`` from the changelog.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import io
import json
import pkgutil
import re
import runpy
import sys
import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))
RESULTS = ROOT / "experiments" / "results"
REFERENCE = ROOT / "docs" / "reference"
GENERATED = "<!-- Written by tools/update_docs.py; changes belong to the code that it was made from. -->\n\n"

# ------------------------------------------------------------------------------------------------- tables of results

# Rows and columns of the README's table: the written control, three ways to learn to think, and the control of the last one.
README_EXPERIMENT = "sequence_a_seeds"
README_METHODS = ("zero_shot_cot", "full_cot", "full_coconut", "lora_coconut", "softcot", "free_vectors")
README_COLUMNS = ("learned ↑", "BWT ↑", "retention, deployed ↑", "retention, backbone only ↑", "tokens per answer")


def tables() -> dict[str, str]:
    """Name of a block -> its text."""
    found = {}
    for folder in sorted(RESULTS.glob("*/")):
        if (folder / "runs.jsonl.gz").exists():
            found[folder.name] = experiment_table(folder)
    found["readme"] = readme_table(RESULTS / README_EXPERIMENT)
    scores = ROOT / "cl_softcot" / "tiny" / "scores.json"
    if scores.exists():
        found["scores"] = scores_table(json.loads(scores.read_text()))
    return found


def experiment_table(folder: Path) -> str:
    from cl_softcot.results.reading import load_results, order_like
    from cl_softcot.track.console import table_markdown

    methods = re.findall(r"^- name: (\S+)$", (folder / "config.yaml").read_text().partition("\nmethods:")[2], re.M)
    return table_markdown(order_like(load_results(folder), methods))


def readme_table(folder: Path) -> str:
    """Six methods, five columns: mean ± standard deviation over runs."""
    from cl_softcot.results.headline import spread
    from cl_softcot.results.reading import by_method, load_results

    runs = by_method(load_results(folder))
    rows = []
    for method in README_METHODS:
        trained = any(run.cost.trained_parameters for run in runs[method])
        columns = (
            [run.summary["learning_accuracy"] if trained else None for run in runs[method]],
            [run.summary["bwt/gem"] if trained else None for run in runs[method]],
            [run.at("retention.as_used")[-1]["all"] for run in runs[method]],
            [run.at("retention.weights_alone")[-1]["all"] for run in runs[method]],
        )
        tokens = spread(run.cost.tokens_per_answer for run in runs[method])
        rows.append([method, *(_mean_and_deviation(spread(values)) for values in columns), f"{tokens.mean:.1f}"])
    return table(("method", *README_COLUMNS), rows)


def _mean_and_deviation(numbers: Any) -> str:
    if numbers is None:
        return "–"
    mean, deviation = (f"{abs(value):.2f}".lstrip("0") or "0" for value in (numbers.mean, numbers.deviation or 0))
    sign = "−" if numbers.mean < -0.005 else ""
    return f"{sign}{mean} ± {deviation}" if deviation != ".00" else f"{sign}{mean}"


def scores_table(scores: dict) -> str:
    """One row a model and way of answering."""
    names = {"backbone": "backbone", "backbone-50": "backbone @50", "backbone-25": "backbone @25", "assistant": "assistant"}
    modes = {
        "cot": "CoT",
        "direct": "direct",
        "alternative": "CoT, alternative convention unsaid",
        "harder": "CoT, one notch harder",
    }
    families = list(scores["backbone"]["cot"])
    rows = []
    for model, label in names.items():
        for mode, told in modes.items():
            if model != "backbone" and mode in ("alternative", "harder"):
                continue
            row = scores[model][mode]
            rows.append([f"{label}, {told}", *(f"{row[f]['accuracy']:.3f}".lstrip("0") if f in row else "" for f in families)])
    return table(["greedy, judged, on test questions", *(f.replace("_", " ") for f in families)], rows)


def table(head: Sequence[str], rows: Iterable[Sequence[str]], numbers: bool = True) -> str:
    """A Markdown table; ``numbers``: all columns but the first are aligned to the right."""
    lines = ["| " + " | ".join(head) + " |", "|:---|" + ("---:|" if numbers else ":---|") * (len(head) - 1)]
    lines += ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join(lines) + "\n"


def with_tables(text: str, found: Mapping[str, str]) -> str:
    """A page with its table blocks as they should be.

    Raises:
        SystemExit: if it asks for a table that there is not.
    """

    def block(match: re.Match) -> str:
        if match[2] not in found:
            sys.exit(f"there is no table {match[2]!r}; there are {', '.join(found)}")
        return match[1] + found[match[2]] + match[3]

    return re.sub(r"(<!-- table: (\S+) -->\n).*?(<!-- end -->)", block, text, flags=re.S)


# --------------------------------------------------------------------------------------------------------- reference


def reference() -> dict[Path, str]:
    """The pages that are written as a whole."""
    pages = {"settings": settings_page, "numbers": numbers_page, "commands": commands_page, "result": result_page}
    places = {REFERENCE / f"{name}.md": make for name, make in pages.items()}
    places[ROOT / "docs" / "design" / "numbers-that-moved.md"] = numbers_that_moved_page
    return {path: GENERATED + re.sub(r"\n{3,}", "\n\n", make()).rstrip("\n") + "\n" for path, make in places.items()}


def _plain(text: str) -> str:
    """Text for a cell: on one line, and nothing of it is markup."""
    text = " ".join(str(text).split()).replace("``", "`")
    return re.sub(r"(`[^`]*`)|([|<>*_\[\]])", lambda m: m[1].replace("|", r"\|") if m[1] else f"\\{m[2]}", text)


def _code(text: str) -> str:
    return "`" + text.replace("|", r"\|") + "`"


# --- settings

# Headings of the parts of an experiment's file, in their order: definition of the schema -> title.
PARTS = {
    "ModelConfig": "A model",
    "TrainConfig": "Training",
    "EvaluateConfig": "Evaluation",
    "MethodConfig": "A method",
    "PerTaskConfig": "One copy a task",
    "PluginConfig": "An Avalanche plug-in",
    "TrackingConfig": "Tracking",
}
PLUGINS = {
    "ReasoningConfig": ("Reasoning", "reasoning"),
    "StrategyConfig": ("Strategies", "strategy"),
    "TaskConfig": ("Tasks", "task"),
    "DiagnosticConfig": ("Diagnostics", "diagnostic"),
}


def settings_page() -> str:
    from cl_softcot.config.schema import json_schema

    schema = json_schema()
    definitions = schema["$defs"]
    lines = [
        "# Settings",
        "",
        "Every key of an experiment's YAML file. It is made from the JSON schema that `python -m cl_softcot.config` prints;",
        "an editor that is given this schema completes and checks the keys. {doc}`../guide/experiments` says how files are",
        "combined and how a setting is replaced on the command line.",
        "",
        "## The file",
        "",
        _settings_table(schema["properties"], set(schema.get("required", ()))),
    ]
    for name, title in PARTS.items():
        lines += ["", f"## {title}", ""]
        choices = definitions[name].get("anyOf", [definitions[name]])
        maps = [choice for choice in choices if choice.get("type") == "object"]
        if description := definitions[name].get("description") or maps[0].get("description"):
            lines += [_sentence(description), ""]
        lines.append(_settings_table(maps[0].get("properties", {}), set(maps[0].get("required", ()))))
    for name, (title, kind) in PLUGINS.items():
        lines += ["", f"## {title}", "", _sentence(definitions[name].get("description", "")), ""]
        lines += _plugin_settings(definitions[name], kind)
    return "\n".join(lines)


def _plugin_settings(definition: Mapping[str, Any], kind: str) -> list[str]:
    from cl_softcot import registry

    lines: list[str] = []
    selector = "task" if kind == "task" else "name"
    for choice in definition["anyOf"]:
        chosen = choice.get("properties", {}).get(selector, {}).get("const")
        if chosen is None:
            continue
        beside = {"name", selector, "enabled"}
        own = {key: value for key, value in choice["properties"].items() if key not in beside}
        lines += [f"### {kind}: {chosen}", "", _sentence(registry.find(kind, chosen).__doc__ or ""), ""]
        lines += [_settings_table(own, set(choice.get("required", ()))) if own else "It has no settings of its own.", ""]
    return lines


def _sentence(text: str) -> str:
    return _plain(text.strip().split("\n\n")[0])


def _settings_table(properties: Mapping[str, Any], required: set[str]) -> str:
    rows = []
    for name, what in properties.items():
        default = "needed" if name in required else _code(_value(what["default"])) if "default" in what else ""
        if what.get("$ref") and isinstance(what.get("default"), dict):
            default = "see there"
        rows.append([_code(name), _type(what), default, _plain(what.get("description", ""))])
    return table(("key", "value", "default", "meaning"), rows, numbers=False)


def _value(value: Any) -> str:
    if value is None:
        return "null"
    return value if isinstance(value, str) and value else json.dumps(value, ensure_ascii=False)


def _type(schema: Mapping[str, Any]) -> str:
    """What a key may hold, in words."""
    if ref := schema.get("$ref"):
        return _part(ref.rpartition("/")[2])
    if "anyOf" in schema:
        return " or ".join(dict.fromkeys(_type(one) for one in schema["anyOf"]))
    if "const" in schema:
        return _code(_value(schema["const"]))
    if "enum" in schema:
        return ", ".join(_code(_value(one)) for one in schema["enum"])
    kind = schema.get("type")
    if kind == "array":
        return f"list of {_type(schema['items'])}" if schema.get("items") else "list"
    words = {"object": "map", "string": "text", "boolean": "`true`, `false`", "integer": "whole number", "null": "`null`"}
    return words.get(str(kind), str(kind or "any")) + _bounds(schema)


def _bounds(schema: Mapping[str, Any]) -> str:
    signs = {"minimum": "≥", "exclusiveMinimum": "above", "maximum": "≤", "exclusiveMaximum": "below"}
    found = [f"{sign} {schema[key]}" for key, sign in signs.items() if key in schema]
    return " " + ", ".join(found) if found else ""


def _part(name: str) -> str:
    if name in PARTS:
        title = PARTS[name]
    elif name in PLUGINS:
        title = PLUGINS[name][0]
    else:
        return "map"
    return f"[{title.lower()}](#{_slug(title)})"


def _slug(title: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-")


# --- numbers


def numbers_page() -> str:
    package = importlib.import_module("cl_softcot.metrics")
    lines = [
        "# Numbers",
        "",
        "Every number that leaves the package has a full name, and every name has one meaning. Forgetting, backward",
        "transfer and KL have rival definitions that differ even in sign, so the name says which one:",
        "`forgetting/chaudhry`, `bwt/gem`. This page is made from the `CATALOGUE` of each file in `cl_softcot/metrics/`.",
        "`R[i,j]` is the accuracy on task j after experience i, of T; row 0 is the base's written CoT, and the base in the",
        "method's own mode stands beside it (`untrained`). A name that ends in `<...>` stands for several.",
        "",
        "* **Deployed** means with everything that the method brings (adapter, thoughts, routing) and is the headline;",
        "  *backbone only* is an integrity check: a frozen backbone is exactly the base, which is hashed, not assumed.",
        "* **Retention** is accuracy on the seven families that the base was pretrained on, apart for families of the",
        "  stream and for unrelated ones. Some forgetting is by definition: two conventions under one prompt cannot both be",
        "  kept.",
        "* **Drift** is exact over the vocabulary, in nats per token, in both directions.",
        "* **Every accuracy** has its n and a 95 % bootstrap interval.",
    ]
    for module in sorted(info.name for info in pkgutil.iter_modules(package.__path__)):
        loaded = importlib.import_module(f"{package.__name__}.{module}")
        if not (offered := getattr(loaded, "CATALOGUE", {})):
            continue
        lines += ["", f"## {module.capitalize()}", "", _sentence(loaded.__doc__ or ""), ""]
        rows = [[_code(n), _code(m.formula), _plain(m.unit), _plain(m.direction), _plain(m.source)] for n, m in offered.items()]
        lines.append(table(("name", "formula", "unit", "direction", "source"), rows, numbers=False))
    return "\n".join(lines)


# --- commands

COMMANDS: Mapping[str, Sequence[Sequence[str]]] = {
    "cl_softcot.run": ((),),
    "cl_softcot.sweep": ((), ("status",), ("report",), ("finish",), ("worker",), ("create",)),
    "cl_softcot.report": ((),),
    "cl_softcot.law": ((),),
    "cl_softcot.track": ((),),
    "cl_softcot.results": ((),),
    "cl_softcot.cache": ((),),
    "cl_softcot.models.scratch": ((),),
    "cl_softcot.tiny.pretrain": ((),),
    "cl_softcot.tiny.score": ((),),
}


class _Found(BaseException):
    """Carries a command's parser out of the command, before it does anything."""


def parser_of(module: str, words: Sequence[str]) -> argparse.ArgumentParser:
    """The parser that ``python -m module WORDS`` would use."""

    def found(self: argparse.ArgumentParser, *_: Any, **__: Any) -> Any:
        raise _Found(self)

    methods = ("parse_known_args", "parse_known_intermixed_args", "parse_intermixed_args")
    kept = {name: getattr(argparse.ArgumentParser, name) for name in methods}
    argv, sys.argv = sys.argv, [module, *words]
    try:
        for name in methods:
            setattr(argparse.ArgumentParser, name, found)
        with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")  # that it is loaded already
            runpy.run_module(module, run_name="__main__", alter_sys=False)
    except _Found as parser:
        return parser.args[0]
    finally:
        sys.argv = argv
        for name, method in kept.items():
            setattr(argparse.ArgumentParser, name, method)
    raise ValueError(f"{module} has no parser")


def commands_page() -> str:
    lines = [
        "# Commands",
        "",
        "Made from the parsers of the commands. `cl-softcot run` and `python -m cl_softcot.run` are the same, and so for",
        "`sweep`, `report`, `law`, `track`, `cache` and `config`. Exit status: 0 all is done, 1 something failed, 2 a",
        "mistake in the command or in a file; Ctrl-C ends with 130, and the same command goes on.",
        "",
        "`python -m cl_softcot.config` has no options; it prints the JSON schema behind {doc}`settings`.",
    ]
    for module, forms in COMMANDS.items():
        for words in forms:
            lines += _command(parser_of(module, words), " ".join(["python -m", module, *words]), depth=3 if words else 2)
    return "\n".join(lines)


def _command(parser: argparse.ArgumentParser, name: str, depth: int) -> list[str]:
    lines = ["", f"{'#' * depth} {name.removeprefix('python -m ')}", ""]
    shown = [action for action in parser._actions if action.help != argparse.SUPPRESS]
    places = [action for action in shown if not action.option_strings and not _chosen(action)]
    called = " ".join([name, *(_written(action) for action in places)])
    lines += [f"`{called}`", "", _sentence(parser.description or ""), ""]
    rows = [
        [_code(_named(action)), _plain(_meaning(action, parser))]
        for action in shown
        if not _chosen(action) and action.dest != "help"
    ]
    if rows:
        lines.append(table(("argument", "meaning"), rows, numbers=False))
    for action in filter(_chosen, shown):
        for word, below in action.choices.items():
            told = next((one.help for one in action._choices_actions if one.dest == word), "")
            below.description = below.description or f"{told[:1].upper()}{told[1:]}."
            lines += _command(below, f"{name} {word}", depth + 1)
    return lines


def _chosen(action: argparse.Action) -> bool:
    return isinstance(action, argparse._SubParsersAction)


def _named(action: argparse.Action) -> str:
    """An argument as it is typed."""
    if not action.option_strings:
        return _written(action)
    option = action.option_strings[-1]
    return option if action.nargs == 0 else f"{option} {_written(action)}"


def _written(action: argparse.Action) -> str:
    """Its value, or values."""
    names = action.metavar or (action.choices and "{" + ",".join(map(str, action.choices)) + "}")
    names = names or (action.dest if not action.option_strings else action.dest.upper())
    if isinstance(names, tuple):
        return " ".join(names)
    return {"*": f"[{names} ...]", "+": f"{names} [{names} ...]", "?": f"[{names}]"}.get(str(action.nargs), names)


def _meaning(action: argparse.Action, parser: argparse.ArgumentParser) -> str:
    try:
        return (action.help or "") % {**vars(action), "prog": parser.prog}
    except (KeyError, TypeError, ValueError):
        return action.help or ""


# --- result.json


def result_page() -> str:
    """The fields, from the record's own type."""
    from cl_softcot.results.record import record_fields

    return "\n".join(
        [
            "# result.json",
            "",
            "One file a run, written last: everything that was measured, as plain JSON. In keys, *as_used* means deployed (with",
            "everything that the method brings) and *weights_alone* the backbone only (everything that it brings switched off);",
            "{doc}`words` has all of them. Read it with any JSON library, or with",
            "`cl_softcot.results.load_results(FOLDER)`, whose `to_dataframe()` has a row for every number.",
            "",
            record_fields(),
        ]
    )


# --- numbers that moved


def numbers_that_moved_page() -> str:
    """The bullets of the changelog that are marked **Numbers**, release by release."""
    lines = [
        "# Numbers that moved",
        "",
        "A change that moves numbers is another kind of change. The changelog marks it **Numbers**, with the reason; here",
        "are all of them. Kept results that were made before stay as they are, and their `revision` says so. *Rounding*",
        "means: the same arithmetic in another order. Training amplifies it, so that a single run may end elsewhere.",
    ]
    for release in re.split(r"^## ", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), flags=re.M)[1:]:
        bullets = [bullet for bullet in re.findall(r"^\* .*?(?=^\* |\Z)", release, re.S | re.M) if "**Numbers**" in bullet]
        if bullets:
            lines += ["", f"## {release.splitlines()[0]}", "", *(bullet.rstrip() for bullet in bullets)]
    return "\n".join(lines)


# -------------------------------------------------------------------------------------------------------------- main


def pages() -> dict[Path, str]:
    """Every page that is written by this program, in part or as a whole -> how it should be."""
    found = tables()
    written = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
    whole = reference()
    return {path: with_tables(path.read_text(encoding="utf-8"), found) for path in written if path not in whole} | whole


def main() -> int:
    stale = []
    for path, text in pages().items():
        if path.exists() and path.read_text(encoding="utf-8") == text:
            continue
        stale.append(path.relative_to(ROOT).as_posix())
        if "--check" not in sys.argv[1:]:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
    if "--check" in sys.argv[1:] and stale:
        print(f"not as the code and the kept results have it: {', '.join(stale)}; run python tools/update_docs.py")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
