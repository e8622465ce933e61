"""The cases, by name. Each is a function ``(device, quick) -> Case``; what it returns has built nothing large yet."""

from __future__ import annotations

from collections.abc import Callable

from benchmarks.cases import coconut, embedded, gpu, softcot
from benchmarks.measure import Case

CASES: dict[str, Callable[[str, bool], Case]] = {
    "coconut_training_2x64": coconut.training_2x64,
    "coconut_training_4x256": coconut.training_4x256,
    "coconut_generation": coconut.generation,
    "softcot_training": softcot.training,
    "softcot_evaluation": softcot.evaluation,
    "softcot_evaluation_short": softcot.evaluation_short,
    "embedded_coconut_step": embedded.coconut_step,
    "embedded_cot_step": embedded.cot_step,
    "embedded_softcot_step": embedded.softcot_step,
    "embedded_answers": embedded.answers,
    "embedded_assistant": embedded.assistant,
    "gpu_coconut_gpt2_small": gpu.coconut_gpt2_small,
    "gpu_softcot_training_8b": gpu.softcot_training_8b,
    "gpu_decoding_8b": gpu.decoding_8b,
}


def cases_for(device: str) -> list[str]:
    """Names of the cases that are meant for a device: ``gpu_...`` for one, the others for a CPU."""
    return [name for name in CASES if name.startswith("gpu_") == (device == "cuda")]
