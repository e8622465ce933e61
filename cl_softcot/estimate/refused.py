"""Which models of an experiment could not be loaded, as far as it can be told before: what is missing, or of no use."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from transformers import MODEL_FOR_CAUSAL_LM_MAPPING

from cl_softcot.config.experiment import Experiment
from cl_softcot.errors import UserError
from cl_softcot.models.adapter import adapter_folder
from cl_softcot.models.loading import located
from cl_softcot.models.shapes import architecture

_WEIGHTS = ("*.safetensors", "*.gguf")
_TOKENIZERS = ("tokenizer*", "vocab*", "*.model", "*.tiktoken", "*.gguf")


def refused_models(config: Experiment) -> list[str]:
    """One sentence a model."""
    models = {"backbone": config.backbone, "assistant": config.assistant}
    found = {role: _refused(model) for role, model in models.items() if model is not None}
    return [f"{role}: {why}" for role, why in found.items() if why]


def _refused(model: Any) -> str | None:
    try:
        folder, gguf = located(model.path, model.gguf_file)
        shape = architecture(
            model.path, revision=model.revision, trust_remote_code=model.trust_remote_code, gguf_file=model.gguf_file
        )
        if model.adapter and Path(model.adapter).expanduser().exists():
            adapter_folder(model.adapter)
    except UserError as error:
        return str(error)
    except Exception as error:  # the library's own are of many kinds
        return f"{model.path}: its configuration cannot be read ({in_a_line(error)})"
    if not model.trust_remote_code and type(shape) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        kind = getattr(shape, "model_type", None) or type(shape).__name__
        return f"{model.path}: a model of the kind {kind!r} is no causal language model that transformers knows"
    if folder is None or gguf is not None or model.path.startswith("builtin:"):
        return None
    if model.init != "random" and not _holds(folder, _WEIGHTS):
        return f"{model.path}: the folder holds no weights: there is no *.safetensors in it"
    if not _holds(folder, _TOKENIZERS):
        return f"{model.path}: the folder holds no tokenizer: its tokenizer.json is missing"
    return None


def _holds(folder: Path, patterns: Iterable[str]) -> bool:
    return any(next(folder.glob(pattern), None) for pattern in patterns)


def in_a_line(error: Exception) -> str:
    """What went wrong, as one line of at most 200 characters."""
    text = " ".join((error.message if isinstance(error, UserError) else str(error)).split())
    kind = "" if isinstance(error, UserError) else f"{type(error).__name__}: "
    return f"{kind}{text[:200]}{'...' if len(text) > 200 else ''}".rstrip(": ")
