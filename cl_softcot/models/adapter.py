"""Adapters of peft that are part of a model from the beginning: read, merged into the weights, and seen to be the same.

Merged, since the weights are then the model's own: they are what is frozen, hashed, trained or adapted anew, and peft has no part
in what follows.
"""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from cl_softcot.errors import UserError
from cl_softcot.models.loading import ADAPTER, note, quiet, told

_WEIGHTS = "adapter_model.safetensors"
_TOKENIZER = ("tokenizer.json", "tokenizer_config.json")
_DOWNLOADED = ["*.json", "*.safetensors", "*.jinja", "tokenizer*", "vocab*", "merges.txt"]
# Merging rounds as a product in another order does; in half precision also what a small update loses beside a weight.
_TOLERANCE, _HALF_TOLERANCE = 1e-4, 5e-2


def adapter_folder(spec: str) -> Path:
    """The folder of an adapter, which is fetched if it is on the hub.

    Raises:
        UserError: there is none, it is no adapter, or its weights are pickled.
    """
    folder = Path(spec).expanduser()
    if not folder.is_dir():
        if spec.startswith((".", "/", "~")) or spec.count("/") != 1 or folder.exists():
            raise UserError(
                f"adapter: there is no folder {spec!r}", fix="check the path, or give a hub id such as organisation/adapter"
            )
        from huggingface_hub import snapshot_download

        with quiet(), told(spec, "the adapter"):
            folder = Path(snapshot_download(spec, allow_patterns=_DOWNLOADED))
    if not (folder / ADAPTER).is_file():
        whole = " (it holds a whole model: give that as path)" if (folder / "config.json").is_file() else ""
        raise UserError(f"adapter: {spec!r} holds no adapter of peft: {ADAPTER} is missing{whole}", fix="check the path")
    if (folder / _WEIGHTS).is_file():
        return folder
    if (folder / "adapter_model.bin").is_file():
        raise UserError(
            f"the weights of the adapter {spec!r} are pickled, and reading a pickle can run any code",
            fix="if you trust their origin, load it with peft and save_pretrained() it into a new folder",
        )
    raise UserError(f"the adapter {spec!r} holds no weights: {_WEIGHTS} is missing", fix="fetch it again")


def tokenizer_place(folder: Path | None) -> str | None:
    """Where an adapter's tokenizer is read from, if it brings one: it may have further tokens, or a chat template."""
    return str(folder) if folder is not None and any((folder / name).is_file() for name in _TOKENIZER) else None


@torch.no_grad()
def merged_with(model: Any, folder: Path, *, adapter: str, base: str) -> Any:
    """The model with an adapter merged into its weights; its logits are those of peft's own, unmerged model.

    Args:
        adapter, base: what the user wrote.

    Raises:
        UserError: the adapter is damaged, is for another base, or is of a kind that cannot be merged.
    """
    from peft import PeftModel

    kind = _checked_kind(folder, adapter, base)
    ids_1T = torch.arange(8, device=model.get_input_embeddings().weight.device)[None] % model.config.get_text_config().vocab_size
    cuda = sorted({p.device.index or 0 for p in model.parameters() if p.device.type == "cuda"})
    _make_room(model, _tensors(folder, adapter))
    with torch.random.fork_rng(devices=cuda), warnings.catch_warnings(), quiet():
        warnings.simplefilter("ignore")  # what they say is checked here
        try:
            wrapped = PeftModel.from_pretrained(model, str(folder))
            loaded = wrapped.load_adapter(str(folder), "default")  # once more, for what it says
        except Exception as error:
            raise _other_base(adapter, base, _first_line(error)) from error
        for names, problem in ((loaded.unexpected_keys, "have no place there"), (loaded.missing_keys, "are missing in its file")):
            if names:
                raise _other_base(adapter, base, f"{len(names)} tensors {problem}, {names[0]} first")
        try:
            wrapped.eval()
            expected = wrapped(input_ids=ids_1T, use_cache=False).logits
            merged = wrapped.merge_and_unload(safe_merge=True)
            found = merged(input_ids=ids_1T, use_cache=False).logits
        except Exception as error:
            raise UserError(
                f"the adapter {adapter!r} is of a kind ({kind}) that cannot be merged into the weights of {base!r}: "
                f"{_first_line(error)}",
                fix="only adapters that change weights can be (LoRA, DoRA, IA3, LoHa, LoKr, OFT and the like)",
            ) from error
    _check_same(expected, found, f"the adapter {adapter!r}", kind)
    for rest in ("peft_config", "_hf_peft_config_loaded"):
        vars(merged).pop(rest, None)
    return merged.eval().requires_grad_(False)


