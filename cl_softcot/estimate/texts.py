"""How long the texts of a task are, in tokens, before a tokenizer is loaded."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from cl_softcot.config.experiment import Experiment
from cl_softcot.errors import UserError
from cl_softcot.estimate.passes import TextLengths

# Mean tokens of question, steps, answer line, and the number of steps, of tasks whose data may not be at hand: characters of the
# published files over 4.2 for prose and 3 for numbers and made-up words.
TYPICAL: dict[str, TextLengths] = {
    "gsm8k": TextLengths(58, 76, 6, 4),
    "gsm8k_aug": TextLengths(58, 20, 6, 3),
    "asdiv_aug": TextLengths(45, 60, 6, 3),
    "svamp": TextLengths(40, 8, 6, 1),
    "aqua": TextLengths(68, 42, 6, 4),
    "strategyqa": TextLengths(20, 45, 6, 3),
    "date_understanding": TextLengths(62, 40, 6, 3),
    "commonsenseqa": TextLengths(40, 1, 6, 1),
    "prosqa": TextLengths(310, 34, 12, 4),
    "prontoqa": TextLengths(207, 72, 8, 6),
    "bbh": TextLengths(100, 80, 6, 4),
    "mmlu": TextLengths(110, 80, 6, 4),
}
DEFAULT_TEXT = TextLengths(120, 80, 8, 4)
CHARACTERS_A_TOKEN = 3.5
CHAT_TOKENS = 45  # a chat template's turns, and the instruction
SAMPLES = 32


# --------------------------------------------------------------------------------------------------- texts


def text_lengths(config: Experiment) -> dict[str, TextLengths]:
    """Lengths of every task's texts in tokens, retention's included: typical ones, or those of a few examples."""
    prompt = 0 if config.backbone.chat == "never" or _plain(config.backbone.path) else CHAT_TOKENS
    found = {}
    for task in [*config.tasks, *(config.evaluate.retention_tasks or [])]:
        text = TYPICAL.get(task.task) or _measured(task)
        found[task.name] = TextLengths(text.prompt + prompt, text.steps, text.answer, text.step_count)
    return found


def _plain(path: str) -> bool:
    """Models that have no chat template: GPT-2, the embedded ones."""
    return "gpt2" in path.lower() or path.startswith("builtin:")


def _measured(task: Any) -> TextLengths:
    """Of examples that are made or read on the spot; what nobody can tell yet gets a default."""
    settings = task.settings
    if getattr(settings, "hub", None) and not getattr(settings, "path", None):
        return DEFAULT_TEXT
    try:
        examples = task.make().examples("train", SAMPLES, 0)
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
