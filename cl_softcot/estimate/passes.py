"""Which columns a way of thinking sends through the backbone, call after call."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class TextLengths:
    """Mean lengths in tokens: of a prompt with its instruction, of all written steps, and of the last line with the answer."""

    prompt: int
    steps: int
    answer: int
    step_count: int = 4


@dataclass(frozen=True)
class Passes:
    """How a sequence goes through the backbone.

    Attributes:
        frozen: columns before the first trained input of a frozen backbone: no gradient, nothing kept.
        pieces: columns of each further call of the backbone, in order.
        labels: tokens that the loss is taken over.
    """

    frozen: int
    pieces: tuple[int, ...]
    labels: int

    @property
    def columns(self) -> int:
        return self.frozen + sum(self.pieces)


def passes_of(method: Any, text: TextLengths, phase: Any, *, frozen_backbone: bool) -> Passes:
    """What a phase of a method's training puts through the backbone, for texts of mean length."""
    reasoning = method.reasoning.cls(method.reasoning.settings)
    thoughts = reasoning.thoughts(phase.stage)
    written = len(reasoning.steps_written(_Steps(text.step_count), phase.stage))
    target = round(text.steps * written / max(1, text.step_count)) + text.answer
    latents = thoughts.count("latent")
    rest = len(thoughts) - latents
    if latents:  # one call up to the first latent, one each for all but the last, one for the rest
        return Passes(0, (text.prompt + rest - 1, *[1] * (latents - 1), 2 + target - 1), target)
    if frozen_backbone and thoughts:
        return Passes(text.prompt, (rest + target - 1,), target)
    return Passes(0, (text.prompt + rest + target - 1,), target)


class _Steps:
    """Stands for an example of which only the number of steps counts."""

    def __init__(self, count: int):
        self.steps = ("",) * count


def all_passes_of(method: Any, text: TextLengths, steps: int, *, frozen_backbone: bool) -> list[tuple[Passes, int]]:
    """The plans of all phases of a turn, each with its optimiser steps."""
    phases = method.reasoning.cls(method.reasoning.settings).phases(max(steps, 1))
    return [(passes_of(method, text, phase, frozen_backbone=frozen_backbone), phase.steps) for phase in phases]
