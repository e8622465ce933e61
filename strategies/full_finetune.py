"""All weights of the backbone learn, or those of one half of its layers."""

from __future__ import annotations

from pydantic import Field

from cl_softcot.errors import UserError
from cl_softcot.reasoning.base import Parts
from strategies.base import Layers, Strategy, TrainedSettings, freeze, in_fp32, selected_layers


class FullFinetune(Strategy):
    """Fine-tunes the backbone itself, and what the reasoning owns."""

    class Settings(TrainedSettings):
        layers: Layers = Field("all", description="all (with embeddings, final norm and head), or a half of the decoder layers")

    settings: Settings

    changes_backbone = True

    def prepare(self, parts: Parts, seed: int) -> None:
        if parts.backbone.quantized:
            raise UserError(
                f"the weights of {parts.backbone.name} are quantized, and too coarse to learn",
                fix="use lora or frozen_backbone, or leave quantization out",
            )
        freeze(parts)
        parts.reasoning.requires_grad_(True)
        whole = self.settings.layers == "all"
        for module in [parts.backbone.model] if whole else selected_layers(parts.backbone, self.settings.layers):
            in_fp32(module)
            module.requires_grad_(True)
