"""Anyone's own data: a JSON-lines file, its fields mapped in the YAML.

``{name: mine, task: local_file, path: my.jsonl, question: q, steps: rationale, answer: a}``. Rows are split by a field
(``split_field``), by separate files (``valid_path``, ``test_path``), or by a hash of the question (80 / 10 / 10).

``kind`` says how answers are compared. ``words`` (the default): word by word, without a closing full stop, and behind ``###``
or ``####`` only the first line; `$12` is not `12`. ``number``: by value, so that `12.`, `$12` and `12.0` are 12, and `1,200` is
1200. ``choice``: yes or no (or true or false). What cannot be read as a number or a choice is unanswered, not wrong.
"""

from __future__ import annotations

import json
import random
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from cl_softcot.additions import ADDED_LATER
from cl_softcot.errors import UserError, did_you_mean
from cl_softcot.tasks._judging import Answers, Choice, Number, Words
from cl_softcot.tasks.base import SPLITS, Example, Split, Task, TaskSettings, Verdict, split_of


class Settings(TaskSettings):
    path: str = Field(description="JSON-lines file, one object a line; relative to where the command runs")
    valid_path: str | None = Field(None, description="file of the validation split, if it is a separate one")
    test_path: str | None = Field(None, description="file of the test split, if it is a separate one")
    question: str = Field("question", description="field that holds the question")
    steps: str | None = Field("steps", description="field that holds the steps: a list, or a text with a step a line")
    answer: str = Field("answer", description="field that holds the answer")
    kind: Annotated[Literal["words", "number", "choice"], ADDED_LATER] = Field(
        "words", description="how answers are compared; choice: yes or no"
    )
    split_field: str | None = Field(None, description="field that says train, valid or test")
    family: str = Field("local", description="family that retention counts the task to")


