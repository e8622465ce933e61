"""What is the same for every run of an experiment: the base's answers and continuations."""

from __future__ import annotations

from pathlib import Path

from cl_softcot.answering.build import load_models, make_evaluator, retention_tasks
from cl_softcot.answering.evaluate import DATA_SEED
from cl_softcot.config.experiment import Experiment
from cl_softcot.config.plan import Tell
from cl_softcot.machine import processes
from cl_softcot.machine.exact import make_exact, memory_explained
from cl_softcot.run.preflight import check_examples


def measure_base(config: Experiment, shared: Path, report: Tell) -> dict[str, str]:
    """What is the same for every run: the base's answers and continuations, on all tasks (an order may leave some out). Done
    once an experiment, after a look at every example.

    Returns:
        What the tasks say of the rows that their data hold (``Task.about``), by the task's name.

    Raises:
        UserError: if it was done on other data, or with another base; or if an example cannot be used.
    """
    make_exact()
    with memory_explained():
        return _measure_base(config, shared, report)


def _measure_base(config: Experiment, shared: Path, report: Tell) -> dict[str, str]:
    say = lambda phase, **more: report({"phase": phase, "aside": True, **more})  # noqa: E731
    say("loading the models")
    backbone, assistant = load_models(config)
    say("checking every example")
    families = retention_tasks(config, backbone)
    processes.from_main(lambda: check_examples(config, backbone, assistant, families, DATA_SEED))
    evaluator = make_evaluator(config, [task.make() for task in config.tasks])
    about = {probe.name: line for probe in (*evaluator.tasks, *evaluator.families) if (line := probe.task.about())}
    for name, line in about.items():
        report({"run": "", "text": f"task {name}: {line}"})
    if not evaluator.has_measured_base(shared):
        report({"text": "answering everything as the base does, once for all methods"})
        evaluator.measure_base(
            shared, lambda name, done, total, part: say(f"answering {name}", done=done, total=total, fraction=part)
        )
    return about
