"""The contract of a task: examples by seed, splits without leaks, and a judge that tells right, wrong and unanswered apart."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from typing import Any

from cl_softcot.answering.readings import in_both
from cl_softcot.check.result import Broken, Line, settings_are_described, told
from cl_softcot.errors import UserError
from cl_softcot.tasks.base import Task

N, SEED = 8, 3


def check(cls: Any, settings: Any = None) -> Iterator[Line]:
    """Every rule."""
    settings = settings or cls.Settings()
    trial = _Trial(cls, settings)
    rules = {
        "settings have descriptions": lambda: settings_are_described(cls),
        "it says its family and its splits": trial.says_what_it_is,
        "making it reads nothing": trial.making_reads_nothing,
        "the same seed gives the same examples": trial.same_for_the_same_seed,
        "it says how many examples it has": trial.counts,
        "splits have no question in common": trial.splits_are_apart,
        "the judge takes its own answers for right": trial.gold_is_right,
        "the judge tells wrong and unanswered apart": trial.judge_tells_apart,
    }
    yield from told(rules, cls)


class _Trial:
    def __init__(self, cls: Any, settings: Any):
        self.cls, self.settings = cls, settings

    def make(self) -> Any:
        return self.cls(self.settings, "mine")

    def says_what_it_is(self) -> None:
        task = self.make()
        if not (task.family and task.splits):
            raise Broken("family or splits are empty")
        if any(not isinstance(key, str) for key in task.breaks_down_by):
            raise Broken("breaks_down_by names keys of `meta`")

    def making_reads_nothing(self) -> None:
        """A configuration is checked, offline too, by making its tasks."""
        if "path" in type(self.settings).model_fields:
            nowhere = self.settings.model_copy(update={"path": "/nowhere/at/all"})
            self.cls(nowhere, "mine")

    def same_for_the_same_seed(self) -> None:
        for split in self.make().splits:
            first, again = self.make().examples(split, N, SEED), self.make().examples(split, N, SEED)
            if first != again or len(first) != N:
                raise Broken(f"{split}: two times {N} examples of seed {SEED} differ, or are not {N}", "Draw from `seed` only.")
            for what in ("id", "question"):
                if len({getattr(e, what) for e in first}) != N:
                    raise Broken(f"{split}: two examples have the same {what}")
            if not all(e.task == "mine" and e.question.strip() and e.answer.strip() for e in first):
                raise Broken(f"{split}: a question or an answer is empty, or `task` is not the task's name")
            if not all(isinstance(step, str) and step.strip() for e in first for step in e.steps):
                raise Broken(f"{split}: a step is empty")
            json.dumps([dataclasses.asdict(e) for e in first])  # predictions and checkpoints are JSON

    def counts(self) -> None:
        task = self.make()
        for split in task.splits:
            n = task.count(split)
            if n is None:  # generated
                continue
            if len({e.id for e in task.examples(split, n, 0)}) != n:
                raise Broken(f"{split}: count says {n}, and there are others")
            try:
                task.examples(split, n + 1, 0)
            except UserError as error:
                if str(n) in str(error):
                    continue
            raise Broken(f"{split}: more than there are can be asked for", f"Raise UserError that names the {n} there are.")

    def splits_are_apart(self) -> None:
        """At any seeds: what is tested was never trained on."""
        seen: dict[str, str] = {}
        for split in self.make().splits:
            for seed in (0, 1, 2):
                for example in self.make().examples(split, 2 * N, seed):
                    if seen.setdefault(example.question, split) != split:
                        raise Broken(f"{example.question[:60]!r} is in {split} and in {seen[example.question]}")

    def gold_is_right(self) -> None:
        task = self.make()
        for example in task.examples("test", 12, 0):
            for text in (
                " ; ".join([*example.steps, f"answer {example.answer}"]),
                "\n".join([*example.steps, f"### {example.answer}"]),
            ):
                for reading, verdict in in_both(task, example, text).items():
                    if verdict["outcome"] != "right":
                        said = f"{text[-60:]!r} is judged {verdict['outcome']} ({reading} reading)"
                        raise Broken(said, "Models write it in this form.")

    def judge_tells_apart(self) -> None:
        task = self.make()
        items = task.examples("test", 12, 0)
        for example in items:
            other = next((e.answer for e in items if e.answer != example.answer), "qqq")
            verdict = task.judge(example, f"answer {other}")
            if (verdict.outcome, verdict.extracted) != ("wrong", other):
                raise Broken(f"'answer {other}' is judged {verdict} where {example.answer!r} is right")
            if task.judge_flexibly(example, f"answer {other}") != verdict:
                fix = "The flexible reading adds to the strict one: where that finds an answer, it finds the same."
                raise Broken(f"'answer {other}' is another answer in the flexible reading", fix)
            if "right" in (found["outcome"] for found in in_both(task, example, "answer qqq").values()):
                raise Broken(f"'answer qqq' is judged right where {example.answer!r} is")
            if type(task).judge is Task.judge and task.judge(example, f"answer {example.answer} qqq").outcome != "wrong":
                raise Broken("words behind an answer of words are not seen")
            if "answer" not in " ".join(example.steps):
                for nothing in ("", " ; ".join(example.steps), "answer", example.answer):
                    if task.judge(example, nothing).outcome != "unanswered":
                        raise Broken(f"{nothing!r} states no answer, and is judged {task.judge(example, nothing).outcome}")
                for nothing in ("", "answer"):
                    if task.judge_flexibly(example, nothing).outcome != "unanswered":
                        raise Broken(f"{nothing!r} states no answer in any reading")
