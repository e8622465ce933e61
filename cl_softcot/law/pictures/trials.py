"""One trial of the controlled study: a small network learns the parity of digits and is asked what it still knows of garments.

The setting of RL's Razor (Shenfeld et al. 2025, arXiv 2509.04259, its section on ParityMNIST), on generated pictures
(``glyphs.py``). A policy π(y|x) over ten labels sees a picture and a mark that says of which family it is. For a digit every
label of the same parity is right, so that many policies solve the task and differ in how far they are from the base; for a
garment one label is. The base learned both families from few examples, the digits with right labels drawn at random. Then it
learns the parity of many digits in one of three ways:

* ``labels``: cross-entropy to a fixed distribution over the right labels, such as 0 for all even digits and 1 for all odd ones;
* ``oracle``: cross-entropy to q*(y|x) = base(y|x) / base(right|x) on the right labels, which among all policies that are always
  right has the smallest KL(q‖base) (Gibbs), namely -log base(right|x);
* ``policy_gradient``: labels drawn from the policy itself, reward 1 for a right one, no penalty on drift.

Every distribution is over ten labels, so that both divergences are exact sums.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from cl_softcot.files import atomic_write_bytes
from cl_softcot.law.pictures.glyphs import CLASSES, draw
from cl_softcot.metrics.drift import kl_from_logits

if TYPE_CHECKING:
    from cl_softcot.law.pictures.config import LawConfig, Method

_TEST_SEED = 0  # the same test pictures for every seed of the study
_PRETRAINING, _TRAINING, _TEST = 1, 2, 3


def make_exact() -> None:
    """The same sums in the same order: on one core, since how many cores there are would change them."""
    torch.use_deterministic_algorithms(True)
    torch.set_num_threads(1)


# ---------------------------------------------------------------------------------------------------------------- data


@dataclass(frozen=True)
class Pictures:
    """x [N, P + 1]: the pixels, and +1 for digits or -1 for garments; classes [N]."""

    x: Tensor
    classes: Tensor

    @classmethod
    def drawn(cls, kind: str, n: int, seed: list[int], config: LawConfig) -> Pictures:
        p = config.pictures
        pixels, classes = draw(kind, n, seed, size=p.size, distortion=p.distortion, noise=p.noise)
        mark = torch.full((n, 1), 1.0 if kind == "digits" else -1.0)
        return cls(torch.cat([torch.from_numpy(pixels), mark], 1), torch.from_numpy(classes))


def right_labels(classes: Tensor) -> Tensor:
    """Which labels are right for digits of these classes [..., N]: bool [..., N, 10], those of the same parity."""
    return torch.arange(CLASSES) % 2 == classes[..., None] % 2


# ------------------------------------------------------------------------------------------------------------- targets


def label_targets(classes: Tensor, even: Sequence[int], odd: Sequence[int]) -> Tensor:
    """Each digit's target distribution [N, 10]: equal shares on ``even`` for even digits, on ``odd`` for odd ones."""
    rows = torch.zeros(2, CLASSES)
    rows[0, list(even)], rows[1, list(odd)] = 1 / len(even), 1 / len(odd)
    return rows[classes % 2]


def oracle_targets(base_logits: Tensor, classes: Tensor) -> Tensor:
    """The always right distribution that is nearest to the base, q* [N, 10]: the base's own, on the right labels alone."""
    return base_logits.masked_fill(~right_labels(classes), -torch.inf).softmax(-1)


def policy_gradient_loss(logits_B10: Tensor, right_B10: Tensor, actions_KB: Tensor, baseline: str) -> Tensor:
    """A loss whose gradient, in the mean over actions drawn from the policy, is that of minus the expected reward.

    REINFORCE (Williams 1992): -Σ (r - b)·log π(a) / KB, r = 1 where the action is right. Baseline ``leave_one_out``: the mean
    reward of the other K - 1 actions on the same input, which leaves the gradient unbiased (Kool et al. 2019); ``none``: 0, so
    that only right actions push, upwards.
    """
    rewards_KB = right_B10.float().gather(1, actions_KB.T).T
    if baseline == "leave_one_out":
        rewards_KB = rewards_KB - (rewards_KB.sum(0) - rewards_KB) / (len(rewards_KB) - 1)
    return -(rewards_KB * logits_B10.log_softmax(-1).gather(1, actions_KB.T).T).mean()


