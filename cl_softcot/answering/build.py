"""Models, tasks and evaluator of an experiment: what all its runs share."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cache
from typing import Any

from cl_softcot.answering.evaluate import Evaluator
from cl_softcot.answering.policy import BasePolicy
from cl_softcot.config.experiment import Experiment
from cl_softcot.models.language_model import LanguageModel, load_language_model
from cl_softcot.registry import find
from cl_softcot.tasks.base import SyntheticTask, Task, general_text

# ------------------------------------------------------------------------------------------------ what runs share


@cache
def _model(settings: str) -> LanguageModel:
    """Loaded once a process; runs train copies."""
    arguments = json.loads(settings)
    return load_language_model(arguments.pop("path"), **arguments)


def load_models(config: Experiment) -> tuple[LanguageModel, LanguageModel | None]:
    """Backbone and assistant, never changed by anybody."""
    found = [model and _model(model.model_dump_json()) for model in (config.backbone, config.assistant)]
    return found[0], found[1]


def make_tasks(config: Experiment, order: str) -> list[Task]:
    """The tasks of the stream, in the order of the run."""
    return [task.make() for task in config.tasks_in(order)]


def retention_tasks(config: Experiment, backbone: LanguageModel) -> list[Task]:
    """What the base's own abilities are measured on: as configured, or the families that the backbone was made with."""
    if config.evaluate.retention_tasks is not None:
        return [task.make() for task in config.evaluate.retention_tasks]
    return _families_of(backbone)


def general_examples(config: Experiment, backbone: LanguageModel) -> list[Any]:
    """Prompts like those that the backbone was pretrained on, where that is known."""
    if not (config.evaluate.general_text and config.evaluate.drift):
        return []
    generated = [task for task in _families_of(backbone) if isinstance(task, SyntheticTask)]
    return general_text(generated, config.evaluate.drift, 0) if generated else []


def _families_of(backbone: LanguageModel) -> list[Task]:
    """The tasks that a backbone was made with, as the file beside its weights names them."""
    families = (backbone.marker or {}).get("families", {})
    kinds = {family: find("task", name) for family, name in families.items()}
    return [kind(kind.Settings(), family) for family, kind in kinds.items()]


def make_evaluator(config: Experiment, tasks: Sequence[Task]) -> Evaluator:
    backbone, assistant = load_models(config)
    base = BasePolicy(backbone, batch_size=config.evaluate.batch_size, cached=True)
    families, general = retention_tasks(config, backbone), general_examples(config, backbone)
    return Evaluator(config.evaluate, tasks, families, general, base, assistant and assistant.fingerprint)
