"""Memory and cost before anything is loaded: counted against known totals, hand-worked numbers and real training steps."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.autograd.graph import saved_tensors_hooks
from transformers import CONFIG_MAPPING

from cl_softcot import registry
from cl_softcot.config.loading import load_experiment
from cl_softcot.config.plan import plan
from cl_softcot.errors import UserError
from cl_softcot.estimate.advice import Device, advise, device_for, estimate
from cl_softcot.estimate.footprint import footprint_of, kept_for_backward
from cl_softcot.estimate.here import passes_paid, train_share
from cl_softcot.estimate.passes import Passes, TextLengths, passes_of
from cl_softcot.estimate.sizes import Trained, sizes_of, trained_numbers, weight_bytes
from cl_softcot.estimate.texts import text_lengths
from cl_softcot.estimate.time import H100, answers_seconds, hours_of, step_operations
from cl_softcot.estimate.words import forecast, warnings_before_loading
from cl_softcot.models.language_model import load_language_model
from cl_softcot.models.scratch import make_model_folder
from cl_softcot.models.shapes import architecture, period, published_shapes
from cl_softcot.reasoning.base import Parts
from cl_softcot.run.__main__ import main
from cl_softcot.tasks.base import Example

ROOT = Path(__file__).resolve().parents[2]
WORDS = "the cat sat on a mat and saw seven dogs run over green hills".split()
LLAMA = "meta-llama/Llama-3.1-8B-Instruct"
TEXT = TextLengths(100, 80, 10, 4)
REASONINGS = {
    "cot": "cot",
    "coconut": "{name: coconut, max_stage: 3}",
    "softcot": "{name: softcot, soft_thoughts: 8, source: free}",
}


def experiment(folder: Path, backbone: str, method: str, more: str = "") -> object:
    path = folder / "e.yaml"
    path.write_text(
        f"backbone: {backbone}\n"
        "assistant: {path: meta-llama/Llama-3.2-1B-Instruct, dtype: bfloat16}\n"
        "tasks: [{name: fees, task: arithmetic}]\n"
        f"methods: [{{name: m, {method}}}]\n{more}",
        encoding="utf-8",
    )
    return load_experiment(path).config


def llama(folder: Path, method: str, more: str = "", backbone: str = "") -> object:
    return experiment(folder, f"{{path: {LLAMA}, dtype: bfloat16{backbone}}}", method, more)


def memory(config: object, **options: object) -> object:
    return footprint_of(config, config.methods[0], TEXT, **options)


# ----------------------------------------------------------------------------------------------------- shapes


@pytest.mark.parametrize(
    ("model", "parameters"),
    {
        "gpt2": 124_439_808,
        LLAMA: 8_030_261_248,
        "meta-llama/Llama-3.2-1B-Instruct": 1_235_814_400,
        "meta-llama/Llama-3.2-3B-Instruct": 3_212_749_824,
        "Qwen/Qwen2.5-0.5B-Instruct": 494_032_768,
        "Qwen/Qwen2.5-1.5B-Instruct": 1_543_714_304,
        "Qwen/Qwen2.5-7B-Instruct": 7_615_616_512,
        "Qwen/Qwen3-0.6B": 596_049_920,
        "Qwen/Qwen3-1.7B": 1_720_574_976,
        "Qwen/Qwen3-4B": 4_022_468_096,
        "Qwen/Qwen3-8B": 8_190_735_360,
        "google/gemma-2-2b-it": 2_614_341_888,
        "google/gemma-2-9b-it": 9_241_705_984,
        "microsoft/Phi-3-mini-4k-instruct": 3_821_079_552,
        "microsoft/Phi-4-mini-instruct": 3_836_021_760,
    }.items(),
)
def test_published_models_have_as_many_parameters_as_their_makers_count(model, parameters, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert sizes_of(model).total == parameters


def test_every_shape_of_the_table_is_counted_above():
    assert len(published_shapes()) == 15


def test_base_models_have_the_shape_of_the_instruction_tuned_ones(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert sizes_of("meta-llama/Llama-3.1-8B") == sizes_of(LLAMA)
    assert sizes_of("openai-community/gpt2") == sizes_of("gpt2")


def test_an_unknown_model_is_told_with_the_nearest_name(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(UserError, match="Llama-3.1-8B-Instruct") as error:
        architecture("meta-llama/Llama-3.1-8B-Instruc")
    assert "folder" in error.value.fix


def test_kinds_of_layers_repeat_in_gemma_only(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert period(architecture("google/gemma-2-2b-it")) == 2 and period(architecture(LLAMA)) == 1


def test_the_embedded_model_is_counted_from_its_folder():
    real = load_language_model("builtin:tiny")
    assert sizes_of("builtin:tiny").total == sum(p.numel() for p in real.model.parameters())


# --------------------------------------------------------------------------------------------- what is trained


@pytest.mark.parametrize("rank", [8, 16])
def test_adapters_of_an_8b_model(tmp_path, rank):
    """By hand: r (in + out) of q, k, v, o, gate, up, down in 32 layers."""
    d, kv, ff = 4096, 1024, 14336
    by_hand = 32 * rank * (2 * (d + d) + 2 * (d + kv) + 3 * (d + ff))
    config = llama(tmp_path, f"reasoning: cot, strategy: {{name: lora, rank: {rank}}}")
    assert trained_numbers(config.methods[0], config.backbone, None) == Trained(0, by_hand, 0)


@pytest.mark.parametrize("name", registry.known("reasoning"))
@pytest.mark.parametrize("settings", ["", "projector: mlp", "projector: mlp, hidden: 24", "source: free", "markers: table"])
def test_what_a_reasoning_owns_is_known_without_building_it(tmp_path, name, settings):
    kind = registry.find("reasoning", name)
    if settings and settings.split(":")[0] not in kind.Settings.model_fields:
        pytest.skip("it has no such setting")
    chosen = kind.Settings(**dict(part.split(": ") for part in settings.split(", ")) if settings else {})
    backbone, assistant = load_language_model("builtin:tiny"), load_language_model("builtin:tiny-assistant")
    reasoning = kind(chosen)
    reasoning.build(Parts(backbone, assistant, reasoning), 0)
    built = sum(p.numel() for p in reasoning.parameters())
    assert kind.owned_numbers(chosen, backbone.width, assistant.width) == built


@pytest.mark.parametrize(
    "strategy",
    ["full_finetune", "{name: full_finetune, layers: upper}", "{name: lora, rank: 3, layers: lower}", "frozen_backbone"],
)
def test_trained_numbers_are_those_of_a_real_method(tmp_path, strategy):
    config = experiment(tmp_path, "builtin:tiny", f"reasoning: {{name: coconut}}, strategy: {strategy}")
    method = config.methods[0]
    reasoning = method.reasoning.cls(method.reasoning.settings)
    parts = Parts(load_language_model("builtin:tiny").copy(), None, reasoning)
    reasoning.build(parts, 0)
    real = method.strategy.cls(method.strategy.settings)
    real.prepare(parts, 0)
    counted = trained_numbers(method, config.backbone, None)
    assert counted.total == sum(t.numel() for t in real.tensors(parts).values())


# ------------------------------------------------------------------------------------- against real training steps


@pytest.fixture(scope="session")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    sizes = {"width": 128, "layers": 6, "heads": 4, "vocabulary": 400, "context": 512}
    return {family: make_model_folder(folder / family, family, texts=[" ".join(WORDS)], **sizes) for family in ("llama", "gpt2")}


@pytest.mark.parametrize(
    ("family", "strategy", "reasoning", "dtype"),
    [
        ("llama", "full_finetune", "cot", "float32"),
        ("llama", "full_finetune", "coconut", "bfloat16"),
        ("llama", "lora", "coconut", "bfloat16"),
        ("llama", "frozen_backbone", "softcot", "float32"),
        ("gpt2", "lora", "cot", "float32"),
    ],
)
def test_what_a_forward_keeps_is_what_was_counted(tmp_path, models, monkeypatch, family, strategy, reasoning, dtype):
    """Within 4 %: the real one also keeps the log-probabilities of its labels and the embedding look-up. Of the library's layers,
    which are what a GPU runs; those that take their place on a CPU keep up to a tenth more."""
    monkeypatch.setattr("cl_softcot.models.language_model.make_lean", lambda model: None)
    backbone = f"{{path: {models[family]}, dtype: {dtype}}}"
    config = experiment(tmp_path, backbone, f"reasoning: {REASONINGS[reasoning]}, strategy: {strategy}")
    method, rng = config.methods[0], random.Random(0)
    part = method.reasoning.cls(method.reasoning.settings)
    parts = Parts(load_language_model(str(models[family]), dtype), None, part)
    part.build(parts, 0)
    real = method.strategy.cls(method.strategy.settings)
    real.prepare(parts, 0)

    def words(n: int) -> str:
        return " ".join(rng.choices(WORDS, k=n))

    B, phase = 8, part.phases(10)[-1]
    examples = [Example(str(i), "t", words(60), tuple(words(10) for _ in range(4)), "7") for i in range(B)]
    batch = part.collate([part.encode(parts.backbone.text, e, phase, rng) for e in examples])
    own = {p.untyped_storage()._cdata for module in (parts.backbone.model, part) for p in module.parameters()}
    kept: dict[int, tuple[object, int]] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in own:
            kept[storage._cdata] = (storage, storage.nbytes())
        return tensor

    with saved_tensors_hooks(pack, lambda tensor: tensor):
        part.loss(parts, batch)
    written, target = len(part.steps_written(examples[0], phase.stage)), batch["target_BT"].shape[1]
    text = TextLengths(batch["prefix_BT"].shape[1] - len(part.thoughts(phase.stage)), (target - 3) * 4 // written, 3, 4)
    plan = passes_of(method, text, phase, frozen_backbone=strategy == "frozen_backbone")
    copies, each = kept_for_backward(method, config.backbone, plan)
    assert copies + B * each == pytest.approx(sum(size for _, size in kept.values()), rel=0.04)
    weights = sum(p.numel() for p in parts.backbone.layers.parameters() if p.ndim == 2)
    if (strategy, dtype) == ("full_finetune", "bfloat16"):  # autocast's copies of the linear maps, one a call
        assert copies == pytest.approx(2 * weights * len(plan.pieces), rel=0.05)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("strategy", "reasoning"),
    [("full_finetune", "cot"), ("full_finetune", "coconut"), ("lora", "cot"), ("frozen_backbone", "softcot")],
)
def test_the_peak_of_real_steps_is_near_the_estimate(tmp_path, strategy, reasoning):
    """Resident memory of two whole steps in a process of its own: the estimate is within a fifth of it."""
    folder = make_model_folder(
        tmp_path / "model", "llama", texts=[" ".join(WORDS)], width=512, layers=8, heads=8, feed_forward=2048, vocabulary=400
    )
    more = "train: {global_batch_size: 8, steps: 10}\n"
    config = experiment(tmp_path, str(folder), f"reasoning: {REASONINGS[reasoning]}, strategy: {strategy}", more)
    # Freed blocks go back to the system, so that the peak is that of tensors and not of the allocator's heap.
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "262144", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, str(ROOT / "tests" / "step_memory.py"), str(tmp_path / "e.yaml"), "120", "12"],
        capture_output=True,
        text=True,
        check=True,
        env=environment,
    )
    real = json.loads(done.stdout)
    text = TextLengths(real["prompt"], (real["target"] - 3) * (4 if reasoning == "coconut" else 1), 3, 4)
    counted = footprint_of(config, config.methods[0], text, device="cpu")
    estimated = sum(counted.stays.values()) + max(sum(counted.passes[moment].values()) for moment in ("training", "update"))
    assert 0.8 * real["bytes"] < estimated < 1.2 * real["bytes"], (estimated / 1e6, real)


# --------------------------------------------------------------------------------------------------- what it adds up to


def test_all_weights_of_8b_take_16_bytes_each_and_the_base_two(tmp_path):
    """And AdamW's temporary four, while it updates."""
    found = memory(llama(tmp_path, "reasoning: cot, strategy: full_finetune"))
    parameters = 8_030_261_248
    assert sum(found.stays.values()) == (4 + 8 + 2) * parameters  # weights, two means, the base in bf16
    assert found.stays["the base itself, for drift and retention"] == 2 * parameters
    assert found.passes["update"] == {"the optimiser's temporary": 4 * parameters, "gradients (fp32)": 4 * parameters}


