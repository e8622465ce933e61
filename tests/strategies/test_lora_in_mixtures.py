"""LoRA where a layer's maps are no modules of their own: experts in one tensor, shared modules, and what it leaves alone."""

from __future__ import annotations

import pytest
import torch
from model_fakes import parts_of, words_model
from peft.tuners.lora import LoraLayer
from torch import nn
from transformers import CONFIG_MAPPING, AutoModelForCausalLM

from cl_softcot.errors import UserError
from cl_softcot.models.own_weights import OwnWeights
from cl_softcot.reasoning.cot import Cot
from strategies.lora import Lora, left_out

SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48, "vocab_size": 40}
MIXTURES = {
    "mixtral": {"num_key_value_heads": 2, "num_local_experts": 4},
    "qwen2_moe": {"num_key_value_heads": 2, "num_experts": 4, "moe_intermediate_size": 16, "shared_expert_intermediate_size": 24},
    "gpt_oss": {"num_key_value_heads": 2, "head_dim": 8, "num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": 8},
    # Its first layer has no experts, and maps of the names that experts had once.
    "deepseek_v3": {
        "moe_intermediate_size": 16,
        "n_routed_experts": 4,
        "num_experts_per_tok": 2,
        "n_group": 2,
        "topk_group": 1,
        "kv_lora_rank": 8,
        "q_lora_rank": 8,
        "qk_rope_head_dim": 4,
        "qk_nope_head_dim": 4,
        "v_head_dim": 8,
        "first_k_dense_replace": 1,
    },
}
IDS = torch.arange(5, 21)[None]


def mixture(kind, tmp_path):
    """The words model with another architecture inside."""
    backbone = words_model(tmp_path)
    config = CONFIG_MAPPING[kind](**SIZES, **MIXTURES[kind], pad_token_id=0, eos_token_id=1, bos_token_id=None)
    torch.manual_seed(3)
    return with_model(backbone, AutoModelForCausalLM.from_config(config))


def with_model(backbone, model):
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0, 0.3)
    backbone.model, backbone.config = model.eval().requires_grad_(False), model.config
    backbone.own = OwnWeights(model)
    backbone.__dict__.pop("layers", None)
    return backbone


def adapted(backbone, **settings):
    parts, strategy = parts_of(backbone, Cot()), Lora(Lora.Settings(rank=4, alpha=8, **settings))
    strategy.prepare(parts, 0)
    return parts, strategy


def logits(backbone):
    with torch.no_grad():
        return backbone.model(input_ids=IDS).logits


def learn(parts, strategy):
    optimizer = torch.optim.SGD(strategy.tensors(parts).values(), lr=1.0)
    for _ in range(2):
        optimizer.zero_grad()
        parts.backbone.model(input_ids=IDS, labels=IDS).loss.backward()
        optimizer.step()
    assert all(t.grad is not None for t in strategy.tensors(parts).values())


@pytest.mark.parametrize("kind", MIXTURES)
def test_experts_in_one_tensor_learn_and_are_switched_off_to_the_bit(kind, tmp_path):
    backbone = mixture(kind, tmp_path)
    before, names, sha256 = logits(backbone), set(backbone.own_weights()), backbone.weights_sha256()
    matrices = {n: p.numel() for n, p in backbone.model.named_parameters() if p.dim() > 1 and ".layers." in n and "bias" not in n}
    parts, strategy = adapted(backbone)
    adapters = [m for m in backbone.model.modules() if isinstance(m, LoraLayer)]
    assert sum(m.base_layer.weight.numel() for m in adapters) > 0.98 * sum(matrices.values())
    assert torch.equal(logits(backbone), before) and set(backbone.own_weights()) == names
    assert "mlp." in strategy.leaves_out(parts) and "% of the weights" in strategy.leaves_out(parts)  # its routers

    learn(parts, strategy)
    learned = logits(backbone)
    assert not torch.allclose(learned, before)
    with strategy.as_used(parts):
        torch.testing.assert_close(logits(backbone), learned, rtol=1e-4, atol=1e-4)
    with strategy.weights_alone(parts):
        assert torch.equal(logits(backbone), before)
    with backbone.alone():
        assert torch.equal(logits(backbone), before)
    assert torch.equal(logits(backbone), learned) and backbone.weights_sha256() == sha256


