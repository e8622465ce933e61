"""How long runs of small models take on this machine."""

from __future__ import annotations

import math
import time
from pathlib import Path

import torch

from cl_softcot.answering.build import load_models, make_tasks, retention_tasks
from cl_softcot.config.experiment import Experiment
from cl_softcot.config.settings import MethodConfig
from cl_softcot.estimate.advice import SMALL
from cl_softcot.estimate.passes import TextLengths, passes_of
from cl_softcot.estimate.sizes import assistant_of, sizes_of, trained_numbers
from cl_softcot.estimate.texts import text_lengths

# What is reached of the rate of a large matrix product. Measured on the embedded models, of half a million parameters, and for
# training on one of 135 million, in fp32 and in bf16, which is used less well.
TRAIN_SHARE, DECODE_SHARE = 0.35, 0.12
EMBEDDED, LARGE = 0.6e6, 135e6
LARGE_SHARE, LARGE_HALF_SHARE = 0.95, 0.64
STARTUP_SECONDS = 5.0


def matrix_rate(seconds: float = 0.2, dtype: torch.dtype = torch.float32) -> float:
    """Floating-point operations a second of one core (or the GPU) in a product of 512 x 512 matrices."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    a = torch.randn(512, 512, device=device).to(dtype)
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


def train_share(parameters: int, dtype: torch.dtype) -> float:
    """Of the rate of a large product that training reaches: between two sizes that were measured, along their logarithm."""
    large = LARGE_SHARE if dtype == torch.float32 else LARGE_HALF_SHARE
    along = math.log(max(parameters, 1) / EMBEDDED) / math.log(LARGE / EMBEDDED)
    return TRAIN_SHARE + (large - TRAIN_SHARE) * min(1.0, max(0.0, along))


def passes_paid(config: Experiment, method: MethodConfig, text: TextLengths, parameters: int) -> float:
    """Floating-point operations a token and weight of a training step: 2 forward, 2 for the gradients of inputs behind the first
    thing that is trained, 2 for those of the weights that are.
    """
    helper = assistant_of(config, method)
    width = sizes_of(helper.path, helper.trust_remote_code, helper.gguf_file).width if helper else None
    trained = trained_numbers(method, config.backbone, width)
    inside = trained.backbone + trained.adapters
    phase = method.reasoning.cls(method.reasoning.settings).final_phase()
    plan = passes_of(method, text, phase, frozen_backbone=not inside)
    return 2 + 2 * sum(plan.pieces) / (plan.frozen + sum(plan.pieces)) + 2 * min(1.0, inside / parameters)


def estimate_seconds(config: Experiment) -> dict[str, float]:
    """Seconds of one run of each method: forward and backward passes of training, prompt and text of every answer."""
    backbone, _ = load_models(config)
    parameters = sum(p.numel() for p in backbone.model.parameters())
    order = next(iter(config.orders))
    tasks = make_tasks(config, order)
    samples = [(e, backbone.text) for task in tasks for e in task.examples("train", min(32, config.train.examples), 0)]
    prompt = sum(len(text.prompt_ids(e.question)) for e, text in samples) / len(samples)
    target = sum(len(text.target_ids(e.steps, e.answer)) for e, text in samples) / len(samples)
    dtype = getattr(torch, config.backbone.dtype)
    rate = matrix_rate()
    training = (rate if dtype == torch.float32 else matrix_rate(dtype=dtype)) * train_share(parameters, dtype)
    lengths = next(iter(text_lengths(config).values()))
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
        paid = passes_paid(config, method, lengths, parameters) * parameters
        learn = len(tasks) * train.steps * train.global_batch_size * (prompt + target) * paid / training
        found[method.name] = STARTUP_SECONDS + learn + (len(tasks) + 1) * decode
    return found


def runs_here(config: Experiment) -> bool:
    """Whether the models are small and at hand, so that a run on this machine's processor is worth a forecast."""
    if config.backbone.path.startswith("builtin:"):
        return True
    if torch.cuda.is_available() or not (Path(config.backbone.path).expanduser() / "tokenizer.json").is_file():
        return False
    return sizes_of(config.backbone.path, config.backbone.trust_remote_code, config.backbone.gguf_file).total <= SMALL