def _checked_kind(folder: Path, adapter: str, base: str) -> str:
    """The kind of an adapter, as peft calls it."""
    from peft import PeftConfig
    from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING as KNOWN

    try:
        settings = json.loads((folder / ADAPTER).read_text(encoding="utf-8"))
        kind = settings.get("peft_type")
        if not kind:
            raise ValueError("peft_type is missing")
        if kind not in KNOWN:
            raise ValueError(f"this version of peft knows no kind {kind!r}")
        config = PeftConfig.from_pretrained(str(folder))
    except Exception as error:  # not JSON, no map, or settings of a wrong type
        raise UserError(
            f"the adapter {adapter!r} cannot be read: {ADAPTER}: {_first_line(error)}", fix="fetch it again, or take a newer peft"
        ) from error
    if config.is_prompt_learning:
        raise UserError(
            f"the adapter {adapter!r} is of a kind ({kind}) that cannot be merged: it puts vectors in front of a text, and "
            "changes no weights",
            fix="take an adapter that changes weights, such as LoRA",
        )
    named = str(settings.get("base_model_name_or_path") or "").rstrip("/")
    if named and named.rpartition("/")[2].casefold() != base.rstrip("/").rpartition("/")[2].casefold():
        note(f"the adapter {adapter} says that it was made for {named}, and it is merged into {base}")
    return str(kind)


def _tensors(folder: Path, adapter: str) -> dict[str, tuple[int, ...]]:
    """Shapes by name. UserError if the file is damaged, or numbers in it are none."""
    try:
        with safe_open(folder / _WEIGHTS, "pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError) as error:
        raise UserError(
            f"the weights of the adapter {adapter!r} are damaged: {_first_line(error)}", fix="fetch it again"
        ) from error
    bad = [name for name, tensor in tensors.items() if tensor.is_floating_point() and not tensor.isfinite().all()]
    if bad or not tensors:
        problem = f"{len(bad)} tensors hold what is no number, {bad[0]} first" if bad else "there are none"
        raise UserError(f"the weights of the adapter {adapter!r} are damaged: {problem}", fix="fetch it again, or train it again")
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}


def _make_room(model: Any, shapes: dict[str, tuple[int, ...]]) -> None:
    """Rows for tokens that were added while the adapter was trained: it brings the whole embedding then."""
    rows, width = model.get_input_embeddings().weight.shape
    whole = [shape[0] for name, shape in shapes.items() if name.endswith(".weight") and shape[1:] == (width,)]
    embeddings = [n for n in whole if n > rows and sum(n == other for other in whole) <= 2]
    if embeddings and any("embed" in name or "wte" in name for name in shapes):
        with torch.random.fork_rng(devices=[]):
            model.resize_token_embeddings(max(embeddings), mean_resizing=False)


def _check_same(expected: Tensor, found: Tensor, what: str, kind: str) -> None:
    allowed = _TOLERANCE if found.dtype == torch.float32 else _HALF_TOLERANCE
    expected, found = expected.double(), found.double()
    scale = (expected - expected.mean(-1, keepdim=True)).abs().max().clamp_min(1e-30)
    difference = ((found - expected).abs().max() / scale).item()
    if not difference <= allowed:
        raise UserError(
            f"{what} is of a kind ({kind}) that cannot be merged into these weights: logits differ from those of the unmerged "
            f"model by {difference:.1%} of their range",
            fix="take an adapter that changes weights only, and not those of an embedding that the head shares",
        )


def _other_base(adapter: str, base: str, said: str) -> UserError:
    return UserError(
        f"the adapter {adapter!r} does not fit the model {base!r}: {said}",
        fix="give the base that it was made for (base_model_name_or_path in its adapter_config.json)",
    )


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if not lines:
        return type(error).__name__
    said = lines[0] if len(lines) == 1 or not lines[0].endswith(":") else f"{lines[0]} {lines[1]}"
    return said[:300]
