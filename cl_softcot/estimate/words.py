"""What an experiment will take before it starts: time on this machine, GPU hours, and whether its memory fits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from cl_softcot.config.experiment import Experiment
from cl_softcot.config.plan import RunSpec
from cl_softcot.config.settings import MethodConfig
from cl_softcot.errors import UserError
from cl_softcot.estimate.advice import LONGEST, Device, MethodEstimate, amount, device_for, estimate
from cl_softcot.estimate.here import estimate_seconds, runs_here
from cl_softcot.estimate.refused import in_a_line, refused_models
from cl_softcot.estimate.texts import text_lengths
from cl_softcot.estimate.time import H100, base_hours
from cl_softcot.results.folder import ExperimentFolder

# What a dry run ends with where not all is well; 0, 1 and 2 are those of a run.
DOES_NOT_FIT, REFUSED = 3, 4


@dataclass(frozen=True)
class Forecast:
    """What a dry run says, and its exit status: 0, ``DOES_NOT_FIT``, or ``REFUSED`` for what is missing or cannot be loaded."""

    text: str
    status: int


def forecast(
    config: Experiment, specs: Sequence[RunSpec], jobs: int, *, gpu_memory: float | None = None, gpus: int = 1
) -> Forecast:
    """What would run, about how long it takes, and whether it fits. What cannot be told is left out, and a line says why."""
    folder = config.folder
    lines = [f"{config.name}: {len(specs)} runs into {folder}/, {jobs} side by side", ""]
    for order, tasks in config.orders.items():
        lines.append(f"order {order}: {' -> '.join(tasks)}")
    lines += _data_lines(config)
    lines += [f"backbone {config.backbone.path}, assistant {config.assistant.path if config.assistant else 'none'}", ""]
    refused = refused_models(config)
    seconds, unknown = (None, None) if refused else _seconds(config, refused)
    device = device_for(config, gpu_memory, jobs)
    found = {} if refused else {e.name: e for e in estimate(config, device, gpus)}
    width = max(len(m.name) for m in config.methods)
    left = 0.0
    for m in config.methods:
        done = sum(ExperimentFolder(folder).run(s.key).result.exists() for s in specs if s.method == m.name)
        n = sum(s.method == m.name for s in specs)
        one = _time_of(m.name, seconds, found)
        left += (n - done) * one
        lines.append(f"  {m.name:<{width}}  {_planned(config, m)}{_state(one, seconds is not None, n, done)}")
    if left or any(e.hours for e in found.values()):
        lines += ["", *_total(config, left, jobs, seconds is not None)]
    if unknown:
        lines += ["", f"time here: no estimate ({unknown})"]
    lines += ["", *_memory_lines(found, device, width, gpus)] if found else []
    refused += [f"{e.name}: {e.refused}" for e in found.values() if e.refused]
    lines += ["", *(f"cannot run: {why}" for why in refused)] if refused else []
    fits = all(e.fits for e in found.values())
    return Forecast("\n".join(lines), REFUSED if refused else 0 if fits else DOES_NOT_FIT)


def _seconds(config: Experiment, refused: list[str]) -> tuple[dict[str, float] | None, str | None]:
    """Of every method on this machine, where that is worth a forecast; why not, where it cannot be told. A model that is refused
    when it is loaded is added to those that are.
    """
    try:
        return (estimate_seconds(config) if runs_here(config) else None), None
    except UserError as error:
        refused.append(str(error))
        return None, None
    except Exception as error:
        return None, in_a_line(error)


def _planned(config: Experiment, m: MethodConfig) -> str:
    routed = f", per task ({m.per_task.routing})" if m.per_task else ""
    added = "".join(f" + {plugin.name}" for plugin in m.plugins)
    train = config.train_for(m)
    budget = f"{train.steps} steps of {train.global_batch_size} a task" if m.strategy.cls.trains else "no training"
    return f"{m.strategy.name} x {m.reasoning.name}{routed}{added}: {budget}"


def _state(one: float, here: bool, n: int, done: int) -> str:
    times = f"{' x ' + str(n) if n > 1 else ''}"
    took = f", about {_duration(one, here)}{times}" if one else ""
    return took + (f", {done} of {n} finished" if done else "")


def _data_lines(config: Experiment) -> list[str]:
    """What the tasks say of the rows of their data, where those are at hand. UserError where a run would refuse them."""
    tasks = [entry.make() for entry in (*config.tasks, *(config.evaluate.retention_tasks or ()))]
    return [f"task {task.name}: {line}" for task in tasks if task.at_hand() and (line := task.about())]


def _time_of(name: str, seconds: Mapping[str, float] | None, found: Mapping[str, MethodEstimate]) -> float:
    if seconds is not None:
        return seconds[name]
    hours = found[name].hours if name in found else None
    return hours.total * 3600 if hours else 0.0


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
    told = [(e.name, e.memory, e.hours) for e in found if e.memory and e.hours]
    if len(told) < len(found):
        raise UserError("; ".join(f"{e.name}: {e.refused or e.unknown}" for e in found if not e.memory or not e.hours))
    runs = len(config.seeds) * len(config.orders)
    hours = base_hours(config, text_lengths(config)) + runs * sum(each.total for _, _, each in told)
    largest, memory, _ = max(told, key=lambda entry: entry[1].peak)
    return f"{hours:.1f} GPU hours in all, at most {amount(memory.peak)} on a GPU ({largest})"


def _memory_lines(found: Mapping[str, MethodEstimate], device: Device, width: int, gpus: int) -> list[str]:
    shared = f" (on each of {gpus})" if gpus > 1 else ""
    lines = [f"memory at the peak{shared}, estimated, against {device.name}:"]
    for e in found.values():
        if e.memory is None:
            said = "cannot run, see below" if e.refused else f"no estimate ({e.unknown})"
            lines.append(f"  {e.name:<{width}}  {said}")
            continue
        parts = ", ".join(f"{name} {amount(size)}" for name, size in e.memory.items()[:4])
        verdict = "fits" if e.fits else "DOES NOT FIT"
        lines.append(f"  {e.name:<{width}}  {amount(e.memory.peak):>8}  {verdict} ({e.memory.moment}: {parts})")
        lines += [f"  {'':<{width}}  -> {said}" for said in (e.advice, e.leaves_out) if said]
    return lines


def warnings_before_loading(config: Experiment, jobs: int, gpus: int = 1) -> list[str]:
    """A warning for each method that is estimated not to fit on the device that is here, and a note for each that leaves some of
    the weights out that it is there for; nothing where it cannot be told. Each is a line.
    """
    try:
        device = device_for(config, None, jobs)
        found = estimate(config, device, gpus)
    except Exception:  # advice never stops a run; what is wrong with a model is told when it is loaded
        return []
    large = [
        f"warning: {e.name} is estimated to need {amount(e.memory.peak)} and may not fit {device.name}: {e.advice}"
        for e in found
        if e.memory and not e.fits
    ]
    return large + [f"note: {e.name}: {e.leaves_out}" for e in found if e.leaves_out]
