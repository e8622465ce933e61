"""Finding and reading a model's files: embedded, local or from the hub, safetensors only; errors in one sentence."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
from transformers.utils import logging as transformers_logging

from cl_softcot.errors import UserError, did_you_mean
from cl_softcot.machine import hub
from cl_softcot.models import builtin

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_ATTENTION = ("eager", "sdpa", "flash_attention_2")
_HUB_FIX = "check the id on the hub, the network, and `hf auth login`; or give builtin:tiny, or a local folder"


def resolve(spec: str) -> Path | None:
    """The local folder of a specification, or None for a hub id."""
    if spec.startswith("builtin:"):
        return builtin.resolve(spec.removeprefix("builtin:"))
    path = Path(spec).expanduser()
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise UserError(f"the folder {spec!r} holds no model: config.json is missing")
        return path
    if spec.startswith((".", "/", "~")) or spec.count("/") > 1:
        raise UserError(f"there is no folder {spec!r}", fix="check the path, or give a hub id such as organisation/model")
    return None


def default_device() -> torch.device:
    """The GPU of this process (``LOCAL_RANK``) if there is one, else the CPU."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())


def device_of(name: str | None) -> torch.device:
    """A device by its name (None: ``default_device``). UserError where this machine lacks it."""
    if name is None:
        return default_device()
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        there = [f"cuda:{i}" for i in range(torch.cuda.device_count())]
        raise UserError(f"there is no device {name!r} here", fix=f"known: {', '.join(['cpu', *there])}") from error
    return device


def check_choices(dtype: str, attention: str | None, quantization: str | None, init: str) -> None:
    """UserError for a choice that does not exist."""
    choices = (
        ("dtype", dtype, tuple(DTYPES)),
        ("attention", attention, (*_ATTENTION, None)),
        ("quantization", quantization, ("8bit", "4bit", None)),
        ("init", init, ("pretrained", "random")),
    )
    for name, value, known in choices:
        if value not in known:
            raise UserError(f"unknown {name} {value!r}{did_you_mean(value, [k for k in known if k is not None])}")


def read_tokenizer(spec: str, source: str, revision: str | None, trust_remote_code: bool) -> Any:
    """The tokenizer. UserError where there is none."""
    with _quiet(), _told(spec, "the tokenizer of the model"), hub.fetched(source):
        tokenizer = AutoTokenizer.from_pretrained(source, revision=revision, trust_remote_code=trust_remote_code)
    # Without its files some classes come up empty instead of failing.
    if set(tokenizer.get_vocab()) <= set(tokenizer.all_special_tokens):
        raise UserError(
            f"the model {spec!r} has no tokenizer: its tokenizer.json is missing",
            fix="put the tokenizer's files into the model's folder",
        )
    return tokenizer


def read_model(
    spec: str,
    source: str,
    *,
    dtype: torch.dtype,
    revision: str | None = None,
    attention: str | None = None,
    trust_remote_code: bool = False,
    device: torch.device | None = None,
    device_map: str | Mapping[str, Any] | None = None,
    quantization: str | None = None,
    init_seed: int | None = None,
) -> Any:
    """The Hugging Face model on its device.

    Args:
        spec: what the user wrote, for messages.
        source: folder or hub id.
        device: where it goes; not with ``device_map``.
        init_seed: draw the weights from this seed, on the device, instead of reading them.

    Raises:
        UserError: it is not there, not reachable, not a causal language model, not in safetensors, or incomplete.
    """
    options: dict[str, Any] = {"trust_remote_code": trust_remote_code}
    if attention == "flash_attention_2":
        _need("flash_attn", "attention: flash_attention_2", "pip install flash-attn --no-build-isolation")
        if dtype == torch.float32:
            raise UserError("flash_attention_2 computes in half precision only", fix="set dtype: bfloat16")
    if attention:
        options["attn_implementation"] = attention
    with _quiet(), _told(spec, "the model"), hub.fetched(source):
        config = AutoConfig.from_pretrained(source, revision=revision, trust_remote_code=trust_remote_code)
        _check_architecture(spec, config)
        if init_seed is not None:
            return _drawn(config, init_seed, dtype, device, options)
        _refuse_pickles(spec, source)
        options |= _placement(device, device_map, quantization, dtype)
        model, info = AutoModelForCausalLM.from_pretrained(
            source, config=config, revision=revision, dtype=dtype, use_safetensors=True, output_loading_info=True, **options
        )
    _check_complete(spec, model, info)
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False  # would store frozen weights in another order when they are first used
    return model if "device_map" in options else model.to(device)


def _drawn(config: Any, seed: int, dtype: torch.dtype, device: torch.device | None, options: Mapping[str, Any]) -> Any:
    """A model with random weights; on another kind of device the same seed draws other numbers."""
    device = device or torch.device("cpu")
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []), device:
        torch.manual_seed(seed)
        return AutoModelForCausalLM.from_config(config, dtype=dtype, **options)


def _placement(
    device: torch.device | None, device_map: str | Mapping[str, Any] | None, quantization: str | None, dtype: torch.dtype
) -> dict[str, Any]:
    """Arguments that say where weights go and how they are stored."""
    options: dict[str, Any] = {}
    if device_map is not None:
        options["device_map"] = dict(device_map) if isinstance(device_map, Mapping) else device_map
    if quantization is not None:
        _need("bitsandbytes", f"quantization: {quantization}", "pip install 'cl-softcot[quantization]'")
        from transformers import BitsAndBytesConfig

        options.setdefault("device_map", {"": str(device or "cpu")})
        options["quantization_config"] = (
            BitsAndBytesConfig(load_in_8bit=True)
            if quantization == "8bit"
            else BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=dtype)
        )
    return options


