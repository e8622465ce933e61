"""LoRA (arXiv 2106.09685): W x + (alpha / r) B A x, with A and B trained and W frozen. By peft."""

from __future__ import annotations

import contextlib
import math
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from pydantic import Field
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from cl_softcot.errors import UserError
from cl_softcot.models.language_model import LanguageModel
from cl_softcot.models.shapes import is_stack
from cl_softcot.reasoning.base import Parts
from strategies.base import Layers, Strategy, TrainedSettings, freeze, selected_layers

# After cl_softcot.models, which makes torchvision importable.
from peft import LoraConfig, inject_adapter_in_model  # isort: skip
from peft.tuners.lora import LoraLayer, ParamWrapper  # isort: skip
from peft.utils.integrations import dequantize_module_weight  # isort: skip

UNTOUCHED = 0.1  # of the layers' matrices, beyond which a method would not be the LoRA that it is called


class Lora(Strategy):
    """Trains low-rank adapters on every linear map of the decoder layers, experts included, and what the reasoning owns.

    A mixture's routers stay as they are.
    """

    class Settings(TrainedSettings):
        learning_rate: float = Field(3e-3, gt=0, description="peak rate; the default suits the embedded models")
        rank: int = Field(16, ge=1, description="r")
        alpha: float = Field(32, gt=0, description="outputs are scaled by alpha / r")
        dropout: float = Field(0.0, ge=0, lt=1, description="on the adapters' input while training; none for fused experts")
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
        maps, stacks = linear_maps(backbone, self.settings.layers), stacked_maps(backbone, self.settings.layers)
        self._refuse_the_untouched(backbone, maps, stacks)
        config = LoraConfig(
            r=self.settings.rank,
            lora_alpha=self.settings.alpha,
            lora_dropout=self.settings.dropout,
            target_modules=maps,
            target_parameters=stacks or None,
        )
        with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="fan_in_fan_out")  # peft sets it right for Conv1D by itself
            torch.manual_seed(seed)
            try:
                inject_adapter_in_model(config, _without_its_kind(backbone.model))
            except ValueError as error:
                raise self._not_by_peft(backbone, str(error)) from error
        _finish(backbone)
        backbone.model.requires_grad_(False)  # whatever peft has switched on
        for adapter in backbone.brought().values():
            adapter.data = adapter.data.float()
            adapter.requires_grad_(True)
        backbone.model.eval()

    def _refuse_the_untouched(self, backbone: LanguageModel, maps: list[str], stacks: list[str]) -> None:
        left, total = left_out(backbone, self.settings.layers)
        share = sum(left.values()) / max(1, total)
        if share > UNTOUCHED:
            raise UserError(
                f"LoRA would leave {share:.0%} of the weights in the layers of {backbone.name} untouched: it adapts linear maps "
                f"and stacks of them, and these are neither: {_some(sorted(left, key=lambda name: -left[name]))}",
                fix="take strategy full_finetune or frozen_backbone, or a model whose layers are made of linear maps",
            )
        if stacks and self.settings.dropout:
            raise UserError(
                f"the experts of {backbone.name} are one tensor, whose adapters have no dropout", fix="set dropout: 0 for lora"
            )

    def _not_by_peft(self, backbone: LanguageModel, said: str) -> UserError:
        """peft refuses maps whose weights some layers take past the map, such as the last of a state space layer."""
        named = re.search(r"Module '(\w+)'", said)
        total = left_out(backbone, self.settings.layers)[1]
        maps = [(name, m) for name, m in _selected(backbone, self.settings.layers) if isinstance(m, nn.Linear | Conv1D)]
        left = sum(m.weight.numel() for name, m in maps if named and name.endswith(f".{named[1]}"))
        share = f"; that would leave {left / total:.0%} of the weights in its layers untouched" if left else ""
        reason = f"the maps {named[1]!r}, whose weights layers of this kind use themselves" if named else " ".join(said.split())
        return UserError(
            f"peft puts no adapters into all maps of {backbone.name}: {reason}{share}",
            fix="take strategy full_finetune or frozen_backbone, or another model",
        )

    def leaves_out(self, parts: Parts) -> str | None:
        left, total = left_out(parts.backbone, self.settings.layers)
        if not left:
            return None
        kinds = list(dict.fromkeys(re.sub(r"^.*?\.\d+\.", "", name) for name in left))
        return f"{100 * sum(left.values()) / total:.2g} % of the weights in its layers get no adapters: {_some(kinds)}"

    @torch.no_grad()
    def weight_changes(self, parts: Parts, initial: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor, Tensor]]:
        """(alpha / r) B A of every adapted map, beside the map itself; of experts in one tensor [experts, ...]."""
        names = {id(tensor): name for name, tensor in parts.backbone.own_weights().items()}
        for layer in _adapted(parts.backbone):
            module, attribute = _place(layer)
            name = names[id(getattr(module, attribute))]
            yield name, layer.get_delta_weight("default"), dequantize_module_weight(layer.base_layer)

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
        places = [_place(layer) for layer in layers]
        originals = [getattr(module, attribute) for module, attribute in places]
        with torch.no_grad():
            for layer, (module, attribute), weight in zip(layers, places, originals, strict=True):
                merged = weight + layer.get_delta_weight("default")
                setattr(module, attribute, nn.Parameter(merged, requires_grad=False))
        try:
            with self.weights_alone(parts):
                yield
        finally:
            for (module, attribute), weight in zip(places, originals, strict=True):
                setattr(module, attribute, weight)


