"""How much memory each method needs on a device, and what to change where it is too much."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from cl_softcot.config.checks import names_that
from cl_softcot.config.experiment import Experiment
from cl_softcot.config.settings import MethodConfig, TrainConfig
from cl_softcot.estimate.footprint import Footprint, footprint_of
from cl_softcot.estimate.passes import TextLengths
from cl_softcot.estimate.sizes import GB, micro_batch, sizes_of
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
    large = not config.backbone.path.startswith("builtin:") and sizes_of(config.backbone.path).total > SMALL
    if large and not wanted.startswith("cpu"):
        return Device("a GPU of 80 GB", "cuda", 80 * GB)
    room = available_memory()
    return Device(f"this machine's {room / GB:.0f} GB of free memory, {jobs} at a time", "cpu", room / jobs)


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
    """What one run of a method takes: memory of one process at its peak, GPU hours, and what to change where it does not fit."""

    name: str
    memory: Footprint
    hours: Hours
    fits: bool
    advice: str | None


def estimate(config: Experiment, device: Device, gpus: int = 1) -> list[MethodEstimate]:
    """One entry a method.

    Raises:
        UserError: the shape of a model is neither at hand nor in the table.
    """
    texts = text_lengths(config)
    longest = _long(max((texts[t.name] for t in config.tasks), key=lambda text: text.prompt + text.steps))
    found = []
    for method in config.methods:
        memory = footprint_of(config, method, longest, device=device.kind, gpus=gpus)
        fits = memory.peak <= device.room
        advice = None if fits else advise(config, method, longest, device, gpus)
        found.append(MethodEstimate(method.name, memory, hours_of(config, method, texts), fits, advice))
    return found


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
