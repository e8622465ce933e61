"""What frozen models computed, kept on disk for other runs: states of assistants, greedy texts of models.

A key holds everything that may move a bit: weights, architecture, type of numbers, the machine's kind, versions of libraries and
of our own code, and all prompts that were computed side by side, since rounding may depend on their company. What is taken
from the cache therefore has the bits that computing would give here.
"""

from __future__ import annotations

import functools
import json
import os
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor

from cl_softcot import cache
from cl_softcot.files import dump_json, sha256_of
from cl_softcot.models.language_model import LanguageModel
from cl_softcot.models.writing import Generation

# Files that decide how a frozen model's states and texts are computed: with other ones nothing that was kept is used.
_CODE = (
    "models/assistant.py",
    "models/batch.py",
    "models/frozen_prefix.py",
    "models/frozen_states.py",
    "models/head.py",
    "models/language_model.py",
    "models/lean.py",
    "models/loading.py",
    "models/running.py",
    "models/writing.py",
    "answering/policy.py",
    "reasoning/base.py",
    "reasoning/cot.py",
)
# Settings of the libraries below us that choose between kernels.
_ENVIRONMENT = ("CUBLAS_WORKSPACE_CONFIG", "NVIDIA_TF32_OVERRIDE", "MKL_CBWR", "MKL_ENABLE_INSTRUCTIONS", "ONEDNN_MAX_CPU_ISA")


@dataclass
class Tally(threading.local):
    """What this thread spent on assistants so far: seconds, prompts that they read, prompts that were in the cache instead."""

    seconds: float = 0.0
    computed: int = 0
    cached: int = 0

    @contextmanager
    def timed(self) -> Iterator[None]:
        started = time.perf_counter()
        try:
            yield
        finally:
            self.seconds += time.perf_counter() - started


tally = Tally()


class AssistantCache:
    """States of blocks of prompts of one assistant."""

    def __init__(self, assistant: LanguageModel):
        self.assistant = assistant

    def read(self, block: Sequence[Sequence[int]], n: int) -> tuple[Tensor, Tensor] | None:
        """Slots [B, N', A] with N' >= n, and means [B, A]; None if they are not there or too few."""
        kept = cache.current()
        found = kept and kept.read("states", self._key(block))
        if not found or found["slots_BNA"].shape[1] < n:
            return None
        return found["slots_BNA"], found["means_BA"]

    def write(self, block: Sequence[Sequence[int]], slots_BNA: Tensor, means_BA: Tensor) -> None:
        """Keeps a block; slots must begin with the same bits whatever their number (see ``AssistantStates``)."""
        if kept := cache.current():
            tensors = {"slots_BNA": slots_BNA.contiguous(), "means_BA": means_BA.contiguous()}
            kept.write("states", self._key(block), tensors, _about(self.assistant, self.assistant.fingerprint, len(block)))

    def _key(self, block: Sequence[Sequence[int]]) -> str:
        return cache.key_of(["assistant", self._identity, [list(p) for p in block]])

    @functools.cached_property
    def _identity(self) -> dict[str, Any]:
        ids = {"slot": self.assistant.special["slot"], "pad": self.assistant.pad_id}
        return identity(self.assistant, self.assistant.fingerprint) | ids


class ReferenceStates:
    """Hidden states of a frozen model at given continuations of prompts, computed together.

    Args:
        weights: the fingerprint of the model's weights and way of answering as they are now.
        prompts, continuations: token ids.
    """

    def __init__(
        self,
        model: LanguageModel,
        weights: str,
        prompts: Sequence[Sequence[int]],
        continuations: Sequence[Sequence[int]],
        batch_size: int,
    ):
        self.model, self.weights = model, weights
        self._lengths = [len(c) for c in continuations]
        self._material = [batch_size, [list(p) for p in prompts], [list(c) for c in continuations]]

    @functools.cached_property
    def _key(self) -> str:
        return cache.key_of(["reference", identity(self.model, self.weights), self.model.eos_id, self._material])

    def read(self) -> list[Tensor] | None:
        """[T_i, D] for each continuation, on the CPU; None if they are not there."""
        kept = cache.current()
        found = kept and kept.read("states", self._key)
        return list(found["hidden_ND"].split(self._lengths)) if found else None

    def write(self, states: Sequence[Tensor]) -> None:
        """Keeps them."""
        if kept := cache.current():
            hidden_ND = torch.cat([h_TD.cpu() for h_TD in states])
            kept.write("states", self._key, {"hidden_ND": hidden_ND}, _about(self.model, self.weights, len(states)))


