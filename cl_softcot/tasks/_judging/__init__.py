"""Reads the answer out of free text, twice: ``readings``. Numbers, options, yes or no, words each have a file."""

from cl_softcot.tasks._judging.numbers import numbers_in, numeral
from cl_softcot.tasks._judging.options import LETTERS, lettered, options_in, options_meta, with_options
from cl_softcot.tasks._judging.readings import (
    AnswerKind,
    Choices,
    Numbers,
    Options,
    Stated,
    choice_in,
    number_in,
    option_in,
)
from cl_softcot.tasks._judging.words import Words, answer_of

__all__ = [
    "LETTERS", "AnswerKind", "Choices", "Numbers", "Options", "Stated", "Words", "answer_of", "choice_in", "lettered",
    "number_in", "numbers_in", "numeral", "option_in", "options_in", "options_meta", "with_options",
]  # fmt: skip
