"""Checkpoints: safetensors and JSON, whole or not at all, the last two kept.

A checkpoint is a pair of files, ``000007-NAME.safetensors`` and ``000007-NAME.json``. The tensors are written
first and the JSON, which holds their checksum, last: a pair without its JSON was cut off and does not count.
One stamp stands in both files, so that halves of different checkpoints are never mixed.
"""

from __future__ import annotations

import json
import os
import random
import re
import secrets
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.torch
import torch
from torch import Tensor

from cl_softcot.errors import UserError
from cl_softcot.files import atomic_write, atomic_write_json, dump_json, sha256_of, sync_folder

FORMAT = 1
KEEP = 2

_PAIR = re.compile(r"(\d{6,})-(.+)\.json")
_TENSORS = re.compile(r"\d{6,}-.+\.safetensors")


@dataclass(frozen=True)
class Checkpoint:
    """What was saved, and what stood in its way.

    Attributes:
        name: the step's name as given to ``save``.
        tensors: the tensors, on the CPU.
        state: the JSON state.
        path: the JSON file.
        skipped: newer checkpoints that were damaged, one sentence each; tell the user.
    """

    name: str
    tensors: dict[str, Tensor] = field(repr=False)
    state: dict[str, Any] = field(repr=False)
    path: Path
    skipped: tuple[str, ...] = ()


