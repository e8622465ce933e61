"""Anyone's own data: a file, or any data set of the hub, its fields mapped in the YAML.

``{name: mine, task: local_file, path: my.jsonl, question: q, steps: rationale, answer: a}``. Files are .jsonl, .json (a list of
objects), .csv, .tsv and .parquet, each also .gz; ``hub: NAME`` in place of ``path`` reads a data set. Rows are split by a field
(``split_field``), by separate files (``valid_path``, ``test_path``) or splits of the hub (``hub_split``), or by a hash of the
question (80 / 10 / 10).

Rows without a question or an answer are left out, as are all rows of one question with different answers, and repeated ones but
the first; ``about`` counts them. Everything else that is no example is refused, all of it at once, with file and line.

``kind`` says how answers are compared. ``words`` (the default): word by word, without a closing full stop, and behind ``###``
or ``####`` only the first line; `$12` is not `12`. ``number``: by value, so that `12.`, `$12` and `12.0` are 12, and `1,200` is
1200. ``choice``: yes or no (or true or false). What cannot be read as a number or a choice is unanswered, not wrong.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from dataclasses import field as listed
from functools import cached_property
from typing import Annotated, Literal

from pydantic import Field, model_validator

from cl_softcot.additions import ADDED_LATER
from cl_softcot.errors import UserError
from cl_softcot.tasks._fields import Fields, no_field
from cl_softcot.tasks._judging import AnswerKind, Choices, Numbers, Words
from cl_softcot.tasks._sources import hub_commit, hub_records, hub_splits
from cl_softcot.tasks._tables import DataRow, DataRows, Fault, read_records, refuse
from cl_softcot.tasks.base import SPLITS, Example, Split, Task, TaskSettings, Verdict, split_of


class Settings(TaskSettings):
    path: str | None = Field(
        None,
        description="file with the rows: .jsonl, .json (a list), .csv, .tsv or .parquet, each also .gz; "
        "relative to where the command runs",
    )
    valid_path: str | None = Field(None, description="file of the validation split, if it is a separate one")
    test_path: str | None = Field(None, description="file of the test split, if it is a separate one")
    hub: Annotated[str | None, ADDED_LATER] = Field(
        None, min_length=1, description="in place of `path`: id of a data set on the hub, only its plain data"
    )
    config: Annotated[str | None, ADDED_LATER] = Field(None, description="configuration of the data set on the hub")
    hub_split: Annotated[dict[Split, str] | None, ADDED_LATER] = Field(
        None,
        min_length=1,
        description="which of its splits is train, valid and test (null: those called so, or usually so); "
        "what it has not is cut off train by a hash",
    )
    revision: Annotated[str | None, ADDED_LATER] = Field(
        None,
        min_length=1,
        description="commit or tag of the data set on the hub (null: the newest); the record says which it was",
    )
    question: str = Field("question", description="field that holds the question")
    steps: str | None = Field("steps", description="field that holds the steps: a list, or a text with a step a line")
    answer: str = Field("answer", description="field that holds the answer")
    kind: Annotated[Literal["words", "number", "choice"], ADDED_LATER] = Field(
        "words", description="how answers are compared; choice: yes or no"
    )
    split_field: str | None = Field(None, description="field that says train, valid or test (or training, val, dev, ...)")
    family: str = Field("local", description="family that retention counts the task to")

    @model_validator(mode="after")
    def _one_source(self) -> Settings:
        if (self.path is None) == (self.hub is None):
            raise ValueError("name the data by `path` (a file) or by `hub` (a data set of the hub), one of the two")
        for name in ("config", "hub_split", "revision") if self.hub is None else ():
            if getattr(self, name) is not None:
                raise ValueError(f"`{name}` is of a data set on the hub: it needs `hub`")
        for split in ("valid", "test"):
            if getattr(self, f"{split}_path") is not None and split in (self.hub_split or {}):
                raise ValueError(f"the {split} split is named twice: by `{split}_path` and in `hub_split`")
        named = list((self.hub_split or {}).values())
        if len(set(named)) < len(named):
            raise ValueError("`hub_split` names one split of the hub for two of ours: no question may stand in both")
        return self

    def is_here(self) -> bool:
        return self.hub is None


@dataclass
class LeftOut:
    """How many rows there were, and the places of those that are no examples."""

    read: int = 0
    duplicates: list[str] = listed(default_factory=list)  # the question was there before, with the same answer
    conflicts: list[str] = listed(default_factory=list)  # the question has several answers
    empty: list[str] = listed(default_factory=list)  # no question or no answer
    leaks: list[str] = listed(default_factory=list)  # the question also stands in another split, which keeps it

    def __str__(self) -> str:
        kinds = {
            "duplicates": self.duplicates,
            "conflicts (same question, another answer)": self.conflicts,
            "empty": self.empty,
            "that another split has too": self.leaks,
        }
        return ", ".join(f"{len(places)} {name}{_some(places)}" for name, places in kinds.items())


def _some(places: Sequence[str]) -> str:
    return f" [{', '.join(places[:3])}{', ...' if len(places) > 3 else ''}]" if places else ""


@dataclass(frozen=True)
class _Row:
    """A row that is an example, or ``empty``: without a question or an answer. ``gold``: the answer as the judge compares it;
    ``stated``: the split that it says it is of."""

    example: Example
    where: str
    gold: str
    stated: Split | None
    empty: Fault | None = None


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
                f"task {self.name!r} has {len(rows)} {split} examples, {n} are asked for ({self.about()})",
                where=self._place_of(split),
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

    def _answers(self, gold: str) -> AnswerKind:
        if self.settings.kind == "number":
            return Numbers()
        return Choices("Yes", "No") if self.settings.kind == "choice" else Words(gold)

    def count(self, split: Split) -> int:
        return len(self._by_split[split])

    def at_hand(self) -> bool:
        return self.settings.is_here()

    def about(self) -> str:
        n = {split: len(self._by_split[split]) for split in SPLITS}
        left, s = self._read[1], self.settings
        line = f"{left.read} rows: {n['train']} train, {n['valid']} valid, {n['test']} test; left out: {left}"
        if s.hub is None:
            return line
        commits = {hub_commit(s.hub, s.config, name, s.revision) for name in self._hub_splits.values()}
        told = (
            f"commit {' and '.join(sorted(filter(None, commits)))}" if any(commits) else f"revision {s.revision or 'not known'}"
        )
        return f"{line}; from the hub: {s.hub}{f'/{s.config}' if s.config else ''}, {told}"

    # --------------------------------------------------------------------------------------------------- sources

    @cached_property
    def _hub_splits(self) -> dict[Split, str]:
        """Our splits that the data set on the hub has, and what it calls them."""
        s = self.settings
        assert s.hub is not None
        if s.hub_split is not None:
            return s.hub_split
        own = {split for split in SPLITS if split != "train" and getattr(s, f"{split}_path")}
        found = hub_splits(s.hub, s.config, s.revision)
        return {split: name for split, name in found.items() if split not in own and not (s.split_field and split != "train")}

    def _sources(self) -> Iterator[tuple[Split | None, DataRows]]:
        """Test and valid where they are separate, then the rest (None), which is what training comes from."""
        s = self.settings
        for split, path in (("test", s.test_path), ("valid", s.valid_path), (None, s.path)):
            name = self._hub_splits.get(split or "train") if s.hub is not None else None  # type: ignore[call-overload]
            if path is not None:
                yield split, read_records(path)  # type: ignore[misc]
            elif name is not None and s.hub is not None:
                yield split, hub_records(s.hub, s.config, name, s.revision)  # type: ignore[misc]

    def _place_of(self, split: Split) -> str:
        s = self.settings
        return {"train": s.path, "valid": s.valid_path, "test": s.test_path}[split] or s.path or f"{s.hub}"

    @property
    def _own(self) -> set[Split]:
        """The splits that stand apart from the rest."""
        s = self.settings
        paths: dict[Split, str | None] = {"valid": s.valid_path, "test": s.test_path}
        own = {split for split, path in paths.items() if path}
        return own | ({*self._hub_splits} - {"train"} if s.hub is not None else set())

    # ------------------------------------------------------------------------------------------------------ rows

    @property
    def _by_split(self) -> dict[Split, list[Example]]:
        return self._read[0]

    @cached_property
    def _read(self) -> tuple[dict[Split, list[Example]], LeftOut]:
        """The examples of each split, and what became of the rows that are none. UserError for all that is wrong."""
        found: dict[Split, list[_Row]] = {split: [] for split in SPLITS}
        left, problems, own = LeftOut(), [], self._own
        for split, records in self._sources():
            rows, wrong = self._rows(records, self.settings.split_field if split is None else None)
            full = [row for row in rows if row.empty is None]
            if not (full or wrong):  # then the fields are not what was meant
                wrong = [row.empty for row in rows if row.empty] or [Fault("the file is empty", records.head)]
            problems += sorted(wrong, key=lambda problem: problem.line)
            left.read += len(rows)
            left.empty += [row.where for row in rows if row.empty]
            for row in full:
                hashed = split_of("local", question_key(row.example.question))
                where = split or row.stated or ("train" if len(own) == 2 else hashed)
                found["train" if split is None and where in own else where].append(row)
        refuse(problems, self.name)
        return self._distinct(found, left), left

    def _distinct(self, found: dict[Split, list[_Row]], left: LeftOut) -> dict[Split, list[Example]]:
        """Each question once. One with several answers has none that could be trusted, wherever they stand. One that stands in
        two splits would be a leak: test keeps it, then valid, and training goes without."""
        answers: dict[str, set[str]] = {}
        for row in (row for rows in found.values() for row in rows):
            answers.setdefault(question_key(row.example.question), set()).add(row.gold)
        kept: dict[Split, list[Example]] = {split: [] for split in SPLITS}
        holder: dict[str, Split] = {}
        for split in ("test", "valid", "train"):
            for row in found[split]:
                key = question_key(row.example.question)
                if len(answers[key]) > 1:
                    left.conflicts.append(row.where)
                elif key not in holder:
                    kept[split].append(replace(row.example, id=f"{self.name}/{split}/{row.example.id}"))
                    holder[key] = split
                elif holder[key] == split:
                    left.duplicates.append(row.where)
                else:
                    left.leaks.append(row.where)
        return kept

    def _rows(self, records: DataRows, split_field: str | None) -> tuple[list[_Row], list[Fault]]:
        """The rows of a file or a split of the hub, and all that is wrong with it."""
        s, problems = self.settings, list(records.problems)
        fields = {"question": s.question, "steps": s.steps, "answer": s.answer, "split_field": split_field}
        if records.columns is not None:  # said once, not of every row
            lacks = {key: name for key, name in fields.items() if name is not None and name not in records.columns}
            if lacks:
                return [], problems + [no_field(name, key, records.columns, records.head, 1) for key, name in lacks.items()]
        rows = (self._row(record, split_field, problems) for record in records.found)
        return [row for row in rows if row is not None], problems

    def _row(self, record: DataRow, split_field: str | None, problems: list[Fault]) -> _Row | None:
        """A record as an example that is called by its number. None where it added to ``problems``."""
        s, fields, before = self.settings, Fields(record, problems), len(problems)
        question, answer = fields.text(s.question, "question"), fields.text(s.answer, "answer")
        steps = fields.steps(s.steps) if s.steps else ()
        split = fields.split(split_field) if split_field else None
        if split is not None and split in self._own:
            fix = f"drop `{split}_path`, or take the row out" if s.hub is None else "take the row out"
            fields.wrong(f"the row says {split!r}, but that split has a file of its own", fix)
        gold = self._read_in_gold(answer) if answer else ""
        if answer and gold is None:
            self._say_unreadable(fields, answer)
        if len(problems) > before or question is None or answer is None or gold is None or steps is None:
            return None
        meta = {"family": s.family, "hops": len(steps)}
        example = Example(str(record.number), self.name, question, steps, answer, meta)
        if question and answer:
            return _Row(example, record.where, gold, split)
        text = f"field {s.answer if question else s.question!r} should be a text or a number (it is empty)"
        return _Row(example, record.where, gold, split, Fault(text, record.where, line=record.line))

    def _read_in_gold(self, answer: str) -> str | None:
        """A gold answer as the judge compares it; None where it could never count as right."""
        read = self._answers(answer).strict(f"### {answer}")
        if read is None or self.settings.kind != "words":
            return read
        return read if "\n" not in answer and Words(answer).same(read) else None

    def _say_unreadable(self, fields: Fields, answer: str) -> None:
        kind = self.settings.kind
        if kind != "words":
            fix = "correct it, or compare words: `kind: words`"
            return fields.wrong(f"the answer {answer!r:.60} is no {kind} that can be read", fix)
        why = "has several lines" if "\n" in answer else "cannot be read behind `###`"
        fields.wrong(
            f"the answer {answer!r:.60} {why}, so that it could never count as right", "correct it, or leave the row out"
        )


def question_key(question: str) -> str:
    """What makes two rows the same question: its words, whatever their case and spacing."""
    return " ".join(question.casefold().split())