@pytest.mark.parametrize("kind", ["mixtral", "gpt_oss"])
def test_changes_of_experts_are_those_that_they_compute_with(kind, tmp_path):
    """Written into a fresh model, the changes give what the adapted one computes."""
    backbone = mixture(kind, tmp_path)
    parts, strategy = adapted(backbone)
    learn(parts, strategy)
    changes = list(strategy.weight_changes(parts, {}))
    fresh = mixture(kind, tmp_path / "again")
    weights = dict(fresh.model.named_parameters())
    with torch.no_grad():
        for name, delta, base in changes:
            assert delta.shape == base.shape and torch.equal(base, weights[name])
            weights[name].add_(delta)
    assert [name for name, _, _ in changes if "experts" in name and not name.endswith(".weight")]
    torch.testing.assert_close(logits(fresh), logits(backbone), rtol=1e-4, atol=1e-4)


def test_what_was_learned_goes_into_another_copy(tmp_path):
    """As a checkpoint does it: tensors by name."""
    backbone = mixture("mixtral", tmp_path)
    twin = backbone.copy(share_weights=True)
    parts, strategy = adapted(backbone)
    learn(parts, strategy)
    again, other = adapted(twin)
    tensors = other.tensors(again)
    assert tensors.keys() == strategy.tensors(parts).keys()
    with torch.no_grad():
        for name, tensor in strategy.tensors(parts).items():
            tensors[name].copy_(tensor)
    assert torch.equal(logits(twin), logits(backbone))


def test_routers_stay_as_they_are(tmp_path):
    backbone = mixture("mixtral", tmp_path)
    left, total = left_out(backbone, "upper")
    assert list(left) == ["model.layers.1.mlp.gate.weight"] and sum(left.values()) / total < 0.01


def test_dropout_and_experts_in_one_tensor_are_refused_together(tmp_path):
    with pytest.raises(UserError, match="no dropout") as error:
        adapted(mixture("mixtral", tmp_path), dropout=0.1)
    assert "dropout: 0" in error.value.fix


def test_a_layer_of_other_things_than_linear_maps_is_refused_with_its_share(tmp_path):
    class Table(nn.Module):
        def __init__(self):
            super().__init__()
            self.rows = nn.Parameter(torch.zeros(400, 32))

    backbone = words_model(tmp_path)
    backbone.layers[0].table = Table()
    linear = sum(m.weight.numel() for layer in backbone.layers for m in layer.modules() if isinstance(m, nn.Linear))
    share = 400 * 32 / (400 * 32 + linear)
    with pytest.raises(UserError, match=rf"leave {share:.0%} of the weights .* untouched.*layers\.0\.table\.rows"):
        adapted(backbone)


def test_a_kind_that_peft_puts_no_adapters_into_is_refused_in_a_sentence(tmp_path):
    config = CONFIG_MAPPING["mamba"](hidden_size=32, num_hidden_layers=2, state_size=4, vocab_size=40)
    backbone = with_model(words_model(tmp_path), AutoModelForCausalLM.from_config(config))
    with pytest.raises(UserError, match=r"'out_proj'.* leave \d\d% of the weights"):
        adapted(backbone)


def test_a_module_that_stands_in_two_layers_has_its_adapter_in_both(tmp_path):
    backbone = words_model(tmp_path)
    backbone.layers[1].mlp.down_proj = backbone.layers[0].mlp.down_proj
    with_model(backbone, backbone.model)
    before = logits(backbone)
    adapted(backbone)
    first, second = (layer.mlp.down_proj for layer in backbone.layers)
    assert isinstance(first, LoraLayer) and first is second
    with backbone.alone():
        assert torch.equal(logits(backbone), before)
