"""A task whose flexible reading finds answers that its strict one does not: the last word of a text, in whatever form."""

from __future__ import annotations

from cl_softcot.tasks.base import Verdict
from cl_softcot.tasks.local_file import LocalFile

NAMED = "reading_fakes:LastWord"


class LastWord(LocalFile):
    def judge_flexibly(self, example, text):
        found = self.judge(example, text)
        if found.outcome != "unanswered" or not text.split():
            return found
        last = text.split()[-1]
        return Verdict("right" if last == example.answer else "wrong", last)
