"""How much memory each method needs on a device, and what to change where it is too much."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from cl_softcot.config.checks import names_that
from cl_softcot.config.experiment import Experiment
from cl_softcot.config.settings import MethodConfig, TrainConfig
from cl_softcot.errors import UserError
from cl_softcot.estimate.footprint import Footprint, footprint_of
from cl_softcot.estimate.passes import TextLengths
from cl_softcot.estimate.refused import in_a_line
from cl_softcot.estimate.sizes import GB, micro_batch, sizes_of, what_is_left_out
from cl_softcot.estimate.texts import text_lengths
from cl_softcot.estimate.time import Hours, hours_of

LONGEST = 1.5  # rows that a batch's memory is as wide as, in mean lengths
SMALL = 300_000_000  # parameters up to which a run on a CPU is worth a forecast


@dataclass(frozen=True)
class Device:
    """What a run has to fit into: its name, and the bytes that are free on it for one process."""

    name: str
    kind: str  # cuda or cpu
    room: float


def device_for(config: Experiment, gpu_memory: float | None, jobs: int = 1) -> Device:
    """The GPU that is named (in GB), the one that is here, or this machine's memory for models that run on a processor.

    Where no GPU is here and none is named, models too large for a processor are held against a GPU of 80 GB.
    """
    if gpu_memory is not None:
        return Device(f"a GPU of {gpu_memory:g} GB", "cuda", gpu_memory * GB)
    wanted = config.backbone.device or ""
    if torch.cuda.is_available() and not wanted.startswith("cpu"):
        properties = torch.cuda.get_device_properties(0)
        return Device(f"{properties.name} with {properties.total_memory / GB:.0f} GB", "cuda", properties.total_memory)
    large = not config.backbone.path.startswith("builtin:") and _is_large(config)
    if large and not wanted.startswith("cpu"):
        return Device("a GPU of 80 GB", "cuda", 80 * GB)
    room = available_memory()
    return Device(f"this machine's {room / GB:.0f} GB of free memory, {jobs} at a time", "cpu", room / jobs)


def _is_large(config: Experiment) -> bool:
    """Whether a backbone is too large for a processor; no where its size cannot be told."""
    try:
        return sizes_of(config.backbone.path, config.backbone.trust_remote_code, config.backbone.gguf_file).total > SMALL
    except Exception:
        return False


def available_memory() -> float:
    """Bytes of memory that processes can still have; infinite where the system does not say."""
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return 1024.0 * int(line.split()[1])
    except OSError:
        pass
    try:
        return float(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    except (ValueError, OSError, AttributeError):
        return float("inf")


@dataclass(frozen=True)
class MethodEstimate:
    """What one run of a method takes: memory of one process at its peak, GPU hours, and what to change where it does not fit.

    Attributes:
        memory, hours: None where they cannot be told.
        fits: not known to be too much.
        unknown: why something could not be told, in a line.
        refused: why the method cannot learn with this backbone, in a sentence.
        leaves_out: what of the layers it does not reach.
    """

    name: str
    memory: Footprint | None
    hours: Hours | None
    fits: bool = True
    advice: str | None = None
    unknown: str | None = None
    refused: str | None = None
    leaves_out: str | None = None


def estimate(config: Experiment, device: Device, gpus: int = 1) -> list[MethodEstimate]:
    """One entry a method. What cannot be told is left out: it is advice."""
    return [_estimate(config, method, device, gpus) for method in config.methods]


def _estimate(config: Experiment, method: MethodConfig, device: Device, gpus: int) -> MethodEstimate:
    memory, hours, advice, fits = None, None, None, True
    try:
        texts = text_lengths(config)
        longest = _long(max((texts[t.name] for t in config.tasks), key=lambda text: text.prompt + text.steps))
        leaves_out = what_is_left_out(method, config.backbone)
        with without_alarms():
            hours = hours_of(config, method, texts)
            memory = footprint_of(config, method, longest, device=device.kind, gpus=gpus)
            fits = memory.peak <= device.room
            advice = None if fits else advise(config, method, longest, device, gpus)
    except UserError as error:
        return MethodEstimate(method.name, None, None, refused=str(error))
    except Exception as error:  # of the library's model, which may do what cannot be traced without numbers
        return MethodEstimate(method.name, memory, hours, fits, advice, unknown=in_a_line(error))
    return MethodEstimate(method.name, memory, hours, fits, advice, leaves_out=leaves_out)


@contextlib.contextmanager
def without_alarms() -> Iterator[None]:
    """What torch logs of an operation that fails without numbers is not shown: the error tells it."""
    log = logging.getLogger("torch._subclasses.fake_tensor")
    was, log.disabled = log.disabled, True
    try:
        yield
    finally:
        log.disabled = was


def _long(text: TextLengths) -> TextLengths:
    """What decides the peak: a batch is as wide as its longest row."""
    return TextLengths(round(LONGEST * text.prompt), round(LONGEST * text.steps), text.answer, text.step_count)


def advise(config: Experiment, method: MethodConfig, text: TextLengths, device: Device, gpus: int) -> str:
    """The settings that make a method fit, each the mildest that helps at the moment of the peak."""

    def need(changed: Experiment, n: int) -> Footprint:
        return footprint_of(changed, changed.method(method.name), text, device=device.kind, gpus=n)

    changed, said = config, {}
    while (memory := need(changed, gpus)).peak > device.room:
        change = _next_change(changed, changed.method(method.name), memory, device)
        if change is None:
            break
        label, value, changed = change
        said[label] = value
    else:
        settings = ", ".join(f"{label}: {value}" for label, value in said.items())
        return f"{settings} would make it {amount(memory.peak)}"
    if method.strategy.learns_as.writes_weights and device.kind == "cuda":
        changed = _with(config, method, sharding="full", micro_batch_size=1)
        for n in (2, 4, 8, 16, 32):
            if (memory := need(changed, n)).peak <= device.room:
                split = f"train.sharding: full and train.micro_batch_size: 1 on {n} GPUs"
                return f"{split} would make it {amount(memory.peak)} on each"
    light = " or ".join(names_that(lambda learns: not learns.writes_weights))
    return f"use a smaller backbone, a strategy that leaves its weights alone ({light}), or a larger GPU"


def _next_change(
    config: Experiment, method: MethodConfig, memory: Footprint, device: Device
) -> tuple[str, str, Experiment] | None:
    """The name, the value and the experiment of the mildest change that lowers the peak; None where nothing is left."""
    backbone, train, evaluate = config.backbone, config.train_for(method), config.evaluate
    stays = memory.runtime + memory.factor * sum(memory.stays.values())
    if stays <= device.room and memory.moment in ("answering", "drift") and evaluate.batch_size > 8:
        batch = evaluate.batch_size // 2
        smaller = evaluate.model_copy(update={"batch_size": batch})
        return "evaluate.batch_size", str(batch), config.model_copy(update={"evaluate": smaller})
    if stays <= device.room and memory.moment == "training" and (size := micro_batch(train)) > 1:
        size = next(n for n in range(size // 2, 0, -1) if train.global_batch_size % n == 0)
        return "train.micro_batch_size", str(size), _with(config, method, micro_batch_size=size)
    found: list[tuple[str, Any]] = []
    if memory.moment == "training" and not backbone.gradient_checkpointing:
        found.append(("gradient_checkpointing", True))
    if backbone.dtype == "float32" and not method.strategy.learns_as.writes_weights:
        found.append(("dtype", "bfloat16"))
    if not method.strategy.learns_as.writes_weights and not backbone.quantization and device.kind == "cuda":
        found.append(("quantization", "4bit"))
    for field, value in found:
        lighter = config.model_copy(update={"backbone": backbone.model_copy(update={field: value})})
        return f"backbone.{field}", str(value).lower(), lighter
    if (
        method.strategy.learns_as.writes_weights
        and device.kind == "cuda"
        and train.optimizer == "adamw"
        and train.sharding == "none"
    ):
        return "train.optimizer", "adamw_8bit", _with(config, method, optimizer="adamw_8bit")
    return None


def _with(config: Experiment, method: MethodConfig, **train: Any) -> Experiment:
    """The experiment with other settings of one method's training."""
    said = method.train.model_dump(exclude_unset=True) if method.train else {}
    changed = method.model_copy(update={"train": TrainConfig(**{**said, **train})})
    return config.model_copy(update={"methods": [changed if m.name == method.name else m for m in config.methods]})


def amount(size: float) -> str:
    return f"{size / GB:.1f} GB" if size >= GB / 10 else f"{size / 1e6:.0f} MB"