# ------------------------------------------------------------------------------------------------------------- the base


def network(inputs: int, hidden: Sequence[int], seed: int) -> nn.Sequential:
    """A perceptron with ReLU between its layers; its first weights depend on ``seed`` alone."""
    widths = [inputs, *hidden, CLASSES]
    layers: list[nn.Module] = []
    generator = torch.Generator().manual_seed(seed)
    for before, after in zip(widths, widths[1:], strict=False):
        linear = nn.Linear(before, after)
        with torch.no_grad():
            linear.weight.copy_(torch.randn(after, before, generator=generator) * math.sqrt(2 / before))
            linear.bias.zero_()
        layers += [linear, nn.ReLU()]
    return nn.Sequential(*layers[:-1])


class World:
    """What the trials of one seed share: pictures and the base. The base is read from ``path``, or made and written there."""

    def __init__(self, config: LawConfig, seed: int, path: Path):
        p = config.pictures
        self.config, self.seed = config, seed
        self.old_digits = Pictures.drawn("digits", p.pretraining, [seed, _PRETRAINING], config)
        self.old_garments = Pictures.drawn("garments", p.pretraining, [seed, _PRETRAINING], config)
        self.digits = Pictures.drawn("digits", p.train, [seed, _TRAINING], config)
        self.test_digits = Pictures.drawn("digits", p.test, [_TEST_SEED, _TEST], config)
        self.test_garments = Pictures.drawn("garments", p.test, [_TEST_SEED, _TEST], config)
        self.base = self._base(path)
        with torch.no_grad():
            self.base_test_logits = self.base(self.test_digits.x)
        self.start = self.measure(self.base)

    def _base(self, path: Path) -> nn.Sequential:
        from safetensors.torch import load_file, save

        base = network(self.digits.x.shape[1], self.config.pretraining.hidden, self.seed)
        if path.exists():
            base.load_state_dict(load_file(path))
        else:
            self._pretrain(base)
            atomic_write_bytes(path, save(base.state_dict()))
        return base.requires_grad_(False).eval()

    def _pretrain(self, base: nn.Sequential) -> None:
        """Both families mixed; each digit has one right label, drawn once: what the base prefers is its own."""
        p, generator = self.config.pretraining, torch.Generator().manual_seed(self.seed)
        digits = self.old_digits.classes
        labels = digits % 2 + 2 * torch.randint(CLASSES // 2, digits.shape, generator=generator)
        x, y = torch.cat([self.old_digits.x, self.old_garments.x]), torch.cat([labels, self.old_garments.classes])
        optimizer = torch.optim.Adam(base.parameters(), p.learning_rate)
        for _ in range(p.steps):
            batch = torch.randint(len(x), (p.batch_size,), generator=generator)
            _step(optimizer, nn.functional.cross_entropy(base(x[batch]), y[batch]))

    @torch.no_grad()
    def measure(self, model: nn.Module) -> dict[str, float]:
        """Drift on the test digits in nats an answer; accuracies (greedy) on both families; the mass on right labels."""
        logits, garments = model(self.test_digits.x), model(self.test_garments.x)
        kl = kl_from_logits(self.base_test_logits, logits)
        right = right_labels(self.test_digits.classes)
        return {
            "forward_kl": kl.forward_kl.mean().item(),
            "reverse_kl": kl.reverse_kl.mean().item(),
            "accuracy": right.gather(1, logits.argmax(-1, keepdim=True)).float().mean().item(),
            "mass": (logits.double().softmax(-1) * right).sum(-1).mean().item(),
            "old_accuracy": (garments.argmax(-1) == self.test_garments.classes).float().mean().item(),
        }


def _step(optimizer: torch.optim.Optimizer, loss: Tensor) -> None:
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    optimizer.step()


# ------------------------------------------------------------------------------------------------------------- a trial


def run_trial(world: World, method: Method, learning_rate: float) -> dict[str, Any]:
    """The base learns by a method; what is measured at each checkpoint, and where it diverged, if it did."""
    model = network(world.digits.x.shape[1], world.config.pretraining.hidden, world.seed)
    model.load_state_dict(world.base.state_dict())
    checkpoints, diverged = [], None
    try:
        for step in _learn(world, method, learning_rate, model):
            checkpoints.append({"step": step, **world.measure(model)})
    except FloatingPointError as error:
        diverged = str(error)
    return {"start": world.start, "checkpoints": checkpoints, "diverged": diverged}


def _learn(world: World, method: Method, learning_rate: float, model: nn.Sequential) -> Iterator[int]:
    """Optimiser steps; yields at each checkpoint. The same inputs in the same order for every method and rate of a seed."""
    train = world.config.train
    order, draws = (torch.Generator().manual_seed(1_000_003 * world.seed + k) for k in (1, 2))
    loss_of = _loss(world, method, draws)
    optimizer = torch.optim.Adam(model.parameters(), learning_rate)
    for step in range(1, train.checkpoints[-1] + 1):
        batch = torch.randint(len(world.digits.x), (train.batch_size,), generator=order)
        loss = loss_of(model(world.digits.x[batch]), batch) + _protection(world, method, model, draws)
        if not torch.isfinite(loss):
            raise FloatingPointError(f"the loss is not finite at step {step}")
        _step(optimizer, loss)
        if step in train.checkpoints:
            yield step


def _loss(world: World, method: Method, draws: torch.Generator) -> Callable[[Tensor, Tensor], Tensor]:
    """The method's loss, of logits [B, 10] and the places of the batch among the training digits [B]."""
    classes = world.digits.classes
    if method.learn == "policy_gradient":

        def loss(logits_B10: Tensor, batch_B: Tensor) -> Tensor:
            policy = logits_B10.detach().softmax(-1)
            actions_KB = torch.multinomial(policy, method.samples, replacement=True, generator=draws).T
            return policy_gradient_loss(logits_B10, right_labels(classes[batch_B]), actions_KB, method.baseline)

        return loss
    if method.learn == "oracle":
        targets = oracle_targets(world.base(world.digits.x), classes)
    else:
        targets = label_targets(classes, method.even, method.odd)
    return lambda logits_B10, batch_B: nn.functional.cross_entropy(logits_B10, targets[batch_B])


def _protection(world: World, method: Method, model: nn.Sequential, draws: torch.Generator) -> Tensor | float:
    """What some methods add to keep what was known: a batch of old garments, or a pull towards the base's weights."""
    extra: Tensor | float = 0.0
    if method.replay:
        batch = torch.randint(len(world.old_garments.x), (world.config.train.batch_size,), generator=draws)
        logits = model(world.old_garments.x[batch])
        extra = extra + method.replay * nn.functional.cross_entropy(logits, world.old_garments.classes[batch])
    if method.l2_to_base:
        pairs = zip(model.parameters(), world.base.parameters(), strict=True)
        extra = extra + method.l2_to_base * sum((new - old).square().sum() for new, old in pairs)
    return extra


def points_of_trial(trial: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A trial's checkpoints as the fields of points (see ``points.Point``); the step before the first is no point."""
    start = trial["start"]
    return [
        {
            "run": trial["key"], "method": trial["method"], "family": trial["family"], "experience": 1, "task": "parity",
            "checkpoint": c["step"], "view": "as_used", "inputs": "new_task", "outcome": "base_abilities",
            "forward_kl": c["forward_kl"], "reverse_kl": c["reverse_kl"], "accuracy": c["accuracy"],
            "forgetting": start["old_accuracy"] - c["old_accuracy"], "start_accuracy": start["accuracy"],
        }
        for c in trial["checkpoints"]
    ]  # fmt: skip