# --------------------------------------------------------------------------------------------------- what is adapted


def linear_maps(backbone: LanguageModel, which: Layers) -> list[str]:
    """Full names of the linear maps in the selected decoder layers, routers aside."""
    routers = _routers(backbone, which)
    return [
        name
        for name, module in _selected(backbone, which)
        if isinstance(module, nn.Linear | Conv1D) and not any(p is module.weight for p in routers)
    ]


def stacked_maps(backbone: LanguageModel, which: Layers) -> list[str]:
    """Full names of the tensors in the selected decoder layers that hold one linear map for each expert, [experts, ., .]."""
    return [
        f"{name}.{attribute}"
        for name, module in _selected(backbone, which)
        for attribute, tensor in module.named_parameters(recurse=False)
        if is_stack(module, tensor)
    ]


def left_out(backbone: LanguageModel, which: Layers) -> tuple[dict[str, int], int]:
    """What LoRA does not adapt among the tensors of two or more dimensions in the selected layers: numbers by the tensor's name;
    and how many numbers all such tensors have. Biases of experts, one row for each, are no maps and count as neither.
    """
    adapted, left, total = set(linear_maps(backbone, which)), {}, 0
    for name, module in _selected(backbone, which):
        for attribute, tensor in module.named_parameters(recurse=False):
            shape = tuple(tensor.shape)  # quantised maps are stored in another one
            if isinstance(module, nn.Linear) and attribute == "weight":
                shape = (module.out_features, module.in_features)
            if sum(n > 1 for n in shape) < 2 or "bias" in attribute:
                continue
            numbers = math.prod(shape)
            total += numbers
            if not (name in adapted and attribute == "weight") and not is_stack(module, tensor):
                left[f"{name}.{attribute}"] = numbers
    return left, total


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")


def _selected(backbone: LanguageModel, which: Layers) -> list[tuple[str, nn.Module]]:
    chosen = {id(m) for layer in selected_layers(backbone, which) for m in layer.modules()}
    return [(name, module) for name, module in backbone.model.named_modules() if id(module) in chosen]


def _routers(backbone: LanguageModel, which: Layers) -> list[Tensor]:
    """The tensors that choose among experts: beside the experts, in the block that holds them, with a row for each."""
    found = []
    for name in stacked_maps(backbone, which):
        experts, _, attribute = name.rpartition(".")
        inside = backbone.model.get_submodule(experts)
        n = getattr(inside, attribute).shape[0]
        theirs = {id(p) for p in inside.parameters()}
        block = backbone.model.get_submodule(experts.rpartition(".")[0])
        found += [p for p in block.parameters() if p.ndim == 2 and p.shape[0] == n and id(p) not in theirs]
    return found


# ------------------------------------------------------------------------------------------------------ adapters in place


class _Base(nn.Module):
    """What the adapter of a stack has for its base layer: the stack is its `weight`, as that of a map is, and all else is the
    module itself, or the adapter of another of its stacks.
    """

    def __init__(self, base_layer: nn.Module, attribute: str):
        super().__init__()
        self.base_layer = base_layer
        self.attribute = attribute

    @property
    def weight(self) -> Tensor:
        module: Any = self.base_layer
        while hasattr(module, "base_layer"):
            module = module.base_layer
        return getattr(module, self.attribute)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.base_layer(*args, **kwargs)


class _Described(dict):
    """A model's configuration as peft reads it, but for the model's kind."""

    def __init__(self, config: Any):
        super().__init__({key: value for key, value in config.to_dict().items() if key != "model_type"})
        if hasattr(config, "quantization_config"):
            self.quantization_config = config.quantization_config


def _without_its_kind(model: Any) -> Any:
    """The model, for peft to put adapters into, without telling its kind: of some kinds of mixtures peft takes the names of maps
    for those that experts had in earlier versions of transformers. For modules without experts in one tensor: the model itself.
    """
    if not any(is_stack(module, p) for module in model.modules() for p in module.parameters(recurse=False)):
        return model
    host = nn.Module()
    host.__dict__ |= {**vars(model), "config": _Described(model.config)}
    return host


def _finish(backbone: LanguageModel) -> None:
    """Stacks get a base layer like that of maps; a module that stands at several places gets its adapter at all of them."""
    adapters = {id(layer.base_layer): layer for layer in _adapted(backbone)}
    inside = {id(m) for layer in adapters.values() for m in (layer, layer.base_layer)}
    for module in list(backbone.model.modules()):
        for name, child in module._modules.items():
            if id(child) in adapters and id(module) not in inside:
                module._modules[name] = adapters[id(child)]
    for layer in _adapted(backbone):
        if isinstance(layer, ParamWrapper):
            layer.base_layer = _Base(layer.base_layer, layer.parameter_name)


def _place(layer: LoraLayer) -> tuple[nn.Module, str]:
    """Where the adapted weight is: the module, and what it is called there."""
    return layer.get_base_layer(), getattr(layer, "parameter_name", "weight")


def _adapted(backbone: LanguageModel) -> list[LoraLayer]:
    return [m for m in backbone.model.modules() if isinstance(m, LoraLayer)]
