"""``python -m cl_softcot.check package.module:Class [key=value ...]``: whether a plug-in of your own keeps its contract."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from typing import Any

from cl_softcot.commands import ONE_THREAD, called, guarded


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(
        prog=called("check"),
        description="Checks on the embedded models that a plug-in of your own keeps its contract. Its kind is found by its base.",
        epilog="exit status: 0 everything is kept, 1 something is not, 2 it could not be tried",
    )
    p.add_argument(
        "plugin",
        help="package.module:Class; of a metric package.module:function, or package.module; or the name of one of ours",
    )
    p.add_argument("settings", nargs="*", metavar="key=value", help="its settings, where the defaults are not enough")
    return p


def main(argv: list[str] | None = None) -> int:
    args = parser().parse_args(argv)
    return guarded(lambda: _check(args.plugin, args.settings), environment=ONE_THREAD)


def _check(plugin: str, settings: list[str]) -> int:
    lines = list(_shown(lines_of(plugin, settings)))
    wrong = sum(not line.ok for line in lines)
    print(f"{plugin}: {f'{wrong} of {len(lines)} rules are broken' if wrong else f'all {len(lines)} rules are kept'}")
    return 1 if wrong else 0


def _shown(lines: Iterator[Any]) -> Iterator[Any]:
    for line in lines:
        print(line, flush=True)
        yield line


def lines_of(plugin: str, given: list[str]) -> Iterator[Any]:
    """The checks of a plug-in, one by one.

    Raises:
        UserError: there is no such plug-in, or its settings are wrong.
    """
    from cl_softcot import registry
    from cl_softcot.check import diagnostic, metric, reasoning, strategy, task

    if ":" in plugin and _is_function(plugin):
        return metric.check_function(plugin)
    found = registry.any_kind(plugin)
    if not isinstance(found, type):
        return metric.check(found)
    kind, settings = registry.kind_of(found), _settings(found, given)
    if kind == "strategy":
        return strategy.check(found, settings, name=plugin)
    if kind == "reasoning":
        return reasoning.check(found, settings, name=plugin)
    return (task if kind == "task" else diagnostic).check(found, settings)


def _is_function(plugin: str) -> bool:
    from cl_softcot.errors import UserError
    from cl_softcot.registry import find_function

    try:
        return not isinstance(find_function("plug-in", plugin), type)
    except UserError:  # whoever looks for a class says what is wrong
        return False


def _settings(cls: Any, given: list[str]) -> Any:
    from pydantic import ValidationError

    from cl_softcot.config import yaml
    from cl_softcot.config.problems import read_model
    from cl_softcot.errors import UserError

    data: dict[str, Any] = {}
    for text in given:
        key, equals, value = text.partition("=")
        if not equals:
            raise UserError(f"{text!r} is not key=value")
        data[key] = yaml.parse(value, text).data
    try:
        return read_model(cls.Settings, data)
    except ValidationError as error:
        wrong = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors(include_url=False))
        raise UserError(f"its settings: {wrong}", fix="give them behind the name, as key=value") from None


if __name__ == "__main__":
    sys.exit(main())