def save(folder: str | Path, step_name: str, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> Path:
    """Writes a checkpoint, then removes all but the last two. Returns the path of its JSON file.

    ``state`` must be plain JSON data; a NaN or an infinity in it is refused, since it would come back as
    something else.

    Raises:
        UserError: if the disk is full or the folder cannot be written; earlier checkpoints are intact then.
        ValueError: if ``step_name`` cannot stand in a file name, or ``state`` is not JSON data.
    """
    if not re.fullmatch(r"[\w.-]+", step_name):
        raise ValueError(f"a checkpoint's name may hold letters, digits, '.', '_' and '-', not {step_name!r}")
    state = _plain(state)
    folder = Path(folder)
    serial = max((n for n, _ in _pairs(folder)), default=0) + 1
    path = folder / f"{serial:06d}-{step_name}.json"
    stamp = secrets.token_hex(8)
    tensors_path = path.with_name(_tensors_name(path))
    atomic_write(tensors_path, lambda beside: _write_tensors(beside, tensors, stamp), own_folder=True)
    try:
        atomic_write_json(
            path,
            {
                "format": FORMAT,
                "name": step_name,
                "stamp": stamp,
                "tensors_sha256": sha256_of(tensors_path),
                "state_sha256": _state_sha256(state),
                "state": state,
            },
        )
    except UserError:
        with suppress(OSError):  # gives the space back; without its JSON it would not count anyway
            tensors_path.unlink()
        raise
    _remove_old(folder)
    return path


def load_latest(folder: str | Path) -> Checkpoint | None:
    """The newest checkpoint that is whole, or None if there never was one.

    Damaged ones are named in ``skipped`` and set aside (``.json.damaged``), so that they do not count among
    the last two.

    Raises:
        UserError: if there are checkpoints and none is whole.
    """
    skipped: list[str] = []
    for _, path in sorted(_pairs(Path(folder)), reverse=True):
        try:
            name, tensors, state = _read(path)
        except _Unusable as error:
            skipped.append(f"checkpoint {path.name} cannot be used: {error}")
            if isinstance(error, _Damaged):
                with suppress(OSError):  # a folder that cannot be written can be read all the same
                    path.rename(path.with_name(path.name + ".damaged"))
            continue
        return Checkpoint(name, tensors, state, path, tuple(skipped))
    if skipped:
        raise UserError(
            "none of the checkpoints can be used:\n  " + "\n  ".join(skipped),
            where=str(folder),
            fix="Start over with --restart.",
        )
    return None


def capture_rng() -> dict[str, dict]:
    """The state of torch's, NumPy's and Python's global generators as ``{"tensors": ..., "state": ...}``."""
    tensors = {"torch": torch.get_rng_state()}
    if torch.cuda.is_available():  # that of the device in use: asking the others would take memory on them
        tensors["cuda"] = torch.cuda.get_rng_state()
    algorithm, keys, position, has_gauss, gauss = np.random.get_state(legacy=True)
    tensors["numpy"] = torch.from_numpy(np.asarray(keys, dtype=np.int64))
    version, words, next_gauss = random.getstate()
    tensors["python"] = torch.tensor(words, dtype=torch.int64)
    state = {
        "numpy": [algorithm, int(position), int(has_gauss), float(gauss)],
        "python": [version, next_gauss],
    }
    return {"tensors": tensors, "state": state}


def restore_rng(captured: Mapping[str, Mapping[str, Any]]) -> None:
    """Sets the global generators to a state from ``capture_rng``. CUDA's is set where there is a GPU."""
    tensors, state = captured["tensors"], captured["state"]
    torch.set_rng_state(tensors["torch"].cpu())
    if torch.cuda.is_available() and "cuda" in tensors:
        torch.cuda.set_rng_state(tensors["cuda"].cpu())
    algorithm, position, has_gauss, gauss = state["numpy"]
    np.random.set_state((algorithm, tensors["numpy"].numpy().astype(np.uint32), position, has_gauss, gauss))
    version, next_gauss = state["python"]
    random.setstate((version, tuple(tensors["python"].tolist()), next_gauss))


class _Unusable(Exception):
    """Why a checkpoint cannot be used."""


class _Damaged(_Unusable):
    """Its bytes are not those that were written."""


def _read(path: Path) -> tuple[str, dict[str, Tensor], dict[str, Any]]:
    try:
        record = json.loads(path.read_bytes())
        if record["format"] != FORMAT:
            raise _Unusable(f"it has format {record['format']}, this version reads {FORMAT}")
        state, name, stamp = record["state"], record["name"], record["stamp"]
        if _state_sha256(state) != record["state_sha256"]:
            raise _Damaged("its state does not match its checksum")
        tensors_sha256 = record["tensors_sha256"]
    except (ValueError, KeyError, TypeError):
        raise _Damaged("its JSON is torn or malformed") from None
    tensors_path = path.with_name(_tensors_name(path))
    if not tensors_path.exists():
        raise _Damaged(f"{tensors_path.name} is missing")
    if sha256_of(tensors_path) != tensors_sha256 or _stamp_of(tensors_path) != stamp:
        raise _Damaged(f"{tensors_path.name} does not match its checksum")
    return name, safetensors.torch.load_file(tensors_path), state


def _stamp_of(path: Path) -> str | None:
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        return json.loads(file.read(length)).get("__metadata__", {}).get("stamp")


def _write_tensors(path: Path, tensors: Mapping[str, Tensor], stamp: str) -> None:
    """Straight to the file: a second copy of a large model's state in memory might not fit."""
    try:
        safetensors.torch.save_file(_separate(tensors), path, metadata={"stamp": stamp})
    except safetensors.SafetensorError as error:  # it hides the system's error in its text
        number = re.search(r"os error (\d+)", str(error))
        if number is None:
            raise
        raise OSError(int(number[1]), os.strerror(int(number[1])), str(path)) from error


def _pairs(folder: Path) -> list[tuple[int, Path]]:
    """(serial number, JSON file) of every checkpoint, whole or not."""
    if not folder.is_dir():
        return []
    found = ((_PAIR.fullmatch(path.name), path) for path in folder.iterdir())
    return [(int(match[1]), path) for match, path in found if match]


def _tensors_name(path: Path) -> str:
    return path.name.removesuffix(".json") + ".safetensors"


def _remove_old(folder: Path) -> None:
    pairs = [path for _, path in sorted(_pairs(folder))]
    kept = {_tensors_name(path) for path in pairs[-KEEP:]}
    for path in pairs[:-KEEP]:  # JSON first: a pair that is half removed must not look damaged
        path.unlink(missing_ok=True)
    for path in folder.iterdir():
        if _TENSORS.fullmatch(path.name) and path.name not in kept:
            path.unlink(missing_ok=True)
    sync_folder(folder)


def _separate(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors on the CPU, each with memory of its own: safetensors refuses tied weights and views."""
    separate, seen = {}, set()
    for name, tensor in tensors.items():
        tensor = tensor.detach().cpu().contiguous()
        memory = tensor.untyped_storage().data_ptr()
        if memory in seen or tensor.untyped_storage().nbytes() != tensor.numel() * tensor.element_size():
            tensor = tensor.clone()
        seen.add(tensor.untyped_storage().data_ptr())
        separate[name] = tensor
    return separate


def _plain(state: Mapping[str, Any]) -> dict[str, Any]:
    try:
        plain = json.loads(json.dumps(state, allow_nan=False))
    except (TypeError, ValueError) as error:
        raise ValueError(f"a checkpoint's state must be JSON data: {error}") from None
    return plain


def _state_sha256(state: Mapping[str, Any]) -> str:
    return sha256_of(dump_json(state).encode())
