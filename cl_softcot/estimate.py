"""What an experiment will take before it starts: time on this machine, GPU hours, and whether its memory fits."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from cl_softcot.config import Experiment, MethodConfig, TrainConfig
from cl_softcot.cost import H100, Hours, base_hours, hours_of
from cl_softcot.errors import UserError
from cl_softcot.memory import GB, Memory, Text, memory_of, micro_batch, sizes_of
from cl_softcot.one_run import RunSpec, load_models, make_tasks, retention_tasks

# Small models do not reach the rate of a large matrix product; the shares are measured on the embedded ones.
TRAIN_SHARE, DECODE_SHARE = 0.35, 0.12
STARTUP_SECONDS = 5.0

# Mean tokens of question, steps, answer line, and the number of steps, of tasks whose data may not be at hand: characters of the
# published files over 4.2 for prose and 3 for numbers and made-up words.
TYPICAL: dict[str, Text] = {
    "gsm8k": Text(58, 76, 6, 4),
    "gsm8k_aug": Text(58, 20, 6, 3),
    "asdiv_aug": Text(45, 60, 6, 3),
    "svamp": Text(40, 8, 6, 1),
    "aqua": Text(68, 42, 6, 4),
    "strategyqa": Text(20, 45, 6, 3),
    "date_understanding": Text(62, 40, 6, 3),
    "commonsenseqa": Text(40, 1, 6, 1),
    "prosqa": Text(310, 34, 12, 4),
    "prontoqa": Text(207, 72, 8, 6),
    "bbh": Text(100, 80, 6, 4),
    "mmlu": Text(110, 80, 6, 4),
}
DEFAULT_TEXT = Text(120, 80, 8, 4)
CHARACTERS_A_TOKEN = 3.5
CHAT_TOKENS = 45  # a chat template's turns, and the instruction
LONGEST = 1.5  # rows that a batch's memory is as wide as, in mean lengths
SAMPLES = 32
SMALL = 300_000_000  # parameters up to which a run on a CPU is worth a forecast


# ------------------------------------------------------------------------------------------- time on this machine


def matrix_rate(seconds: float = 0.2) -> float:
    """Floating-point operations a second of one core (or the GPU) in an fp32 product of 512 x 512 matrices."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    a = torch.randn(512, 512, device=device)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        (a @ a).sum().item()
        started, n = time.perf_counter(), 0
        while time.perf_counter() - started < seconds:
            (a @ a).sum().item()
            n += 1
        return 2 * 512**3 * n / (time.perf_counter() - started)
    finally:
        torch.set_num_threads(threads)


def estimate_seconds(config: Experiment) -> dict[str, float]:
    """Seconds of one run of each method: forward and backward passes of training, prompt and text of every answer."""
    backbone, _ = load_models(config)
    parameters = sum(p.numel() for p in backbone.model.parameters())
    order = next(iter(config.orders))
    tasks = make_tasks(config, order)
    samples = [(e, backbone.text) for task in tasks for e in task.examples("train", min(32, config.train.examples), 0)]
    prompt = sum(len(text.prompt_ids(e.question)) for e, text in samples) / len(samples)
    target = sum(len(text.target_ids(e.steps, e.answer)) for e, text in samples) / len(samples)
    rate = matrix_rate()
    evaluate = config.evaluate
    families = len(retention_tasks(config, backbone)) if evaluate.retention else 0
    sets = len(tasks) + bool(evaluate.general_text)
    answers = len(tasks) * evaluate.test + families * evaluate.retention + 2 * sets * evaluate.drift
    found = {}
    for method in config.methods:
        train = config.train_for(method)
        decode = answers * 2 * parameters * (prompt * DECODE_SHARE / TRAIN_SHARE + target) / (rate * DECODE_SHARE)
        if not method.strategy.cls.trains:
            found[method.name] = STARTUP_SECONDS + 2 * decode
            continue
        learn = len(tasks) * train.steps * train.global_batch_size * (prompt + target) * 6 * parameters / (rate * TRAIN_SHARE)
        found[method.name] = STARTUP_SECONDS + learn + (len(tasks) + 1) * decode
    return found


def runs_here(config: Experiment) -> bool:
    """Whether the models are small and at hand, so that a run on this machine's processor is worth a forecast."""
    if config.backbone.path.startswith("builtin:"):
        return True
    if torch.cuda.is_available() or not (Path(config.backbone.path).expanduser() / "tokenizer.json").is_file():
        return False
    return sizes_of(config.backbone.path).total <= SMALL