class GreedyTexts:
    """Greedy answers in plain chain of thought to prompts that are given together.

    Args:
        weights: the fingerprint of the model's weights and way of answering as they are now.
        prompts: token ids, in the order in which they are given to ``generate``.
    """

    def __init__(
        self, model: LanguageModel, weights: str, prompts: Sequence[Sequence[int]], max_new_tokens: int, batch_size: int
    ):
        self.model, self.weights, self.prompts = model, weights, [list(p) for p in prompts]
        self._limits = [max_new_tokens, batch_size]

    @functools.cached_property
    def _key(self) -> str:
        ids = {"pad": self.model.pad_id, "ends": list(self.model.text.end_ids), "vocabulary": self.model.vocab_size}
        return cache.key_of(["texts", identity(self.model, self.weights), ids, self._limits, self.prompts])

    def read(self) -> list[Generation] | None:
        """The answers; None if they are not there."""
        kept = cache.current()
        found = kept and kept.read("texts", self._key)
        if not found:
            return None
        decode = self.model.text.decode
        return [
            Generation(ids=ids, text=decode(ids), **rest) for ids, rest in json.loads(found["json"].numpy().tobytes().decode())
        ]

    def write(self, answers: Sequence[Generation]) -> None:
        """Keeps them, without their text: that is made from the tokens again."""
        if kept := cache.current():
            rows = [
                (a.ids, {k: v for k, v in vars(a).items() if k in ("n_tokens", "forward_passes", "finished", "end_id")})
                for a in answers
            ]
            data = torch.frombuffer(bytearray(dump_json(rows).encode()), dtype=torch.uint8)
            kept.write("texts", self._key, {"json": data}, _about(self.model, self.weights, len(rows)))


def identity(model: LanguageModel, weights: str) -> dict[str, Any]:
    """Everything but the prompts that the bits of a frozen model's output depend on, as JSON data."""
    devices = sorted({str(p.device) for p in model.model.parameters()})
    return {
        "weights": weights,
        "architecture": [type(model.model).__name__, _configuration(model)],
        "numbers": [str(model.compute_dtype), str(model.model.get_input_embeddings().weight.dtype), model.quantized],
        "attention": model.config._attn_implementation,
        "machine": [_machine(device.split(":")[0]) for device in devices],
        "exactness": [torch.are_deterministic_algorithms_enabled(), torch.get_float32_matmul_precision()],
        "environment": {name: os.environ.get(name) for name in _ENVIRONMENT},
        "versions": _versions(),
        "code": _code(),
    }


def _about(model: LanguageModel, weights: str, items: int) -> dict[str, Any]:
    return {"model": model.name, "weights": weights, "items": items}


def _configuration(model: LanguageModel) -> str:
    """The whole configuration but for the place that it came from."""
    settings = {k: v for k, v in model.model.config.to_dict().items() if k not in ("_name_or_path", "transformers_version")}
    return sha256_of(json.dumps(settings, sort_keys=True, default=str).encode())


def _machine(device: str) -> list[Any]:
    """Machines of one kind compute the same bits; another processor, or another number of threads, may round differently."""
    if device == "cuda":
        return [torch.cuda.get_device_name(), *torch.cuda.get_device_capability(), torch.version.cuda]
    return [device, _processor(), torch.backends.cpu.get_cpu_capability(), torch.get_num_threads()]


@functools.cache
def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return ""
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "")


@functools.cache
def _versions() -> list[str]:
    from importlib.metadata import PackageNotFoundError, version

    found = [torch.__version__, transformers.__version__]
    for name in ("bitsandbytes", "flash-attn"):
        try:
            found.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            continue
    return found


@functools.cache
def _code() -> str:
    folder = Path(__file__).resolve().parents[1]
    return sha256_of("".join(sha256_of(folder / name) for name in _CODE).encode())
