"""The contract of a way of thinking: losses add up, company changes nothing, and what it writes is what it was trained to."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from functools import cached_property
from typing import Any

import torch

from cl_softcot import registry
from cl_softcot.answering.policy import MethodPolicy
from cl_softcot.check import bench
from cl_softcot.check.result import Broken, Line, gives_reasons, settings_are_described, told
from cl_softcot.reasoning.base import Passes, Phase
from cl_softcot.tasks.base import TextLengths

TIE = 1e-3  # logits that rounding may put in either order


def check(cls: Any, settings: Any = None, *, name: str = "") -> Iterator[Line]:
    """Every rule; ``name``: how it is called in a YAML file."""
    bench.begin()
    settings = settings or cls.Settings()
    trial = _Trial(cls, settings, name or f"{cls.__module__}:{cls.__qualname__}")
    rules = {
        "settings have descriptions": lambda: settings_are_described(cls),
        "refuses with reasons": trial.refuses_with_reasons,
        "phases use the whole budget": trial.phases_use_the_budget,
        "what it costs can be told": trial.costs_are_told,
        "what it owns can be counted before it is built": trial.owned_is_counted,
        "the same seed gives the same": trial.is_deterministic,
        "nothing depends on the gold chain while it answers": trial.answers_do_not_leak,
        "losses of examples add up, alone and in company": trial.losses_add_up,
        "what it writes does not depend on the company": trial.answers_alone_and_together,
        "decoding agrees with teacher forcing": trial.decoding_is_teacher_forcing,
    }
    yield from told(rules, cls)


class _Trial:
    def __init__(self, cls: Any, settings: Any, name: str):
        self.cls, self.settings, self.name = cls, settings, name

    def fresh(self) -> tuple[Any, Any]:
        partners = {s: registry.find("strategy", s) for s in registry.known("strategy")}
        for name, strategy in partners.items():
            if (
                not strategy.refuses(strategy.Settings(), self.name)
                and not self.cls.refuses(self.settings, name)
                and (self.cls.owns_parts <= strategy.trains)
            ):
                return bench.prepared(strategy, self.cls, None, self.settings)
        raise Broken("no strategy of ours goes with it", "See `refuses`.")

    @cached_property
    def made(self) -> tuple[Any, Any]:
        return self.fresh()

    # ------------------------------------------------------------------------------------------------- rules

    def refuses_with_reasons(self) -> None:
        gives_reasons(self.cls.refuses, self.settings, registry.known("strategy"))

    def phases_use_the_budget(self) -> None:
        thinks = self.cls(self.settings)
        for steps in (1, 7, 120):
            planned = sum(phase.steps for phase in thinks.phases(steps))
            if planned != steps:
                raise Broken(f"phases({steps}) plans {planned} steps", "Methods of one table have equal budgets.")
        if not isinstance(thinks.final_phase(), Phase):
            raise Broken("final_phase() gives no Phase")

    def costs_are_told(self) -> None:
        thinks = self.cls(self.settings)
        for phase in (*thinks.phases(10), thinks.final_phase()):
            for frozen in (False, True):
                found = thinks.passes(TextLengths(50, 20, 4, 4), phase, frozen_backbone=frozen)
                if not isinstance(found, Passes) or found.labels < 1 or found.columns < 50:
                    raise Broken(f"passes() gives {found!r} for a prompt of 50 tokens")

    def owned_is_counted(self) -> None:
        parts, _ = self.made
        backbone, assistant = bench.models()
        width = assistant.width if self.cls.needs_assistant(self.settings) else None
        built = sum(p.numel() for p in parts.reasoning.parameters())
        told_of = self.cls.owned_numbers(self.settings, backbone.width, width)
        if built != told_of:
            raise Broken(f"owned_numbers() says {told_of}, and build() makes {built}")
        if bool(built) != self.cls.owns_parts:
            raise Broken(f"owns_parts is {self.cls.owns_parts}, and build() makes {built} numbers")

    def is_deterministic(self) -> None:
        (parts, _), (twin, _) = self.made, self.fresh()
        pairs = zip(parts.reasoning.parameters(), twin.reasoning.parameters(), strict=True)
        if not all(torch.equal(a, b) for a, b in pairs):
            raise Broken("two builds from one seed differ", "Draw inside torch.random.fork_rng, from `seed`.")
        if _ids(bench.encoded(parts, bench.examples(6))) != _ids(bench.encoded(twin, bench.examples(6))):
            raise Broken("encode() differs from one time to the next", "Draw from the `rng` that it is given.")

    def answers_do_not_leak(self) -> None:
        parts, _ = self.made
        items = bench.examples(6)
        others = [*items[1:], items[0]]  # other steps, in other numbers, and another answer to the same question
        other = [
            dataclasses.replace(e, steps=(*o.steps, *o.steps[:1]), answer=o.answer) for e, o in zip(items, others, strict=True)
        ]
        prefixes = [[e.prefix_ids for e in bench.encoded(parts, some, answering=True)] for some in (items, other)]
        if prefixes[0] != prefixes[1]:
            raise Broken("the prompt knows the gold steps or the answer", "Where phase.answering is set, use neither.")

    def losses_add_up(self) -> None:
        parts, _ = self.made
        with torch.no_grad():
            rows = bench.encoded(parts, bench.examples(6))
            together = parts.reasoning.loss(parts, parts.reasoning.collate(rows))
            alone = [parts.reasoning.loss(parts, parts.reasoning.collate([row])) for row in rows]
        if together.n_tokens != sum(one.n_tokens for one in alone):
            raise Broken("the number of tokens depends on the batch")
        if not torch.allclose(together.per_example_B.sum(), together.loss_sum, rtol=1e-4):
            raise Broken("the losses of the examples do not sum to the loss", "per_example_B is summed, not averaged.")
        if not torch.allclose(together.per_example_B, torch.cat([one.per_example_B for one in alone]), rtol=1e-3, atol=1e-3):
            raise Broken("an example's loss depends on who stands beside it", "Mask what is padding.")

    def answers_alone_and_together(self) -> None:
        parts, strategy = self.made
        items, policy = bench.examples(6), MethodPolicy(parts, strategy)
        if [g.ids for g in policy.generate(items, 8)] != [policy.generate([item], 8)[0].ids for item in items]:
            raise Broken("an answer depends on who stands beside it", "Mask what is padding; find places by token id.")

    def decoding_is_teacher_forcing(self) -> None:
        parts, strategy = self.made
        items, policy = bench.examples(6), MethodPolicy(parts, strategy)
        written = [(e, g.ids) for e, g in zip(items, policy.generate(items, 8), strict=True) if g.ids]
        states = policy.hidden_states([e for e, _ in written], [ids for _, ids in written])
        for (example, ids), hidden_TD in zip(written, states, strict=True):
            logits_TV = policy.head(hidden_TD)
            chosen_T = logits_TV.gather(1, torch.tensor(ids, device=logits_TV.device)[:, None])[:, 0]
            worse = (logits_TV.max(1).values - chosen_T > TIE).nonzero()
            if len(worse):
                raise Broken(
                    f"token {int(worse[0])} of the answer to {example.question[:40]!r} is not the likeliest one when it is read",
                    "begin/extend/step and predict must put the same inputs through the backbone.",
                )


def _ids(encoded: Any) -> list[tuple[list[int], list[int]]]:
    return [(e.prefix_ids, e.target_ids) for e in encoded]
