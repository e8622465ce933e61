"""``python -m cl_softcot.config``: prints the JSON schema of an experiment's YAML, for editors."""

from __future__ import annotations

from cl_softcot.config.schema import json_schema
from cl_softcot.files import dump_json

if __name__ == "__main__":
    print(dump_json(json_schema(), indent=2))
