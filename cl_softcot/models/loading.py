"""Finding and reading a model's files: embedded, local or from the hub, as safetensors or GGUF; errors in one sentence."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
from transformers.utils import logging as transformers_logging
from transformers.utils.peft_utils import find_adapter_config_file

from cl_softcot.errors import UserError, did_you_mean
from cl_softcot.files import read_json
from cl_softcot.machine import hub, processes
from cl_softcot.models import builtin, gguf

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_ATTENTION = ("eager", "sdpa", "flash_attention_2")
_MOST_LAYERS = 10_000
_ANY_FIX = "give builtin:tiny, a folder with config.json, weights and tokenizer, or a hub id that is reachable"
_HUB_FIX = "check the id on the hub, the network, and `hf auth login`; or give builtin:tiny, or a local folder"


ADAPTER = "adapter_config.json"


def resolve(spec: str) -> Path | None:
    """The local folder of a specification, or None for a hub id."""
    return located(spec)[0]


def located(spec: str, gguf_file: str | None = None) -> tuple[Path | None, str | None]:
    """The local folder of a specification (None for a hub id), and the GGUF file there that holds the model (None: none does).

    Raises:
        UserError: there is no model at this place, or several.
    """
    if spec.startswith("builtin:"):
        if gguf_file:
            raise UserError(f"{spec} has no GGUF file", fix="leave gguf_file out")
        return builtin.resolve(spec.removeprefix("builtin:")), None
    path = Path(spec).expanduser()
    if path.is_dir():
        if gguf_file:
            return path, gguf.checked(path, gguf_file)
        if (path / ADAPTER).is_file():
            raise _is_an_adapter(spec, beside=any(not p.name.startswith("adapter") for p in path.glob("*.safetensors")))
        only = gguf.only_one(path)
        if only is None and not (path / "config.json").is_file():
            raise UserError(f"the folder {spec!r} holds no model: config.json is missing")
        _refuse_odd_files(path)
        return path, only
    if path.is_file() or path.suffix.lower() == ".gguf":
        return _of_a_file(spec, path, gguf_file)
    if spec.startswith((".", "/", "~")) or spec.count("/") > 1:
        raise UserError(f"there is no folder {spec!r}", fix="check the path, or give a hub id such as organisation/model")
    return None, gguf_file


def _of_a_file(spec: str, path: Path, gguf_file: str | None) -> tuple[Path, str]:
    if not path.is_file():
        fix = "check the path; a file on the hub is {path: organisation/model, gguf_file: FILE.gguf}"
        raise UserError(f"there is no file {spec!r}", fix=fix)
    if gguf_file:
        raise UserError(f"{spec!r} is a file itself", fix="give its folder as path, or leave gguf_file out")
    if not gguf.is_gguf(path):
        raise UserError(f"{spec!r} is a file, and no GGUF", fix="give the folder that it is in")
    return path.parent, gguf.checked(path.parent, path.name)


def _is_an_adapter(spec: str, beside: bool = False) -> UserError:
    if beside:  # the library would put the two together by itself
        return UserError(
            f"{spec!r} holds a model and an adapter of peft", fix="keep each in its own folder: {path: BASE, adapter: FOLDER}"
        )
    return UserError(
        f"{spec!r} holds an adapter of peft, which is no model by itself",
        fix=f"give the model that it was made for, and the adapter beside it: {{path: BASE, adapter: {spec}}}",
    )


_MAPS = ("config.json", "generation_config.json", "tokenizer_config.json", "special_tokens_map.json", "adapter_config.json")


def _refuse_odd_files(folder: Path) -> None:
    """What would hang whoever reads the folder, and files of settings that are no maps, or out of bounds."""
    for path in sorted(folder.iterdir()):
        if path.exists() and not path.is_file() and not path.is_dir():
            raise UserError("a pipe, socket or device, not a file of a model", where=str(path))
    for path in (folder / name for name in _MAPS):
        if path.is_file() and not isinstance(read_json(path), dict):
            raise UserError("should hold a map (key: value)", where=str(path))


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


def read_tokenizer(spec: str, source: str, revision: str | None, trust_remote_code: bool, gguf_file: str | None = None) -> Any:
    """The tokenizer: of the folder, or of a GGUF file where the folder has none. UserError where there is none."""
    own = any((Path(source) / name).is_file() for name in ("tokenizer.json", "tokenizer_config.json"))
    options = {} if own or gguf_file is None else gguf_options(gguf_file)
    with quiet(), told(spec, "the tokenizer of the model", options.get("gguf_file")), hub.fetched(source):
        tokenizer = AutoTokenizer.from_pretrained(source, revision=revision, trust_remote_code=trust_remote_code, **options)
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
    gguf_file: str | None = None,
) -> Any:
    """The Hugging Face model on its device.

    Args:
        spec: what the user wrote, for messages.
        source: folder or hub id.
        device: where it goes; not with ``device_map``.
        init_seed: draw the weights from this seed, on the device, instead of reading them.
        gguf_file: where the model is, in ``source``.

    Raises:
        UserError: it is not there, not reachable, not a causal language model, neither in safetensors nor a GGUF, or incomplete.
    """
    options: dict[str, Any] = {"trust_remote_code": trust_remote_code}
    if attention == "flash_attention_2":
        _need("flash_attn", "attention: flash_attention_2", "pip install flash-attn --no-build-isolation")
        if dtype == torch.float32:
            raise UserError("flash_attention_2 computes in half precision only", fix="set dtype: bfloat16")
    if attention:
        options["attn_implementation"] = attention
    in_file = {} if gguf_file is None else gguf_options(gguf_file)
    with quiet(), told(spec, "the model", gguf_file), hub.fetched(source):
        if not Path(source).is_dir() and find_adapter_config_file(source, revision=revision):
            raise _is_an_adapter(spec)
        config = AutoConfig.from_pretrained(source, revision=revision, trust_remote_code=trust_remote_code, **in_file)
        _check_architecture(spec, config)
        if init_seed is not None:
            return _drawn(config, init_seed, dtype, device, options)
        if gguf_file is None:
            _refuse_pickles(spec, source)
        options |= _placement(device, device_map, quantization, dtype) | (gguf.whole_weights() if gguf_file else {})
        model, info = AutoModelForCausalLM.from_pretrained(
            source,
            config=config,
            revision=revision,
            dtype=dtype,
            use_safetensors=True,
            output_loading_info=True,
            **in_file,
            **options,
        )
    _check_complete(spec, model, info)
    if gguf_file is not None:
        gguf.make_plain(model)
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


def gguf_options(gguf_file: str) -> dict[str, str]:
    """What the library's readers are given for a GGUF file. UserError if the package for it is missing."""
    _need("gguf", f"reading {gguf_file}", "pip install 'cl-softcot[gguf]'")
    return {"gguf_file": gguf_file}


