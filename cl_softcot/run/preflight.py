"""Before anything is computed: every example is put into tokens as every method will, and its gold answer is judged.

What would stop a run after hours stops the experiment at its start, with one error that names the example: a context that is
too short, a word that a tokenizer cannot write, a template that loses a thought, an answer that the task's own judge does not
take for right, too few rows.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from cl_softcot.answering.readings import in_both
from cl_softcot.config.experiment import Experiment
from cl_softcot.errors import UserError
from cl_softcot.models.assistant import AssistantStates
from cl_softcot.models.language_model import LanguageModel
from cl_softcot.reasoning.base import Phase
from cl_softcot.reasoning.cot import Cot
from cl_softcot.tasks.base import Example, SyntheticTask, Task


@dataclass(frozen=True)
class _Way:
    """One way of putting examples into tokens, and the first method that uses it."""

    method: str
    reasoning: Any
    phases: tuple[Phase, ...]  # the first and the last of training; none if nothing is trained
    slots: int | None  # placeholders in the assistant's prompt; None: it reads none


def check_examples(
    config: Experiment,
    backbone: LanguageModel,
    assistant: LanguageModel | None,
    retention: Sequence[Task],
    data_seed: int,
) -> None:
    """Looks at all examples of all tasks and splits, by every method, at its first and its last stage.

    Of generated families the training examples of the first seed stand for those of the others.

    Raises:
        UserError: for the first example that something is wrong with.
    """
    states = AssistantStates(assistant) if assistant is not None else None
    ways = list(_ways(config, backbone))
    evaluate = config.evaluate
    for task in (entry.make() for entry in config.tasks):
        for split, examples in _sets(config, task, data_seed):
            _check(backbone, states, task, split, examples, ways, evaluate.max_new_tokens)
    if evaluate.retention:
        for task in retention:
            examples = task.examples(evaluate.split, evaluate.retention, data_seed)
            _check(backbone, states, task, evaluate.split, examples, ways, evaluate.max_new_tokens)


def _ways(config: Experiment, backbone: LanguageModel) -> Iterator[_Way]:
    """Methods that put examples into the same tokens are one way; plain chain of thought, the base's, is always among them."""
    cot = Cot()
    yield _Way("the base", cot, (), None)
    seen = set()
    for method in config.methods:
        settings, trains = method.reasoning.settings, method.strategy.cls.trains
        kind = method.reasoning.cls
        key = (kind, settings.model_dump_json(), trains)
        if key in seen:
            continue
        seen.add(key)
        reasoning = kind(settings)
        backbone.name_tokens(kind.tokens)
        phases = reasoning.phases(config.train_for(method).steps) if trains else []
        slots = kind.assistant_use(settings).slots if kind.needs_assistant(settings) else None
        chosen = tuple(dict.fromkeys([phases[0], phases[-1]])) if phases else ()
        yield _Way(f"method {method.name}", reasoning if kind.encodes_unbuilt else cot, chosen, slots)


def _sets(config: Experiment, task: Task, data_seed: int) -> Iterator[tuple[str, list[Example]]]:
    evaluate = config.evaluate
    budgets = {config.train_for(m).examples for m in config.methods if m.strategy.cls.trains}
    known: dict[tuple[Any, ...], Example] = {}
    for n in budgets:
        for seed in config.seeds[:1] if isinstance(task, SyntheticTask) else config.seeds:
            known.update(((e.question, e.steps, e.answer), e) for e in task.examples("train", n, seed))
    yield "train", list(known.values())
    yield evaluate.split, task.examples(evaluate.split, evaluate.test, data_seed)
    if evaluate.drift:
        yield "valid", task.examples("valid", evaluate.drift, data_seed)


def _check(
    backbone: LanguageModel,
    states: AssistantStates | None,
    task: Task,
    split: str,
    examples: Sequence[Example],
    ways: Sequence[_Way],
    max_new_tokens: int,
) -> None:
    text, rng = backbone.text, random.Random(0)
    for example in examples:
        for way in ways:
            with_error = _named(task, split, example, way)
            if split == "train":
                for phase in way.phases:
                    with_error(lambda: way.reasoning.encode(text, example, phase, rng))  # noqa: B023
                continue
            phase = replace(way.reasoning.final_phase(), answering=True)
            prefix = with_error(lambda: way.reasoning.encode(text, example, phase, rng)).prefix_ids  # noqa: B023
            with_error(lambda: text.check_fits(example.id, len(prefix), max_new_tokens))  # noqa: B023
        for way in ways:
            if way.slots is not None and states is not None:
                _named(task, split, example, way)(lambda: _check_assistant(states, example, way))  # noqa: B023
        _named(task, split, example, ways[0])(lambda: _check_judge(backbone, task, example))  # noqa: B023


def _check_assistant(states: AssistantStates, example: Example, way: _Way) -> None:
    prompt = states.prompt_ids(example.question, way.reasoning.instruction)
    states.assistant.text.check_fits(example.id, len(prompt), way.slots or 0)


def _check_judge(backbone: LanguageModel, task: Task, example: Example) -> None:
    """What is trained on has to count as right."""
    written = backbone.text.decode(backbone.text.target_ids(example.steps, example.answer))
    for reading, verdict in in_both(task, example, written).items():
        if verdict["outcome"] != "right":
            raise UserError(
                f"its gold answer {example.answer!r} is judged {verdict['outcome']} when it is written out ({written[-80:]!r}"
                f"{'' if reading == 'strict' else ', flexible reading'})",
                fix="Correct the row, or choose the answer's form in the task's settings.",
            )


def _named(task: Task, split: str, example: Example, way: _Way) -> Callable[[Callable[[], Any]], Any]:
    """Runs something; an error of it is told with the example's and the method's name."""

    def run(work: Callable[[], Any]) -> Any:
        try:
            return work()
        except UserError as error:
            place = f"task {task.name}, {split} example {example.id}, {way.method}"
            raise UserError(error.message, where=place, fix=error.fix) from None

    return run
