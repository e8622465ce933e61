"""Cases, and how they are measured: subject and references in turns, medians, memory in processes of their own."""

from __future__ import annotations

import contextlib
import gc
import json
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch

from benchmarks.flops import Work
from benchmarks.machine import Clock, Rates
from cl_softcot.metrics.cost import peak_memory_mb

OURS = "ours"
SHARE = 0.8  # of the ratio of operations that the measured ratio to the cached reference should reach
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2e-2}  # of losses
FLOOR = "the floor"


@dataclass(frozen=True)
class Variant:
    """One implementation of a case's job.

    Attributes:
        make: builds it, and returns a function that does the job once; what that returns is compared.
        work: what this implementation computes and moves in one job, by formula; empty: not counted.
        every: in which rounds it is run (slow references: 3 = every third).
    """

    name: str
    make: Callable[[], Callable[[], Any]]
    work: Sequence[Work] = ()
    every: int = 1

    @property
    def flops(self) -> float | None:
        """Operations of one job without the optimiser's update; None: not counted."""
        return sum(part.flops for part in self.work if part.what != "update") if self.work else None


@dataclass(frozen=True)
class Case:
    """A job, in several implementations.

    Attributes:
        settings: what decides its size, for the kept results.
        must: what has to be done, for the floor.
        bars: reference -> the least ratio of times; FLOOR -> the least share of the machine's rates.
        job: what one repetition is.
        bound: what work is compared by: operations; or where moving bytes decides (answers), seconds at the machine's rates.
    """

    name: str
    job: str
    settings: Mapping[str, Any]
    variants: Sequence[Variant]
    must: Sequence[Work]
    bars: Mapping[str, float] = field(default_factory=dict)
    bound: Literal["flops", "floor"] = "flops"
    dtype: torch.dtype = torch.float32


def run_case(case: Case, rates: Rates, device: str, rounds: int, memory: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Measures a case; everything that is kept of it, as JSON data."""
    jobs = {variant.name: variant.make() for variant in case.variants}
    with torch.random.fork_rng():
        # Also warms up: the first job of each is compared, and not timed.
        firsts = {name: _once(name, job) for name, job in jobs.items()}
    agreed = _compared(firsts, TOLERANCE[case.dtype])
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in jobs}
    clock = Clock(device)
    gc.collect()
    for i in range(rounds):
        for variant in case.variants:
            if i % variant.every == 0:
                with _as_it_runs(variant.name):
                    if variant.name.startswith(OURS):
                        jobs[variant.name]()  # takes its memory from the system, and keeps it
                    seconds[variant.name].append(clock(jobs[variant.name]))
    found: dict[str, Any] = {"case": case.name, "job": case.job, "settings": dict(case.settings), "agreement": agreed}
    found["variants"] = {
        variant.name: {
            "wall_s": statistics.median(wall for wall, _ in seconds[variant.name]),
            "cpu_s": statistics.median(cpu for _, cpu in seconds[variant.name]),
            "repetitions": len(seconds[variant.name]),
            "flops": variant.flops,
            **((memory or {}).get(variant.name, {})),
        }
        for variant in case.variants
    }
    return found | _conclusions(case, found["variants"], rates, device)


def _once(name: str, job: Callable[[], Any]) -> Any:
    with _as_it_runs(name):
        return job()


@contextlib.contextmanager
def _as_it_runs(name: str) -> Iterator[None]:
    """The product runs with deterministic algorithms, one thread, and memory that it does not give back; what it is compared with
    does not pay for the first, and has no gain from the last."""
    from cl_softcot.machine.exact import keep_freed_memory, make_exact

    before = torch.are_deterministic_algorithms_enabled()
    if name.startswith(OURS):
        make_exact()
    else:
        # What glibc does in a process that sets nothing, once its thresholds have grown.
        keep_freed_memory(mapped=32 << 20, at_the_end=64 << 20)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)


def _compared(firsts: Mapping[str, Any], tolerance: float) -> dict[str, Any]:
    """How far references are from the subject: the largest difference of losses, or whether answers are the same."""
    ours = firsts[OURS]
    if isinstance(ours, float):
        gaps = {name: abs(value - ours) for name, value in firsts.items()}
        return {"loss": ours, "largest_difference": max(gaps.values()), "same": max(gaps.values()) <= tolerance}
    same = {name: value == ours for name, value in firsts.items() if value is not None}
    return {"same": all(same.values())}


def _conclusions(case: Case, variants: Mapping[str, Any], rates: Rates, device: str) -> dict[str, Any]:
    kind = "cpu_s" if device == "cpu" else "wall_s"
    ours = variants[OURS][kind]
    needed = sum(work.flops for work in case.must if work.what != "update")
    floor = {work.what: work.seconds(rates.flops, rates.bytes) for work in case.must}
    total = sum(floor.values())
    ratios = {}
    for variant in case.variants:
        if variant.name == OURS:
            continue
        numbers = variants[variant.name]
        ratio = {"time": numbers[kind] / ours, "wall": numbers["wall_s"] / variants[OURS]["wall_s"]}
        if variant.work:
            ratio["flops"] = variant.flops / needed
            ratio["floor"] = sum(work.seconds(rates.flops, rates.bytes) for work in variant.work) / total
            ratio["share"] = ratio["time"] / ratio[case.bound]
        ratios[variant.name] = ratio
    bars = [
        {"bar": f"at least {least:g}x {name}", "measured": ratios[name]["time"], "met": ratios[name]["time"] >= least}
        for name, least in case.bars.items()
        if name != FLOOR
    ]
    if FLOOR in case.bars:
        least, reached = case.bars[FLOOR], total / ours
        bars.append({"bar": f"at least {least:.0%} of the machine's rates", "measured": reached, "met": reached >= least})
    if "share" in ratios.get("cached", {}):
        share, what = ratios["cached"]["share"], {"flops": "operations", "floor": "floors"}[case.bound]
        bars.append({"bar": f"at least {SHARE:g} of the ratio of {what} to cached", "measured": share, "met": share >= SHARE})
    return {
        "ratios": ratios,
        "bars": bars,
        "floor": {"seconds": total, "parts": floor, "flops": needed, "distance": ours / total if total else None},
    }


# -------------------------------------------------------------------------------------------------------- memory


def peak_of(variant: Variant, device: str) -> dict[str, float]:
    """Megabytes that one job takes beyond what was loaded before it; to be called in a process of its own."""
    job = variant.make()
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated() / 1e6
        _once(variant.name, job)
        return {"peak_mb": torch.cuda.max_memory_allocated() / 1e6 - before, "loaded_mb": before}
    gc.collect()
    with contextlib.suppress(OSError):
        with open("/proc/self/clear_refs", "w") as reset:
            reset.write("5")  # the highest so far is forgotten
    before = peak_memory_mb() or 0.0
    _once(variant.name, job)
    return {"peak_mb": (peak_memory_mb() or 0.0) - before, "loaded_mb": before}


def memory_of(case: Case, arguments: Sequence[str]) -> dict[str, dict[str, float]]:
    """``peak_of`` every variant, each in a fresh process."""
    found = {}
    for variant in case.variants:
        command = [sys.executable, "-m", "benchmarks", case.name, "--peak", variant.name, *arguments]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode == 0:
            found[variant.name] = json.loads(done.stdout.splitlines()[-1])
        else:
            found[variant.name] = {"peak_error": done.stderr.strip()[-300:]}
    return found
