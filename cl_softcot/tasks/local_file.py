"""Anyone's own data: a JSON-lines file, its fields mapped in the YAML.

``{name: mine, task: local_file, path: my.jsonl, question: q, steps: rationale, answer: a}``. Rows are split by a field
(``split_field``), by separate files (``valid_path``, ``test_path``), or by a hash of the question (80 / 10 / 10).
"""

from __future__ import annotations

import json
import random
from functools import cached_property
from pathlib import Path
from typing import Any

from pydantic import Field

from cl_softcot.errors import UserError, did_you_mean
from cl_softcot.tasks.base import SPLITS, Example, Split, Task, TaskSettings, split_of


class Settings(TaskSettings):
    path: str = Field(description="JSON-lines file, one object a line; relative to where the command runs")
    valid_path: str | None = Field(None, description="file of the validation split, if it is a separate one")
    test_path: str | None = Field(None, description="file of the test split, if it is a separate one")
    question: str = Field("question", description="field that holds the question")
    steps: str | None = Field("steps", description="field that holds the steps: a list, or a text with a step a line")
    answer: str = Field("answer", description="field that holds the answer")
    split_field: str | None = Field(None, description="field that says train, valid or test")
    family: str = Field("local", description="family that retention counts the task to")


class LocalFile(Task):
    family = "local"
    Settings = Settings

    def __init__(self, settings: Settings, name: str):
        super().__init__(settings, name)
        self.family = settings.family

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

    def _file_of(self, split: Split) -> str:
        s = self.settings
        return {"train": s.path, "valid": s.valid_path, "test": s.test_path}[split] or s.path

    @cached_property
    def _by_split(self) -> dict[str, list[Example]]:
        s = self.settings
        found: dict[str, list[Example]] = {split: [] for split in SPLITS}
        own_file = {split for split, path in (("valid", s.valid_path), ("test", s.test_path)) if path}
        for split in own_file:
            found[split] = [example for example, _ in self._read(self._file_of(split))]
        seen = {e.question: split for split in own_file for e in found[split]}
        for example, stated in self._read(s.path):
            split = stated or split_of(self.name, example.question)
            if split in own_file or (not stated and own_file == {"valid", "test"}):
                split = "train"
            if example.question in seen:  # the same question in two splits would be a leak; the evaluation split keeps it
                continue
            seen[example.question] = split
            found[split].append(example)
        return found

    def _read(self, path: str) -> list[tuple[Example, Split | None]]:
        file = Path(path)
        try:
            lines = file.read_text(encoding="utf-8").splitlines()
        except FileNotFoundError:
            raise UserError(
                f"task {self.name!r}: no such file", where=path, fix="paths are relative to where the command runs"
            ) from None
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"task {self.name!r}: cannot read the file ({error})", where=path) from None
        rows = [self._row(line, f"{path}:{i}", i) for i, line in enumerate(lines, 1) if line.strip()]
        if not rows:
            raise UserError(f"task {self.name!r}: the file is empty", where=path, fix="one JSON object a line")
        return rows

    def _row(self, line: str, where: str, number: int) -> tuple[Example, Split | None]:
        s = self.settings
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise UserError(
                f"task {self.name!r}: not JSON ({error.msg})", where=f"{where}:{error.colno}", fix="one JSON object a line"
            ) from None
        if not isinstance(row, dict):
            raise UserError(f"task {self.name!r}: a line holds {type(row).__name__}, not an object", where=where)

        def take(field: str, key: str) -> Any:
            if field not in row:
                raise UserError(
                    f"task {self.name!r}: no field {field!r}{did_you_mean(field, list(row))}",
                    where=where,
                    fix=f"map it in the YAML: `{key}: <field>`",
                )
            return row[field]

        question, answer = str(take(s.question, "question")).strip(), str(take(s.answer, "answer")).strip()
        raw = take(s.steps, "steps") if s.steps else []
        steps = [str(step).strip() for step in (raw.splitlines() if isinstance(raw, str) else raw)]
        if not question or not answer:
            raise UserError(f"task {self.name!r}: an empty question or answer", where=where)
        split = None
        if s.split_field:
            split = take(s.split_field, "split_field")
            split = {"validation": "valid", "dev": "valid"}.get(split, split)
            if split not in SPLITS:
                raise UserError(f"task {self.name!r}: split {split!r} is none of {', '.join(SPLITS)}", where=where)
        steps = tuple(step for step in steps if step)
        return Example(
            f"{self.name}/{number}", self.name, question, steps, answer, {"family": s.family, "hops": len(steps)}
        ), split
