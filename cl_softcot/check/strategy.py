"""The contract of a strategy: what it says that it trains is trained, the rest stays, and it can be told, kept and undone."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from cl_softcot import registry
from cl_softcot.answering.policy import BasePolicy, MethodPolicy
from cl_softcot.check import bench
from cl_softcot.check.result import Broken, Line, gives_reasons, settings_are_described, told
from cl_softcot.learning import checkpoint
from cl_softcot.models.own_weights import kept_tensors

STEPS = 6


def check(cls: Any, settings: Any = None, *, name: str = "", reasoning: str | None = None) -> Iterator[Line]:
    """Every rule.

    Args:
        name: how it is called in a YAML file.
        reasoning: the way of thinking to try it with; None: the first of ours that goes with it.
    """
    bench.begin()
    settings = settings or cls.Settings()
    ways = registry.known("reasoning")
    named = f"{cls.__module__}:{cls.__qualname__}" if not name else name

    def pairs_have_reasons() -> None:
        gives_reasons(cls.refuses, settings, ways)

    words = {"settings have descriptions": lambda: settings_are_described(cls), "refuses with reasons": pairs_have_reasons}
    yield from told(words, cls)
    going = [way for way in ways if not cls.refuses(settings, way) and not _refused_by(way, named)]
    way = reasoning or next(iter(sorted(going, key=lambda w: registry.find("reasoning", w).owns_parts)), None)
    if way is None:
        return
    trial = _Trial(cls, settings, registry.find("reasoning", way))
    rules = {
        "the optimiser holds exactly what is trained": trial.optimiser_holds_what_is_trained,
        "what it says of the backbone's weights is true": trial.flags_are_true,
        "in plain chain of thought, and out of it again": trial.plain_cot_is_undone,
    }
    if cls.trains:
        rules |= {
            "the loss falls": trial.loss_falls,
            "what is not trained stays, to the bit": trial.the_rest_stays,
            "the fingerprint changes with every turn of learning": trial.fingerprint_changes,
            "without what it brought, the base's weights answer": trial.bare_weights_are_the_base,
            "a checkpoint brings it back": trial.checkpoint_brings_it_back,
            "the same seed gives the same": trial.is_deterministic,
        }
    yield from told(rules, cls)


def _refused_by(way: str, named: str) -> bool:
    reasoning = registry.find("reasoning", way)
    return bool(reasoning.refuses(reasoning.Settings(), named))


class _Trial:
    """Two turns of learning, made once; each rule looks at what was noted."""

    def __init__(self, cls: Any, settings: Any, reasoning: Any):
        self.cls, self.settings, self.reasoning = cls, settings, reasoning

    def fresh(self) -> tuple[Any, Any]:
        return bench.prepared(self.cls, self.reasoning, self.settings)

    @cached_property
    def begun(self) -> tuple[Any, Any]:
        parts, learns = self.fresh()
        self.before = bench.kept(_all(parts))
        self.prints = [MethodPolicy(parts, learns).fingerprint]
        return parts, learns

    @cached_property
    def learned(self) -> tuple[Any, Any]:
        parts, learns = self.begun
        self.losses = bench.train(parts, learns, bench.news(4), STEPS)
        self.prints.append(MethodPolicy(parts, learns).fingerprint)
        bench.train(parts, learns, bench.news(4, turn=1), 2)
        self.prints.append(MethodPolicy(parts, learns).fingerprint)
        return parts, learns

    # ------------------------------------------------------------------------------------------------- rules

    def optimiser_holds_what_is_trained(self) -> None:
        parts, learns = self.begun
        groups = learns.trainable(parts)
        given = [id(p) for group in groups for p in group["params"]]
        wanted = {id(t): name for name, t in learns.tensors(parts).items()} if learns.trains else {}
        missing = [name for key, name in wanted.items() if key not in given]
        if missing:
            raise Broken(f"trainable() leaves out {missing[0]}", "tensors() and trainable() speak of the same tensors.")
        if len(given) != len(wanted):
            raise Broken("trainable() holds what tensors() does not, or something twice", "A checkpoint keeps tensors() only.")
        if not all(group["lr"] > 0 for group in groups):
            raise Broken("a learning rate is not above 0")

    def flags_are_true(self) -> None:
        parts, learns = self.begun
        own = learns.trained_own(parts)
        if own and not learns.writes_weights:
            raise Broken(f"it trains {next(iter(own))}, shared with the base", "Say writes_weights = True.")
        if own and not learns.changes_backbone:
            raise Broken(f"it trains {next(iter(own))} of the backbone", "Say changes_backbone = True.")

    def plain_cot_is_undone(self) -> None:
        parts, learns = self.begun
        before, alone = MethodPolicy(parts, learns).fingerprint, parts.backbone.own.is_alone()
        for context in (learns.in_plain_cot, learns.weights_alone, learns.as_used):
            with context(parts):
                pass
        if MethodPolicy(parts, learns).fingerprint != before or parts.backbone.own.is_alone() != alone:
            raise Broken("as_used, weights_alone or in_plain_cot leaves something behind", "Put everything back in `finally`.")

    def loss_falls(self) -> None:
        self.learned  # noqa: B018
        if not self.losses[-1] < self.losses[0]:
            raise Broken(
                f"from {self.losses[0]:.3f} to {self.losses[-1]:.3f} nats per token in {STEPS} steps",
                "Does a gradient reach what it trains? Is the default rate right for small models?",
            )

    def the_rest_stays(self) -> None:
        parts, learns = self.learned
        trained = {id(t) for t in learns.tensors(parts).values()}
        moved = [n for n, t in _all(parts).items() if id(t) not in trained and not torch.equal(t, self.before[n])]
        if moved:
            raise Broken(f"{moved[0]} changed, and is not among tensors()", "Name it there, or freeze it.")
        backbone, assistant = bench.models()
        if any(model.weights_sha256() != model.fingerprint for model in (backbone, assistant)):
            raise Broken("the base or the assistant itself changed", "Say writes_weights = True: then it gets a copy.")
        if not learns.changes_backbone and parts.backbone.weights_sha256() != backbone.fingerprint:
            raise Broken("the backbone's own weights changed", "Say changes_backbone = True, or leave them as they are.")

    def fingerprint_changes(self) -> None:
        self.learned  # noqa: B018
        if len(set(self.prints)) != len(self.prints):
            raise Broken(
                "after a turn the method looks as before it, so that old answers would be taken for new ones",
                "Put what learns into the backbone or the reasoning, or name it in tensors().",
            )

    def bare_weights_are_the_base(self) -> None:
        parts, learns = self.learned
        alone, base = MethodPolicy(parts, learns, weights_alone=True), BasePolicy(bench.models()[0])
        if learns.changes_backbone:
            return
        items = bench.examples(4)
        ids = [parts.backbone.text.target_ids(e.steps, e.answer) for e in items]
        pairs = zip(alone.hidden_states(items, ids), base.hidden_states(items, ids), strict=True)
        if alone.fingerprint != base.fingerprint or not all(torch.equal(a, b) for a, b in pairs):
            raise Broken("they do not", "Override weights_alone(): it switches off everything that was brought.")

    def checkpoint_brings_it_back(self) -> None:
        parts, learns = self.learned
        items, policy = bench.examples(4), MethodPolicy(parts, learns)
        with tempfile.TemporaryDirectory() as folder:
            checkpoint.save(Path(folder), "here", {n: t.detach() for n, t in learns.tensors(parts).items()}, {})
            saved = checkpoint.load_latest(Path(folder))
            assert saved is not None, "it was saved a moment ago"
            found = saved.tensors
            twin, again = self.fresh()
            with torch.no_grad():
                for name, tensor in again.tensors(twin).items():
                    tensor.copy_(found[name])
        resumed = MethodPolicy(twin, again)
        if resumed.fingerprint != policy.fingerprint or resumed.generate(items, 8) != policy.generate(items, 8):
            raise Broken("it answers differently", "tensors() is all that is kept: what changes in a turn belongs there.")

    def is_deterministic(self) -> None:
        self.learned  # noqa: B018
        parts, learns = self.fresh()
        begun = MethodPolicy(parts, learns).fingerprint
        bench.train(parts, learns, bench.news(4), STEPS)
        if [begun, MethodPolicy(parts, learns).fingerprint] != self.prints[:2]:
            raise Broken("two runs differ", "Draw from `seed` only, inside torch.random.fork_rng.")


def _all(parts: Any) -> dict[str, torch.Tensor]:
    found = {f"backbone.{n}": t for n, t in kept_tensors(parts.backbone.model).items()}
    return found | {f"reasoning.{n}": t for n, t in kept_tensors(parts.reasoning).items()}