def test_gradients_stand_beside_activations_only_where_micro_batches_add_up(tmp_path):
    def training(size: int) -> dict[str, float]:
        more = f"train: {{global_batch_size: 8, micro_batch_size: {size}}}\n"
        return memory(llama(tmp_path, "reasoning: cot, strategy: lora", more)).passes["training"]

    assert "gradients (fp32)" not in training(8) and training(4)["gradients (fp32)"] == 4 * 41_943_040


def test_adapters_share_the_base(tmp_path):
    found = memory(llama(tmp_path, "reasoning: cot, strategy: lora")).stays
    assert found["frozen weights"] == 2 * 8_030_261_248 and "the base itself, for drift and retention" not in found


def test_quantised_weights(tmp_path):
    """By hand: linear maps of the layers at 0.5625 bytes (4 bits and a scale in 64), embeddings, head and norms in bf16."""
    config = llama(tmp_path, "reasoning: cot, strategy: lora", backbone=", quantization: 4bit")
    linear = 32 * (2 * 4096 * 4096 + 2 * 4096 * 1024 + 3 * 4096 * 14336)
    rest = 8_030_261_248 - linear
    assert weight_bytes(sizes_of(LLAMA), config.backbone) == pytest.approx(0.5625 * linear + 2 * rest)


def test_sharding_splits_what_is_trained_but_the_embedding(tmp_path):
    """By hand: 128,256 x 4,096 numbers of the embedding stay whole; the rest is split, and gathered in bf16 while it is used."""
    config = llama(tmp_path, "reasoning: cot, strategy: full_finetune", "train: {sharding: full}\n")
    one, eight = memory(config, gpus=1), memory(config, gpus=8)
    embedding, parameters = 128_256 * 4096, 8_030_261_248
    held = embedding + (parameters - embedding) / 8
    assert eight.stays["trained weights (fp32)"] == 4 * held and eight.stays["optimiser"] == 8 * held
    assert eight.passes["training"]["gathered weights"] == 2 * (parameters - embedding)
    assert "gathered weights" not in one.passes["training"] and one.stays["optimiser"] == 8 * parameters


