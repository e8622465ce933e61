"""The lean Llama layers compute what the library's do."""

from __future__ import annotations

import copy

import pytest
import torch
from model_fakes import gpt2_model, save_gpt2_model, words_model
from transformers.activations import NewGELUActivation
from transformers.models.llama.modeling_llama import LlamaRMSNorm, apply_rotary_pos_emb

from cl_softcot.models import lean
from cl_softcot.models.language_model import load_language_model


def _double(*shape):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(sum(shape))).requires_grad_(True)


def test_the_written_gradients_are_the_derivatives():
    cos, sin = _double(2, 1, 3, 2).detach(), _double(2, 1, 4, 2)[:, :, :3].detach()
    assert torch.autograd.gradcheck(lambda x, w: lean._Norm.apply(x, w, 1e-3), (_double(2, 3, 6), _double(6)))
    assert torch.autograd.gradcheck(lambda x: lean._Rotary.apply(x, cos, sin), (_double(2, 5, 3, 4),))


def test_norm_and_rotation_are_the_librarys():
    norm = LlamaRMSNorm(8, eps=1e-5)
    torch.nn.init.normal_(norm.weight)
    x = torch.randn(4, 8)
    torch.testing.assert_close(lean._Norm.apply(x, norm.weight, 1e-5), norm(x), rtol=1e-6, atol=1e-6)
    q, k, angles = torch.randn(2, 4, 3, 8), torch.randn(2, 2, 3, 8), torch.randn(2, 3, 4)
    cos, sin = (torch.cat([f(angles)] * 2, -1) for f in (torch.cos, torch.sin))
    halves = [table[:, None, :, :4] for table in (cos, sin)]
    for mine, theirs in zip((q, k), apply_rotary_pos_emb(q, k, cos, sin), strict=True):
        torch.testing.assert_close(lean._Rotary.apply(mine, *halves), theirs, rtol=1e-6, atol=1e-6)


@pytest.fixture(params=["eager", "sdpa"])
def both(tmp_path, request):
    """A loaded model, and the same weights in the library's own classes."""
    mine = load_language_model(words_model(tmp_path).name, attention=request.param).model
    kinds = {lean_class: plain for plain, lean_class in lean._LEAN.items()}
    theirs = copy.deepcopy(mine)
    changed = [module for module in theirs.modules() if type(module) in kinds]
    for module in changed:
        module.__class__ = kinds[type(module)]
    assert {type(m) for m in changed} == set(lean._LEAN)
    return mine, theirs


def test_a_model_gives_the_same_states_and_gradients(both):
    ids = torch.randint(0, 30, (3, 7), generator=torch.Generator().manual_seed(0))
    mask = torch.ones(3, 7, dtype=torch.long)
    mask[0, :3] = 0
    found = []
    for model in both:
        model.requires_grad_(True)
        logits = model(input_ids=ids, attention_mask=mask).logits
        logits.log_softmax(-1)[mask.bool()][:, 5].sum().backward()
        with torch.no_grad():
            again = model(input_ids=ids, attention_mask=mask).logits
        torch.testing.assert_close(again, logits)
        found.append((logits[mask.bool()].detach(), {name: p.grad for name, p in model.named_parameters()}))
    torch.testing.assert_close(found[0][0], found[1][0], rtol=1e-5, atol=1e-5)
    for name, gradient in found[1][1].items():
        torch.testing.assert_close(found[0][1][name], gradient, rtol=1e-4, atol=1e-5 * float(gradient.abs().max()), msg=name)


def test_without_padding_no_mask_is_needed(both):
    """Where attention is fused the library leaves a causal mask out."""
    ids = torch.randint(0, 30, (3, 7), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        mine, theirs = (model(input_ids=ids).logits for model in both)
    torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-5)


def test_gpt2s_activation_is_the_librarys(tmp_path):
    mine = gpt2_model(tmp_path).model
    activations = [module for module in mine.modules() if type(module) is lean.LeanGELU]
    assert len(activations) == mine.config.n_layer
    assert not any(
        type(module) is lean.LeanGELU
        for module in load_language_model(str(save_gpt2_model(tmp_path / "half")), dtype="bfloat16").model.modules()
    )
    x = torch.linspace(-8, 8, 1001, dtype=torch.float64).requires_grad_()
    found, expected = activations[0](x), NewGELUActivation()(x)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    (mine_g,), (theirs_g,) = (torch.autograd.grad(y.square().sum(), x) for y in (found, expected))
    torch.testing.assert_close(mine_g, theirs_g, rtol=1e-12, atol=1e-12)


def test_other_numbers_and_attention_are_left_alone(both):
    _, theirs = both
    for change in (lambda m: m.double(), lambda m: m.set_attn_implementation("flex_attention")):
        other = copy.deepcopy(theirs)
        change(other)
        lean.make_lean(other)
        assert not any(isinstance(m, tuple(lean._LEAN.values())) for m in other.modules())
