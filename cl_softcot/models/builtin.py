"""The embedded backbone and assistant: weights, tokenizer, recipe, checksums.

``builtin:tiny`` is the backbone at the end of its pretraining, ``builtin:tiny@25`` and ``builtin:tiny@50`` after 25 % and
50 % of it (capability is an axis of the study), ``builtin:tiny-assistant`` the smaller model that thinks for it.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

from cl_softcot.errors import UserError, did_you_mean
from cl_softcot.files import atomic_write_json, read_json, sha256_of

HERE = Path(__file__).parents[1] / "tiny"
MODELS = {
    "tiny": "backbone",
    "tiny@25": "backbone-25",
    "tiny@50": "backbone-50",
    "tiny-assistant": "assistant",
}
CHECKSUMS = "checksums.json"


@cache
def resolve(name: str) -> Path:
    """Folder of an embedded model (``tiny``, ``tiny@25``, ``tiny@50``, ``tiny-assistant``), its files verified.

    Raises:
        UserError: for an unknown name, or if a file is missing or is not the one that was trained.
    """
    if name not in MODELS:
        raise UserError(f"no embedded model {name!r}{did_you_mean(name, MODELS)}", fix="write it as builtin:tiny, for instance")
    folder = HERE / MODELS[name]
    for file, expected in read_json(HERE / CHECKSUMS).items():
        path = HERE / file
        if path.parent == folder and (not path.exists() or sha256_of(path) != expected):
            problem = "not the file that was trained" if path.exists() else "missing"
            raise UserError(
                f"the embedded model {name!r} is damaged: {file} is {problem}",
                fix=f"install the package again, or train it: python -m cl_softcot.tiny.pretrain {folder.name.partition('-')[0]}",
            )
    return folder


def write_checksums(folder: Path = HERE) -> None:
    """Writes the SHA-256 of every model file below ``folder``."""
    files = sorted(p for model in MODELS.values() for p in (folder / model).glob("*") if p.is_file())
    atomic_write_json(folder / CHECKSUMS, {p.relative_to(folder).as_posix(): sha256_of(p) for p in files})
