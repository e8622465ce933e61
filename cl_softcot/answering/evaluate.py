"""Measuring a policy: every probe answered in batches, judged, written to disk; one row of everything that is reported.

A *row* is what is known after an experience: accuracy on every task of the stream (a row of R), retention of the base's own
families and drift from the base, each as used (with all that the method brings) and with the weights alone (plain CoT).
Row 0 is the base. What a policy answers does not change while its fingerprint for that question does not: such answers
are taken over, not computed again (unseen tasks of a per-task method, frozen weights alone).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from cl_softcot.answering.counting import Counting, Told
from cl_softcot.answering.policy import BasePolicy, Policy
from cl_softcot.answering.readings import as_read, in_both, other_than
from cl_softcot.errors import UserError
from cl_softcot.files import dump_json, read_json, read_jsonl, sha256_of
from cl_softcot.machine import processes
from cl_softcot.machine.lanes import working_seconds
from cl_softcot.metrics.cost import cost_per_answer
from cl_softcot.metrics.drift import DriftReference, drift, written_ids
from cl_softcot.metrics.intervals import bootstrap_interval
from cl_softcot.metrics.retention import retention
from cl_softcot.results.checksums import Checksums
from cl_softcot.results.folder import RunFolder, SharedFolder
from cl_softcot.tasks.base import Example, Task

Prediction = dict[str, Any]
GENERAL = "general"
_NO_DRIFT: dict[str, dict[str, Any]] = {"as_used": {}, "weights_alone": {}}
DATA_SEED = 0  # test and validation examples are the same for every method, order and seed: differences are paired


@dataclass(frozen=True)
class Probe:
    """A set of examples that are answered and judged together: a task of the stream, or a family of the base's own."""

    kind: str  # "task" or "retention"
    task: Task
    examples: list[Example]

    @property
    def name(self) -> str:
        return self.task.name


@dataclass
class Answers:
    """Answers that are already known: (policy fingerprint, kind of probe, example) -> prediction."""

    known: dict[tuple[str | None, str, str], Prediction] = field(default_factory=dict)

    def remember(self, predictions: Iterable[Prediction]) -> None:
        self.known.update({(p["policy"], p["set"], p["id"]): p for p in predictions})

    def remember_file(self, path: Path) -> None:
        self.remember(processes.from_main(lambda: read_jsonl(path, missing_ok=True)))

    def get(self, fingerprint: str | None, probe: Probe, example: Example) -> Prediction | None:
        return self.known.get((fingerprint, probe.kind, example.id))


def answer(
    policy: Policy, probes: Sequence[Probe], answers: Answers, max_new_tokens: int, reading: str = "strict"
) -> list[list[Prediction]]:
    """Every example of each probe answered by the policy and judged; known answers are taken over.

    What is missing of all probes is answered together: with the last answers of one begin those of the next.

    Args:
        reading: the headline, whose verdict is a prediction's ``outcome`` and ``answer``; ``readings`` holds both.
    """
    asked = [(probe, example, policy.fingerprint_for(example)) for probe in probes for example in probe.examples]
    known = [answers.get(fingerprint, probe, example) for probe, example, fingerprint in asked]
    missing = [i for i, prediction in enumerate(known) if prediction is None]
    new: dict[int, Prediction] = {}
    if missing:
        generations = policy.generate([asked[i][1] for i in missing], max_new_tokens)
        for i, generation in zip(missing, generations, strict=True):
            probe, example, fingerprint = asked[i]
            new[i] = _prediction(probe, example, generation, fingerprint, reading)
    found = [
        new[i] if kept is None else as_read(kept, probe.task, example, reading)
        for i, (kept, (probe, example, _)) in enumerate(zip(known, asked, strict=True))
    ]
    answers.remember(found)
    in_order = iter(found)
    return [[next(in_order) for _ in probe.examples] for probe in probes]


def _prediction(probe: Probe, example: Example, generation: Any, fingerprint: str | None, reading: str = "strict") -> Prediction:
    readings = in_both(probe.task, example, generation.text)
    return {
        "set": probe.kind,
        "task": probe.name,
        "id": example.id,
        "question": example.question,
        "gold": example.answer,
        "answer": readings[reading]["answer"],
        "outcome": readings[reading]["outcome"],
        "readings": readings,
        "text": generation.text,
        "tokens": generation.n_tokens,
        "forward_passes": generation.forward_passes,
        "policy": fingerprint,
        "meta": {k: v for k, v in example.meta.items() if isinstance(v, str | int)},
    }


def accuracy_of(predictions: Sequence[Prediction], reading: str | None = None) -> float:
    """In one of the readings; None: the headline."""
    if not predictions:
        raise ValueError("nothing was answered: an accuracy of no examples is not 0")
    return sum(_right(predictions, reading)) / len(predictions)


