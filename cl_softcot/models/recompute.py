"""Gradient checkpointing that keeps the cache: a layer's inner activations are computed again in the backward pass.

The library's own switches the cache off, without which thoughts and prompt pieces would no longer see each other. Here a layer's
cached keys and values are inputs and outputs of what is computed twice, so that the second time changes nothing.
"""

from __future__ import annotations

import contextlib
import copy
import inspect
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


@contextlib.contextmanager
def recomputed(layers: Sequence[nn.Module] | nn.ModuleList) -> Iterator[None]:
    """In this context decoder layers keep only their inputs for the backward pass. No effect without gradients."""
    if not torch.is_grad_enabled():
        yield
        return
    for index, layer in enumerate(layers):
        layer.forward = _checkpointed(layer.forward, index)
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward


class _OneLayer:
    """What a decoder layer sees of the cache: its own part, under its own index."""

    def __init__(self, layer: Any, index: int):
        self.layer, self.index = layer, index

    def update(self, keys: Tensor, values: Tensor, layer_idx: int, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        assert layer_idx == self.index
        return self.layer.update(keys, values, *args, **kwargs)

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return self.layer.get_seq_length()


def _checkpointed(forward: Callable[..., Any], index: int) -> Callable[..., Any]:
    signature = inspect.signature(forward)

    def run(*args: Any, **kwargs: Any) -> Any:
        bound = signature.bind(*args, **kwargs)
        cache = bound.arguments.get("past_key_values")
        if cache is None:
            return checkpoint(forward, *args, use_reentrant=False, **kwargs)
        before = copy.copy(cache.layers[index])  # updates bind new tensors and leave the old ones as they are
        first = next(iter(bound.arguments))
        after: Any = None  # transformers' layer of a cache

        def compute(hidden: Any, keys: Tensor | None, values: Tensor | None) -> tuple[Any, Tensor, Tensor]:
            nonlocal after
            own = copy.copy(before)
            own.keys, own.values = keys, values
            call = copy.copy(bound)
            call.arguments = {**bound.arguments, "past_key_values": _OneLayer(own, index)}
            call.arguments[first] = hidden
            output = forward(*call.args, **call.kwargs)
            if after is None:  # not when it is computed again
                after = copy.copy(own)
            return output, own.keys, own.values

        output, keys, values = checkpoint(compute, bound.arguments[first], before.keys, before.values, use_reentrant=False)
        after.keys, after.values = keys, values
        cache.layers[index] = after
        return output

    return run