def test_8_bit_states_take_a_quarter(tmp_path):
    def optimiser(settings: str) -> float:
        return memory(llama(tmp_path, "reasoning: cot, strategy: full_finetune", settings)).stays["optimiser"]

    assert optimiser("train: {optimizer: adamw_8bit}\n") == pytest.approx(optimiser("") / 4, rel=0.02)


def test_the_cache_of_answers(tmp_path):
    """By hand: two maps of 8 heads of 128 in 32 layers in bf16 are 131,072 bytes a token; half as many answers may wait."""
    config = llama(tmp_path, "reasoning: cot, strategy: zero_shot", "evaluate: {batch_size: 20, max_new_tokens: 150}\n")
    assert memory(config).passes["answering"]["cache of keys and values"] == 30 * (100 + 150) * 131_072


def test_a_random_assistant_stands_beside_the_real_one(tmp_path):
    def assistant(source: str) -> float:
        method = f"reasoning: {{name: softcot, source: {source}}}, strategy: frozen_backbone"
        return memory(llama(tmp_path, method)).stays.get("assistant", 0.0)

    assert (assistant("free"), assistant("assistant"), assistant("random")) == (0, 2 * 1_235_814_400, 4 * 1_235_814_400)


def test_activations_follow_the_micro_batch_and_checkpointing_saves_most_of_them(tmp_path):
    def activations(size: int, backbone: str = "") -> float:
        more = f"train: {{global_batch_size: 16, micro_batch_size: {size}}}\n"
        return memory(llama(tmp_path, "reasoning: cot, strategy: lora", more, backbone)).passes["training"]["activations"]

    assert activations(8) == pytest.approx(2 * activations(4)) and activations(16) == pytest.approx(4 * activations(4))
    assert activations(4, ", gradient_checkpointing: true") < activations(4) / 8


