"""How long runs of the embedded models take on this machine."""

from __future__ import annotations

import time
from pathlib import Path

import torch

from cl_softcot.answering.build import load_models, make_tasks, retention_tasks
from cl_softcot.config.experiment import Experiment
from cl_softcot.estimate.advice import SMALL
from cl_softcot.estimate.sizes import sizes_of

# Small models do not reach the rate of a large matrix product; the shares are measured on the embedded ones.
TRAIN_SHARE, DECODE_SHARE = 0.35, 0.12
STARTUP_SECONDS = 5.0


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