def _check_architecture(spec: str, config: Any) -> None:
    kernels = [named for named in _attentions(config) if "/" in named]
    if kernels:
        raise UserError(
            f"config.json of {spec!r} asks for code from the hub ({kernels[0]!r} as its attention), which a file of data may not",
            fix="take _attn_implementation out of its config.json",
        )
    layers = getattr(config.get_text_config(), "num_hidden_layers", 1)
    if not isinstance(layers, int) or not 0 < layers <= _MOST_LAYERS:
        raise UserError(f"config.json of {spec!r} cannot be of a model: num_hidden_layers is {layers!r}")
    known = set(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values())
    named = list(getattr(config, "architectures", None) or [])
    custom = "AutoModelForCausalLM" in (getattr(config, "auto_map", None) or {})
    if named and not known.intersection(named) and not custom:
        raise UserError(
            f"{spec!r} is not a causal language model: its architecture is {', '.join(named)}",
            fix="take a model that continues text, such as a GPT-2, Llama, Qwen, Gemma or Phi",
        )


def _attentions(config: Any) -> list[str]:
    found = [getattr(part, "_attn_implementation", None) for part in (config, config.get_text_config())]
    named = [value for one in found for value in (one.values() if isinstance(one, dict) else [one])]
    return [value for value in named if isinstance(value, str)]


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


def note(text: str) -> None:
    """One line for the person at the terminal."""
    if processes.is_main():
        print(f"note: {text}", file=sys.stderr)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """The library's own messages and bars are not shown inside."""
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
def told(spec: str, what: str, gguf_file: str | None = None) -> Iterator[None]:
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
        known = _explained(spec, what, error)
        if gguf_file is not None and known.fix == _ANY_FIX:
            known.fix = f"fetch {gguf_file} again, it may be cut short; or take the model as safetensors"
        raise known from error


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
    return UserError(f"{what} {spec!r} cannot be loaded: {said}", fix=_ANY_FIX)


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__
