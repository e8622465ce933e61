"""Does the answer follow from the written chain? Three tests of Lanham et al. 2023 (arXiv 2307.13702), without a second model.

A method's own chain is cut short, said in other words, or replaced by filler; behind it the answer's marker is put, and the
answer is read. What is compared, for the same examples, with the own chain as it was: accuracy, the share of answers that
stayed the same (right or wrong), and the probability of the gold answer's tokens.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pydantic import Field

from cl_softcot.diagnostics._numbers import by_task_and_pooled, change, level_of, mean_of
from cl_softcot.diagnostics._thoughts import Answered, answer_logps, some, thinking_of
from cl_softcot.diagnostics.base import Diagnostic, DiagnosticSettings
from cl_softcot.errors import UserError
from cl_softcot.tasks.base import Example

if TYPE_CHECKING:
    from cl_softcot.answering.evaluate import Probe
    from cl_softcot.config.settings import MethodConfig
    from cl_softcot.diagnostics.base import Subject
    from cl_softcot.models.batch import Encoded
    from cl_softcot.models.text import TextFormat
    from cl_softcot.models.writing import Generation

OWN = "own"
# What stands before the answers of all examples under each test; None where the test leaves a chain as it was.
Heads = dict[str, list[list[int] | None]]
_MORE = 8  # tokens that a forced answer may be longer than the longest gold one


class Faithfulness(Diagnostic):
    """Early termination, other words by rule, and filler tokens in place of the chain."""

    class Settings(DiagnosticSettings):
        n: int = Field(32, ge=2, description="examples a task; those without a written chain do not count")
        kept: list[float] = Field(
            [0.0, 0.25, 0.5, 0.75], description="shares of the own chain's steps that are kept, rounded down"
        )

    settings: Settings

    @classmethod
    def refuses(cls, method: MethodConfig) -> str | None:
        thinking = thinking_of(method)
        chain = Example("", "", "", ("",) * 100, "")
        if not thinking.steps_written(chain, thinking.final_phase().stage):
            return f"{method.reasoning.name} writes no steps"
        return None

    def measure(self, subject: Subject) -> dict[str, Any]:
        tasks: dict[str, Any] = {}
        found: dict[str, dict[str, Forced]] = {}
        for name in subject.learned:
            with subject.answering(name):
                tasks[name], found[name] = self._task(subject, subject.probe(name))
        kinds = dict.fromkeys(kind for forced in found.values() for kind in forced if kind != OWN)

        def pooled() -> dict[str, Any]:
            having = {kind: {t: found[t] for t in found if kind in found[t]} for kind in kinds}
            own = {t: forced[OWN].answered for t, forced in found.items() if OWN in forced}
            tests = {kind: _compared(mine, kind, subject.evaluate.bootstrap) for kind, mine in having.items()}
            return level_of(own, subject.evaluate.bootstrap) | {"tests": tests}

        return by_task_and_pooled(tasks, pooled)

    def _task(self, subject: Subject, probe: Probe) -> tuple[dict[str, Any], dict[str, Forced]]:
        text = subject.parts.backbone.text
        encoded = subject.encode(some(probe, self.settings.n))
        written = subject.write(encoded)
        chains = [own_chain(text, generation.text) for generation in written]
        usable = [i for i, steps in enumerate(chains) if steps and _readable(text, probe, steps, encoded[i])]
        counts = {"asked": len(encoded), "without_a_usable_chain": len(encoded) - len(usable)}
        if not usable:
            return counts | {"skipped": "no answer had steps in front that could be read again"}, {}
        encoded, written, chains = [encoded[i] for i in usable], [written[i] for i in usable], [chains[i] for i in usable]
        changed = self._changed(text, probe, chains)
        whole: Heads = {OWN: [text.answer_ids(steps, "")[0] for steps in chains]}
        again = _repeated(whole | changed)
        found = forced(subject, probe, encoded, whole | {k: heads for k, heads in changed.items() if k not in again})
        own, n_boot = found[OWN], subject.evaluate.bootstrap
        tests = {kind: _compared({probe.name: found}, kind, n_boot) for kind in found if kind != OWN}
        tests |= {kind: {"skipped": f"it leaves the same text as {first}"} for kind, first in again.items()}
        if "paraphrase" in tests:
            tests["paraphrase"]["rule"] = probe.task.rewording
        else:
            tests["paraphrase"] = {"skipped": _no_paraphrase(probe)}
        own_right = subject.right(probe, [e.example for e in encoded], written)
        same = [a == b for a, b in zip(own_right, own.answered.right, strict=True)]
        return counts | level_of({probe.name: own.answered}, n_boot) | {
            "steps": sum(map(len, chains)) / len(chains),
            "null": {"same_verdicts_with_the_whole_chain": sum(same) / len(same)},
            "tests": tests,
        }, found

    def _changed(self, text: TextFormat, probe: Probe, chains: Sequence[list[str]]) -> Heads:
        """What stands before the answer under each test, up to its marker; None where the test leaves a chain as it was."""
        whole = [text.answer_ids(steps, "")[0] for steps in chains]
        tests: Heads = {
            f"keep_{share:g}": [text.answer_ids(steps[: int(share * len(steps))], "")[0] for steps in chains]
            for share in self.settings.kept
        }
        tests["filler"] = [_filled(text, head) for head in whole]
        reworded = [_reworded(text, probe, steps) for steps in chains]
        if any(ids is not None for ids in reworded):
            tests["paraphrase"] = reworded
        return tests


def _repeated(tests: Heads) -> dict[str, str]:
    """Tests that are an earlier one over again, as shares of short chains are: {test: the earlier one}."""
    names = list(tests)
    return {b: a for i, b in enumerate(names) for a in reversed(names[:i]) if tests[a] == tests[b]}


def own_chain(text: TextFormat, written: str) -> list[str]:
    """The steps of a written answer: the lines before the one with the answer's marker."""
    steps = []
    for line in written.split(text.step_separator.strip(" ")):
        line = line.strip()
        if line.startswith(text.answer_marker):
            break
        steps += [line] if line else []
    return steps


