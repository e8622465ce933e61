"""Where the time of a run goes: processor seconds by part, counted inside the running product.

Functions of the product are wrapped while it runs. Time counts for the innermost wrapped function, under the group of the
outermost one: decoding for an accuracy and decoding for the drift are told apart.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import time
from collections.abc import Callable, Iterator
from typing import Any

# Function -> (group, part); a group of None is that of whoever calls.
PARTS: dict[str, tuple[str | None, str]] = {
    "cl_softcot.answering.build:load_models": ("preparing", "loading models"),
    "cl_softcot.run.one_run:_Run.__init__": ("preparing", "other"),
    "cl_softcot.answering.evaluate:Evaluator.load_base": ("preparing", "the base's side of the drift"),
    "cl_softcot.run.one_run:_Run._loop": ("learning", "other"),
    "cl_softcot.learning.batches:Collate.__call__": (None, "encoding and padding"),
    "cl_softcot.learning.loop:MethodModel.forward": (None, "forward behind the thoughts"),
    "cl_softcot.reasoning.base:Reasoning.prefix": (None, "prompt and thoughts"),
    "cl_softcot.reasoning.coconut:Coconut.prefix": (None, "prompt and thoughts"),
    "cl_softcot.reasoning.softcot:Softcot.prefix": (None, "prompt and thoughts"),
    "cl_softcot.learning.loop:TrainingLoop.backward": (None, "backward"),
    "cl_softcot.machine.processes:clip_gradients": (None, "clipping"),
    "cl_softcot.learning.loop:TrainingLoop.optimizer_step": (None, "update"),
    "cl_softcot.learning.checkpoint:save": (None, "writing"),
    "cl_softcot.answering.evaluate:Evaluator.row": ("answering", "other"),
    "cl_softcot.answering.evaluate:Evaluator.untrained": ("answering", "other"),
    "cl_softcot.answering.evaluate:_write_predictions": (None, "writing"),
    "cl_softcot.answering.evaluate:_prediction": (None, "judging"),
    "cl_softcot.answering.evaluate:bootstrap_interval": (None, "intervals"),
    "cl_softcot.answering.evaluate:retention": (None, "intervals"),
    "cl_softcot.answering.policy:generate": (None, "decoding"),
    "cl_softcot.answering.policy:MethodPolicy.hidden_states": (None, "reading given text"),
    "cl_softcot.answering.policy:MethodPolicy._encode": (None, "encoding and padding"),
    "cl_softcot.models.assistant:AssistantStates._ensure": (None, "assistant"),
    "cl_softcot.models.language_model:LanguageModel.weights_sha256": (None, "hashing"),
    "cl_softcot.answering.policy:tensors_sha256": (None, "hashing"),
    "cl_softcot.answering.evaluate:Evaluator._drift": ("drift", "other"),
    "cl_softcot.metrics.drift:kl_from_hidden": (None, "divergences"),
    "cl_softcot.run.one_run:_Run.result": ("concluding", "intervals and flips"),
    "cl_softcot.run.one_run:_Run.finish": ("concluding", "figures and tables"),
}


class Stopwatch:
    """Processor seconds of this process by (group, part)."""

    def __init__(self) -> None:
        self.seconds: dict[tuple[str, str], float] = {}
        self._stack = [("elsewhere", "other")]
        self._since = time.process_time()

    def _switch(self) -> None:
        now = time.process_time()
        self.seconds[self._stack[-1]] = self.seconds.get(self._stack[-1], 0.0) + now - self._since
        self._since = now

    @contextlib.contextmanager
    def part(self, group: str | None, name: str) -> Iterator[None]:
        """What happens inside counts for this part, but for parts inside of it."""
        self._switch()
        self._stack.append((group or self._stack[-1][0], name))
        try:
            yield
        finally:
            self._switch()
            self._stack.pop()

    def stop(self) -> dict[tuple[str, str], float]:
        """Everything so far."""
        self._switch()
        return dict(self.seconds)


@contextlib.contextmanager
def watching() -> Iterator[Stopwatch]:
    """Counts the parts of everything that the product does inside."""
    watch, wrapped = Stopwatch(), []
    try:
        for place, (group, part) in PARTS.items():
            owner, name, function = resolve(place)
            wrapped.append((owner, name, vars(owner).get(name)))
            setattr(owner, name, _timed(function, watch, group, part))
        yield watch
    finally:
        for owner, name, before in reversed(wrapped):
            if before is None:
                delattr(owner, name)  # it was inherited
            else:
                setattr(owner, name, before)


def resolve(place: str) -> tuple[Any, str, Callable]:
    """Owner, name and function of ``module:name`` or ``module:Class.name``. AttributeError if it is not there any more."""
    module, path = place.split(":")
    *owners, name = path.split(".")
    owner = functools.reduce(getattr, owners, importlib.import_module(module))
    if not hasattr(owner, name):
        raise AttributeError(f"{place} is not there any more; benchmarks/stopwatch.py names it")
    return owner, name, getattr(owner, name)


def _timed(function: Callable, watch: Stopwatch, group: str | None, part: str) -> Callable:
    @functools.wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        with watch.part(group, part):
            return function(*args, **kwargs)

    return wrapper