def test_nothing_is_kept_before_the_first_slot_of_a_frozen_backbone(tmp_path):
    config = llama(tmp_path, "reasoning: {name: softcot, soft_thoughts: 4}, strategy: frozen_backbone")
    method, phase = config.methods[0], config.methods[0].reasoning.cls().phases(1)[0]
    plan = passes_of(method, TEXT, phase, frozen_backbone=True)
    assert plan == Passes(100, (4 + 89,), 90)
    _, above = kept_for_backward(method, config.backbone, plan)
    _, everything = kept_for_backward(method, config.backbone, Passes(0, (193,), 90))
    assert above < 0.6 * everything


def test_coconut_goes_through_the_backbone_once_a_thought(tmp_path):
    """By hand: question and <start>; two thoughts alone; the third with <end> and the last step, 20 of 80 tokens, and answer."""
    config = llama(tmp_path, "reasoning: {name: coconut, max_stage: 3}, strategy: lora")
    method = config.methods[0]
    phase = method.reasoning.cls(method.reasoning.settings).final_phase()
    plan = passes_of(method, TEXT, phase, frozen_backbone=False)
    assert plan.labels == 20 + 10 and plan.pieces == (101, 1, 1, 2 + 29) and plan.columns == 100 + 2 + 3 + 29


# --------------------------------------------------------------------------------------------------------- cost


