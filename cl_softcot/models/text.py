"""How an example becomes token ids, and how ids become text again.

Three styles, chosen by what the model folder holds::

    words   cl_softcot.json      <user> INSTRUCTION QUESTION [slots] <bot> [latents]   STEP ; STEP ; answer A <eos>
    chat    a chat template      its user turn with QUESTION INSTRUCTION [slots], then [latents]   STEP\\n STEP\\n ### A <end>
    plain   neither              <bos> QUESTION\\n [slots or latents]                   STEP\\n STEP\\n ### A <eos>

<end> is what the template puts behind a model's turn; <bos> stands where the tokenizer adds one by itself.
Thoughts stand in the sequence as special tokens and are found again by their id, never by counting positions.
"""

from __future__ import annotations

import copy
import datetime
import json
import re
from collections.abc import Mapping, Sequence
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, Literal

from cl_softcot.errors import UserError
from cl_softcot.files import read_json
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
    marker = read_json(path)
    missing = [key for key in _KEYS if not isinstance(marker, dict) or key not in marker]
    if missing or marker["style"] != "words":
        problem = f"lacks {', '.join(missing)}" if missing else f"has an unknown style {marker['style']!r} (known: words)"
        raise UserError(f"the text settings of this model: the file {problem}", where=str(path))
    for key, kind in (("instructions", dict), ("step_separator", str), ("answer_marker", str), ("families", dict)):
        value = marker.get(key, kind())
        inside = [*value, *value.values()] if isinstance(value, dict) else []
        if not isinstance(value, kind) or not all(isinstance(text, str) for text in inside):
            right = "text" if kind is str else "a map of texts"
            raise UserError(f"the text settings of this model: {key} is not {right}", where=str(path))
    return marker


# Some templates write today's date into the prompt; a run has to read the same one whenever it goes on.
_DATE = datetime.datetime(2024, 7, 26)
_CHAT_FIX = "set chat: never for this model, so that it reads plain text"
# Stands for the question where that must not be read as the template's own tokens.
_QUESTION = "\ue000question\ue001"


