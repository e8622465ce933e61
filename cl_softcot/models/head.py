"""The head and its losses, where the vocabulary is most of the work.

With 50k words and more, logits are the largest tensor of a step and their products half of its time. Here they are made of few
places at a time, and of a frozen head none are made at all::

    loss      -log p(y | h)  =  log sum_v exp(w_v . h)  -  w_y . h
    gradient                    sum_v p(v | h) w_v      -  w_y          of the loss, by h

The sums over v are attention of the queries h over keys and values w_v: fused attention (FlashAttention, arXiv 2205.14135) has
both in one pass over the head, in blocks that stay in a processor's cache.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from torch.utils.weak import WeakTensorKeyDictionary

from cl_softcot.machine import processes

if TYPE_CHECKING:
    from cl_softcot.models.language_model import LanguageModel

LOGITS_AT_ONCE = 2**25  # numbers, wherever many places are looked at: with 128k words not even a batch's could be in memory
# Heads of so many numbers are laid out anew for products without a gradient (see ``packed_logits``): smaller ones gain nothing,
# and a second copy of larger ones takes too much memory.
PACKED = range(2**20, 2**27)
_ROWS_EXPECTED = 64  # of a product; measured: other numbers, but for 1, are level


def plain_weight(backbone: LanguageModel) -> Tensor | None:
    """The rows [V, D] of a head whose logits are their products with a state, on a CPU in full precision; None for others."""
    head = backbone.model.get_output_embeddings()
    weight = head.weight
    changed = any(getattr(backbone.config, name, None) for name in ("logits_scaling", "logit_scale", "final_logit_softcapping"))
    # Sharding makes another class of it too: what is gathered comes and goes without a count of writes.
    if type(head) is not nn.Linear or head.bias is not None or changed or processes.is_sharded(weight):
        return None
    if weight.device.type != "cpu" or weight.dtype not in (torch.float32, torch.float64):
        return None
    if backbone.compute_dtype not in (torch.float32, torch.float64):  # the products run in half precision
        return None
    return weight[: backbone.vocab_size]


def packed_logits(backbone: LanguageModel, hidden: Tensor) -> Tensor | None:
    """Logits [..., V] without a gradient, by a copy of the head in the layout that the product works in; None where there is no
    such copy.

    The usual product lays a large head out anew at every call, which takes longer than multiplying a few states with it: with
    50k words of width 256 a tenth of the time is left for one state, a third for eight, half for fifty.
    """
    if torch.is_grad_enabled() or hidden.dtype != torch.float32 or hidden.device.type != "cpu":
        return None
    if not torch.backends.mkldnn.is_available():
        return None
    weight_VD = plain_weight(backbone)
    if weight_VD is None or weight_VD.dtype != torch.float32 or weight_VD.numel() not in PACKED:
        return None
    packed = _packed_copy(backbone.model.get_output_embeddings().weight, len(weight_VD))
    return torch.ops.mkldnn._linear_pointwise(hidden, packed, None, "none", [], "")


_copies = WeakTensorKeyDictionary()  # weight -> (what it was when the copy was made, the copy)


def forget_packed(weight: Tensor) -> None:
    """Gives the memory of a head's copy back; the next product without a gradient makes one again."""
    _copies.pop(weight, None)


def _packed_copy(weight: Tensor, rows: int) -> Tensor:
    state = weight._version, weight.data_ptr(), rows
    known = _copies.get(weight)
    if known is None or known[0] != state:
        packed = torch.ops.mkldnn._reorder_linear_weight(weight.detach()[:rows], _ROWS_EXPECTED)
        known = _copies[weight] = state, packed
    return known[1]


def token_losses(backbone: LanguageModel, hidden_ND: Tensor, labels_N: Tensor) -> Tensor:
    """Cross-entropy in nats, [N]. Where the logits of all places would be many they are made a part at a time, and again for the
    backward pass; of a frozen head once, or not at all."""

    def losses(hidden: Tensor, labels: Tensor) -> Tensor:
        return nn.functional.cross_entropy(at_least_fp32(backbone.logits(hidden)), labels, reduction="none")

    head = list(backbone.model.get_output_embeddings().parameters())
    frozen = not any(p.requires_grad for p in head)
    # Parts that stay in a CPU's cache; on a GPU too few places would read the head more often than they use it.
    small = frozen and hidden_ND.device.type == "cpu"
    some = max(1, (LOGITS_AT_ONCE // 8 if small else LOGITS_AT_ONCE) // backbone.vocab_size)
    # Processes that share a head gather it in step, and have different numbers of places.
    if len(labels_N) <= some or any(processes.is_sharded(p) for p in head):
        return losses(hidden_ND, labels_N)
    if frozen and torch.is_grad_enabled():
        weight_VD = plain_weight(backbone)
        if weight_VD is not None and weight_VD.dtype == hidden_ND.dtype:
            return _AttendedHead.apply(hidden_ND, labels_N, weight_VD)
        return _FrozenHead.apply(hidden_ND, labels_N, losses, some)
    pieces = zip(hidden_ND.split(some), labels_N.split(some), strict=True)
    if frozen:
        return torch.cat([losses(*piece) for piece in pieces])
    return torch.cat([checkpoint(losses, *piece, use_reentrant=False) for piece in pieces])


class _KnownGradient(torch.autograd.Function):
    """Losses [N] of states [N, D]. A place's loss depends on its own state alone, and nothing else needs a gradient: what goes
    back is known as soon as the loss is, but for a factor."""

    @staticmethod
    def backward(ctx: Any, factor_N: Tensor) -> tuple[Tensor | None, ...]:
        (gradient_ND,) = ctx.saved_tensors
        return gradient_ND * factor_N[:, None].to(gradient_ND.dtype), *[None] * (len(ctx.needs_input_grad) - 1)


class _AttendedHead(_KnownGradient):
    """By attention over the rows of the head (see above)."""

    @staticmethod
    def forward(ctx: Any, hidden_ND: Tensor, labels_N: Tensor, weight_VD: Tensor) -> Tensor:
        # The public function keeps the logarithm of the sum to itself.
        attend = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
        mean_11ND, log_sum_11N = attend(hidden_ND[None, None], *[weight_VD[None, None]] * 2, scale=1.0)
        rows_ND = weight_VD[labels_N]
        ctx.save_for_backward(mean_11ND.view_as(hidden_ND) - rows_ND)
        return log_sum_11N.view(-1).to(hidden_ND.dtype) - torch.linalg.vecdot(hidden_ND, rows_ND)


class _FrozenHead(_KnownGradient):
    """From logits, ``some`` places at a time."""

    @staticmethod
    def forward(ctx: Any, hidden_ND: Tensor, labels_N: Tensor, losses: Callable[[Tensor, Tensor], Tensor], some: int) -> Tensor:
        found, gradients = [], []
        for part_ND, labels in zip(hidden_ND.detach().split(some), labels_N.split(some), strict=True):
            with torch.enable_grad():
                part_ND = part_ND.detach().requires_grad_()
                losses_N = losses(part_ND, labels)
                gradients += torch.autograd.grad(losses_N.sum(), part_ND)
            found.append(losses_N.detach())
        ctx.save_for_backward(torch.cat(gradients))
        return torch.cat(found)


def at_least_fp32(tensor: Tensor) -> Tensor:
    """Half precision becomes fp32; fp32 and fp64 stay."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))