def test_operations_are_six_four_and_less_than_four_a_weight_and_token():
    sizes = sizes_of(LLAMA)
    # Of attention and the head nothing, to see the rule.
    bare = type(sizes)(**{**vars(sizes), "head": 0, "width": 0})
    whole, slots = Passes(0, (190,), 90), Passes(100, (90,), 90)
    P = bare.layers
    assert step_operations(bare, Trained(P, 0, 0), whole) == 6 * P * 190
    assert step_operations(bare, Trained(0, 0, 9), whole) == 4 * P * 190
    assert step_operations(bare, Trained(0, 0, 9), slots) == 2 * P * 190 + 2 * P * 90
    assert step_operations(bare, Trained(0, 0, 9), whole, again=1) == 6 * P * 190


def test_writing_is_bound_by_reading_the_weights_or_starting_kernels(tmp_path):
    config = llama(tmp_path, "reasoning: cot, strategy: zero_shot", "evaluate: {test: 64, batch_size: 64, max_new_tokens: 100}\n")
    sizes = sizes_of(LLAMA)
    seconds = answers_seconds(config, config.methods[0], sizes, TEXT, 64, H100)
    # 100 tokens, each at least 32 layers of 0.5 ms.
    assert 100 * 32 * 0.5e-3 <= seconds < 2 * 100 * 32 * 0.5e-3
    assert answers_seconds(config, config.methods[0], sizes, TEXT, 128, H100) == pytest.approx(2 * seconds)


def test_plain_zero_shot_is_the_base_itself_and_costs_nothing_more(tmp_path):
    config = llama(tmp_path, "reasoning: cot, strategy: zero_shot")
    assert hours_of(config, config.methods[0], text_lengths(config)).total == 0


def test_training_time_follows_steps_and_batch(tmp_path):
    def hours(steps: int, batch: int) -> float:
        more = f"train: {{steps: {steps}, global_batch_size: {batch}, micro_batch_size: 16}}\n"
        config = llama(tmp_path, "reasoning: cot, strategy: lora", more)
        return hours_of(config, config.methods[0], text_lengths(config)).training

    assert hours(200, 32) == pytest.approx(2 * hours(100, 32), rel=1e-3)
    assert hours(100, 64) == pytest.approx(2 * hours(100, 32), rel=1e-2)


# ------------------------------------------------------------------------------------------------------- advice