class TextFormat:
    """The text side of one model.

    Args:
        special: token ids of slot, latent-start, latent, latent-end and pause.
        eos_id: ends an answer, unless the chat template has a token of its own for the end of a turn.
        chat: auto: with the chat template, if there is one; never: plain text.
        chat_template_args: variables for the template.
        more_ends: further tokens that an answer may stop at.

    Attributes:
        eos_id: the token that ends an answer, and that is trained to.
        end_ids: every token that answers stop at, ``eos_id`` first.

    Raises:
        UserError: ``chat_template_args`` are given, and there is no template that reads them.
    """

    def __init__(
        self,
        tokenizer: Any,
        special: Mapping[str, int],
        eos_id: int,
        *,
        max_length: int,
        model_name: str,
        marker: Mapping[str, Any] | None = None,
        chat: str = "auto",
        chat_template_args: Mapping[str, Any] | None = None,
        more_ends: Sequence[int] = (),
    ):
        self.tokenizer = tokenizer
        self.special = dict(special)
        self.eos_id = eos_id
        self.max_length = max_length
        self.model_name = model_name
        template = getattr(tokenizer, "chat_template", None) if chat == "auto" else None
        settings: Mapping[str, Any] = marker or (_CHAT if template else _PLAIN)
        self.style: str = settings["style"]
        self.instructions: Mapping[str, str] = settings["instructions"]
        self.step_separator: str = settings["step_separator"]
        self.answer_marker: str = settings["answer_marker"]
        self._template_args = dict(chat_template_args or {})
        if self._template_args and self.style != "chat":
            raise UserError(
                f"chat_template_args are given, but {model_name} is not read with a chat template", fix="leave them out"
            )
        if self.style == "chat":
            self._template = _dated(template) if isinstance(template, str) else None
            self._template_args.setdefault("date_string", _DATE.strftime("%d %b %Y"))
            self.eos_id = self._end_of_turn(eos_id)
        more = [] if self.style == "words" else [eos_id, *more_ends]
        self.end_ids = tuple(dict.fromkeys([self.eos_id, *more]))
        self._silent = {*tokenizer.all_special_ids, *self.special.values(), *self.end_ids}
        self._ids = lru_cache(maxsize=65536)(self._words_to_ids if self.style == "words" else self._text_to_ids)
        if self.style == "words":
            self._vocabulary: dict[str, int] = tokenizer.get_vocab()
            self._word_of = {i: word for word, i in self._vocabulary.items()}
            self._silent |= {self._vocabulary[t] for t in ("<user>", "<bot>") if t in self._vocabulary}

    def with_tokens(self, special: Mapping[str, int]) -> TextFormat:
        """The same format with further special tokens, which no tokenizer needs to know."""
        twin = copy.copy(self)
        twin.special = dict(special)
        twin._silent = self._silent | set(special.values())
        return twin

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
            return [*self._begin, *self._checked(question + "\n"), *inside, *behind]
        stated = self.instructions.get(instruction)
        if stated is None:
            raise UserError(f"{self.model_name} has no instruction {instruction!r} in its {MARKER_FILE}")
        user, bot = self._ids("<user>"), self._ids("<bot>")
        return [*user, *self._ids(stated), *self._ids(question), *inside, *bot, *behind]

    def target_ids(self, steps: Sequence[str], answer: str) -> list[int]:
        """What the model is to write: the steps, the answer behind its marker, and the end-of-text token."""
        return [*self._checked(self.step_separator.join([*steps, f"{self.answer_marker} {answer}"])), self.eos_id]

    def continued_ids(self, steps: Sequence[str], opening: str, rest: str) -> tuple[list[int], int]:
        """What the model has written after ``steps`` and a beginning ``opening rest`` of the next line, and where ``rest``
        begins in it: at the first token that is not one of the same text without it.
        """
        ids = self._checked(self.step_separator.join([*steps, f"{opening} {rest}".strip()]))
        without = self._ids(self.step_separator.join([*steps, opening]))
        same = (i for i, (a, b) in enumerate(zip(ids, without, strict=False)) if a != b)
        return list(ids), next(same, min(len(ids), len(without)))

    def answer_ids(self, steps: Sequence[str], answer: str) -> tuple[list[int], list[int]]:
        """``target_ids`` without the end-of-text token, in two: up to the answer's marker, and the answer."""
        ids, start = self.continued_ids(steps, self.answer_marker, answer)
        return ids[:start], ids[start:]

    def filler_ids(self, n: int) -> list[int]:
        """``n`` tokens that say nothing: `` ...``, as in Lanham et al. 2023 (arXiv 2307.13702); of a word-level model its full
        stop, or the nearest that it has.
        """
        if self.style == "words":
            words = (".", "...", ":", *self.step_separator.split())
            ids = self._ids(next(word for word in words if word in self._vocabulary))
        else:
            ids = self._ids(" ...")
        return [*ids * (n // len(ids) + 1)][:n]

    def check_fits(self, example_id: str, n_prompt: int, n_more: int) -> None:
        """UserError if a prompt of ``n_prompt`` tokens and ``n_more`` written ones exceed the model's context."""
        if n_prompt + n_more > self.max_length:
            raise UserError(
                f"example {_short(example_id)!r} does not fit: {n_prompt} tokens of prompt and {n_more} to write, but "
                f"{self.model_name} reads at most {self.max_length}",
                fix="shorten the example, lower evaluate.max_new_tokens, or take a model with a longer context",
            )

    # --------------------------------------------------------------------------------------------- chat template
    def _chat_ids(self, question: str, instruction: str, inside: tuple[int, ...]) -> tuple[int, ...]:
        """The user's turn and the opening of the model's, by the template; the thoughts' tokens end the user's turn."""
        # Tokens that the tokenizer does not know go through the template as slots do.
        known = tuple(i if i < len(self.tokenizer) else self.special["slot"] for i in inside)
        marks = "".join(self.tokenizer.convert_ids_to_tokens(list(known)))
        tail = f"\n{self.instructions.get(instruction, '')}"
        if any(token in question for token in self._control_tokens):
            before, behind = self._render(_QUESTION + tail, marks).split(_QUESTION)
            ids = (*self._template_ids(before), *self._ids(question), *self._template_ids(behind))
        else:
            ids = self._template_ids(self._render(question + tail, marks))
        self._check_slots(ids, known)
        thoughts, marked = set(known), iter(inside)
        return ids if known == inside else tuple(next(marked) if i in thoughts else i for i in ids)

    def _render(self, content: str, marks: str) -> str:
        text = self._apply([{"role": "user", "content": content + marks}], add_generation_prompt=True)
        # Templates may strip white space around a message, and nothing else.
        if (content + marks).strip() not in text:
            lost = "loses tokens or text" if marks and content.strip() in text else "changes or loses text"
            raise UserError(
                f"the chat template of {self.model_name} {lost} at the end of the user's turn or in it: "
                f"{_short(content + marks)!r} became {_short(text)!r}",
                fix=_CHAT_FIX,
            )
        return text

    def _check_slots(self, ids: Sequence[int], inside: Sequence[int]) -> None:
        """All thoughts, in their order, without anything in between, and no other; and one begin-of-text token at most."""
        thoughts = set(self.special.values())
        found = [i for i, token in enumerate(ids) if token in thoughts]
        if [ids[i] for i in found] != list(inside) or (found and found[-1] - found[0] != len(found) - 1):
            raise UserError(
                f"the chat template of {self.model_name} loses tokens at the end of the user's turn: "
                f"{len(inside)} thoughts were put in, {len(found)} came out in one piece or several",
                fix=_CHAT_FIX,
            )
        bos = getattr(self.tokenizer, "bos_token_id", None)
        if bos is not None and list(ids[:2]) == [bos, bos]:
            raise UserError(f"the chat template of {self.model_name} begins the text twice", fix=_CHAT_FIX)

    def _end_of_turn(self, eos_id: int) -> int:
        """What the template puts behind a model's turn, if that is a token of its own; else ``eos_id``."""
        mark = _QUESTION
        try:
            text = self._apply([{"role": "user", "content": "a"}, {"role": "assistant", "content": mark}])
        except UserError:
            return eos_id  # a template for single turns
        behind = self._template_ids(text.rpartition(mark)[2].lstrip()) if mark in text else ()
        own = {*self.tokenizer.all_special_ids, *self.tokenizer.get_added_vocab().values()}
        return behind[0] if behind and behind[0] in own else eos_id

    def _apply(self, messages: Sequence[Mapping[str, str]], add_generation_prompt: bool = False) -> str:
        try:
            return self.tokenizer.apply_chat_template(
                messages,
                chat_template=self._template,
                add_generation_prompt=add_generation_prompt,
                tokenize=False,
                **self._template_args,
            )
        except Exception as error:  # templates are programs, and fail in every way that programs do
            raise UserError(f"the chat template of {self.model_name} refuses the prompt: {error}", fix=_CHAT_FIX) from error

    def _template_ids(self, text: str) -> tuple[int, ...]:
        """Ids of text by the template, in which special tokens are read as such."""
        return tuple(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    @cached_property
    def _control_tokens(self) -> tuple[str, ...]:
        """Texts that would be read as a special token."""
        return tuple(dict.fromkeys([*self.tokenizer.get_added_vocab(), *self.tokenizer.all_special_tokens]))

    # ----------------------------------------------------------------------------------------------- plain text
    @cached_property
    def _begin(self) -> tuple[int, ...]:
        """The begin-of-text token where the tokenizer puts one in front by itself."""
        bos = getattr(self.tokenizer, "bos_token_id", None)
        added = self.tokenizer("a")["input_ids"][:1]
        return (bos,) if bos is not None and added == [bos] and self._ids("a")[:1] != (bos,) else ()

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
        """Text of a task is text: what looks like a special token in it is none."""
        return tuple(self.tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"])

    def _checked(self, text: str) -> tuple[int, ...]:
        """Ids of a piece of text that must be readable from them: an answer that cannot be decoded cannot be judged."""
        ids = self._ids(text)
        if self.style != "words" and self.decode(ids).split() != text.split():
            raise UserError(
                f"the tokenizer of {self.model_name} cannot write {_short(text)!r}: it becomes {_short(self.decode(ids))!r}"
            )
        return ids

    # ----------------------------------------------------------------------------------------------- to text
    def decode(self, ids: Sequence[int]) -> str:
        """The written text: up to the first token that ends it, without special tokens."""
        written = []
        for i in map(int, ids):
            if i in self.end_ids:
                break
            if i not in self._silent:
                written.append(i)
        if self.style == "words":
            return " ".join(self._word_of.get(i, "") for i in written)
        return self.tokenizer.decode(written, skip_special_tokens=True, clean_up_tokenization_spaces=False)

    def answer_of(self, text: str) -> str | None:
        """The text behind the last answer marker, or None."""
        return answer_of(text)

    def readable(self, text: str) -> str:
        """What this model can read of somebody else's text: without unknown words, and without what its tokens cannot say."""
        if self.style == "words":
            return " ".join(word for word in text.split() if word in self._vocabulary)
        return self.decode(self._ids(text))


def _dated(template: str) -> str:
    """The template with a fixed date for ``strftime_now``."""
    formats = re.findall(r"""strftime_now\(\s*["'](.*?)["']\s*\)""", template)
    if not formats:
        return template
    dates = json.dumps({form: _DATE.strftime(form) for form in formats})
    return "{%- macro strftime_now(form) -%}{{ " + dates + "[form] }}{%- endmacro %}" + template


def _short(text: str) -> str:
    return text if len(text) <= 80 else f"{text[:60]} ... {text[-15:]}"
