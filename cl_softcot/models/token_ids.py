"""Which tokens a model has, and that all that are named are among them.

A number that stands for no token is a mistake in a file (an end that can never be written, a tokenizer of another model), and
would be one of an index, or a row of random numbers, much later.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from cl_softcot.errors import UserError

_FIELDS = ("eos_token_id", "bos_token_id", "pad_token_id")


def end_ids_of(tokenizer: Any, model: Any, name: str) -> list[int]:
    """Every token that ends a text, the tokenizer's own first. UserError if there is none, or the model does not have one."""
    rows = _rows(model)
    named = list(_named(tokenizer, model))
    outside = [entry for entry in named if not _is_id(entry[2], rows)]
    if outside:
        told = "; ".join(f"{field} {value!r} in {place}" for place, field, value in outside)
        raise UserError(
            f"{name} has the tokens 0 to {rows - 1}, but names others: {told}",
            fix="correct these files: each has to name a token of the tokenizer, or none (null)",
        )
    ids = [value for _, field, value in named if field == "eos_token_id"]
    if not ids:
        raise UserError(
            f"{name} has no end-of-text token, so an answer would never end",
            fix="set eos_token in its tokenizer_config.json, or eos_token_id in its config.json",
        )
    return list(dict.fromkeys(ids))


def check_rows(tokenizer: Any, model: Any, name: str, needed: Iterable[str]) -> None:
    """UserError if the embedding, or the head, has no row for a token that a text may hold.

    Special tokens that stand in no text of ours, such as Gemma's for images, need none.

    Args:
        needed: tokens that need a row if the tokenizer knows all of them.
    """
    rows, vocabulary = _rows(model), tokenizer.get_vocab()
    without = {i: token for token, i in vocabulary.items() if i >= rows}
    if not without:
        return
    template, needed = str(getattr(tokenizer, "chat_template", None) or ""), set(needed)
    special = {i for i, token in tokenizer.added_tokens_decoder.items() if token.special and token.content not in template}
    special -= {vocabulary[token] for token in needed} if needed <= vocabulary.keys() else set()
    missing = sorted(without.keys() - special)
    if missing:
        raise UserError(
            f"the tokenizer of {name} has {len(vocabulary)} tokens, but the model has {rows} rows: {len(missing)} tokens have "
            f"none, {without[missing[0]]!r} (id {missing[0]}) first",
            fix="take the tokenizer that belongs to these weights, or give the model rows for it: "
            "model.resize_token_embeddings(len(tokenizer)), trained and saved",
        )


def _rows(model: Any) -> int:
    """Tokens that can be both read and written."""
    return min(len(model.get_input_embeddings().weight), len(model.get_output_embeddings().weight))


def _named(tokenizer: Any, model: Any) -> Iterator[tuple[str, str, Any]]:
    """(file, field, value) of the special tokens, lists of them taken apart."""
    places = {
        "the tokenizer's files": tokenizer,
        "generation_config.json": getattr(model, "generation_config", None),
        "config.json": model.config.get_text_config(),
    }
    for place, holder in places.items():
        for field in _FIELDS:
            value = getattr(holder, field, None)
            for one in value if isinstance(value, list | tuple) else [value]:
                if one is not None:
                    yield place, field, one


def _is_id(value: Any, rows: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < rows