def _right(predictions: Sequence[Prediction], reading: str | None = None) -> list[bool]:
    return [_outcome(p, reading) == "right" for p in predictions]


def _unanswered(predictions: Sequence[Prediction], reading: str | None = None) -> int:
    return sum(_outcome(p, reading) == "unanswered" for p in predictions)


def _outcome(prediction: Prediction, reading: str | None) -> str:
    return (prediction if reading is None else prediction["readings"][reading])["outcome"]


class Evaluator:
    """Measures rows of one experiment. ``base`` is the base's plain-CoT policy; ``shared`` the experiment's folder of what is
    the same for every method (see ``measure_base``); ``assistant`` the fingerprint of the experiment's assistant."""

    def __init__(
        self,
        settings: Any,
        tasks: Sequence[Task],
        families: Sequence[Task],
        general: Sequence[Example],
        base: BasePolicy,
        assistant: str | None = None,
    ):
        self.settings = settings
        self.assistant = assistant
        n = {"task": settings.test, "retention": settings.retention}
        self.tasks = [Probe("task", t, t.examples(settings.split, n["task"], DATA_SEED)) for t in tasks]
        self.families = [
            Probe("retention", t, t.examples(settings.split, n["retention"], DATA_SEED)) for t in families if n["retention"]
        ]
        clash = {p.name for p in self.tasks} & {p.name for p in self.families}
        if clash:
            raise UserError(
                f"the task {sorted(clash)[0]!r} is called like a family that retention is measured on",
                fix="give the task another name; its kind stays in `task:`",
            )
        self.stream_families = {t.family for t in tasks}
        self.base = base
        self.answers = Answers()
        self._sets = {p.name: p.task.examples("valid", settings.drift, DATA_SEED) for p in self.tasks if settings.drift}
        if general and settings.drift:
            self._sets = {GENERAL: list(general), **self._sets}
        self._references: list[DriftReference] = []

    @property
    def same_family(self) -> list[str]:
        """Retention's sets that are of a family of the stream: by what they are, whatever they are called."""
        return [probe.name for probe in self.families if probe.task.family in self.stream_families]

    # ------------------------------------------------------------------------------------------------- the base

    def measure_base(self, shared: Path, tell: Told = lambda *_: None) -> None:
        """Answers everything as the base does and keeps it in ``shared``: done once, used by every method.

        Args:
            tell: what is answered now, how many of how many, and what share of all is done.

        Raises:
            UserError: if it was done there before, with another base or on other data, and only its record was lost.
        """
        place, sums = SharedFolder(shared), Checksums(shared)
        record = dump_json(self._base_record(), indent=2) + "\n"
        processes.from_main(lambda: self._refuse_other_base(sums, record))
        # One after the other: what is kept of a set on disk serves every experiment that has it.
        probes = (*self.tasks, *self.families)
        counting = Counting(sum(len(p.examples) for p in probes) + sum(map(len, self._sets.values())), tell)
        predictions: list[Prediction] = []
        for probe in probes:
            with counting.answering(f"{probe.name} ({probe.kind})", len(probe.examples)):
                predictions += self._answer(self.base, [probe])[probe.name]
        continuations = {}
        for name, examples in self._sets.items():
            with counting.answering(f"{name} (drift)", len(examples)):
                continuations[name] = written_ids(self.base, examples, self.settings.max_new_tokens)

        def write() -> None:
            _write_predictions(sums, place.answers, predictions)
            sums.write_text(place.continuations, dump_json(continuations) + "\n")
            sums.write_text(place.base, record)  # last: without it the base was not measured

        processes.from_main(write)

    def _refuse_other_base(self, sums: Checksums, record: str) -> None:
        path = SharedFolder(sums.folder).base
        if not sums.matches(path, record):
            raise UserError(
                "this folder was begun with other data or other models (the checksum of their record tells, which is lost)",
                where=str(path),
                fix="keep both with output_dir=ANOTHER, or throw the earlier one away with --restart",
            )

    def has_measured_base(self, shared: Path) -> bool:
        """Whether ``measure_base`` did its work there, with this base and on these data, and all of it is there and whole.

        Raises:
            UserError: if it did, but with others: numbers of the two must not stand beside each other.
        """
        path, wanted = SharedFolder(shared).base, self._base_record()
        known = processes.from_main(lambda: _record_or_none(Checksums(shared), path))
        if known is None:
            return False
        if "assistant" not in known:  # a folder from before this was kept
            wanted.pop("assistant", None)
        differs = [name for name in {**wanted, **known} if known.get(name) != wanted.get(name)]
        if differs:
            raise UserError(
                f"this folder was begun with other data or other models (what differs: {', '.join(differs)})",
                where=str(path),
                fix="keep both with output_dir=ANOTHER, or throw the earlier one away with --restart",
            )
        # Runs that were taken over from kept results bring the record, and not the answers.
        return processes.from_main(lambda: self._base_is_whole(SharedFolder(shared), Checksums(shared)))

    def _base_is_whole(self, place: SharedFolder, sums: Checksums) -> bool:
        """Whether answers and continuations are there as they were written; without checksums, whether nothing lacks in them."""
        paths = (place.answers, place.continuations)
        if not all(path.exists() for path in paths) or any(sums.changed(path) for path in paths):
            return False
        if all(sums.knows(path) for path in paths):
            return True
        try:
            answered = {(p["set"], p["task"], p["id"]) for p in read_jsonl(place.answers)}
            written = read_json(place.continuations)
            asked = {(p.kind, p.name, e.id) for p in (*self.tasks, *self.families) for e in p.examples}
            return asked <= answered and all(len(written[name]) == len(found) for name, found in self._sets.items())
        except (UserError, KeyError, TypeError):
            return False

    def _base_record(self) -> dict[str, Any]:
        """What must not change under a folder: the models, how the base writes, and every set of examples."""
        sets = [(f"{p.kind} {p.name}", p.examples) for p in (*self.tasks, *self.families)]
        sets += [(f"drift {name}", examples) for name, examples in self._sets.items()]
        written = {"max_new_tokens": self.settings.max_new_tokens, "batch_size": self.settings.batch_size}
        assistant = {"assistant": self.assistant} if self.assistant else {}
        models = {"base": self.base.fingerprint, **assistant}
        return {**models, **written, **{name: _hash_of(examples) for name, examples in sets}}

    def load_base(self, shared: Path) -> None:
        """Takes over what ``measure_base`` found."""
        self.answers.remember_file(SharedFolder(shared).answers)
        continuations = processes.from_main(lambda: read_json(SharedFolder(shared).continuations))
        self._references = [
            DriftReference.build(name, self.base, examples, self.settings.max_new_tokens, continuations[name])
            for name, examples in self._sets.items()
        ]

    # --------------------------------------------------------------------------------------------------- a row

    def row(self, index: int, policy: Policy, alone: Policy, folder: Path) -> dict[str, Any]:
        """Everything that is measured after experience ``index`` (0: before the first). Predictions go to ``folder``.

        ``policy`` is the method as used; ``alone`` a policy of its bare weights in plain CoT.
        """
        started = working_seconds()
        whole = index % self.settings.every == 0 or index == len(self.tasks)
        families = self.families if whole else []
        answered = self._answer(policy, [*self._asked(index), *families])
        kept = {probe.name: answered.pop(probe.name) for probe in families}
        used, bare = answered, self._answer(alone, families)
        written = [*used.values(), *kept.values()]
        processes.from_main(lambda: _write_row(RunFolder(folder), index, written, list(bare.values())))
        row = {
            "row": index,
            "accuracy": self._accuracies(used),
            "retention": {"as_used": self._retention(kept), "weights_alone": self._retention(bare)},
            "drift": self._drifts(policy, alone) if whole else dict(_NO_DRIFT),
            "cost": cost_per_answer([_Cost(p["tokens"], p["forward_passes"]) for ps in used.values() for p in ps]),
            "other_reading": self._read_otherwise(used, kept, bare),
        }
        routing = self._routing(policy)
        if routing:
            row["routing"] = routing
        row["evaluate_seconds"] = working_seconds() - started
        return row

    def _asked(self, index: int) -> list[Probe]:
        """The tasks' examples that are answered in a row. What transfer is made of is whole: a task's last row before its turn,
        its first one after it, and the last row of all."""
        some, last = self.settings.between, len(self.tasks)
        if some is None or index in (0, last):
            return self.tasks
        whole = (index - 1, index)
        return [p if j in whole else replace(p, examples=p.examples[:some]) for j, p in enumerate(self.tasks)]

    def untrained(self, policy: Policy) -> dict[str, list[Any]]:
        """The base in the method's own mode (its thoughts and prompts, nothing learned yet), a task each: ``untrained``, its
        accuracies; ``untrained_unanswered``, counts; and with ``_otherwise`` the same in the other reading."""
        # Not remembered: a run that goes on later does not know them, and answers the rest in the same company as one that does.
        known = Answers(dict(self.answers.known))
        found = answer(policy, self.tasks, known, self.settings.max_new_tokens, self.settings.reading)
        readings = (("untrained", self.settings.reading), ("untrained_otherwise", other_than(self.settings.reading)))
        row: dict[str, list[Any]] = {}
        for name, reading in readings:
            row[name] = [accuracy_of(answered, reading) for answered in found]
            row[name.replace("untrained", "untrained_unanswered")] = [_unanswered(answered, reading) for answered in found]
        return row

    def _answer(self, policy: Policy, probes: Sequence[Probe]) -> dict[str, list[Prediction]]:
        """By the probes' names, which are all different."""
        answered = answer(policy, probes, self.answers, self.settings.max_new_tokens, self.settings.reading)
        return {probe.name: predictions for probe, predictions in zip(probes, answered, strict=True)}

    def _accuracies(self, used: Mapping[str, list[Prediction]]) -> dict[str, Any]:
        keys = {probe.name: probe.task.breaks_down_by for probe in self.tasks}
        return {**self._scores(used), "by": {name: _broken_down(predictions, keys[name]) for name, predictions in used.items()}}

    def _scores(self, used: Mapping[str, list[Prediction]], reading: str | None = None) -> dict[str, Any]:
        return {
            "values": [accuracy_of(predictions, reading) for predictions in used.values()],
            "n": [len(predictions) for predictions in used.values()],
            "intervals": [
                list(bootstrap_interval(_right(predictions, reading), self.settings.bootstrap)) for predictions in used.values()
            ],
            "unanswered": [_unanswered(predictions, reading) for predictions in used.values()],
        }

    def _retention(self, answered: Mapping[str, list[Prediction]], reading: str | None = None) -> dict[str, Any] | None:
        if not answered:
            return None
        outcomes = {probe.name: _right(answered[probe.name], reading) for probe in self.families}
        unanswered = {probe.name: _unanswered(answered[probe.name], reading) for probe in self.families}
        return {**retention(outcomes, self.same_family, self.settings.bootstrap), "unanswered": unanswered}

    def _read_otherwise(
        self, used: Mapping[str, list[Prediction]], kept: Mapping[str, list[Prediction]], bare: Mapping[str, list[Prediction]]
    ) -> dict[str, Any]:
        """The row in the reading that is not the headline."""
        reading = other_than(self.settings.reading)
        retention = {"as_used": self._retention(kept, reading), "weights_alone": self._retention(bare, reading)}
        return {"reading": reading, "accuracy": self._scores(used, reading), "retention": retention}

    def _drifts(self, policy: Policy, alone: Policy) -> dict[str, dict[str, Any]]:
        """Of both ways of answering, which are one where a method brings nothing but its weights and answers in plain CoT."""
        used = self._drift(policy)
        examples = [example for reference in self._references for example in reference.examples]
        same = all(policy.fingerprint_for(example) == alone.fingerprint_for(example) for example in examples)
        return {"as_used": used, "weights_alone": dict(used) if same else self._drift(alone)}

    def _drift(self, policy: Policy) -> dict[str, Any]:
        return drift(policy, self.base, self._references, max_new_tokens=self.settings.max_new_tokens)

    def _routing(self, policy: Policy) -> dict[str, Any] | None:
        """Where a per-task method sends the questions of each probe: {probe: {route: share}}; 'base' where nobody claims it."""
        if not policy.routed:
            return None
        shares: dict[str, Any] = {}
        for probe in (*self.tasks, *self.families):
            routes = [r or "base" for r in policy.routes(probe.examples)]
            label = probe.name if probe.kind == "task" else f"retention/{probe.name}"
            shares[label] = {r: routes.count(r) / len(routes) for r in sorted(set(routes))}
        return shares


