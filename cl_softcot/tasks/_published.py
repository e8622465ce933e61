"""Data sets with published files and a generator of such questions: a split that has a file is read, others are made."""

from __future__ import annotations

import random
from abc import abstractmethod
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import ClassVar, Literal

from pydantic import Field, model_validator

from cl_softcot.errors import UserError
from cl_softcot.tasks._judging import AnswerKind
from cl_softcot.tasks._sources import Row, find_file, read_file
from cl_softcot.tasks.base import SPLITS, Draft, Example, Split, Task, TaskSettings, Verdict, split_of


class PublishedSettings(TaskSettings):
    """Settings that such data sets share."""

    variant: Literal["original", "hardened"] = Field("original", description="as published, or without its known shortcuts")
    path: str | None = Field(
        None, description="folder or file with the published rows; splits without a file are generated (null: all are)"
    )
    train: Literal["generated", "file"] | None = Field(
        None, description="where training examples come from (null: the file, if `path` has one)"
    )

    @model_validator(mode="after")
    def _go_together(self) -> PublishedSettings:
        if self.path is not None and self.variant == "hardened":
            raise ValueError("the published files are of the original variant: leave `path` out, or `variant: hardened`")
        if self.path is None and self.train == "file":
            raise ValueError("`train: file` needs `path`, the folder that has the file")
        return self


class Published(Task):
    """Reads or generates. A generated question belongs to the one split that a hash of its key says (80 / 10 / 10), whatever the
    seed, and is none of those that the files hold."""

    settings: PublishedSettings
    file_names: ClassVar[dict[Split, tuple[str, ...]]]  # what a split's file may be called, the preferred name first

    @abstractmethod
    def draft(self, rng: random.Random, wanted: Callable[[str], bool]) -> Draft:
        """A generated question. Of its key the split is a function: it has to be ``wanted``."""

    @abstractmethod
    def from_row(self, row: Row) -> Draft:
        """A published question. UserError where it cannot be one."""

    @abstractmethod
    def answers(self, example: Example) -> AnswerKind:
        """What its answers are, in the form of the gold ones, and how they are read."""

    def rows(self, path: Path, split: Split) -> Sequence[Row]:
        """The rows of a split in a file of it."""
        return read_file(path)

    def keeps(self, draft: Draft) -> bool:
        """Whether a published question is of the difficulty that is asked for."""
        return True

    def count(self, split: Split) -> int | None:
        """How many examples a split has; None where they are generated."""
        return len(self._from_files[split]) if self._file(split) else None

    def examples(self, split: Split, n: int, seed: int) -> list[Example]:
        rng = random.Random(f"{self.family}|{self.settings.variant}|{split}|{seed}")
        if not self._file(split):
            return [self._example(draft, split, i, "generated") for i, draft in enumerate(self._generated(split, n, rng))]
        rows = list(self._from_files[split].items())
        if len(rows) < n:
            raise UserError(
                f"task {self.name!r} has {len(rows)} {split} examples, {n} are asked for",
                where=str(self._file(split)),
                fix="ask for fewer (train.examples, evaluate.test), or for generated ones (`train: generated`, no `path`)",
            )
        return [self._example(draft, split, i, "file") for i, draft in rng.sample(rows, n)]

    def judge(self, example: Example, text: str) -> Verdict:
        return _verdict(example, self.answers(example).strict(text))

    def judge_flexibly(self, example: Example, text: str) -> Verdict:
        return _verdict(example, self.answers(example).flexible(text))

    def _generated(self, split: Split, n: int, rng: random.Random) -> list[Draft]:
        published = {draft.key for rows in self._from_files.values() for draft in rows.values()}
        found: dict[str, Draft] = {}

        def wanted(key: str) -> bool:
            return key not in found and key not in published and split_of(self.family, key) == split

        while len(found) < n:  # there are more questions than anybody can ask for
            draft = self.draft(rng, wanted)
            found[draft.key] = draft
        return list(found.values())

    def _example(self, draft: Draft, split: Split, index: int, source: str) -> Example:
        meta = {"family": self.family, "variant": self.settings.variant, "source": source, **draft.meta}
        return Example(f"{self.name}/{split}/{index}", self.name, draft.question, draft.steps, draft.answer, meta)

    # ------------------------------------------------------------------------------------------------------- files

    def _file(self, split: Split) -> Path | None:
        """The file that a split is read from; None where it is generated."""
        if self.settings.path is None or (split == "train" and self.settings.train == "generated"):
            return None
        path, names = Path(self.settings.path).expanduser(), self.file_names[split]
        everything = list(dict.fromkeys(name for every in SPLITS for name in self.file_names[every]))
        if path.is_file() and (name := path.name.removesuffix(".gz")) in everything:
            found = path if name in names else None
        elif path.is_file():
            problem = f"task {self.name!r}: the name of the file does not say which split it holds"
            raise UserError(problem, where=str(path), fix=f"known names, each also with .gz: {', '.join(everything)}")
        else:
            below = [f"{self.family}/{name}" for name in everything]  # a folder that holds several data sets
            found = find_file(path, [*names, *(f"{self.family}/{name}" for name in names)], missing_ok=True)
            if found is None:
                find_file(path, [*everything, *below])  # a folder that has none at all is a mistake
        if found is None and split == "train" and self.settings.train == "file":
            problem = f"task {self.name!r}: `train: file`, but there is no {' or '.join(names)}"
            raise UserError(problem, where=str(path), fix="put it there, or take `train: generated`")
        return found

    @cached_property
    def _from_files(self) -> dict[Split, dict[int, Draft]]:
        """Row number -> question, for the splits that have a file. What two splits share stays in test, then in valid."""
        found: dict[Split, dict[int, Draft]] = {split: {} for split in SPLITS}
        seen: set[str] = set()
        for split in ("test", "valid", "train"):
            path = self._file(split)
            for index, row in enumerate(self.rows(path, split) if path else ()):
                draft = self.from_row(row)
                if draft.key not in seen and self.keeps(draft):
                    found[split][index] = draft
                seen.add(draft.key)
        return found


def _verdict(example: Example, extracted: str | None) -> Verdict:
    if extracted is None:
        return Verdict("unanswered", None)
    return Verdict("right" if extracted == example.answer else "wrong", extracted)
