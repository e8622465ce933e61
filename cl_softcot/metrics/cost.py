"""What an answer costs: written tokens and forward passes; what a method trains; memory."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterable, Mapping
from typing import Any

from cl_softcot.metrics import Meaning


def cost_per_answer(generations: Iterable[Any]) -> dict[str, float | int]:
    """Means over answers: ``tokens_per_answer`` and ``forward_passes_per_answer``, with ``n``. Lower is
    cheaper.

    A generation has ``n_tokens`` (tokens it wrote, EOS included) and ``forward_passes`` (sequential passes of
    the backbone for it: prompt, continuous thoughts and tokens; positions that are computed side by side,
    such as slots and pauses, add none).
    """
    rows = [(generation.n_tokens, generation.forward_passes) for generation in generations]
    if not rows:
        raise ValueError("there are no answers to count")
    return {
        "tokens_per_answer": sum(tokens for tokens, _ in rows) / len(rows),
        "forward_passes_per_answer": sum(passes for _, passes in rows) / len(rows),
        "n": len(rows),
    }


def count_parameters(tensors: Mapping[str, Any]) -> int:
    """Numbers in all tensors (a count of parameters where the tensors are what a method trains)."""
    return sum(int(tensor.numel()) for tensor in tensors.values())


def peak_memory_mb() -> float | None:
    """The largest resident memory of this process so far, in megabytes (10^6 bytes); None where the system
    does not say.
    """
    with contextlib.suppress(OSError, StopIteration), open("/proc/self/status") as lines:
        # Linux: getrusage would begin with what the process that started this one had.
        return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:")) * 1024 / 1e6
    try:
        import resource
    except ImportError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    unit = 1 if sys.platform == "darwin" else 1024  # macOS counts bytes, the others kibibytes
    return peak * unit / 1e6


CATALOGUE: dict[str, Meaning] = {
    "tokens_per_answer": Meaning("mean of the tokens written, EOS included", "ours", "tokens", "lower is cheaper"),
    "forward_passes_per_answer": Meaning(
        "mean of the backbone's sequential passes", "ours", "forward passes", "lower is cheaper"
    ),
}
