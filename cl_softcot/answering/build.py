"""From settings to what answers: models, tasks and evaluator of an experiment, and the subject of one of its runs.

Here a config's way ends: whoever comes after is handed the subject, and takes no settings apart.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from cl_softcot.answering.evaluate import Evaluator
from cl_softcot.answering.per_task import TaskBank, make_router
from cl_softcot.answering.policy import BasePolicy, tensors_sha256
from cl_softcot.answering.subject import Subject
from cl_softcot.config.experiment import Experiment
from cl_softcot.config.plan import RunSpec
from cl_softcot.errors import UserError
from cl_softcot.learning.snapshot import load_weights
from cl_softcot.machine import processes
from cl_softcot.models.language_model import LanguageModel, load_language_model
from cl_softcot.models.text import MARKER_FILE
from cl_softcot.reasoning.base import Parts
from cl_softcot.registry import find_builtin
from cl_softcot.tasks.base import SyntheticTask, Task, general_text

# ------------------------------------------------------------------------------------------------ what runs share


@cache
def _model(settings: str) -> LanguageModel:
    """Loaded once a process; runs train copies."""
    arguments = json.loads(settings)
    return load_language_model(arguments.pop("path"), **arguments)


def load_models(config: Experiment) -> tuple[LanguageModel, LanguageModel | None]:
    """Backbone and assistant, never changed by anybody."""
    backbone = _model(config.backbone.model_dump_json())
    return backbone, _model(config.assistant.model_dump_json()) if config.assistant else None


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
    kinds = {family: find_builtin("task", name, where=f"{backbone.name}/{MARKER_FILE}") for family, name in families.items()}
    try:
        return [kind(kind.Settings(), family) for family, kind in kinds.items()]
    except ValidationError as error:
        told = f"families: {error.errors()[0]['loc']} would have to be told, so that it is no family of a model"
        raise UserError(told, where=f"{backbone.name}/{MARKER_FILE}") from None


def make_evaluator(config: Experiment, tasks: Sequence[Task]) -> Evaluator:
    backbone, assistant = load_models(config)
    base = BasePolicy(backbone, batch_size=config.evaluate.batch_size, cached=True)
    families, general = retention_tasks(config, backbone), general_examples(config, backbone)
    return Evaluator(config.evaluate, tasks, families, general, base, assistant.fingerprint if assistant else None)


# --------------------------------------------------------------------------------------------------------- a run's own


def build(config: Experiment, spec: RunSpec, folder: Path, shared: Path) -> Subject:
    """Everything of a run that answers, learns or is measured by, before anything is learned.

    Args:
        folder: the run's own.
        shared: the experiment's, where the base was measured.
    """
    method = config.method(spec.method)
    train = config.train_for(method)
    pristine, assistant = load_models(config)
    reasoning = method.reasoning.cls(method.reasoning.settings)
    strategy = method.strategy.cls(method.strategy.settings)
    parts = Parts(pristine.copy(share_weights=not strategy.writes_weights), assistant, reasoning)
    reasoning.build(parts, spec.seed)
    strategy.prepare(parts, spec.seed)
    _make_equal(parts, strategy, pristine.fingerprint)
    if train.sharding == "full" and strategy.trains:
        processes.shard(parts.backbone)
    evaluator = make_evaluator(config, make_tasks(config, spec.order))
    evaluator.load_base(shared)
    trained = strategy.tensors(parts)
    return Subject(
        parts=parts,
        strategy=strategy,
        method=method,
        train=train,
        evaluate=config.evaluate,
        seed=spec.seed,
        row=0,
        learned=[],
        tasks=evaluator.tasks,
        families=evaluator.families,
        base=evaluator.base,
        bank=TaskBank(strategy, parts) if method.per_task else None,
        router=make_router(method.per_task.routing, parts) if method.per_task else None,
        cache={"initial": {n: t.detach().clone() for n, t in trained.items()} if config.measured else {}},
        folder=folder,
        evaluator=evaluator,
        backbone_sha256=pristine.fingerprint,
        start={name: processes.local_copy(t) for name, t in trained.items()} if strategy.from_base else {},
    )


def _make_equal(parts: Parts, strategy: Any, backbone_sha256: str) -> None:
    """Several processes begin with the same weights: what is trained comes from the first, the rest is compared."""
    if processes.size() == 1:
        return
    trained = strategy.tensors(parts) if strategy.trains else {}
    values = processes.tensors_from_main({name: t.detach().cpu() for name, t in trained.items()})
    load_weights(trained, values)
    processes.require_same("the models", backbone_sha256)
    processes.require_same("the trained weights", tensors_sha256(trained))
