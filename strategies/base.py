"""What every strategy has in common: which tensors are trained, at which rate, and how the bare weights are asked."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, ClassVar, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from cl_softcot.machine import processes
from cl_softcot.models.head import at_least_fp32
from cl_softcot.models.language_model import LanguageModel
from cl_softcot.models.own_weights import Trained
from cl_softcot.reasoning.base import Parts
from cl_softcot.registry import find

Layers = Literal["all", "lower", "upper"]


class StrategySettings(BaseModel):
    """Settings that all strategies share; unknown keys are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class TrainedSettings(StrategySettings):
    """Settings of strategies that train something."""

    learning_rate: float = Field(1e-3, gt=0, description="peak rate; the default suits the embedded models")
    reasoning_learning_rate: float | None = Field(
        None, gt=0, description="rate of what the reasoning itself owns (markers, vectors); default: learning_rate"
    )
    weight_decay: float = Field(0.0, ge=0, description="AdamW's, decoupled")


class Strategy:
    """Who learns. Subclasses override ``prepare``; the rest has defaults that fit most."""

    Settings: ClassVar[type[StrategySettings]] = TrainedSettings
    trains: ClassVar[bool] = True
    changes_backbone: bool = False  # True if it trains own weights: then ``weights_alone`` can differ from the base
    adapts_backbone: ClassVar[bool] = False  # True if adapters change what the backbone's maps compute
    writes_weights: bool = True  # False if the backbone's own weights stay as they are: then they need no copy
    reference: ClassVar[str | None] = None  # what others are measured against: its own forgetting has no meaning
    from_base: ClassVar[bool] = False  # True if every turn begins with the base's weights, not with those of the turn before
    together: ClassVar[bool] = False  # True if one turn learns all tasks, with the steps of all their turns

    def __init__(self, settings: Any = None):
        self.settings = self.Settings() if settings is None else settings

    @classmethod
    def refuses(cls, settings: Any, reasoning_name: str) -> str | None:
        """Why this cannot be combined with a way of thinking; None if it can."""
        return None

    @classmethod
    def learns_as(cls, settings: Any) -> type[Strategy]:
        """The strategy that says which weights are trained: itself, unless it stands for another."""
        return cls

    # ------------------------------------------------------------------------------------------ what is trained
    def prepare(self, parts: Parts, seed: int) -> None:
        """Decide which parameters want a gradient, and attach what is needed. Called once, after ``reasoning.build``."""
        freeze(parts)
        parts.reasoning.requires_grad_(True)

    def tensors(self, parts: Parts) -> dict[str, nn.Parameter]:
        """Everything that this method trains, by name; tied tensors once. It is all that a checkpoint keeps of the method: one
        that trains modules of its own outside of backbone and reasoning adds theirs.
        """
        named = [*_prefixed("reasoning", parts.reasoning), *_prefixed("backbone", parts.backbone.model)]
        return {name: tensor for name, tensor in named if tensor.requires_grad}

    def trained_own(self, parts: Parts) -> dict[str, Tensor]:
        """Of these the backbone's own weights, by the names that they were loaded with."""
        trained = {id(tensor) for tensor in self.tensors(parts).values()}
        return {name: tensor for name, tensor in parts.backbone.own_weights().items() if id(tensor) in trained}

    def trained(self, parts: Parts) -> Trained:
        """How many numbers are trained; parts may have shapes only, and a reasoning that is not built yet (it counts its own)."""
        own = {id(tensor) for tensor in parts.backbone.own_weights().values()}
        counts = {"backbone": 0, "adapters": 0, "owned": 0}
        for name, tensor in self.tensors(parts).items():
            place = "backbone" if id(tensor) in own else "owned" if name.startswith("reasoning.") else "adapters"
            counts[place] += tensor.numel()
        return Trained(**counts)

    def leaves_out(self, parts: Parts) -> str | None:
        """What of the layers that it learns in it does not reach, though its name says so; None: nothing."""
        return None

    def weight_changes(self, parts: Parts, initial: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor, Tensor]]:
        """(name, change, the base's own) of each weight of the backbone that this method may change.

        Args:
            initial: ``tensors(parts)`` before anything was learned.
        """
        own = {id(tensor): name for name, tensor in parts.backbone.own_weights().items()}
        for name, tensor in self.tensors(parts).items():
            if id(tensor) in own:
                base = processes.whole(initial[name].detach())
                yield own[id(tensor)], processes.whole(tensor.detach()) - base, base

    def trainable(self, parts: Parts) -> list[dict[str, Any]]:
        """Parameter groups of the optimiser: what the reasoning owns, and before it all the rest, called the backbone's."""
        settings: Any = self.settings
        rates = {"backbone": settings.learning_rate, "reasoning": settings.reasoning_learning_rate or settings.learning_rate}
        groups = []
        for owner, rate in rates.items():
            reasonings = owner == "reasoning"
            tensors = [t for name, t in self.tensors(parts).items() if name.startswith("reasoning.") == reasonings]
            if tensors:
                groups.append({"name": owner, "params": tensors, "lr": rate, "weight_decay": settings.weight_decay})
        return groups

    # ------------------------------------------------------------------------------------------ when it is trained
    def plan(self, stream: Sequence[Any]) -> Sequence[Any]:
        """The turns, in order. Default: one for each experience."""
        return stream

    def learn(self, turn: Any, loop: Callable[[Any], Any]) -> Any:
        """One turn. Default: the training loop."""
        return loop(turn)

    def after(self, turn: Any) -> None:
        """Called when a turn is over: merge, snapshot, protect."""

    # ------------------------------------------------------------------------------------------- how it is asked
    def as_used(self, parts: Parts) -> AbstractContextManager:
        """In this context the method answers, with everything that it brings. May be faster than training mode."""
        return contextlib.nullcontext()

    def weights_alone(self, parts: Parts) -> AbstractContextManager:
        """In this context the bare weights of the backbone answer, and nothing that was brought to it, whatever it is called."""
        return parts.backbone.alone()

    def in_plain_cot(self, parts: Parts) -> AbstractContextManager:
        """In this context what was learned acts on the backbone's own computation, in plain chain of thought: own weights as
        they have become, adapters on.

        Thoughts and markers are the reasoning's: whoever asks puts plain chain of thought in its place. A strategy whose parts
        stand in front of the question, or work in thoughts only, switches them off here.
        """
        return self.as_used(parts)


def freeze(parts: Parts) -> None:
    """Nothing wants a gradient."""
    for owner in (parts.backbone.model, parts.assistant.model if parts.assistant else None, parts.reasoning):
        if owner is not None:
            owner.requires_grad_(False)


def selected_layers(backbone: LanguageModel, which: Layers) -> list[nn.Module]:
    """The decoder layers: all, the lower or the upper half (the lower half is the smaller one of an odd number)."""
    layers, half = list(backbone.layers), len(backbone.layers) // 2
    return {"all": layers, "lower": layers[:half], "upper": layers[half:]}[which]


def reasoning_owns_parts(reasoning_name: str) -> bool:
    """True if a way of thinking has trained parts of its own."""
    return find("reasoning", reasoning_name).owns_parts


@torch.no_grad()
def in_fp32(module: nn.Module) -> None:
    """Trained weights are kept in fp32 (fp64 stays), whatever the backbone computes in: small updates vanish in bf16."""
    for parameter in module.parameters():
        parameter.data = at_least_fp32(parameter.data)


def _prefixed(prefix: str, module: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    for name, tensor in module.named_parameters():
        yield f"{prefix}.{name}", tensor