def _need(package: str, what: str, command: str) -> None:
    if importlib.util.find_spec(package) is None:
        raise UserError(f"{what} needs the package {package.replace('_', '-')}, which is not installed", fix=command)


def _check_architecture(spec: str, config: Any) -> None:
    known = set(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values())
    named = list(getattr(config, "architectures", None) or [])
    custom = "AutoModelForCausalLM" in (getattr(config, "auto_map", None) or {})
    if named and not known.intersection(named) and not custom:
        raise UserError(
            f"{spec!r} is not a causal language model: its architecture is {', '.join(named)}",
            fix="take a model that continues text, such as a GPT-2, Llama, Qwen, Gemma or Phi",
        )


def _refuse_pickles(spec: str, source: str) -> None:
    """A pickle runs whatever code its author put in, when it is read."""
    folder = Path(source)
    if not folder.is_dir() or list(folder.glob("*.safetensors")):
        return
    pickles = sorted(p.name for pattern in ("*.bin", "*.pt", "*.pth", "*.ckpt") for p in folder.glob(pattern))
    if pickles:
        raise UserError(
            f"the weights of {spec!r} are pickled ({pickles[0]}), and reading a pickle can run any code",
            fix="if you trust their origin, convert them: load them with transformers and save_pretrained() into a new folder",
        )
    raise UserError(
        f"the folder {spec!r} holds no weights: there is no *.safetensors in it",
        fix="copy the weights there, or set init: random to draw them",
    )


def _check_complete(spec: str, model: Any, info: Mapping[str, Any]) -> None:
    """What is missing in the files is drawn at random by the library, without a word."""
    missing = [*info.get("missing_keys", ()), *(key for key, *_ in info.get("mismatched_keys", ()))]
    if missing:
        raise UserError(
            f"the weights of {spec!r} are incomplete: {len(missing)} tensors are missing or misshapen, {min(missing)} first",
            fix="fetch the model again; it may be an interrupted download, or weights of another architecture",
        )
    if any(weight.device.type == "meta" for weight in model.parameters()):
        raise UserError(
            f"{spec!r} does not fit: some of its weights would have to be left in main memory or on disk",
            fix="use more or larger GPUs, dtype: bfloat16, or quantization: 4bit",
        )


# -------------------------------------------------------------------------------------------------------- errors


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    verbosity, bars = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        if bars:
            transformers_logging.enable_progress_bar()


@contextlib.contextmanager
def _told(spec: str, what: str) -> Iterator[None]:
    """What goes wrong while files are fetched and read, as one UserError."""
    try:
        yield
    except UserError:
        raise
    except torch.OutOfMemoryError as error:
        raise UserError(
            f"{what} {spec!r} does not fit on the GPU", fix="set dtype: bfloat16, quantization: 4bit or device_map: auto"
        ) from error
    except Exception as error:  # the library's own errors are of many kinds, safetensors' are plain Exceptions
        raise _explained(spec, what, error) from error


def _explained(spec: str, what: str, error: Exception) -> UserError:
    kinds = {kind.__name__ for cause in _causes(error) for kind in type(cause).__mro__}
    text = " ".join(str(cause) for cause in _causes(error))
    said = (str(error).strip() or type(error).__name__).splitlines()[0]
    if "GatedRepoError" in kinds or "gated repo" in text:
        return UserError(
            f"{what} {spec!r} is gated: its owner has to grant you access",
            fix=f"ask for access on the page of {spec} at the hub, then `hf auth login` (or set HF_TOKEN)",
        )
    if "RevisionNotFoundError" in kinds or "not a valid git identifier" in text:
        return UserError(f"{what} {spec!r} has no such revision", fix="give a branch, tag or commit that its page shows")
    if "RepositoryNotFoundError" in kinds or "is not a valid model identifier" in text:
        return UserError(f"there is no model {spec!r} on the hub, or it is private", fix=_HUB_FIX)
    if kinds & {"LocalEntryNotFoundError", "OfflineModeIsEnabled", "ConnectError", "ConnectionError", "TimeoutException"}:
        return UserError(
            f"{what} {spec!r} is not on this machine, and the hub cannot be reached",
            fix="connect to the network, download it before (`hf download`), or give a local folder",
        )
    if "trust_remote_code" in text:
        return UserError(
            f"{what} {spec!r} brings code of its own, which is not run",
            fix="read that code; if you trust it, set trust_remote_code: true and a fixed revision",
        )
    if "safetensors" in text and "no file named" in text or "does not appear to have a file named model.safetensors" in text:
        return UserError(
            f"{what} {spec!r} has no weights as safetensors; pickled ones are not read, since they can run any code",
            fix="take a revision with safetensors, or convert it with transformers' save_pretrained() into a local folder",
        )
    if "SafetensorError" in kinds:
        return UserError(f"the weights of {spec!r} are damaged: {said}", fix="fetch the model again")
    if (
        "Unrecognized configuration class" in text
        or "Unrecognized model" in text
        or "does not recognize this architecture" in text
    ):
        kind = next(iter(re.findall(r"model type `?'?(\w+)|Model type should be one of", text)), "")
        return UserError(
            f"{spec!r} is of a kind {kind!r} that this version of transformers has no causal language model for",
            fix="take a newer transformers, or a model of another kind",
        )
    fix = "give builtin:tiny, a folder with config.json, weights and tokenizer, or a hub id that is reachable"
    return UserError(f"{what} {spec!r} cannot be loaded: {said}", fix=fix)


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__