def test_advice_makes_it_fit(tmp_path):
    more = "train: {global_batch_size: 32}\nevaluate: {batch_size: 256, max_new_tokens: 400}\n"
    config = llama(tmp_path, "reasoning: cot, strategy: lora", more)
    device = Device("a GPU of 40 GB", "cuda", 40e9)
    assert memory(config).peak > device.room
    said = advise(config, config.methods[0], TEXT, device, 1)
    settings = dict(part.split(": ") for part in said.partition(" would make it ")[0].split(", "))
    overrides = [f"{key}={value}" for key, value in settings.items()]
    assert {"train.micro_batch_size", "evaluate.batch_size"} <= set(settings) and "backbone.quantization" not in settings
    changed = load_experiment(tmp_path / "e.yaml", overrides).config
    assert memory(changed).peak <= device.room


def test_all_weights_of_8b_need_several_gpus_of_80_gb(tmp_path):
    config = llama(tmp_path, "reasoning: cot, strategy: full_finetune")
    (found,) = estimate(config, device_for(config, 80))
    assert not found.fits and "train.sharding: full" in found.advice and "8 GPUs" in found.advice


def test_a_model_that_fits_gets_no_advice(tmp_path):
    config = experiment(tmp_path, "builtin:tiny", "reasoning: cot, strategy: full_finetune")
    (found,) = estimate(config, device_for(config, 80))
    assert found.fits and found.advice is None
    small = Device("very little", "cuda", 1e6)
    assert not estimate(config, small)[0].fits


# ------------------------------------------------------------------------------------------- what cannot be told, or run

SMALL_SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64, "vocab_size": 100}
KINDS = {
    "bloom": {},
    "falcon": {"alibi": True},
    "gpt_bigcode": {"n_embd": 32, "n_layer": 2, "n_head": 4},
    "mixtral": {"num_key_value_heads": 2, "num_local_experts": 4},
    "lfm2": {"num_key_value_heads": 2, "layer_types": ["conv", "full_attention"]},
    "gpt_oss": {"num_key_value_heads": 2, "num_local_experts": 4, "num_experts_per_tok": 1, "head_dim": 8},
}


def of_a_kind(folder: Path, kind: str, **settings: object) -> Path:
    """A folder that says which kind of model it is, and holds none."""
    folder.mkdir()
    config = CONFIG_MAPPING[kind](**{**SMALL_SIZES, **KINDS.get(kind, {}), **settings})
    config.architectures = None
    config.save_pretrained(folder)
    (folder / "model.safetensors").write_bytes(b"")
    (folder / "tokenizer_config.json").write_text("{}")
    return folder


@pytest.mark.parametrize("kind", KINDS)
def test_kinds_with_masks_experts_and_layers_of_their_own_are_estimated(tmp_path, kind):
    folder = of_a_kind(tmp_path / "m", kind)
    for strategy in ("lora", "full_finetune"):
        config = experiment(tmp_path, str(folder), f"reasoning: cot, strategy: {strategy}")
        (found,) = estimate(config, Device("a machine", "cpu", 1e12))
        assert found.unknown is None and found.refused is None and found.fits and found.hours.total > 0
        assert found.memory.passes["training"]["activations"] > 0


def test_a_token_meets_some_of_the_experts(tmp_path):
    """By hand: of 4 experts of 3 x 32 x 64 numbers a token meets 2, or 1."""
    two, one = (sizes_of(str(of_a_kind(tmp_path / f"m{n}", "mixtral", num_experts_per_tok=n))) for n in (2, 1))
    expert = 3 * 32 * 64
    assert two.stacks == one.stacks == 2 * 4 * expert and two.layers == one.layers
    assert (two.layers - two.active, one.layers - one.active) == (2 * 2 * expert, 2 * 3 * expert)
    assert sizes_of(LLAMA).active == sizes_of(LLAMA).layers


def test_adapters_of_experts_are_counted(tmp_path):
    """By hand: for each of 4 experts r (in + out), of both tensors in 2 layers, and of the attention's maps."""
    config = experiment(tmp_path, str(of_a_kind(tmp_path / "m", "mixtral")), "reasoning: cot, strategy: {name: lora, rank: 2}")
    experts, attention = 4 * ((32 + 128) + (64 + 32)), 2 * (32 + 32) + 2 * (32 + 16)
    assert trained_numbers(config.methods[0], config.backbone, None).adapters == 2 * 2 * (experts + attention)


