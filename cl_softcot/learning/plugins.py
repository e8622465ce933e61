"""Avalanche's plug-ins: which can work here, and what of them a checkpoint holds."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

from cl_softcot.errors import UserError, did_you_mean
from cl_softcot.learning.snapshot import START_OVER, Snapshot
from cl_softcot.learning.stream import indices_to_rows, rows_to_indices
from cl_softcot.registry import find

# Avalanche comes after stream.py, which prepares its import.
# isort: split
from avalanche.training.plugins import ReplayPlugin
from avalanche.training.storage_policy import BalancedExemplarsBuffer, ReservoirSamplingBuffer


class Replay(ReplayPlugin, supports_distributed=True):  # type: ignore[call-arg]  # avalanche has no types
    """Avalanche's replay, without its call of a deprecated function, which warns the user and changes the
    warning filters of the whole process."""

    def after_training_exp(self, strategy: Any, **_kwargs: Any) -> None:
        self.storage_policy.post_adapt(strategy, strategy.experience)


PLUGINS = {"replay": Replay}
"""Avalanche plugins with a short name."""

_INTEGER_TARGETS = "it takes the targets for class numbers, and a batch of text has none"
UNUSABLE_PLUGINS = {
    "LwFPlugin": _INTEGER_TARGETS,
    "MASPlugin": _INTEGER_TARGETS,
    "GEMPlugin": _INTEGER_TARGETS,
    "GSS_greedyPlugin": _INTEGER_TARGETS,
    "MIRPlugin": _INTEGER_TARGETS,
    "SynapticIntelligencePlugin": "on a CPU it does nothing (its old weights are views of the live ones), "
    "and it fails where weights are frozen",
}


def build_plugin(config: Any, global_batch_size: int) -> Any:
    """An Avalanche plugin from one entry of ``plugins:``.

    ``{name: replay, mem_size: 200, batch_size_mem: 16}`` is Avalanche's replay: from the second turn on,
    ``batch_size_mem`` places of every global batch (half of it by default) are taken by examples of earlier
    turns. The batch keeps its size and the turn its number of steps, so a method with replay has the same
    budget and sees that many fewer new examples.
    ``{name: package.module:Class, ...}`` is any other plugin, with its own arguments.

    Raises:
        UserError: for an unknown plugin, wrong arguments, or one that cannot work on text.
    """
    settings = dict(config) if isinstance(config, Mapping) else config.model_dump()
    name = settings.pop("name")
    where = f"plugin '{name}'"
    cls = find("plugin", name)
    cls = Replay if cls is ReplayPlugin else cls
    if issubclass(cls, ReplayPlugin):
        settings = _replay_settings(settings, global_batch_size, where)
    if cls.__name__ in UNUSABLE_PLUGINS:
        raise UserError(f"cannot be used here: {UNUSABLE_PLUGINS[cls.__name__]}", where=where)
    parameters = [p for p in inspect.signature(cls).parameters.values() if p.kind is not p.VAR_KEYWORD]
    known = [p.name for p in parameters]
    for key in settings:
        if key not in known:
            raise UserError(f"has no setting '{key}'{did_you_mean(key, known)}", where=where)
    missing = [p.name for p in parameters if p.default is p.empty and p.name not in settings]
    if missing:
        raise UserError(f"needs the setting '{missing[0]}'", where=where)
    return cls(**settings)


def _replay_settings(settings: dict[str, Any], global_batch_size: int, where: str) -> dict[str, Any]:
    memory = settings.get("batch_size_mem")
    memory = global_batch_size // 2 if memory is None else memory
    current = settings.get("batch_size")
    current = global_batch_size - memory if current is None else current
    if memory < 1 or current < 1 or memory + current != global_batch_size:
        raise UserError(
            f"takes {current} new and {memory} replayed examples a step where train.global_batch_size is {global_batch_size}",
            where=where,
            fix=f"Set batch_size_mem between 1 and {global_batch_size - 1} and leave batch_size out.",
        )
    return {**settings, "batch_size": current, "batch_size_mem": memory}


def save_plugin(plugin: Any) -> Snapshot:
    """A plugin's memory: replay buffers as indices, others by ``state_dict`` or their plain attributes."""
    name = type(plugin).__name__
    buffers = _replay_buffers(plugin)
    if buffers is not None:
        return {
            "state": {
                "plugin": name,
                "buffers": {key: rows_to_indices(b.buffer) for key, b in buffers.items()},
                "max_sizes": {key: b.max_size for key, b in buffers.items()},
                "experiences": getattr(plugin.storage_policy, "_num_exps", None),
            },
            "tensors": {f"weights/{key}": b._buffer_weights.clone() for key, b in buffers.items()},
        }
    if hasattr(plugin, "state_dict") and hasattr(plugin, "load_state_dict"):
        saved = plugin.state_dict()
        return {"state": {"plugin": name, **saved["state"]}, "tensors": dict(saved["tensors"])}
    attributes = vars(plugin)
    if all(value is None or isinstance(value, bool | int | float | str) for value in attributes.values()):
        return {"state": {"plugin": name, "attributes": dict(attributes)}, "tensors": {}}
    return {"state": {"plugin": name, "not_saved": True}, "tensors": {}}


def load_plugin(plugin: Any, saved: Snapshot, experiences: Sequence[Any]) -> None:
    state, name = saved["state"], type(plugin).__name__
    if state["plugin"] != name:
        raise UserError(f"the checkpoint was made with the plugin {state['plugin']}, not {name}", fix=START_OVER)
    if state.get("not_saved"):
        raise UserError(f"what the plugin {name} remembers cannot be kept in a checkpoint", fix=START_OVER)
    if "buffers" in state:
        _load_buffers(plugin.storage_policy, saved, experiences)
    elif "attributes" in state:
        vars(plugin).update(state["attributes"])
    else:
        plugin.load_state_dict(saved)


def _replay_buffers(plugin: Any) -> dict[str, ReservoirSamplingBuffer] | None:
    """The reservoirs that a plugin keeps examples in, by group ('' for a single one).

    None if it has none, or keeps examples in another way.
    """
    policy = getattr(plugin, "storage_policy", None)
    if type(policy) is ReservoirSamplingBuffer:
        return {"": policy}
    if isinstance(policy, BalancedExemplarsBuffer):
        groups = {str(key): buffer for key, buffer in policy.buffer_groups.items()}
        if all(type(buffer) is ReservoirSamplingBuffer for buffer in groups.values()):
            return groups
    return None


def _load_buffers(policy: Any, saved: Snapshot, experiences: Sequence[Any]) -> None:
    reservoirs = {}
    for key, indices in saved["state"]["buffers"].items():
        reservoir = policy if key == "" else ReservoirSamplingBuffer(saved["state"]["max_sizes"][key])
        if indices:
            reservoir.buffer = indices_to_rows(experiences, indices)
        reservoir._buffer_weights = saved["tensors"][f"weights/{key}"].clone()
        reservoirs[key] = reservoir
    if "" not in reservoirs:
        policy.buffer_groups = {int(key): reservoir for key, reservoir in reservoirs.items()}
    if saved["state"]["experiences"] is not None:
        policy._num_exps = saved["state"]["experiences"]
