"""The machine that is measured on: what it is, and what it does at best (products of matrices, traffic to memory)."""

from __future__ import annotations

import os
import platform
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

# [m, k] x [k, n]: square ones, and those of batches times weights and times vocabularies.
_SHAPES = ((512, 512, 512), (1024, 1024, 1024), (2048, 2048, 2048), (2048, 256, 1024), (512, 256, 16384))
_GPU_SHAPES = ((4096, 4096, 4096), (8192, 8192, 8192), (8192, 4096, 14336))
_COPY_BYTES = {"cpu": 256 << 20, "cuda": 2 << 30}  # far beyond any cache


@dataclass(frozen=True)
class Rates:
    """What the machine does at best, in this many threads.

    Attributes:
        flops: operations a second in a product of matrices, the best of several shapes.
        bytes: bytes a second, read and written, in a copy.
    """

    flops: float
    bytes: float


class Clock:
    """Seconds of a function: of wall time, and of this process's processors."""

    def __init__(self, device: str):
        self.device = device

    def __call__(self, function: Callable[[], Any]) -> tuple[float, float]:
        self._wait()
        wall, cpu = time.perf_counter(), time.process_time()
        function()
        self._wait()
        return time.perf_counter() - wall, time.process_time() - cpu

    def _wait(self) -> None:
        if self.device == "cuda":
            torch.cuda.synchronize()


def measure_rates(device: str, dtype: torch.dtype, *, quick: bool = False) -> Rates:
    """On a CPU by the processor's time, so that others on the machine count for little; on a GPU by the wall's.

    Args:
        quick: a rough look: one shape, little memory.
    """
    found, seconds = [], 0.01 if quick else 0.5
    shapes = _SHAPES if device == "cpu" else _GPU_SHAPES
    for m, k, n in shapes[:1] if quick else shapes:
        a, b = (torch.randn(shape, device=device, dtype=dtype) for shape in ((m, k), (k, n)))
        out = torch.empty(m, n, device=device, dtype=dtype)
        found.append(2 * m * k * n / _best(lambda a=a, b=b, out=out: torch.mm(a, b, out=out), device, seconds))
    size = _COPY_BYTES[device] // (16 if quick else 1)
    source, target = (torch.zeros(size, dtype=torch.uint8, device=device) for _ in range(2))
    return Rates(flops=max(found), bytes=2 * size / _best(lambda: target.copy_(source), device, seconds))


def _best(function: Callable[[], Any], device: str, seconds: float) -> float:
    """The fastest of as many calls as fit into the time."""
    clock, taken = Clock(device), []
    until = time.perf_counter() + seconds
    while time.perf_counter() < until or len(taken) < 3:
        wall, cpu = clock(function)
        taken.append(cpu if device == "cpu" else wall)
    return min(taken[1:])


def describe(device: str) -> dict[str, Any]:
    """What a reader of kept results has to know of the machine and the code."""
    import transformers

    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if device == "cuda" else None,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "python": platform.python_version(),
        "load_average": round(os.getloadavg()[0], 2),
        "revision": revision(),
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.processor())


def revision() -> str:
    """The commit of the code, with a mark where files differ from it."""
    folder = Path(__file__).resolve().parents[1]
    try:
        found = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--exclude=*"], cwd=folder, capture_output=True, text=True, timeout=20
        )
    except (OSError, subprocess.TimeoutExpired):
        return "unknown"
    return found.stdout.strip() or "unknown"
