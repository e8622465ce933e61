"""What a method's training puts through the backbone, call after call: its way of thinking is asked."""

from __future__ import annotations

from typing import Any

from cl_softcot.reasoning.base import Passes, Phase
from cl_softcot.tasks.base import TextLengths

__all__ = ["Passes", "TextLengths", "all_passes_of", "passes_of"]


def passes_of(method: Any, text: TextLengths, phase: Phase, *, frozen_backbone: bool) -> Passes:
    """Of a phase, for texts of mean length."""
    reasoning = method.reasoning.cls(method.reasoning.settings)
    return reasoning.passes(text, phase, frozen_backbone=frozen_backbone)


def all_passes_of(method: Any, text: TextLengths, steps: int, *, frozen_backbone: bool) -> list[tuple[Passes, int]]:
    """The plans of all phases of a turn, each with its optimiser steps."""
    phases = method.reasoning.cls(method.reasoning.settings).phases(max(steps, 1))
    return [(passes_of(method, text, phase, frozen_backbone=frozen_backbone), phase.steps) for phase in phases]
