"""``cl-softcot COMMAND ...``, also as ``python -m cl_softcot COMMAND ...``: starts the command that the first word names.

A command is a package with ``__main__.py``, or a file here, that has ``main(argv) -> int``. It is found by its name, so that a
new one is listed as soon as it is there; ``python -m cl_softcot.COMMAND`` is the same command.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence

from cl_softcot import __doc__ as told
from cl_softcot import __version__, registry
from cl_softcot.commands import called, guarded
from cl_softcot.errors import UserError, did_you_mean


def main(argv: Sequence[str] | None = None) -> int:
    words = list(sys.argv[1:] if argv is None else argv)
    return guarded(lambda: _started(words))


def _started(words: list[str]) -> int:
    if not words or words[0] in ("-h", "--help"):
        print(_overview())
        return 0
    if words[0] == "--version":
        print(f"cl-softcot {__version__}")
        return 0
    return _command(words[0])(words[1:])


def _command(name: str) -> Callable[[list[str]], int]:
    known = registry.commands()
    if name not in known:
        is_file = name.endswith((".yaml", ".yml"))
        fix = f"An experiment is run with: {called('run')} {name}" if is_file else f"{called()} --help tells what they do."
        raise UserError(f"unknown command {name!r}{did_you_mean(name, known)}", fix=fix)
    return registry.command(name)


def _overview() -> str:
    commands, script = registry.commands(), called()
    width = max(map(len, commands))
    return "\n".join(
        [
            f"usage: {script} COMMAND ...\n\n{told}\n",
            *(f"  {name:<{width}}  {line.rstrip('.')}" for name, line in commands.items()),
            f"\n{script} COMMAND --help tells more, {script} --version which version this is.",
            "Each command is also python -m cl_softcot.COMMAND.",
        ]
    )


if __name__ == "__main__":
    sys.exit(main())