# --------------------------------------------------------------------------------------------------- texts


def text_lengths(config: Experiment) -> dict[str, Text]:
    """Lengths of every task's texts in tokens, retention's included: typical ones, or those of a few examples."""
    prompt = 0 if config.backbone.chat == "never" or _plain(config.backbone.path) else CHAT_TOKENS
    found = {}
    for task in [*config.tasks, *(config.evaluate.retention_tasks or [])]:
        text = TYPICAL.get(task.task) or _measured(task)
        found[task.name] = Text(text.prompt + prompt, text.steps, text.answer, text.step_count)
    return found


def _plain(path: str) -> bool:
    """Models that have no chat template: GPT-2, the embedded ones."""
    return "gpt2" in path.lower() or path.startswith("builtin:")


def _measured(task: Any) -> Text:
    """Of examples that are made or read on the spot; what nobody can tell yet gets a default."""
    settings = task.settings
    if getattr(settings, "hub", None) and not getattr(settings, "path", None):
        return DEFAULT_TEXT
    try:
        examples = task.make().examples("train", SAMPLES, 0)
    except (UserError, OSError, ValueError):
        return DEFAULT_TEXT
    n = len(examples) * CHARACTERS_A_TOKEN

    def tokens(texts: Sequence[str]) -> int:
        return max(1, round(sum(map(len, texts)) / n))

    steps = round(sum(len(e.steps) for e in examples) / len(examples))
    return Text(
        tokens([e.question for e in examples]),
        tokens(["\n".join(e.steps) for e in examples]),
        tokens([e.answer for e in examples]) + 3,
        max(1, steps),
    )


# -------------------------------------------------------------------------------------------------- estimates


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
    memory: Memory
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
        memory = memory_of(config, method, longest, device=device.kind, gpus=gpus)
        fits = memory.peak <= device.room
        advice = None if fits else advise(config, method, longest, device, gpus)
        found.append(MethodEstimate(method.name, memory, hours_of(config, method, texts), fits, advice))
    return found


def _long(text: Text) -> Text:
    """What decides the peak: a batch is as wide as its longest row."""
    return Text(round(LONGEST * text.prompt), round(LONGEST * text.steps), text.answer, text.step_count)


def advise(config: Experiment, method: MethodConfig, text: Text, device: Device, gpus: int) -> str:
    """The settings that make a method fit, each the mildest that helps at the moment of the peak."""

    def need(changed: Experiment, n: int) -> Memory:
        return memory_of(changed, changed.method(method.name), text, device=device.kind, gpus=n)

    changed, said = config, {}
    while (memory := need(changed, gpus)).peak > device.room:
        change = _next_change(changed, changed.method(method.name), memory, device)
        if change is None:
            break
        label, value, changed = change
        said[label] = value
    else:
        settings = ", ".join(f"{label}: {value}" for label, value in said.items())
        return f"{settings} would make it {_amount(memory.peak)}"
    if method.strategy.learns_as.writes_weights and device.kind == "cuda":
        changed = _with(config, method, sharding="full", micro_batch_size=1)
        for n in (2, 4, 8, 16, 32):
            if (memory := need(changed, n)).peak <= device.room:
                split = f"train.sharding: full and train.micro_batch_size: 1 on {n} GPUs"
                return f"{split} would make it {_amount(memory.peak)} on each"
    return "use a smaller backbone, adapters (strategy: lora), or a larger GPU"


def _next_change(config: Experiment, method: MethodConfig, memory: Memory, device: Device) -> tuple[str, str, Experiment] | None:
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


# ------------------------------------------------------------------------------------------------- in words


