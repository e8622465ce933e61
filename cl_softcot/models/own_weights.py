"""Which weights are a model's own, decided once, when it is loaded; everything else that computes in it was *brought*.

    own        parameters and kept buffers of the modules that the model was loaded with, under the names that they had then
    brought    whatever is found besides: adapters that wrap a map, modules beside a layer, hooks that change what passes

Own weights are found again by the module that they are in, not by a name: a wrapper moves `q_proj.weight` to a place of its own
liking, splitting over processes or merging puts another tensor there, and the module stays the same. So nobody has to know how
any kind of adapter calls its parts, and what was brought can be switched off without asking it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

from torch import Tensor, nn

_HOOKS = ("_forward_hooks", "_forward_pre_hooks")
_Hook = TypeVar("_Hook", bound=Callable[..., Any])


@dataclass(frozen=True)
class Trained:
    """Numbers that a method trains: of the backbone itself, of what was brought to it, and of what the reasoning owns."""

    backbone: int
    adapters: int
    owned: int

    @property
    def total(self) -> int:
        return self.backbone + self.adapters + self.owned


def only_looks(hook: _Hook) -> _Hook:
    """Marks a hook, or a function in the place of a module's `forward`, that leaves everything as it is: a model that carries it
    is still the model alone.
    """
    hook.only_looks = True  # type: ignore[attr-defined]
    return hook


class OwnWeights:
    """The modules of a model as it was loaded. Copy it together with the model (``copy.deepcopy((model, own))``).

    Attributes:
        names: of the own parameters and kept buffers, tied ones once.
    """

    def __init__(self, model: nn.Module):
        modules = list(model.modules())
        self.names = frozenset(name for _, _, name, _ in _tensors(model))
        self._places = {(module, attribute): name for module, attribute, name, _ in _tensors(model, tied=True)}
        self._children = {module: dict(module._modules) for module in modules}
        self._hooks = {module: frozenset(key for kind in _HOOKS for key in getattr(module, kind)) for module in modules}
        self._forwards = frozenset(module for module in modules if "forward" in vars(module))

    def split(self, model: nn.Module) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Own weights, by the names that they had when the model was loaded, and what was brought, by the names that it has."""
        own: dict[str, Tensor] = {}
        brought: dict[str, Tensor] = {}
        for module, attribute, name, tensor in _tensors(model):
            known = self._places.get((module, attribute))
            if known is None:
                brought[name] = tensor
            else:
                own[known] = tensor
        for name in [name for name in brought if name in self.names and name not in own]:
            own[name] = brought.pop(name)  # a whole module was exchanged for another of the same kind
        return own, brought

    def is_alone(self) -> bool:
        """Whether nothing that computes was brought."""
        return not any(self._touched(module) for module in self._children)

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """In this context the model consists of its own modules, wired as they were when it was loaded.

        Nothing that was brought is there then; afterwards it is again, to the object. What own weights have become stays: it is
        not undone.
        """
        before: list[tuple[nn.Module, str, Any]] = []
        for module in [m for m in self._children if self._touched(m)]:
            before.append((module, "_modules", module._modules))
            module.__dict__["_modules"] = dict(self._children[module])
            for kind in _HOOKS:
                hooks = getattr(module, kind)
                before.append((module, kind, hooks))
                left = {key: hook for key, hook in hooks.items() if key in self._hooks[module] or not _acts(hook)}
                module.__dict__[kind] = type(hooks)(left)
            if self._has_another_forward(module):
                before.append((module, "forward", module.__dict__.pop("forward")))
        try:
            yield
        finally:
            for module, attribute, value in reversed(before):
                module.__dict__[attribute] = value

    def _touched(self, module: nn.Module) -> bool:
        return (
            module._modules != self._children[module]
            or any((module, name) not in self._places for name, p in module._parameters.items() if p is not None)
            or any(key not in self._hooks[module] and _acts(h) for kind in _HOOKS for key, h in getattr(module, kind).items())
            or self._has_another_forward(module)
        )

    def _has_another_forward(self, module: nn.Module) -> bool:
        forward = vars(module).get("forward")
        if forward is None or module in self._forwards or not _acts(forward):
            return False
        return getattr(forward, "__func__", None) is not type(module).forward  # some put the class's own one there


def _acts(hook: Any) -> bool:
    """Whether a hook may change what is computed: those that only look say so, and torch's own gather split weights."""
    return not hasattr(hook, "only_looks") and not str(getattr(hook, "__module__", "")).startswith("torch.")


def _tensors(model: nn.Module, *, tied: bool = False) -> Iterator[tuple[nn.Module, str, str, Tensor]]:
    """(module, attribute, full name, tensor) of parameters and kept buffers; ``tied``: at all of their places."""
    seen: set[int] = set()
    for prefix, module in model.named_modules():
        buffers = [item for item in module._buffers.items() if item[0] not in module._non_persistent_buffers_set]
        for attribute, tensor in [*module._parameters.items(), *buffers]:
            if tensor is not None and (tied or id(tensor) not in seen):
                seen.add(id(tensor))
                yield module, attribute, f"{prefix}.{attribute}" if prefix else attribute, tensor


def kept_tensors(module: nn.Module) -> dict[str, Tensor]:
    """Parameters and kept buffers by name, tied ones once: all that ``state_dict`` would hold."""
    return {name: tensor for _, _, name, tensor in _tensors(module)}
