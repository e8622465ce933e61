"""A small method for the tests of stream, learning and checkpoint: tiny random Llama, reasoning, strategy.

Run as a script, ``python learning_fakes.py '{"FOLDER": {"plugins": [...], ...}, ...}'``, it goes on with the
runs in these folders.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn

from cl_softcot.machine.torchvision import ensure_torchvision

ensure_torchvision()

from transformers import LlamaConfig, LlamaForCausalLM  # noqa: E402

from cl_softcot.files import sha256_of  # noqa: E402
from cl_softcot.learning import checkpoint  # noqa: E402
from cl_softcot.learning.learner import Learner  # noqa: E402
from cl_softcot.learning.stream import make_stream  # noqa: E402
from cl_softcot.tasks.base import Example  # noqa: E402
from strategies.base import Strategy  # noqa: E402

VOCABULARY = 24
EOS = 1


@dataclass
class Train:
    """The `train:` section."""

    steps: int = 6
    global_batch_size: int = 8
    micro_batch_size: int | None = None
    warmup_fraction: float = 0.2
    decay_fraction: float = 0.5
    gradient_clip: float | None = 1.0
    checkpoint_every_steps: int = 0
    optimizer: str = "adamw"
    betas: tuple[float, float] = (0.9, 0.99)
    reset_optimizer: str = "turn"
    sharding: str = "none"


@dataclass(frozen=True)
class Phase:
    stage: int
    steps: int


@dataclass(frozen=True)
class Encoded:
    example: Example
    ids: list[int]
    n_prompt: int
    task_id: int = 0


@dataclass(frozen=True)
class Loss:
    loss_sum: torch.Tensor
    n_tokens: int
    per_example_B: torch.Tensor


class Batch(dict):
    def __getitem__(self, key):
        if key == 0:
            return self
        return super().__getitem__({1: "labels", -1: "task_ids"}.get(key, key))

    def to(self, device, **_):
        return Batch({k: v.to(device) if torch.is_tensor(v) else v for k, v in self.items()})

    def split(self, size):
        n = len(self["examples"])
        return [Batch({k: v[i : i + size] for k, v in self.items()}) for i in range(0, n, size)]


class FakeReasoning(nn.Module):
    """Next-token loss on the answer; the stage drops words of the question, the rng replaces one at times."""

    def __init__(self, stages: int = 1, noise: float = 0.5):
        super().__init__()
        self.stages, self.noise = stages, noise
        self.seen: list[list[tuple[str, int]]] = []  # per collated batch: (example id, stage)
        self.registered: list[str] = []
        self.poison_at: int | None = None  # the loss of this forward pass is NaN

    def register(self, parts: Any, examples: Any) -> None:
        self.registered.append(examples[0].task)

    def phases(self, steps: int) -> list[Phase]:
        shares = [steps // self.stages] * self.stages
        shares[-1] += steps - sum(shares)
        return [Phase(stage, share) for stage, share in enumerate(shares)]

    def encode(self, text: Any, example: Example, phase: Phase, rng: random.Random) -> Encoded:
        words = [int(w) for w in example.question.split()]
        words = words[phase.stage :] or words
        if rng.random() < self.noise:
            words[0] = rng.randrange(2, VOCABULARY)
        answer = [int(w) for w in example.answer.split()] + [EOS]
        self._stage = phase.stage
        return Encoded(example, words + answer, len(words))

    def collate(self, encoded: list[Encoded]) -> Batch:
        width = max(len(e.ids) for e in encoded)
        labels = [[-100] * e.n_prompt + e.ids[e.n_prompt :] for e in encoded]
        self.seen.append([(e.example.id, self._stage) for e in encoded])
        return Batch(
            ids=torch.tensor([e.ids + [0] * (width - len(e.ids)) for e in encoded]),
            mask=torch.tensor([[1] * len(e.ids) + [0] * (width - len(e.ids)) for e in encoded]),
            labels=torch.tensor([row + [-100] * (width - len(row)) for row in labels]),
            task_ids=torch.tensor([e.task_id for e in encoded]),
            examples=[e.example for e in encoded],
        )

    def loss(self, parts: Any, batch: Batch) -> Loss:
        logits = parts.backbone.model(input_ids=batch["ids"], attention_mask=batch["mask"]).logits[:, :-1]
        labels = batch["labels"][:, 1:]
        token_losses = nn.functional.cross_entropy(logits.transpose(1, 2), labels, ignore_index=-100, reduction="none")
        if self.poison_at is not None:
            self.poison_at -= 1
            if self.poison_at < 0:
                token_losses = token_losses * float("nan")
        per_example_B = token_losses.sum(1)
        return Loss(per_example_B.sum(), int((labels != -100).sum()), per_example_B)


@dataclass
class FakeStrategy(Strategy):
    """Trains the parameters whose name starts with one of the prefixes, in one group each."""

    prefixes: tuple[str, ...] = ("",)
    learning_rate: float = 3e-3
    named: dict[str, nn.Parameter] = field(default_factory=dict)

    def prepare(self, parts: Any, seed: int) -> None:
        for name, parameter in parts.backbone.model.named_parameters():
            parameter.requires_grad_(any(name.startswith(prefix) for prefix in self.prefixes))
            if parameter.requires_grad:
                self.named[name] = parameter

    def trainable(self, parts: Any) -> list[dict]:
        groups = [[p for n, p in self.named.items() if n.startswith(prefix)] for prefix in self.prefixes]
        return [{"params": group, "lr": self.learning_rate} for group in groups]

    def tensors(self, parts: Any) -> dict[str, torch.Tensor]:
        return dict(self.named)


def make_parts(
    *, stages: int = 1, noise: float = 0.5, dropout: float = 0.0, seed: int = 0, vocabulary: int = VOCABULARY
) -> SimpleNamespace:
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=32,
        attention_dropout=dropout,
        pad_token_id=0,
        eos_token_id=EOS,
        bos_token_id=None,
    )
    config._attn_implementation = "eager"
    backbone = SimpleNamespace(model=LlamaForCausalLM(config).eval(), text=None, compute_dtype=torch.float32)
    return SimpleNamespace(backbone=backbone, assistant=None, reasoning=FakeReasoning(stages, noise), states=None)


def make_examples(task: str, n: int) -> list[Example]:
    """Questions of two to five numbers; the answer is one of them, which one depends on the task."""
    rng = random.Random(task)
    examples = []
    for i in range(n):
        words = [str(rng.randrange(2, VOCABULARY)) for _ in range(rng.randint(2, 5))]
        examples.append(Example(f"{task}-{i}", task, " ".join(words), (), words[len(task) % len(words)]))
    return examples


TASKS = (("one", 20), ("three", 13), ("seventy", 17))


def make_learner(*, train: Train | None = None, plugins=(), strategy=None, seed=0, on_step=None, **parts_settings):
    """(learner, stream) over three small tasks."""
    parts = make_parts(**parts_settings)
    strategy = strategy or FakeStrategy()
    strategy.prepare(parts, seed)
    learner = Learner(parts, strategy, train or Train(), plugins, seed, on_step)
    return learner, make_stream([(name, make_examples(name, n)) for name, n in TASKS], learner.collate)


def weights_sha256(learner: Learner) -> str:
    tensors = learner.strategy.tensors(learner.parts)
    return sha256_of(b"".join(t.detach().numpy().tobytes() for _, t in sorted(tensors.items())))


def run_all(folder: str | Path, settings: dict) -> dict:
    """Trains all turns, saving after each and every few steps; goes on from the last checkpoint."""
    kill_at = settings.get("kill_at")

    def on_step(numbers: dict) -> None:
        if [numbers["turn"], numbers["step"]] == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)

    train = Train(checkpoint_every_steps=settings.get("checkpoint_every_steps", 0))
    learner, stream = make_learner(train=train, plugins=settings.get("plugins", ()), on_step=on_step, stages=2, dropout=0.1)

    def save(snapshot: dict) -> None:
        checkpoint.save(folder, "learner", snapshot["tensors"], {"learner": snapshot["state"], "reports": reports})

    reports: list[dict] = []
    found = checkpoint.load_latest(folder)
    if found is not None:
        learner.load_state_dict({"tensors": found.tensors, "state": found.state["learner"]}, stream)
        reports = found.state["reports"]
    resumed_at = [len(reports), learner.resumed_steps(learner._resume)]
    for turn in stream[len(reports) :]:
        report = learner.loop(turn, checkpoint=save)
        reports.append({k: v for k, v in vars(report).items() if k != "train_seconds"})
        save(learner.state_dict())
    return {"resumed_at": resumed_at, "reports": reports, "weights": weights_sha256(learner)}


if __name__ == "__main__":
    torch.set_num_threads(1)
    print(json.dumps([run_all(folder, settings) for folder, settings in json.loads(sys.argv[1]).items()]))