@dataclass(frozen=True)
class _Cost:
    n_tokens: int
    forward_passes: int


def _broken_down(predictions: Sequence[Prediction], keys: Sequence[str]) -> dict[str, list[float]]:
    """Accuracy and n by what the task breaks its results down by: {"hops=2": [accuracy, n]}."""
    groups: dict[str, list[bool]] = {}
    for p in predictions:
        for key in keys:
            if key in p["meta"]:
                groups.setdefault(f"{key}={p['meta'][key]}", []).append(p["outcome"] == "right")
    return {name: [sum(right) / len(right), len(right)] for name, right in sorted(groups.items())}


def _hash_of(examples: Sequence[Example]) -> str:
    return sha256_of(dump_json([[e.id, e.question, list(e.steps), e.answer] for e in examples]).encode())


def _write_row(folder: RunFolder, index: int, used: Sequence[list[Prediction]], bare: Sequence[list[Prediction]]) -> None:
    sums = Checksums(folder.path)
    _write_predictions(sums, folder.answers(index), [p for predictions in used for p in predictions])
    if bare and index:
        _write_predictions(sums, folder.answers_alone(index), [p for predictions in bare for p in predictions])


def _write_predictions(sums: Checksums, path: Path, predictions: Sequence[Prediction]) -> None:
    sums.write_text(path, "".join(dump_json(p) + "\n" for p in predictions))


def _record_or_none(sums: Checksums, path: Path) -> dict[str, Any] | None:
    """``base.json``; None where it is missing, torn or was changed."""
    try:
        known = None if sums.changed(path) else read_json(path)
    except UserError:
        return None
    return known if isinstance(known, dict) else None
