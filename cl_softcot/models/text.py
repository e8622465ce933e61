"""How an example becomes token ids, and how ids become text again.

Three styles, chosen by what the model folder holds::

    words   cl_softcot.json      <user> INSTRUCTION QUESTION [slots] <bot> [latents]   STEP ; STEP ; answer A <eos>
    chat    a chat template      its user turn with QUESTION INSTRUCTION [slots], then [latents]   STEP\\n STEP\\n ### A <eos>
    plain   neither              QUESTION\\n [slots or latents]                         STEP\\n STEP\\n ### A <eos>

Thoughts stand in the sequence as special tokens and are found again by their id, never by counting positions.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

from cl_softcot.errors import UserError
from cl_softcot.tasks.base import answer_of

Where = Literal["before_turn", "after_turn"]

MARKER_FILE = "cl_softcot.json"
_INSTRUCTIONS = {
    "cot": "Reason step by step, one step per line. Then write the answer on a last line that begins with ###",
    "direct": "Write only the answer, on one line that begins with ###",
}
_CHAT = {"style": "chat", "instructions": _INSTRUCTIONS, "step_separator": "\n", "answer_marker": "###"}
_PLAIN = {"style": "plain", "instructions": {}, "step_separator": "\n", "answer_marker": "###"}
_KEYS = ("style", "instructions", "step_separator", "answer_marker")


def read_marker(folder: Path) -> dict[str, Any] | None:
    """The text settings that a model folder brings, or None. UserError where the file cannot be used."""
    path = folder / MARKER_FILE
    if not path.is_file():
        return None
    try:
        marker = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"not JSON: {error}", where=str(path), fix="repair the file or take it away") from error
    missing = [key for key in _KEYS if not isinstance(marker, dict) or key not in marker]
    if missing or marker["style"] != "words":
        problem = f"lacks {', '.join(missing)}" if missing else f"has an unknown style {marker['style']!r} (known: words)"
        raise UserError(f"the text settings of this model: the file {problem}", where=str(path))
    return marker


class TextFormat:
    """The text side of one model. ``special`` maps slot, latent-start, latent, latent-end and pause to token ids."""

    def __init__(
        self,
        tokenizer: Any,
        special: Mapping[str, int],
        eos_id: int,
        *,
        max_length: int,
        model_name: str,
        marker: Mapping[str, Any] | None = None,
    ):
        self.tokenizer = tokenizer
        self.special = dict(special)
        self.eos_id = eos_id
        self.max_length = max_length
        self.model_name = model_name
        settings = marker or (_CHAT if getattr(tokenizer, "chat_template", None) else _PLAIN)
        self.style: str = settings["style"]
        self.instructions: Mapping[str, str] = settings["instructions"]
        self.step_separator: str = settings["step_separator"]
        self.answer_marker: str = settings["answer_marker"]
        self._silent = {*tokenizer.all_special_ids, *self.special.values(), eos_id}
        self._ids = lru_cache(maxsize=65536)(self._words_to_ids if self.style == "words" else self._text_to_ids)
        if self.style == "words":
            self._vocabulary: dict[str, int] = tokenizer.get_vocab()
            self._word_of = {i: word for word, i in self._vocabulary.items()}
            self._silent |= {self._vocabulary[t] for t in ("<user>", "<bot>") if t in self._vocabulary}

    # ------------------------------------------------------------------------------------------------ to ids
    def prompt_ids(
        self,
        question: str,
        instruction: str = "cot",
        thoughts: Sequence[str] = (),
        where: Where = "before_turn",
    ) -> list[int]:
        """The prompt with its thoughts' tokens, up to where the answer starts.

        Args:
            thoughts: names of special tokens, as in ``["slot"] * 4``.
            where: 'before_turn' puts them at the end of the user's turn (SoftCoT), 'after_turn' behind the opening of the
                model's own turn (Coconut, pause tokens).
        """
        inside = [self.special[name] for name in thoughts] if where == "before_turn" else []
        behind = [self.special[name] for name in thoughts] if where == "after_turn" else []
        if self.style == "chat":
            return [*self._chat_ids(question, instruction, tuple(inside)), *behind]
        if self.style == "plain":
            return [*self._checked(question + "\n"), *inside, *behind]
        stated = self.instructions.get(instruction)
        if stated is None:
            raise UserError(f"{self.model_name} has no instruction {instruction!r} in its {MARKER_FILE}")
        user, bot = self._ids("<user>"), self._ids("<bot>")
        return [*user, *self._ids(stated), *self._ids(question), *inside, *bot, *behind]

    def target_ids(self, steps: Sequence[str], answer: str) -> list[int]:
        """What the model is to write: the steps, the answer behind its marker, and the end-of-text token."""
        return [*self._checked(self.step_separator.join([*steps, f"{self.answer_marker} {answer}"])), self.eos_id]

    def check_fits(self, example_id: str, n_prompt: int, n_more: int) -> None:
        """UserError if a prompt of ``n_prompt`` tokens and ``n_more`` written ones exceed the model's context."""
        if n_prompt + n_more > self.max_length:
            raise UserError(
                f"example {example_id!r} does not fit: {n_prompt} tokens of prompt and {n_more} to write, but "
                f"{self.model_name} reads at most {self.max_length}",
                fix="shorten the example, lower evaluate.max_new_tokens, or take a model with a longer context",
            )

    def _chat_ids(self, question: str, instruction: str, inside: tuple[int, ...]) -> tuple[int, ...]:
        marks = "".join(self.tokenizer.convert_ids_to_tokens(list(inside)))
        stated = self.instructions.get(instruction, "")
        message = {"role": "user", "content": f"{question}\n{stated}{marks}"}
        text = self.tokenizer.apply_chat_template([message], add_generation_prompt=True, tokenize=False)
        ids = self._ids(text)
        if inside and sum(i in inside for i in ids) != len(inside):
            raise UserError(
                f"the chat template of {self.model_name} loses tokens at the end of the user's turn: "
                f"{len(inside)} thoughts were put in, {sum(i in inside for i in ids)} came out"
            )
        return ids

    def _words_to_ids(self, text: str) -> tuple[int, ...]:
        """A word-level tokenizer is one look-up a word; an unknown word could neither be read nor learned."""
        try:
            return tuple(self._vocabulary[word] for word in text.split())
        except KeyError as error:
            raise UserError(
                f"the word {error.args[0]!r} is not in the vocabulary of {self.model_name}",
                fix="use the words that the model knows, or a backbone with a subword tokenizer",
            ) from None

    def _text_to_ids(self, text: str) -> tuple[int, ...]:
        return tuple(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def _checked(self, text: str) -> tuple[int, ...]:
        """Ids of a piece of text that must be readable from them: an answer that cannot be decoded cannot be judged."""
        ids = self._ids(text)
        if self.style != "words" and self.decode(ids).split() != text.split():
            raise UserError(f"the tokenizer of {self.model_name} cannot write this text: {text!r} becomes {self.decode(ids)!r}")
        return ids

    # ----------------------------------------------------------------------------------------------- to text
    def decode(self, ids: Sequence[int]) -> str:
        """The written text: up to the first end-of-text token, without special tokens."""
        ids = [int(i) for i in ids]
        if self.eos_id in ids:
            ids = ids[: ids.index(self.eos_id)]
        written = [i for i in ids if i not in self._silent]
        if self.style == "words":
            return " ".join(self._word_of.get(i, "") for i in written)
        return self.tokenizer.decode(written, skip_special_tokens=True, clean_up_tokenization_spaces=False)

    def answer_of(self, text: str) -> str | None:
        """The text behind the last answer marker, or None."""
        return answer_of(text)
