"""The parts of an experiment: models, training, evaluation, methods, tracking."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import (
    Field,
    field_serializer,
    field_validator,
    model_validator,
)
from pydantic_core import PydanticCustomError

from cl_softcot.additions import ADDED_LATER
from cl_softcot.config.plugins import PluginConfig, ReasoningConfig, StrategyConfig, Strict, TaskConfig
from cl_softcot.config.problems import SLUG, told
from cl_softcot.errors import UserError

# A text that stands for a map, and the keys of that map which it fills.
SHORT_FORMS = {
    "backbone": ("path",),
    "assistant": ("path",),
    "reasoning": ("name",),
    "strategy": ("name",),
    "plugins": ("name",),
    "diagnostics": ("name",),
    "tasks": ("name", "task"),
    "retention_tasks": ("name", "task"),
}
APPENDABLE = ("methods", "tasks", "diagnostics")


class ModelConfig(Strict):
    """A language model. A mere text is its `path`."""

    path: str = Field(min_length=1, description="builtin:tiny, builtin:tiny@25, a local folder, a GGUF file, or a model hub's id")
    dtype: Literal["float32", "bfloat16", "float16"] = Field("float32", description="type of the frozen weights")
    trust_remote_code: bool = Field(False, description="run code that comes with the model")
    attention: Literal["eager", "sdpa", "flash_attention_2"] | None = Field(
        None, description="attention implementation (null: the library chooses)"
    )
    revision: Annotated[str | None, ADDED_LATER] = Field(None, min_length=1, description="branch, tag or commit of a hub id")
    device: Annotated[str | None, ADDED_LATER] = Field(
        None, pattern=r"^(cpu|mps|(cuda|xpu)(:\d+)?)$", description="cpu, cuda, cuda:1, ... (null: this process's GPU, else cpu)"
    )
    device_map: Annotated[Literal["auto", "balanced", "sequential"] | dict[str, int | str] | None, ADDED_LATER] = Field(
        None, description="spread the layers over several GPUs, in place of `device`"
    )
    quantization: Annotated[Literal["8bit", "4bit"] | None, ADDED_LATER] = Field(
        None, description="store the frozen weights in 8 or 4 bits (bitsandbytes)"
    )
    gradient_checkpointing: Annotated[bool, ADDED_LATER] = Field(
        False, description="compute activations again in the backward pass: less memory, about a third more time"
    )
    chat: Annotated[Literal["auto", "never"], ADDED_LATER] = Field(
        "auto", description="auto: with the chat template, if the tokenizer has one; never: plain text"
    )
    chat_template_args: Annotated[dict[str, Any], ADDED_LATER] = Field(
        {}, description="variables for the chat template, such as {enable_thinking: false}"
    )
    init: Annotated[Literal["pretrained", "random"], ADDED_LATER] = Field(
        "pretrained", description="random: architecture and tokenizer of the path, with weights that are drawn"
    )
    init_seed: Annotated[int, ADDED_LATER] = Field(0, ge=0, description="what `init: random` draws from")
    adapter: Annotated[str | None, ADDED_LATER] = Field(
        None,
        min_length=1,
        description="a peft adapter's folder or hub id, merged into the weights before anything else: the base has it then",
    )
    gguf_file: Annotated[str | None, ADDED_LATER] = Field(
        None, min_length=1, description="the GGUF file in `path` (needs gguf; null: its only one, if it has no safetensors)"
    )

    @model_validator(mode="before")
    @classmethod
    def _from_text(cls, data: Any) -> Any:
        return {"path": data} if isinstance(data, str) else data

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.device is not None and self.device_map is not None:
            raise PydanticCustomError("said", "device and device_map exclude each other")
        if self.init == "random" and (self.quantization or self.device_map):
            raise PydanticCustomError("said", "init: random draws whole weights on one device: no quantization or device_map")
        if self.adapter and (self.quantization or self.init == "random"):
            raise PydanticCustomError(
                "said", "an adapter is merged into whole, pretrained weights: no quantization or init: random"
            )
        if self.quantization and (self.gguf_file or self.path.lower().endswith(".gguf")):
            raise PydanticCustomError("said", "a GGUF file is read as whole numbers, which are not quantized anew")
        if self.attention == "flash_attention_2" and self.dtype == "float32":
            raise PydanticCustomError("said", "flash_attention_2 computes in half precision only: set dtype: bfloat16")
        return self


class TrainConfig(Strict):
    """The budget of one turn, the same for every method of a table. The learning rate is the strategy's own."""

    examples: int = Field(1000, ge=1, description="training examples a task")
    steps: int = Field(120, ge=1, description="optimiser steps a task")
    global_batch_size: int = Field(32, ge=1, description="examples an optimiser step")
    micro_batch_size: int | None = Field(
        None, ge=1, description="examples that a process computes at a time; divides global_batch_size (null: all)"
    )
    warmup_fraction: float = Field(0.05, ge=0, le=1, description="share of the steps with a rising learning rate")
    decay_fraction: float = Field(0.5, ge=0, le=1, description="share of the steps, the last ones, with a falling one")
    gradient_clip: float | None = Field(1.0, gt=0, description="largest norm of the whole gradient (null: any)")
    checkpoint_every_steps: int = Field(0, ge=0, description="checkpoints inside a turn (0: only between turns)")
    optimizer: Annotated[Literal["adamw", "adamw_8bit"], ADDED_LATER] = Field(
        "adamw", description="adamw_8bit: its states take a quarter of the memory (needs bitsandbytes)"
    )
    betas: Annotated[list[Annotated[float, Field(ge=0, lt=1)]], ADDED_LATER] = Field(
        [0.9, 0.99], min_length=2, max_length=2, description="AdamW's decay rates of its two means (torch's own: [0.9, 0.999])"
    )
    reset_optimizer: Annotated[Literal["turn", "stage", "epoch"], ADDED_LATER] = Field(
        "turn",
        description="when AdamW forgets its means: with every task; also with every stage of a curriculum; or with every pass "
        "through the task's examples, as Coconut's published code does, which loses the warm means again and again",
    )
    sharding: Annotated[Literal["none", "full"], ADDED_LATER] = Field(
        "none",
        description="full: weights, gradients and optimiser states are split over the processes",
    )

    def clashes(self) -> Iterator[tuple[str, str]]:
        """Fields that do not go together: (field, what is wrong)."""
        if self.micro_batch_size and self.global_batch_size % self.micro_batch_size:
            yield (
                "micro_batch_size",
                f"{self.micro_batch_size} does not divide global_batch_size ({self.global_batch_size})",
            )
        if self.sharding == "full" and self.optimizer == "adamw_8bit":
            yield "optimizer", "adamw_8bit does not work on weights that are split over processes (sharding: full)"
        if self.warmup_fraction + self.decay_fraction > 1:
            yield (
                "warmup_fraction" if "warmup_fraction" in self.model_fields_set else "decay_fraction",
                f"warmup_fraction ({self.warmup_fraction}) and decay_fraction ({self.decay_fraction}) are over 1 together",
            )


