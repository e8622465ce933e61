"""What an experiment will take before it starts: time on this machine, GPU hours, and whether its memory fits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from cl_softcot.config.experiment import Experiment
from cl_softcot.config.plan import RunSpec
from cl_softcot.errors import UserError
from cl_softcot.estimate.advice import LONGEST, Device, MethodEstimate, amount, device_for, estimate
from cl_softcot.estimate.here import estimate_seconds, runs_here
from cl_softcot.estimate.texts import text_lengths
from cl_softcot.estimate.time import H100, base_hours
from cl_softcot.results.folder import ExperimentFolder


def describe(config: Experiment, specs: Sequence[RunSpec], jobs: int, *, gpu_memory: float | None = None, gpus: int = 1) -> str:
    """What would run, about how long it takes, and whether it fits."""
    folder = config.folder
    lines = [f"{config.name}: {len(specs)} runs into {folder}/, {jobs} side by side", ""]
    for order, tasks in config.orders.items():
        lines.append(f"order {order}: {' -> '.join(tasks)}")
    lines += _data_lines(config)
    lines += [f"backbone {config.backbone.path}, assistant {config.assistant.path if config.assistant else 'none'}", ""]
    seconds = estimate_seconds(config) if runs_here(config) else None
    device: Device | None
    try:
        device = device_for(config, gpu_memory, jobs)
        found = {e.name: e for e in estimate(config, device, gpus)}
    except UserError as error:
        device, found, unknown = None, {}, str(error)
    width = max(len(m.name) for m in config.methods)
    left = 0.0
    for m in config.methods:
        done = sum(ExperimentFolder(folder).run(s.key).result.exists() for s in specs if s.method == m.name)
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


def _data_lines(config: Experiment) -> list[str]:
    """What the tasks say of the rows of their data, where those are at hand. UserError where a run would refuse them."""
    tasks = [entry.make() for entry in (*config.tasks, *(config.evaluate.retention_tasks or ()))]
    return [f"task {task.name}: {line}" for task in tasks if task.at_hand() and (line := task.about())]


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
    return f"{hours:.1f} GPU hours in all, at most {amount(largest.memory.peak)} on a GPU ({largest.name})"


def _memory_lines(found: Mapping[str, MethodEstimate], device: Device, width: int, gpus: int) -> list[str]:
    shared = f" (on each of {gpus})" if gpus > 1 else ""
    lines = [f"memory at the peak{shared}, estimated, against {device.name}:"]
    for e in found.values():
        parts = ", ".join(f"{name} {amount(size)}" for name, size in e.memory.items()[:4])
        verdict = "fits" if e.fits else "DOES NOT FIT"
        lines.append(f"  {e.name:<{width}}  {amount(e.memory.peak):>8}  {verdict} ({e.memory.moment}: {parts})")
        if e.advice:
            lines.append(f"  {'':<{width}}  -> {e.advice}")
    return lines


def warnings_before_loading(config: Experiment, jobs: int, gpus: int = 1) -> list[str]:
    """One line for each method that is estimated not to fit on the device that is here; nothing where it cannot be told."""
    try:
        device = device_for(config, None, jobs)
        found = estimate(config, device, gpus)
    except UserError:
        return []
    return [
        f"{e.name} is estimated to need {amount(e.memory.peak)} and may not fit {device.name}: {e.advice}"
        for e in found
        if not e.fits
    ]