def describe(config: Experiment, specs: Sequence[RunSpec], jobs: int, *, gpu_memory: float | None = None, gpus: int = 1) -> str:
    """What would run, about how long it takes, and whether it fits."""
    folder = Path(config.output_dir)
    lines = [f"{config.name}: {len(specs)} runs into {folder}/, {jobs} side by side", ""]
    for order, tasks in config.orders.items():
        lines.append(f"order {order}: {' -> '.join(tasks)}")
    lines += [f"backbone {config.backbone.path}, assistant {config.assistant.path if config.assistant else 'none'}", ""]
    seconds = estimate_seconds(config) if runs_here(config) else None
    try:
        device: Device | None = device_for(config, gpu_memory, jobs)
        found = {e.name: e for e in estimate(config, device, gpus)}
    except UserError as error:
        device, found, unknown = None, {}, str(error)
    width = max(len(m.name) for m in config.methods)
    left = 0.0
    for m in config.methods:
        done = sum((folder / "runs" / s.key / "result.json").exists() for s in specs if s.method == m.name)
        n = sum(s.method == m.name for s in specs)
        routed = f", per task ({m.per_task.routing})" if m.per_task else ""
        added = "".join(f" + {plugin.name}" for plugin in m.plugins)
        train = config.train_for(m)
        budget = f"{train.steps} steps of {train.global_batch_size} a task" if m.strategy.cls.trains else "no training"
        one = _time_of(m.name, seconds, found)
        left += (n - done) * one
        state = f", {done} of {n} finished" if done else ""
        times = f"{' x ' + str(n) if n > 1 else ''}"
        took = f", about {_duration(one, seconds is not None)}{times}" if one else ""
        lines.append(f"  {m.name:<{width}}  {m.strategy.name} x {m.reasoning.name}{routed}{added}: {budget}{took}{state}")
    if seconds is not None or found:
        lines += ["", *_total(config, left, jobs, seconds is not None)]
    lines += ["", *(_memory_lines(found, device, width, gpus) if device else [f"memory: {unknown}"])]
    return "\n".join(lines)


def _time_of(name: str, seconds: Mapping[str, float] | None, found: Mapping[str, MethodEstimate]) -> float:
    if seconds is not None:
        return seconds[name]
    return found[name].hours.total * 3600 if name in found else 0.0


def _duration(seconds: float, here: bool) -> str:
    if here:
        return f"{seconds:.0f} s"
    return f"{seconds / 3600:.1f} GPU hours" if seconds >= 360 else f"{seconds / 60:.1f} GPU minutes"


def _total(config: Experiment, left: float, jobs: int, here: bool) -> list[str]:
    if here:
        total = left / jobs
        return [f"about {total / 60:.0f} minutes in all" if total >= 90 else f"about {total:.0f} seconds in all"]
    base = base_hours(config, text_lengths(config))
    lines = [f"about {left / 3600 + base:.1f} GPU hours in all, {base:.1f} of them for the base's own answers, once"]
    return [*lines, f"assumed: {H100.said()}; texts of typical length, and for memory {LONGEST:g} times that"]


def summary(config: Experiment, gpu_memory: float = 80, gpus: int = 1) -> str:
    """All runs in GPU hours, and the method that needs most memory: what the header of an experiment says."""
    found = estimate(config, device_for(config, gpu_memory), gpus)
    runs = len(config.seeds) * len(config.orders)
    hours = base_hours(config, text_lengths(config)) + runs * sum(e.hours.total for e in found)
    largest = max(found, key=lambda e: e.memory.peak)
    return f"{hours:.1f} GPU hours in all, at most {_amount(largest.memory.peak)} on a GPU ({largest.name})"


def _memory_lines(found: Mapping[str, MethodEstimate], device: Device, width: int, gpus: int) -> list[str]:
    shared = f" (on each of {gpus})" if gpus > 1 else ""
    lines = [f"memory at the peak{shared}, estimated, against {device.name}:"]
    for e in found.values():
        parts = ", ".join(f"{name} {_amount(size)}" for name, size in e.memory.items()[:4])
        verdict = "fits" if e.fits else "DOES NOT FIT"
        lines.append(f"  {e.name:<{width}}  {_amount(e.memory.peak):>8}  {verdict} ({e.memory.moment}: {parts})")
        if e.advice:
            lines.append(f"  {'':<{width}}  -> {e.advice}")
    return lines


def _amount(size: float) -> str:
    return f"{size / GB:.1f} GB" if size >= GB / 10 else f"{size / 1e6:.0f} MB"


def warnings_before_loading(config: Experiment, jobs: int, gpus: int = 1) -> list[str]:
    """One line for each method that is estimated not to fit on the device that is here; nothing where it cannot be told."""
    try:
        device = device_for(config, None, jobs)
        found = estimate(config, device, gpus)
    except UserError:
        return []
    return [
        f"{e.name} is estimated to need {_amount(e.memory.peak)} and may not fit {device.name}: {e.advice}"
        for e in found
        if not e.fits
    ]
