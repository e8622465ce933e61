"""The Llama layers of transformers with fewer passes over memory, for fp32 on a CPU; and GPT-2's activation, for fp32.

On a CPU a small model spends as much time in what lies between its matrix products as in them: every elementwise operation
reads and writes the whole tensor. The classes here compute what their parents do, equal up to rounding, with gradients written
out. They take the parents' place in a loaded model; its parameters, their names and everything else stay as they are.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from transformers import PreTrainedModel
from transformers.activations import NewGELUActivation
from transformers.models.llama.modeling_llama import LlamaAttention, LlamaMLP, LlamaRMSNorm


def make_lean(model: PreTrainedModel) -> None:
    """Puts the lean classes in place in a transformers model, where they fit; everything else is left alone."""
    config = model.config.get_text_config(decoder=True)
    weight = next(model.parameters())
    fits = weight.dtype == torch.float32 and weight.device.type == "cpu" and config._attn_implementation in ("eager", "sdpa")
    for module in model.modules() if fits else ():
        lean = _LEAN.get(type(module))
        if lean is not None:
            module.__class__ = lean
    for module in model.modules() if weight.dtype == torch.float32 else ():
        if type(module) is NewGELUActivation:
            module.__class__ = LeanGELU


class _Norm(torch.autograd.Function):
    """y = w * n with n = x / sqrt(mean x^2 + eps)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, w_D: Tensor, eps: float) -> Tensor:
        scale = torch.linalg.vector_norm(x, dim=-1, keepdim=True).square_().div_(x.shape[-1]).add_(eps).rsqrt_()
        n = x * scale
        ctx.save_for_backward(n, w_D, scale)
        return n * w_D

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        n, w_D, scale = ctx.saved_tensors
        d_x = d_w = None
        if ctx.needs_input_grad[0]:
            d_n = g * w_D
            along = torch.linalg.vecdot(d_n, n).div_(-n.shape[-1]).unsqueeze(-1)
            d_x = d_n.addcmul_(n, along).mul_(scale)
        if ctx.needs_input_grad[1]:
            d_w = (g * n).flatten(0, -2).sum(0)
        return d_x, d_w, None


class LeanRMSNorm(LlamaRMSNorm):
    """RMSNorm (arXiv 1910.07467)."""

    def forward(self, hidden_states: Tensor) -> Tensor:
        return _Norm.apply(hidden_states, self.weight, self.variance_epsilon)


class _Rotary(torch.autograd.Function):
    """Rotary positions (arXiv 2104.09864): halves (a, b) -> (a cos - b sin, b cos + a sin), laid out for the matrix product."""

    @staticmethod
    def forward(ctx: Any, x_BHTd: Tensor, cos_B1Tc: Tensor, sin_B1Tc: Tensor) -> Tensor:
        ctx.save_for_backward(cos_B1Tc, sin_B1Tc)
        return _turned(x_BHTd, cos_B1Tc, sin_B1Tc, 1.0)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g_BHTd: Tensor) -> tuple[Tensor, None, None]:
        cos_B1Tc, sin_B1Tc = ctx.saved_tensors
        return _turned(g_BHTd, cos_B1Tc, sin_B1Tc, -1.0), None, None


def _turned(x_BHTd: Tensor, cos_B1Tc: Tensor, sin_B1Tc: Tensor, sign: float) -> Tensor:
    half = x_BHTd.shape[-1] // 2
    a, b = x_BHTd[..., :half], x_BHTd[..., half:]
    turned = torch.empty(x_BHTd.shape, dtype=x_BHTd.dtype)
    torch.mul(a, cos_B1Tc, out=turned[..., :half]).addcmul_(b, sin_B1Tc, value=-sign)
    torch.mul(b, cos_B1Tc, out=turned[..., half:]).addcmul_(a, sin_B1Tc, value=sign)
    return turned


class LeanAttention(LlamaAttention):
    """Attention with the queries' scale in their rotation; masks are added in place, or fused attention does it all."""

    def forward(
        self,
        hidden_states: Tensor,
        position_embeddings: tuple[Tensor, Tensor],
        attention_mask: Tensor | None = None,
        past_key_values: Any | None = None,
        **kwargs: Any,
    ) -> tuple[Tensor, None]:
        B, T, _ = hidden_states.shape
        q_BHTd, k_BHTd, v_BHTd = (
            project(hidden_states).view(B, T, -1, self.head_dim).transpose(1, 2)
            for project in (self.q_proj, self.k_proj, self.v_proj)
        )
        half = self.head_dim // 2  # the library repeats what belongs to both halves
        cos_B1Tc, sin_B1Tc = (table[:, None, :, :half] for table in position_embeddings)
        q_BHTd = _Rotary.apply(q_BHTd, cos_B1Tc * self.scaling, sin_B1Tc * self.scaling)
        k_BHTd = _Rotary.apply(k_BHTd, cos_B1Tc, sin_B1Tc)
        if past_key_values is not None:
            k_BHTd, v_BHTd = past_key_values.update(k_BHTd, v_BHTd, self.layer_idx)
        attend = self._fused if self.config._attn_implementation == "sdpa" else self._eager
        return self.o_proj(attend(q_BHTd, k_BHTd, v_BHTd, attention_mask).transpose(1, 2).reshape(B, T, -1)), None

    def _eager(self, q_BHTd: Tensor, k_BHSd: Tensor, v_BHSd: Tensor, mask: Tensor | None) -> Tensor:
        if self.num_key_value_groups > 1:
            k_BHSd, v_BHSd = (x.repeat_interleave(self.num_key_value_groups, 1) for x in (k_BHSd, v_BHSd))
        scores_BHTS = q_BHTd @ k_BHSd.transpose(2, 3)
        if mask is not None:
            scores_BHTS += mask
        weights_BHTS = scores_BHTS.softmax(-1)
        return nn.functional.dropout(weights_BHTS, self.attention_dropout, self.training) @ v_BHSd

    def _fused(self, q_BHTd: Tensor, k_BHSd: Tensor, v_BHSd: Tensor, mask: Tensor | None) -> Tensor:
        """The library gives no mask where causal attention, or none, is all there is to it."""
        causal, dropout = mask is None and q_BHTd.shape[2] > 1, self.attention_dropout if self.training else 0.0
        return nn.functional.scaled_dot_product_attention(
            q_BHTd,
            k_BHSd,
            v_BHSd,
            mask,
            dropout_p=dropout,
            is_causal=causal,
            scale=1.0,
            enable_gqa=self.num_key_value_groups > 1,  # the library copies all keys and values for every head that reads them
        )


class LeanMLP(LlamaMLP):
    """The gated layer, without new memory for its product where no gradient is needed."""

    def forward(self, x: Tensor) -> Tensor:
        if torch.is_grad_enabled():
            return super().forward(x)
        return self.down_proj(self.act_fn(self.gate_proj(x)).mul_(self.up_proj(x)))


class LeanGELU(NewGELUActivation):
    """GELU's tanh form (arXiv 1606.08415) in one pass; the library writes it out in eight, and keeps what lies between."""

    def forward(self, input: Tensor) -> Tensor:
        return nn.functional.gelu(input, approximate="tanh")


_LEAN: dict[type, type[nn.Module]] = {LlamaRMSNorm: LeanRMSNorm, LlamaAttention: LeanAttention, LlamaMLP: LeanMLP}
