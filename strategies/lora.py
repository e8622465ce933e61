"""LoRA (arXiv 2106.09685): W x + (alpha / r) B A x, with A and B trained and W frozen. By peft."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator, Mapping

import torch
from pydantic import Field
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from cl_softcot.models.language_model import LanguageModel
from cl_softcot.reasoning.base import Parts
from strategies.base import Layers, Strategy, TrainedSettings, freeze, selected_layers

# After cl_softcot.models, which makes torchvision importable.
from peft import LoraConfig, inject_adapter_in_model  # isort: skip
from peft.tuners.lora import LoraLayer  # isort: skip
from peft.utils.integrations import dequantize_module_weight  # isort: skip


class Lora(Strategy):
    """Trains low-rank adapters on every linear map of the decoder layers, and what the reasoning owns."""

    class Settings(TrainedSettings):
        learning_rate: float = Field(3e-3, gt=0, description="peak rate; the default suits the embedded models")
        rank: int = Field(16, ge=1, description="r")
        alpha: float = Field(32, gt=0, description="outputs are scaled by alpha / r")
        dropout: float = Field(0.0, ge=0, lt=1, description="on the adapters' input while training")
        layers: Layers = Field("all", description="all decoder layers, or the lower or upper half")

    settings: Settings

    adapts_backbone = True
    writes_weights = False

    def prepare(self, parts: Parts, seed: int) -> None:
        freeze(parts)
        parts.reasoning.requires_grad_(True)
        backbone = parts.backbone
        if any(isinstance(m, LoraLayer) for m in backbone.model.modules()):
            raise RuntimeError("this backbone already carries adapters; give every method a copy of its own")
        config = LoraConfig(
            r=self.settings.rank,
            lora_alpha=self.settings.alpha,
            lora_dropout=self.settings.dropout,
            target_modules=linear_maps(backbone, self.settings.layers),
        )
        with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="fan_in_fan_out")  # peft sets it right for Conv1D by itself
            torch.manual_seed(seed)
            inject_adapter_in_model(config, backbone.model)
        backbone.model.requires_grad_(False)  # whatever peft has switched on
        for adapter in backbone.brought().values():
            adapter.data = adapter.data.float()
            adapter.requires_grad_(True)
        backbone.model.eval()

    @torch.no_grad()
    def weight_changes(self, parts: Parts, initial: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor, Tensor]]:
        """(alpha / r) B A of every adapted map, beside the map itself."""
        for name, layer in parts.backbone.model.named_modules():
            if isinstance(layer, LoraLayer):
                yield f"{name}.weight", layer.get_delta_weight("default"), dequantize_module_weight(layer.base_layer)

    @contextlib.contextmanager
    def weights_alone(self, parts: Parts) -> Iterator[None]:
        """Adapters off: the maps are the base's own, to the bit."""
        layers = _adapted(parts.backbone)
        for layer in layers:
            layer._disable_adapters = True
        try:
            yield
        finally:
            for layer in layers:
                layer._disable_adapters = False

    @contextlib.contextmanager
    def as_used(self, parts: Parts) -> Iterator[None]:
        """One product a map in place of three: W + (alpha / r) B A takes W's place, and W itself comes back afterwards.

        Subtracting the update again, as peft's unmerging does, would not give back the same bits. In half precision the sum
        would round small updates away, so the three products stay.
        """
        plain = parts.backbone.compute_dtype == torch.float32 and not parts.backbone.quantized
        layers = _adapted(parts.backbone) if plain else []
        if not layers:
            yield
            return
        originals = [layer.base_layer.weight for layer in layers]
        with torch.no_grad():
            for layer, weight in zip(layers, originals, strict=True):
                merged = weight + layer.get_delta_weight("default")
                layer.base_layer.weight = nn.Parameter(merged, requires_grad=False)
        try:
            with self.weights_alone(parts):
                yield
        finally:
            for layer, weight in zip(layers, originals, strict=True):
                layer.base_layer.weight = weight


def linear_maps(backbone: LanguageModel, which: Layers) -> list[str]:
    """Full names of the linear maps in the selected decoder layers."""
    selected = {id(m) for layer in selected_layers(backbone, which) for m in layer.modules()}
    return [
        name
        for name, module in backbone.model.named_modules()
        if id(module) in selected and isinstance(module, nn.Linear | Conv1D)
    ]


def _adapted(backbone: LanguageModel) -> list[LoraLayer]:
    return [m for m in backbone.model.modules() if isinstance(m, LoraLayer)]
