"""An experiment as plain data and as YAML, and the hashes of all that can change a number."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from typing import Any

from cl_softcot import registry
from cl_softcot.additions import identity_of
from cl_softcot.config import yaml
from cl_softcot.config.experiment import Experiment
from cl_softcot.config.plugins import PlugIn, TaskConfig
from cl_softcot.config.settings import MethodConfig


def to_data(config: Experiment) -> dict[str, Any]:
    """The resolved config as plain data; `Experiment.model_validate` takes it back."""
    return config.model_dump(mode="json")


def to_yaml(config: Experiment) -> str:
    """The resolved config as YAML that `load_experiment` reads back as the same."""
    return yaml.dump(to_data(config))


def fingerprint(config: Experiment) -> str:
    """SHA-256, in hex, of all that can change a number: everything but `output_dir`, `tracking` and the metrics' names."""
    data = {key: value for key, value in _without_metrics(identity_of(config)).items() if key not in ("output_dir", "tracking")}
    modules = user_modules(config, config.methods, config.tasks)
    return _hash({**data, **({"user_modules": modules} if modules else {})})


def run_fingerprint(config: Experiment, method: str, order: str, seed: int) -> str:
    """SHA-256, in hex, of all that can change the numbers of one run.

    Unlike `fingerprint` it stays the same when other methods, orders or seeds are added, so that their finished
    runs need not be done again.
    """
    data = _without_metrics(identity_of(config))
    chosen = config.method(method)
    modules = modules_of_run(config, method, order)
    return _hash(
        {
            **{key: data[key] for key in ("backbone", "assistant", "evaluate")},
            "tasks": [identity_of(task) for task in config.tasks_in(order)],
            "train": identity_of(config.train_for(chosen)),
            "method": {k: v for k, v in identity_of(chosen).items() if k != "train"},
            "seed": seed,
            **({"diagnostics": [identity_of(d) for d in config.measured]} if config.measured else {}),
            **({"user_modules": modules} if modules else {}),
        }
    )


def modules_of_run(config: Experiment, method: str, order: str) -> dict[str, str]:
    """Somebody's own modules that a run is made with, and the SHA-256 of their files: a change of one is a change of the run."""
    return user_modules(config, [config.method(method)], config.tasks_in(order))


def user_modules(config: Experiment, methods: Sequence[MethodConfig], tasks: Sequence[TaskConfig]) -> dict[str, str]:
    """The same of these methods and tasks, with what is measured besides."""
    named: list[PlugIn] = [*tasks, *(config.evaluate.retention_tasks or ()), *config.measured]
    named += [part for method in methods for part in (method.reasoning, method.strategy)]
    plugins = [plugin.cls for method in methods for plugin in method.plugins if ":" in plugin.name]
    return registry.user_modules([*(cls for one in named for cls in one.classes), *plugins])


def named_modules(config: Experiment) -> dict[str, str]:
    """All of somebody's own modules that the experiment names anywhere, metrics included, and the SHA-256 of their files."""
    return {**registry.modules_named(_texts(to_data(config))), **user_modules(config, config.methods, config.tasks)}


def _texts(data: Any) -> Iterator[str]:
    if isinstance(data, str):
        yield data
    elif isinstance(data, dict | list):
        for value in data.values() if isinstance(data, dict) else data:
            yield from _texts(value)


def _without_metrics(data: dict[str, Any]) -> dict[str, Any]:
    """Metrics of the experiment's own are made from what was measured: with another one a finished run stays what it is."""
    return {**data, "evaluate": {key: value for key, value in data["evaluate"].items() if key != "metrics"}}


def _hash(data: Any) -> str:
    canonical = json.dumps(data, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return hashlib.sha256(canonical.encode("utf-8")).hexdigest()
