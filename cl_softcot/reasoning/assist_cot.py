"""The assistant's written steps as a hint (the SoftCoT paper's control Assist-CoT, arXiv 2502.12134, in our own words).

    assistant   instruction, question                      ->  steps, answer, as text
    backbone    instruction, question with that text | its own steps, answer

What soft thoughts carry as vectors is said here in words, so the two may have different tokenizers. Nothing of its own is
trained: with zero_shot it is training-free, with lora or full_finetune the backbone learns what such hints are worth.
"""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Sequence

from pydantic import Field

from cl_softcot.errors import UserError
from cl_softcot.machine.lanes import undivided
from cl_softcot.models.assistant import Companions
from cl_softcot.models.batch import Encoded
from cl_softcot.models.frozen_states import GreedyTexts, tally
from cl_softcot.models.language_model import LanguageModel
from cl_softcot.models.text import TextFormat
from cl_softcot.models.writing import Generation, generate
from cl_softcot.reasoning.base import AssistantUse, Parts, Phase, Reasoning, ReasoningSettings
from cl_softcot.reasoning.cot import Cot
from cl_softcot.tasks.base import Example

_OPENING = "Notes of an assistant, possibly mistaken:"


class AssistCot(Reasoning):
    """Reads the question and what the assistant wrote about it, writes all steps and the answer."""

    class Settings(ReasoningSettings):
        max_new_tokens: int = Field(64, ge=1, description="longest text of the assistant, in its tokens")
        hint_steps_only: bool = Field(
            False, description="without the assistant's answer (false: what it found is part of its help, right or wrong)"
        )

    settings: Settings
    encodes_unbuilt = False

    @classmethod
    def needs_assistant(cls, settings: Settings) -> bool:
        return True

    @classmethod
    def assistant_use(cls, settings: Settings) -> AssistantUse:
        return AssistantUse(writes=settings.max_new_tokens)

    def build(self, parts: Parts, seed: int) -> None:
        if parts.assistant is None:
            raise UserError(
                "assist_cot needs an assistant that writes the hints",
                fix="give 'assistant: builtin:tiny-assistant' in the experiment",
            )
        self._hints = Hints(parts.assistant, self.settings.max_new_tokens)

    def register(self, parts: Parts, examples: Sequence[Example]) -> None:
        self._hints.register(examples)

    def encode(self, text: TextFormat, example: Example, phase: Phase, rng: random.Random) -> Encoded:
        lines = self._hints.lines(example.question, answer=not self.settings.hint_steps_only)
        hinted = dataclasses.replace(example, question=with_hint(text, example.question, lines))
        return dataclasses.replace(super().encode(text, hinted, phase, rng), example=example)


def with_hint(text: TextFormat, question: str, lines: Sequence[str]) -> str:
    """The question as it is put to the backbone, with the assistant's lines as far as the backbone can read them."""
    lines = [readable for line in lines if (readable := text.readable(line).strip())]
    if not lines:
        return question
    if text.style == "words":
        # As conventions are stated to the embedded models; a model without these words reads the lines alone.
        return f"{text.readable(' . '.join(['note ' + lines[0], *lines[1:]]) + ' .')} {question}"
    return "\n".join([question, _OPENING, *lines])


class Hints:
    """What an assistant writes about questions, greedily, and once each; kept in memory, and on disk what was registered.

    Raises:
        UserError: a question and ``max_new_tokens`` do not fit into the assistant's context.
    """

    def __init__(self, assistant: LanguageModel, max_new_tokens: int):
        self.parts = Parts(assistant, None, Cot())
        self.max_new_tokens = max_new_tokens
        self._lines: dict[str, list[str]] = {}
        self._companions: Companions[str] = Companions()

    def register(self, examples: Sequence[Example]) -> None:
        """Make known which questions are written about together; nothing is written yet."""
        self._companions.register(example.question for example in examples)

    def lines(self, question: str, *, answer: bool = True) -> list[str]:
        """The lines of the assistant's text about a question; ``answer``: those with its answer too."""
        if question not in self._lines:
            with tally.timed():
                for block in self._companions.blocks([question]):
                    self._write(block)
        marker = self.parts.backbone.text.answer_marker
        return [line for line in self._lines[question] if answer or not line.startswith(marker)]

    def _write(self, questions: list[str]) -> None:
        text, cot = self.parts.backbone.text, self.parts.reasoning
        encoded = []
        for question in questions:
            prompt = text.prompt_ids(question, cot.instruction)
            if len(prompt) + self.max_new_tokens > text.max_length:
                raise UserError(
                    f"the assistant {text.model_name} reads at most {text.max_length} tokens, but the question "
                    f"{question[:60]!r} and its hint come to {len(prompt) + self.max_new_tokens}",
                    fix="lower the reasoning's max_new_tokens, or take an assistant with a longer context",
                )
            encoded.append(Encoded(Example(question, "", question, (), ""), prompt, [text.eos_id]))
        for question, written in zip(questions, self._texts(encoded, self._companions.knows(questions)), strict=True):
            lines = (line.strip() for line in written.text.split(text.step_separator))
            self._lines[question] = [line for line in lines if line]

    def _texts(self, encoded: Sequence[Encoded], keep: bool) -> list[Generation]:
        assistant = self.parts.backbone
        kept = GreedyTexts(assistant, assistant.fingerprint, [e.prefix_ids for e in encoded], self.max_new_tokens, len(encoded))
        found = kept.read() if keep else None
        if found is not None:
            tally.cached += len(encoded)
            return found
        with undivided():
            written = generate(self.parts.reasoning, self.parts, encoded, self.max_new_tokens, batch_size=len(encoded))
        tally.computed += len(encoded)
        if keep:
            kept.write(written)
        return written