def _filled(text: TextFormat, head: list[int]) -> list[int]:
    """Filler in place of all steps before the answer's marker, as many tokens as they are."""
    marker = text.answer_ids((), "")[0]
    behind = text.answer_ids((text.answer_marker,), "")[0][len(marker) :]  # with what parts it from the line before
    return text.filler_ids(max(0, len(head) - len(behind))) + behind


def _readable(text: TextFormat, probe: Probe, steps: Sequence[str], encoded: Encoded) -> bool:
    """Whether a chain can be read again as text, in any of its forms, with an answer behind."""
    try:
        lengths = [len(text.answer_ids(chain, encoded.example.answer)[0]) for chain in (steps, probe.task.reword(steps))]
    except UserError:
        return False
    answer = len(text.answer_ids((), encoded.example.answer)[1])
    return len(encoded.prefix_ids) + max(lengths) + answer + _MORE <= text.max_length


def _reworded(text: TextFormat, probe: Probe, steps: Sequence[str]) -> list[int] | None:
    new = probe.task.reword(steps)
    return None if list(new) == list(steps) else text.answer_ids(new, "")[0]


def _no_paraphrase(probe: Probe) -> str:
    if probe.task.rewording is None:
        return f"tasks of the family {probe.task.family} have no rule for other words of the same meaning"
    return f"the rule ({probe.task.rewording}) fits none of these chains"


# ---------------------------------------------------------------------------------------------------- forced answers


@dataclass
class Forced:
    """Answers behind given text. ``rows``: which of the task's examples; ``texts``: the answers alone."""

    rows: list[int]
    answered: Answered
    texts: list[str]


def forced(subject: Subject, probe: Probe, encoded: Sequence[Encoded], tests: Heads) -> dict[str, Forced]:
    """Answers behind each of ``tests``' texts (ids that end in the answer's marker), all side by side; call inside
    ``answering``.
    """
    text = subject.parts.backbone.text
    places = [(kind, i, head) for kind, heads in tests.items() for i, head in enumerate(heads) if head is not None]
    golds = [text.answer_ids((), e.example.answer)[1] for e in encoded]
    opened = [dataclasses.replace(encoded[i], prefix_ids=encoded[i].prefix_ids + head) for _, i, head in places]
    answers = subject.write(opened, limit=max(map(len, golds)) + _MORE)
    whole = [_completed(text, head, answer) for (_, _, head), answer in zip(places, answers, strict=True)]
    right = subject.right(probe, [e.example for e in opened], whole)
    told = [dataclasses.replace(encoded[i], target_ids=head + golds[i]) for _, i, head in places]
    logp = answer_logps(subject, told, [len(head) for _, _, head in places])
    found = {}
    for kind in tests:
        at = [j for j, (k, _, _) in enumerate(places) if k == kind]
        outcome = Answered([right[j] for j in at], [logp[j] for j in at])
        found[kind] = Forced([places[j][1] for j in at], outcome, [answers[j].text.strip() for j in at])
    return found


def _completed(text: TextFormat, head: list[int], answer: Generation) -> Generation:
    """The answer with the text that it was forced behind, for the judge; only its last line counts."""
    ids = [*head, *answer.ids]
    return dataclasses.replace(answer, ids=ids, text=text.decode(ids))


def _compared(tasks: dict[str, dict[str, Forced]], kind: str, n_boot: int) -> dict[str, Any]:
    """A test against the own chain, over the examples that it changes; ``same_answer``: the share of equal answers."""
    edited = {task: found[kind].answered for task, found in tasks.items()}
    own, same = {}, []
    for task, found in tasks.items():
        rows, base = found[kind].rows, found[OWN]
        own[task] = Answered([base.answered.right[i] for i in rows], [base.answered.logp[i] for i in rows])
        same.append([float(base.texts[i] == t) for i, t in zip(rows, found[kind].texts, strict=True)])
    return change(edited, own, n_boot) | {"same_answer": mean_of(same, n_boot)}
