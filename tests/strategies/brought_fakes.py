"""Strategies of somebody's own, each with another kind of trained part in the backbone: none is known to the engine by name."""

from __future__ import annotations

import torch
from pydantic import Field
from torch import nn

from cl_softcot.reasoning.base import Parts
from strategies.base import Strategy, TrainedSettings, freeze

from peft import IA3Config, inject_adapter_in_model  # isort: skip


class Fast(TrainedSettings):
    learning_rate: float = Field(1e-2, gt=0, description="peak rate")


class Ia3(Strategy):
    """peft's IA3: a factor for each output of some maps, under names such as `ia3_l`."""

    Settings = Fast
    writes_weights = False

    def prepare(self, parts: Parts, seed: int) -> None:
        freeze(parts)
        config = IA3Config(target_modules=["k_proj", "v_proj", "down_proj"], feedforward_modules=["down_proj"])
        inject_adapter_in_model(config, parts.backbone.model)
        parts.backbone.model.requires_grad_(False).eval()
        for factor in parts.backbone.brought().values():
            factor.requires_grad_(True)
        parts.reasoning.requires_grad_(True)


class NormsInPlace(Strategy):
    """The norms' own weights learn, where they are."""

    Settings = Fast
    changes_backbone = True

    def prepare(self, parts: Parts, seed: int) -> None:
        freeze(parts)
        parts.reasoning.requires_grad_(True)
        for name, weight in parts.backbone.model.named_parameters():
            weight.requires_grad_("norm" in name)


class Bottleneck(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.down, self.up = nn.Linear(width, 4), nn.Linear(4, width)
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return hidden + self.up(torch.relu(self.down(hidden)))


class Wrapped(nn.Module):
    """A map with something behind it."""

    def __init__(self, inner: nn.Module, width: int):
        super().__init__()
        self.inner, self.behind = inner, Bottleneck(width)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return self.behind(self.inner(hidden))


class WrappedMaps(Strategy):
    """A bottleneck behind the feed-forward map of every layer, around which it is wrapped."""

    Settings = Fast
    writes_weights = False

    def prepare(self, parts: Parts, seed: int) -> None:
        freeze(parts)
        parts.reasoning.requires_grad_(True)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            for layer in parts.backbone.layers:
                layer.mlp = Wrapped(layer.mlp, parts.backbone.width)


class HookedModules(Strategy):
    """The same by hooks, with modules that stand nowhere in the backbone."""

    Settings = Fast
    writes_weights = False

    def prepare(self, parts: Parts, seed: int) -> None:
        freeze(parts)
        parts.reasoning.requires_grad_(True)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.adapters = nn.ModuleList(Bottleneck(parts.backbone.width) for _ in parts.backbone.layers)
        for layer, adapter in zip(parts.backbone.layers, self.adapters, strict=True):
            layer.mlp.register_forward_hook(lambda _module, _inputs, output, adapter=adapter: adapter(output))

    def tensors(self, parts: Parts) -> dict[str, nn.Parameter]:
        return super().tensors(parts) | {f"strategy.{n}": p for n, p in self.adapters.named_parameters()}