class EvaluateConfig(Strict):
    """What is measured after every experience, and on how many examples."""

    test: int = Field(300, ge=1, description="examples a task for the accuracy matrix")
    retention: int = Field(100, ge=0, description="examples a family of the base's own abilities (0: none)")
    drift: int = Field(64, ge=0, description="prompts in each prompt set of the drift (0: none)")
    batch_size: int = Field(256, ge=1, description="answers that are written side by side")
    max_new_tokens: int = Field(96, ge=1, description="longest answer, in tokens")
    split: Literal["test", "valid"] = Field("test", description="valid while choosing settings, test for results")
    bootstrap: int = Field(1000, ge=1, description="resamples behind every interval")
    retention_tasks: list[TaskConfig] | None = Field(
        None, description="what retention is measured on (null: the families that the backbone was made with)"
    )
    general_text: bool = Field(True, description="measure drift on general text too, besides the tasks' own")
    every: Annotated[int, ADDED_LATER] = Field(
        1, ge=1, description="retention and drift are measured after every so many experiences, and after the last"
    )
    between: Annotated[int | None, ADDED_LATER] = Field(
        None,
        ge=1,
        description="examples a task after experiences before the last, for all but the task just learned and the next one: "
        "the first ones of `test` (null: all). A stream of T tasks is answered T times: this is what makes it T^2",
    )
    reading: Annotated[Literal["strict", "flexible"], ADDED_LATER] = Field(
        "strict",
        description="which reading of an answer is the headline: strict (the format was followed) or flexible (what a person "
        "would read); the other stands beside it",
    )
    metrics: list[str] = Field(
        [], description="metrics of your own, package.module:function; computed for finished runs too, and part of no fingerprint"
    )

    @field_validator("metrics")
    @classmethod
    def _can_be_computed(cls, metrics: list[str]) -> list[str]:
        from cl_softcot.metrics.own import find_metrics

        try:
            find_metrics(metrics)
        except UserError as error:
            raise PydanticCustomError("metric", "{told}", {"told": told(error)}) from None
        return metrics


class PerTaskConfig(Strict):
    """One copy of the trained parts for each task."""

    routing: Literal["oracle", "nearest"] = Field(
        description="oracle: the task is told; nearest: it is found from the assistant's states"
    )
    unseen: Literal["base"] = Field("base", description="who answers a task that has no copy yet: the base")


class MethodConfig(Strict):
    """One row of every table: how it thinks, what learns, and what is protected."""

    name: str = Field(pattern=SLUG, description="unique label of the method in tables, charts and folders")
    reasoning: ReasoningConfig = Field(description="how it thinks: a file in cl_softcot/reasoning, or package.module:Class")
    strategy: StrategyConfig = Field(description="what learns: a file in strategies, or package.module:Class")
    per_task: PerTaskConfig | None = Field(None, description="one copy of the trained parts a task (null: one for all)")
    plugins: list[PluginConfig] = Field([], description="plug-ins of Avalanche, such as {name: replay, mem_size: 200}")
    train: TrainConfig | None = Field(None, description="what differs from the experiment's `train` for this method")

    @field_serializer("train")
    def _only_what_differs(self, train: TrainConfig | None) -> dict[str, Any] | None:
        return None if train is None else train.model_dump(mode="json", exclude_unset=True)


class TrackingConfig(Strict):
    """Where numbers are sent besides the run folder."""

    mlflow: bool = Field(True, description="send numbers to MLflow (MLFLOW_TRACKING_URI, or ./mlflow.db)")
    experiment: str | None = Field(None, min_length=1, description="MLflow's experiment (null: the name)")


def merged(train: TrainConfig, changes: TrainConfig | None) -> TrainConfig:
    said = {field: getattr(changes, field) for field in changes.model_fields_set} if changes else {}
    return train.model_copy(update=said)


def name_of(entry: Any) -> Any:
    if isinstance(entry, Mapping):
        return entry.get("name")
    return entry if isinstance(entry, str) else getattr(entry, "name", None)