class LocalFile(Task):
    family = "local"
    settings: Settings
    Settings = Settings

    def __init__(self, settings: TaskSettings, name: str):
        super().__init__(settings, name)
        self.family = self.settings.family
        self.n_options = 2 if self.settings.kind == "choice" else None

    def examples(self, split: Split, n: int, seed: int) -> list[Example]:
        rows = self._by_split[split]
        if len(rows) < n:
            raise UserError(
                f"task {self.name!r} has {len(rows)} {split} examples, {n} are asked for",
                where=self._file_of(split),
                fix="ask for fewer (train.examples, evaluate.test), or add rows",
            )
        # Test and validation rows are the first n of a fixed shuffle; the seed only orders what is drawn for training.
        order = sorted(range(len(rows)), key=lambda i: rows[i].id)
        random.Random(f"{self.name}|{split}|{seed if split == 'train' else 0}").shuffle(order)
        return [rows[i] for i in order[:n]]

    def judge(self, example: Example, text: str) -> Verdict:
        """Compares answers as ``kind`` says; case, spacing and markup do not count."""
        return self._verdict(example, self._answers(example.answer).strict(text))

    def judge_flexibly(self, example: Example, text: str) -> Verdict:
        return self._verdict(example, self._answers(example.answer).flexible(text))

    def _verdict(self, example: Example, extracted: str | None) -> Verdict:
        if extracted is None:
            return Verdict("unanswered", None)
        answers = self._answers(example.answer)
        right = answers.same(extracted) if isinstance(answers, Words) else extracted == answers.strict(f"### {example.answer}")
        return Verdict("right" if right else "wrong", extracted)

    def _answers(self, gold: str) -> Answers:
        if self.settings.kind == "number":
            return Number()
        return Choice("Yes", "No") if self.settings.kind == "choice" else Words(gold)

    def count(self, split: Split) -> int:
        return len(self._by_split[split])

    def _file_of(self, split: Split) -> str:
        s = self.settings
        return {"train": s.path, "valid": s.valid_path, "test": s.test_path}[split] or s.path

    @property
    def _own_file(self) -> list[Split]:
        """The splits that have a file of their own."""
        paths: dict[Split, str | None] = {"test": self.settings.test_path, "valid": self.settings.valid_path}
        return [split for split, path in paths.items() if path]

    @cached_property
    def _by_split(self) -> dict[str, list[Example]]:
        own = self._own_file
        found: dict[str, list[Example]] = {split: [] for split in SPLITS}
        for split in own:
            found[split] = [example for example, _ in self._read(self._file_of(split), None)]
        for example, stated in self._read(self.settings.path, self.settings.split_field):
            split = stated or ("train" if len(own) == 2 else split_of("local", question_key(example.question)))
            found["train" if split in own else split].append(example)
        # A question that stands in two splits would be a leak: test keeps it, then valid, and training goes without.
        seen: set[str] = set()
        for split in ("test", "valid", "train"):
            kept = []
            for example in found[split]:
                key = question_key(example.question)
                if key not in seen:
                    kept.append(replace(example, id=f"{self.name}/{split}/{example.id}"))
                    seen.add(key)
            found[split] = kept
        return found

    def _read(self, path: str, split_field: str | None) -> list[tuple[Example, Split | None]]:
        """The rows of a file, named by their line, and the split that each says it is of."""
        try:
            text = Path(path).read_text(encoding="utf-8-sig")
        except FileNotFoundError:
            fix = "paths are relative to where the command runs"
            raise UserError(f"task {self.name!r}: no such file", where=path, fix=fix) from None
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"task {self.name!r}: cannot read the file ({error})", where=path) from None
        lines = enumerate(text.split("\n"), 1)  # not splitlines(): a JSON string may hold U+2028 and the like
        rows = [self._row(line, path, number, split_field) for number, line in lines if line.strip()]
        if not rows:
            raise UserError(f"task {self.name!r}: the file is empty", where=path, fix="one JSON object a line")
        return rows

    def _row(self, line: str, path: str, number: int, split_field: str | None) -> tuple[Example, Split | None]:
        s, where = self.settings, f"{path}:{number}"
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            problem = f"task {self.name!r}: not JSON ({error.msg})"
            raise UserError(problem, where=f"{where}:{error.colno}", fix="one JSON object a line") from None
        if not isinstance(row, dict):
            raise UserError(f"task {self.name!r}: a line holds {type(row).__name__}, not an object", where=where)

        def take(field: str, key: str, also: str = "") -> Any:
            if field in row:
                return row[field]
            problem = f"task {self.name!r}: no field {field!r}{did_you_mean(field, list(row))}"
            raise UserError(problem, where=where, fix=f"map it in the YAML: `{key}: <field>`{also}")

        def text(field: str, value: Any) -> str:
            if isinstance(value, str | int | float) and str(value).strip():
                return str(value).strip()
            raise UserError(f"task {self.name!r}: field {field!r} should be a text or a number (got {value!r:.60})", where=where)

        question, answer = text(s.question, take(s.question, "question")), text(s.answer, take(s.answer, "answer"))
        if s.kind != "words" and self._answers(answer).strict(f"### {answer}") is None:
            fix = "correct it, or compare words: `kind: words`"
            raise UserError(
                f"task {self.name!r}: the answer {answer!r:.60} is no {s.kind} that can be read", where=where, fix=fix
            )
        raw = take(s.steps, "steps", ", or `steps: null` where there are none") if s.steps else None
        if raw is not None and not isinstance(raw, str | list):
            raise UserError(f"task {self.name!r}: field {s.steps!r} should be a list or a text (got {raw!r:.60})", where=where)
        steps = [str(step).strip() for step in (raw.splitlines() if isinstance(raw, str) else raw or [])]
        split: Split | None = None
        if split_field:
            said = take(split_field, "split_field")
            word = {"validation": "valid", "dev": "valid"}.get(str(said).casefold(), str(said).casefold())
            split = next((known for known in SPLITS if known == word), None)
            if split is None:
                raise UserError(f"task {self.name!r}: split {said!r} is none of {', '.join(SPLITS)}", where=where)
            if split in self._own_file:
                problem = f"task {self.name!r}: the row says {said!r}, but that split has a file of its own"
                raise UserError(problem, where=where, fix=f"drop `{split}_path`, or take the row out")
        written = tuple(step for step in steps if step)
        meta = {"family": s.family, "hops": len(written)}
        return Example(str(number), self.name, question, written, answer, meta), split


def question_key(question: str) -> str:
    """What makes two rows the same question: its words, whatever their case and spacing."""
    return " ".join(question.casefold().split())
