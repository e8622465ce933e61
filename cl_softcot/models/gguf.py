"""Models in one file, as llama.cpp has them (GGUF): which file, and how the library reads it.

The library turns the blocks of 4 to 8 bits into whole numbers again and has a model like any other then, whatever the device;
config and tokenizer are in the file too.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import transformers

from cl_softcot.errors import UserError

_MAGIC = b"GGUF"
_PART = re.compile(r"-\d{5}-of-(\d{5})\.gguf$", re.IGNORECASE)


def is_gguf(path: Path) -> bool:
    """Whether a file is one, by its first bytes or by its name."""
    if path.suffix.lower() == ".gguf":
        return True
    with path.open("rb") as file:
        return file.read(4) == _MAGIC


def checked(folder: Path, name: str) -> str:
    """The name of a GGUF file. UserError if it is none, or a part of one."""
    path = folder / name
    if not path.is_file():
        raise UserError(f"there is no file {name!r} in {str(folder)!r}{_there(folder)}", fix="check gguf_file")
    with path.open("rb") as file:
        start = file.read(64)
    if not start.startswith(_MAGIC):
        pointer = start.startswith(b"version https://git-lfs")
        raise UserError(
            f"{str(path)!r} is no GGUF file" + (": it is a pointer of Git LFS to one" if pointer else ""),
            fix="fetch it with `git lfs pull`" if pointer else "fetch it again, or give a folder with safetensors",
        )
    if part := _PART.search(path.name):
        if int(part[1]) > 1:
            raise UserError(
                f"{path.name!r} is one of {int(part[1])} parts of a GGUF, and the library reads whole ones only",
                fix="join them with llama.cpp's `llama-gguf-split --merge`",
            )
    return name


def only_one(folder: Path) -> str | None:
    """The GGUF file of a folder whose weights are in no other format; None if it has none. UserError if there are several."""
    files = sorted(path for path in folder.glob("*") if path.suffix.lower() == ".gguf")
    if not files or list(folder.glob("*.safetensors")):
        return None
    if len(files) > 1:
        raise UserError(
            f"the folder {str(folder)!r} holds {len(files)} GGUF files{_there(folder)}",
            fix=f"say which: {{path: {folder}, gguf_file: {files[0].name}}}",
        )
    return checked(folder, files[0].name)


def whole_weights() -> dict[str, Any]:
    """What ``from_pretrained`` of a model is given, so that it has no packed weights, which could not be trained."""
    config = getattr(transformers, "GgufConfig", None)  # before it came, all were unpacked
    return {"quantization_config": config(dequantize=True)} if config else {}


def make_plain(model: Any) -> None:
    """Takes away what says that the weights are quantized, which they no longer are: such a model could not be saved."""
    for holder, name in ((model, "hf_quantizer"), (model, "quantization_method"), (model.config, "quantization_config")):
        vars(holder).pop(name, None)


def _there(folder: Path) -> str:
    names = [path.name for path in sorted(folder.glob("*")) if path.suffix.lower() == ".gguf"]
    return f"; there are {', '.join(names)}" if names else ""