def test_an_estimate_that_fails_is_left_out_and_stops_nothing(tmp_path, monkeypatch):
    def fails(*_: object, **__: object) -> None:
        raise ZeroDivisionError("of a kind\nthat nobody knew")

    config = llama(tmp_path, "reasoning: cot, strategy: lora")
    monkeypatch.setattr("cl_softcot.estimate.advice.footprint_of", fails)
    (found,) = estimate(config, device_for(config, 80))
    assert found.memory is None and found.fits and found.hours.total > 0
    assert warnings_before_loading(config, 1) == []
    said = forecast(config, plan(config), 1, gpu_memory=80)
    assert said.status == 0 and "no estimate (ZeroDivisionError: of a kind that nobody knew)" in said.text
    monkeypatch.setattr("cl_softcot.estimate.advice.hours_of", fails)
    assert forecast(config, plan(config), 1, gpu_memory=80).status == 0


def dry_run(path: Path, *arguments: str) -> int:
    return main([str(path), "--dry-run", *arguments])


def test_a_dry_run_tells_by_its_status_what_does_not_fit(tmp_path, capsys):
    llama(tmp_path, "reasoning: cot, strategy: lora")
    assert dry_run(tmp_path / "e.yaml", "--gpu-memory", "80") == 0
    assert dry_run(tmp_path / "e.yaml", "--gpu-memory", "8") == 3
    assert "DOES NOT FIT" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("backbone", "said"),
    [
        ("./nothing", "there is no folder"),
        ("nobody/nothing", "is not known"),
        ("builtin:huge", "no embedded model"),
        ("EMPTY", "holds no model"),
        ("WEIGHTLESS", "holds no weights"),
        ("TEXTLESS", "holds no tokenizer"),
        ("TORN", "not valid JSON"),
        ("vit", "no causal language model"),
        ("mamba", "untouched"),
    ],
)
def test_a_dry_run_tells_by_its_status_what_is_missing_or_refused(tmp_path, monkeypatch, capsys, backbone, said):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    if backbone in CONFIG_MAPPING:
        backbone = str(of_a_kind(tmp_path / "m", backbone))
    elif backbone.isupper():
        folder = of_a_kind(tmp_path / "m", "bloom")
        gone = {"EMPTY": "config.json", "WEIGHTLESS": "model.safetensors", "TEXTLESS": "tokenizer_config.json"}.get(backbone)
        (folder / gone).unlink() if gone else (folder / "config.json").write_text("{")
        backbone = str(folder)
    experiment(tmp_path, backbone, "reasoning: cot, strategy: lora")
    assert dry_run(tmp_path / "e.yaml") == 4
    text = capsys.readouterr().out
    assert "cannot run: " in text and said in text


def test_a_missing_assistant_is_told_too(tmp_path, capsys):
    experiment(tmp_path, "builtin:tiny", "reasoning: cot, strategy: lora")
    assert dry_run(tmp_path / "e.yaml", "assistant=./nothing") == 4
    assert "assistant: there is no folder" in capsys.readouterr().out


def test_training_is_paid_by_what_is_trained(tmp_path):
    """Operations a token and weight: 6 for all weights, 4 with adapters of a few per cent, less behind a prompt that is read
    without gradients."""
    parameters = sizes_of(LLAMA).total

    def paid(reasoning: str, strategy: str) -> float:
        config = llama(tmp_path, f"reasoning: {reasoning}, strategy: {strategy}")
        return passes_paid(config, config.methods[0], TEXT, parameters)

    assert paid("cot", "full_finetune") == 6
    assert paid("cot", "lora") == pytest.approx(4 + 2 * 41_943_040 / parameters)
    frozen = paid("{name: softcot, soft_thoughts: 4, source: free}", "frozen_backbone")
    assert frozen == pytest.approx(2 + 2 * 93 / 193)  # 100 tokens of the prompt come before the first slot


def test_larger_models_reach_more_of_a_product_s_rate():
    assert train_share(600_000, torch.float32) == 0.35 and train_share(135_000_000, torch.float32) == 0.95
    assert train_share(135_000_000, torch.bfloat16) == 0.64
    assert 0.35 < train_share(10_000_000, torch.float32) < train_share(50_000_000, torch.float32) < 0.95
