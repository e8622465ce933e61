"""One real training step in a process of its own: prints its largest resident memory beyond what libraries take, in bytes.

python tests/step_memory.py EXPERIMENT.yaml QUESTION_WORDS STEP_WORDS
"""

from __future__ import annotations

import json
import random
import sys
from typing import Any

import torch

from cl_softcot.config.loading import load_experiment
from cl_softcot.models.language_model import load_language_model
from cl_softcot.reasoning.base import Parts
from cl_softcot.tasks.base import Example

WORDS = "the cat sat on a mat and saw seven dogs run over green hills".split()


def status(field: str) -> int:
    """Bytes of this process: VmRSS now, VmHWM at most. (ru_maxrss would begin with what the parent had.)"""
    with open("/proc/self/status") as lines:
        return next(1024 * int(line.split()[1]) for line in lines if line.startswith(f"{field}:"))


def text(rng: random.Random, n: int) -> str:
    return " ".join(rng.choices(WORDS, k=n))


def two_steps(config: Any, model: str, examples: list[Example]) -> dict[str, int]:
    """Loads, trains twice (the second step has the optimiser's means beside the activations); lengths of what was trained on."""
    method = config.methods[0]
    strategy = method.strategy.cls(method.strategy.settings)
    reasoning = method.reasoning.cls(method.reasoning.settings)
    pristine = load_language_model(model, config.backbone.dtype)
    parts = Parts(pristine.copy(share_weights=not strategy.writes_weights), None, reasoning)
    reasoning.build(parts, 0)
    strategy.prepare(parts, 0)
    parts.backbone.model.train()
    phase = reasoning.phases(config.train.steps)[-1]
    batch = reasoning.collate([reasoning.encode(parts.backbone.text, e, phase, random.Random(0)) for e in examples])
    optimiser = torch.optim.AdamW(strategy.trainable(parts))
    for _ in range(2):
        optimiser.zero_grad()
        reasoning.loss(parts, batch).loss_sum.backward()
        optimiser.step()
    thoughts = len(reasoning.thoughts(phase.stage))
    return {"prompt": batch["prefix_BT"].shape[1] - thoughts, "target": batch["target_BT"].shape[1]}


def main(path: str, question: int, step: int) -> dict[str, int]:
    torch.set_num_threads(1)
    config, rng = load_experiment(path).config, random.Random(0)
    B = config.train.micro_batch_size or config.train.global_batch_size
    examples = [Example(str(i), "t", text(rng, question), tuple(text(rng, step) for _ in range(4)), "7") for i in range(B)]
    known = config.tasks[0].make().examples("train", 1, 0)
    two_steps(config, "builtin:tiny", known)  # whatever is imported when it is first used
    before = status("VmRSS")
    lengths = two_steps(config, config.backbone.path, examples)
    return {"bytes": status("VmHWM") - before, **lengths}


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))))
