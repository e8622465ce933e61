"""What is known of a model before it is loaded: its architecture, from ``config.json`` or a table, and tensors without memory.

``shapes.json`` holds the configuration values that the makers of some models publish, so that costs can be estimated where the
hub cannot be reached.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.utils import logging as transformers_logging

from cl_softcot.errors import UserError, did_you_mean
from cl_softcot.machine import hub
from cl_softcot.models.language_model import LanguageModel
from cl_softcot.models.loading import gguf_options, located, told
from cl_softcot.models.own_weights import OwnWeights

# Ids under which the table's models stand on the hub too, or which have the same architecture.
_SAME_SHAPE = {
    "openai-community/gpt2": "gpt2",
    **{
        name.removesuffix("-Instruct"): name
        for name in ("meta-llama/Llama-3.1-8B-Instruct", "meta-llama/Llama-3.2-1B-Instruct", "meta-llama/Llama-3.2-3B-Instruct")
    },
    **{f"Qwen/Qwen2.5-{size}": f"Qwen/Qwen2.5-{size}-Instruct" for size in ("0.5B", "1.5B", "7B")},
    **{f"Qwen/Qwen3-{size}-Base": f"Qwen/Qwen3-{size}" for size in ("0.6B", "1.7B", "4B", "8B")},
    **{f"google/gemma-2-{size}": f"google/gemma-2-{size}-it" for size in ("2b", "9b")},
}


@cache
def published_shapes() -> dict[str, dict[str, Any]]:
    """Hub id -> the values of its configuration."""
    return json.loads(Path(__file__).with_name("shapes.json").read_text(encoding="utf-8"))


def architecture(path: str, *, revision: str | None = None, trust_remote_code: bool = False, gguf_file: str | None = None) -> Any:
    """The configuration of a model: of the embedded one, a folder or a GGUF file; from the hub's cache; of the table; from the
    hub itself.

    Raises:
        UserError: it is at none of these places.
    """
    folder, gguf_file = located(path, gguf_file)
    if gguf_file is not None:
        with told(path, "the model", gguf_file):
            source = str(folder) if folder is not None else path
            return _read(source, trust_remote_code=trust_remote_code, **gguf_options(gguf_file)).get_text_config(decoder=True)
    if folder is not None:
        inside = _in_a_gguf(path, folder)
        return _read(str(folder), local_files_only=True, trust_remote_code=trust_remote_code, **inside).get_text_config(
            decoder=True
        )
    options = {"revision": revision, "trust_remote_code": trust_remote_code}
    try:
        return _read(path, local_files_only=True, **options).get_text_config(decoder=True)
    except (OSError, ValueError):
        pass
    shapes = published_shapes()
    known = _SAME_SHAPE.get(path, path)
    if known in shapes:
        return AutoConfig.for_model(**shapes[known])
    problem = "the hub cannot be reached"
    if hub.reachable():
        try:
            return _read(path, **options).get_text_config(decoder=True)
        except (OSError, ValueError) as error:
            problem = str(error).strip().splitlines()[0]
    near = did_you_mean(path, shapes) if difflib.get_close_matches(path, shapes, 1) else ""
    raise UserError(
        f"the shape of {path!r} is not known: no config.json at hand ({problem}){near}",
        fix="give a local folder (one that models.scratch makes has to be made first), or download the model's config.json",
    )


def _in_a_gguf(path: str, folder: Path) -> dict[str, str]:
    """Where a configuration is that has no file of its own: in the GGUF file that was named, or that is the only one there."""
    if path.lower().endswith(".gguf"):
        return {"gguf_file": Path(path).name}
    files = [] if (folder / "config.json").is_file() else sorted(p.name for p in folder.glob("*.gguf"))
    return {"gguf_file": files[0]} if files else {}


def _read(source: str, **options: Any) -> Any:
    verbosity = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    try:
        return AutoConfig.from_pretrained(source, **options)
    finally:
        transformers_logging.set_verbosity(verbosity)


@contextmanager
def without_memory() -> Iterator[None]:
    """Tensors made inside have shapes and types, but hold no numbers and no memory."""
    with torch.device("meta"):
        yield


@contextmanager
def as_on_a_device(model: nn.Module) -> Iterator[None]:
    """Lets a model that was made without memory run as if it stood on a device: only there autocast takes part.

    Nothing is computed; tensors made inside have no memory either.
    """
    with FakeTensorMode():
        seen: dict[int, Tensor] = {}  # tied weights stay tied
        for module in model.modules():
            for name, tensor in [*module._parameters.items(), *module._buffers.items()]:
                if tensor is None:
                    continue
                if id(tensor) not in seen:
                    twin = torch.empty(tensor.shape, dtype=tensor.dtype)
                    seen[id(tensor)] = nn.Parameter(twin, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else twin
                twin = seen[id(tensor)]
                if name in module._parameters:
                    assert isinstance(twin, nn.Parameter), "made of a parameter"
                    module._parameters[name] = twin
                else:
                    module._buffers[name] = twin
        yield


class Unloaded(LanguageModel):
    """A language model without its numbers: for counting. Use inside of ``without_memory``.

    Args:
        config: the architecture.
        layers: how many decoder layers; None: all.
        dtype: what matrix products run in, and what frozen weights are kept in.
    """

    def __init__(self, config: Any, dtype: torch.dtype, attention: str | None, layers: int | None = None, name: str = "model"):
        config = shortened(config, layers)
        # flash_attention_2 keeps what sdpa keeps, and is not installed everywhere.
        options = {"attn_implementation": "eager" if attention == "eager" else "sdpa"} if attention else {}
        self.model = AutoModelForCausalLM.from_config(config, dtype=dtype, **options).eval().requires_grad_(False)
        self.own = OwnWeights(self.model)
        self.config = self.model.config
        self.name, self.marker, self.compute_dtype = name, None, dtype
        self.gradient_checkpointing = self.quantized = False
        self.width = self.model.get_input_embeddings().weight.shape[1]
        self.vocab_size = self.model.get_output_embeddings().weight.shape[0]

    def name_tokens(self, names: Iterable[str]) -> None:
        """Nothing is read: no token needs an id."""

    def embedding_std(self) -> float:
        """Any: nothing is computed."""
        return 1.0


def shortened(config: Any, layers: int | None) -> Any:
    """The same architecture with its first ``layers`` decoder layers."""
    if layers is None:
        return config
    data = config.to_dict()
    depth = config.num_hidden_layers
    for name, value in data.items():  # the kind of each layer, or whether it has experts
        if isinstance(value, list) and len(value) == depth and "token" not in name:
            data[name] = value[:layers]
    data[config.attribute_map.get("num_hidden_layers", "num_hidden_layers")] = layers
    return type(config).from_dict(data)


def is_stack(module: nn.Module, tensor: Tensor) -> bool:
    """Whether a tensor holds one linear map for each expert of a mixture, [experts, ., .]. Torch's own modules know what their
    tensors are for: a convolution's is none.
    """
    return tensor.ndim == 3 and min(tensor.shape) > 1 and not type(module).__module__.startswith("torch.nn.")


def period(config: Any) -> int:
    """After how many decoder layers the kinds of layers repeat (1 where all are alike)."""
    kinds = getattr(config, "layer_types", None) or [""]
    return next(n for n in range(1, len(kinds) + 1) if all(kinds[i] == kinds[i % n] for i in range(len(kinds))))
