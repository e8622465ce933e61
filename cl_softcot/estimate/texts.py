"""How long the texts of a task are, in tokens, before a tokenizer is loaded: the task says it, or a few examples are measured."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from cl_softcot.config.experiment import Experiment
from cl_softcot.errors import UserError
from cl_softcot.tasks.base import TextLengths

DEFAULT_TEXT = TextLengths(120, 80, 8, 4)
CHARACTERS_A_TOKEN = 3.5
CHAT_TOKENS = 45  # a chat template's turns, and the instruction
SAMPLES = 32


def text_lengths(config: Experiment) -> dict[str, TextLengths]:
    """Lengths of every task's texts in tokens, retention's included: typical ones, or those of a few examples."""
    prompt = 0 if config.backbone.chat == "never" or _plain(config.backbone.path) else CHAT_TOKENS
    found = {}
    for task in [*config.tasks, *(config.evaluate.retention_tasks or [])]:
        text = task.cls.typical_lengths or _measured(task)
        found[task.name] = TextLengths(text.prompt + prompt, text.steps, text.answer, text.step_count)
    return found


def _plain(path: str) -> bool:
    """Models that have no chat template: GPT-2, the embedded ones."""
    return "gpt2" in path.lower() or path.startswith("builtin:")


def _measured(config: Any) -> TextLengths:
    """Of examples that are made or read on the spot; what nobody can tell yet gets a default."""
    try:
        task = config.make()
        if not task.at_hand():
            return DEFAULT_TEXT
        examples = task.examples("train", SAMPLES, 0)
    except (UserError, OSError, ValueError):
        return DEFAULT_TEXT
    n = len(examples) * CHARACTERS_A_TOKEN

    def tokens(texts: Sequence[str]) -> int:
        return max(1, round(sum(map(len, texts)) / n))

    steps = round(sum(len(e.steps) for e in examples) / len(examples))
    return TextLengths(
        tokens([e.question for e in examples]),
        tokens(["\n".join(e.steps) for e in examples]),
        tokens([e.answer for e in examples]) + 3,
        max(1, steps),
    )
