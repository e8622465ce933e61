"""``python -m cl_softcot.config``: prints the JSON schema of an experiment's YAML, for editors."""

from __future__ import annotations

import argparse
import sys

from cl_softcot.commands import called, guarded


def main(argv: list[str] | None = None) -> int:
    description = "Prints the JSON schema of an experiment's YAML, the settings of every known plug-in included, for editors."
    name = (__package__ or "").rpartition(".")[2]
    argparse.ArgumentParser(prog=called(name), description=description).parse_args(argv)
    return guarded(_print_schema)


def _print_schema() -> int:
    from cl_softcot.config.schema import json_schema
    from cl_softcot.files import dump_json

    print(dump_json(json_schema(), indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
