"""Do thoughts hold several paths at once? The search frontier on graph tasks, as in Coconut's paper (arXiv 2412.06769, sect. 5).

After k steps were replaced by thoughts, the model is made to write: the k-th step of the gold chain is opened, and the
probability of each node's name in the first node's place is read and scaled to a sum of 1 over all nodes that an edge leads to. A
search in breadth would put mass on all nodes as deep as the gold one there. The written control is the same model (or a
method that writes its chain) behind the first k gold steps as text.

Beside it, whether thoughts collapse: their effective rank over the examples (Roy & Vetterli 2007), at most the smaller one of n
and the width.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from cl_softcot.diagnostics._numbers import by_task_and_pooled, effective_rank, mean_of
from cl_softcot.diagnostics._thoughts import Recorder, log_probabilities, some, target_states, thinking_of
from cl_softcot.diagnostics.base import Diagnostic, DiagnosticSettings
from cl_softcot.metrics.intervals import stratified_mean
from cl_softcot.reasoning.base import Phase
from cl_softcot.tasks.base import Example

if TYPE_CHECKING:
    from cl_softcot.answering.evaluate import Probe
    from cl_softcot.config.settings import MethodConfig
    from cl_softcot.diagnostics.base import Subject
    from cl_softcot.models.batch import Encoded
    from cl_softcot.tasks.base import SearchGraph

_MASSES = ("at_depth", "other_depth", "unreachable", "gold")


class Frontier(Diagnostic):
    """Probability mass on the nodes of a graph after each number of thoughts, and effective rank of the thoughts."""

    class Settings(DiagnosticSettings):
        n: int = Field(32, ge=2, description="examples a task; those whose chain is over do not count any more")
        steps: int = Field(4, ge=1, description="largest number of replaced steps that is looked at")

    settings: Settings

    @classmethod
    def refuses(cls, method: MethodConfig) -> str | None:
        if not thinking_of(method).steps_written(_LONG, 0):
            return f"{method.reasoning.name} writes no step that could name a node"
        return None

    def measure(self, subject: Subject) -> dict[str, Any]:
        tasks: dict[str, Any] = {}
        found: dict[str, dict[str, dict[int, list[Look]]]] = {}
        for name in subject.learned:
            probe = subject.probe(name)
            if probe.task.graph_of(probe.examples[0]) is None:
                tasks[name] = {"skipped": f"tasks of the family {probe.task.family} are no walk through a graph"}
                continue
            with subject.answering(name):
                found[name] = self._task(subject, probe)
            tasks[name] = _told([found[name]], subject.evaluate.bootstrap)
        return by_task_and_pooled(tasks, lambda: _told(list(found.values()), subject.evaluate.bootstrap))

    def _task(self, subject: Subject, probe: Probe) -> dict[str, dict[int, list[Look]]]:
        examples = some(probe, self.settings.n)
        # Of a task that has graphs every example has one; `look` refuses lists of different lengths.
        graphs = [graph for e in examples if (graph := probe.task.graph_of(e)) is not None]
        modes = ["written"] + ["thoughts"] * (len(subject.parts.reasoning.steps_written(_LONG, 1)) < len(_LONG.steps))
        return {
            mode: {k: looks for k in range(1, self.settings.steps + 1) if (looks := look(subject, examples, graphs, k, mode))}
            for mode in modes
        }


_LONG = Example("", "", "", ("",) * 100, "")  # a chain that no number of thoughts replaces as a whole


@dataclass
class Look:
    """Where one example stands after k steps: probabilities of the names, and the state that the next step is written from.

    ``thought_D``: the last thought that was put in; None where the steps were written.
    """

    graph: SearchGraph
    gold: str
    probabilities: dict[str, float]
    state_D: Tensor
    thought_D: Tensor | None = None

    def masses(self) -> dict[str, float]:
        """Probability of the nodes as deep as the gold one, of the other reachable ones, of the others, and of the gold one."""
        depths = self.graph.depths()
        depth = depths.get(self.gold)
        sums = dict.fromkeys(_MASSES, 0.0)
        for name, p in self.probabilities.items():
            kind = "unreachable" if name not in depths else "at_depth" if depths[name] == depth else "other_depth"
            sums[kind] += p
        return {kind: min(1.0, p) for kind, p in (sums | {"gold": self.probabilities[self.gold]}).items()}

    def alike(self) -> int:
        """How many candidates are as deep as the gold node."""
        depths = self.graph.depths()
        return sum(depths.get(name) == depths.get(self.gold) for name in self.probabilities)

    def perplexity(self) -> float:
        """exp of the entropy: how many candidates are kept."""
        return float(np.exp(-sum(p * np.log(p) for p in self.probabilities.values() if p > 0)))


def look(subject: Subject, examples: Sequence[Example], graphs: Sequence[SearchGraph], k: int, mode: str) -> list[Look]:
    """Every example whose chain goes on after k steps, these steps being ``mode``: 'thoughts' or 'written'."""
    reasoning = subject.parts.reasoning
    if mode == "thoughts" and k > reasoning.final_phase().stage:
        return []
    rows = []
    for example, graph in zip(examples, graphs, strict=True):
        left = len(example.steps) - k
        if left < 1 or graph.stands[k][1] not in graph.candidates:
            continue
        if mode == "written" or len(reasoning.steps_written(example, k)) == left:
            rows.append((example, graph))
    if not rows:
        return []
    # Where steps are written anyway there is one stage only; Coconut writes all of them at stage 0.
    encoded = subject.encode([example for example, _ in rows], Phase(k if mode == "thoughts" else 0, 0))
    befores = [example.steps[:k] if mode == "written" else () for example, _ in rows]
    recorder = Recorder() if mode == "thoughts" and reasoning.thought in reasoning.thoughts(k) else None
    asked = [(e, b, graph.stands[k], graph) for e, b, (_, graph) in zip(encoded, befores, rows, strict=True)]
    return _looks(subject, asked, recorder)


def _looks(subject: Subject, asked: Sequence[tuple[Any, ...]], recorder: Recorder | None) -> list[Look]:
    """One row for each example where every name is a single token, else one for each name."""
    text, backbone = subject.parts.backbone.text, subject.parts.backbone
    rows: list[Encoded] = []
    spans: list[list[tuple[int, int, int]]] = []  # for each example and name: row, and where the name begins and ends in it
    for encoded, before, (lead, _), graph in asked:
        pieces = [text.continued_ids(before, lead, name) for name in graph.candidates]
        single = all(len(ids) == start + 1 for ids, start in pieces) and len({start for _, start in pieces}) == 1
        first = len(rows)
        for ids, _ in pieces[:1] if single else pieces:
            rows.append(dataclasses.replace(encoded, target_ids=ids))
        spans.append([(first + (0 if single else i), start, len(ids)) for i, (ids, start) in enumerate(pieces)])
    states = target_states(subject, rows, recorder)
    looks = []
    for (_, before, (lead, gold), graph), places in zip(asked, spans, strict=True):
        names = graph.candidates
        logp = _name_logps(backbone, states, places, [text.continued_ids(before, lead, n)[0] for n in names])
        opening = text.continued_ids(before, "", f"{lead} {gold}".strip())[1]
        row = places[0][0]
        thought_D = None if recorder is None else recorder.of(rows[row])[-1].float().cpu()
        shares = dict(zip(names, logp.softmax(0).tolist(), strict=True))
        looks.append(Look(graph, gold, shares, states[row][opening].float().cpu(), thought_D))
    return looks


def _name_logps(
    backbone: Any, states: Sequence[Tensor], places: Sequence[tuple[int, int, int]], ids: Sequence[Sequence[int]]
) -> Tensor:
    """Log-probability of each name's tokens, in nats, [names]; a state that several names share is read once."""
    wanted = {(row, t): i for i, (row, t) in enumerate(dict.fromkeys((r, t) for r, s, e in places for t in range(s, e)))}
    logp_NV = log_probabilities(backbone, torch.stack([states[row][t] for row, t in wanted]))
    sums = [
        torch.stack([logp_NV[wanted[row, t], name[t]] for t in range(start, end)]).sum()
        for (row, start, end), name in zip(places, ids, strict=True)
    ]
    return torch.stack(sums).double().cpu()


# ------------------------------------------------------------------------------------------------------------ numbers


def _told(tasks: list[dict[str, dict[int, list[Look]]]], n_boot: int) -> dict[str, Any]:
    """{mode: {k: numbers}}, over the tasks that have such looks."""
    result: dict[str, Any] = {}
    for mode in dict.fromkeys(mode for found in tasks for mode in found):
        ks = sorted({k for found in tasks for k in found.get(mode, {})})
        result[mode] = {str(k): numbers([f[mode][k] for f in tasks if k in f.get(mode, {})], n_boot) for k in ks}
    return result


def numbers(strata: list[list[Look]], n_boot: int) -> dict[str, Any]:
    """Means over tasks of means over examples, with 95 % intervals.

    Keys:
        mass: on the nodes at the gold node's depth, at others, on unreachable ones, and on the gold node.
        mass_of_chance: what equal probabilities would put at the gold node's depth.
        top_is_gold, top_is_at_depth: shares of the examples.
        candidates_kept: perplexity of the probabilities; candidates: how many nodes there are; at_depth: how many of them
            are as deep as the gold one.
        effective_rank: of the states over the examples, as they are and around their mean (a task's own, averaged over tasks).
    """
    masses = [[look.masses() for look in looks] for looks in strata]
    tops = [[max(look.probabilities, key=look.probabilities.__getitem__) for look in looks] for looks in strata]
    alike = [[look.alike() / len(look.probabilities) for look in looks] for looks in strata]
    most = max(len(look.probabilities) for looks in strata for look in looks)
    kept, interval = stratified_mean([[min(look.perplexity(), most) for look in looks] for looks in strata], (0, most), n_boot)
    at_depth = [
        [float(look.graph.depths().get(top) == look.graph.depths().get(look.gold)) for top, look in zip(t, looks, strict=True)]
        for t, looks in zip(tops, strata, strict=True)
    ]
    is_gold = [[float(a == look.gold) for a, look in zip(t, looks, strict=True)] for t, looks in zip(tops, strata, strict=True)]
    ranks = {"state": [_ranks([look.state_D for look in looks]) for looks in strata]}
    if strata[0][0].thought_D is not None:
        ranks["thought"] = [_ranks([look.thought_D for look in looks if look.thought_D is not None]) for looks in strata]
    return {
        "n": sum(map(len, strata)),
        "mass": {kind: mean_of([[m[kind] for m in found] for found in masses], n_boot) for kind in _MASSES},
        "mass_of_chance": float(np.mean([np.mean(shares) for shares in alike])),
        "top_is_gold": mean_of(is_gold, n_boot),
        "top_is_at_depth": mean_of(at_depth, n_boot),
        "candidates_kept": {"value": kept, "low": interval.low, "high": interval.high},
        "candidates": float(np.mean([np.mean([len(look.probabilities) for look in looks]) for looks in strata])),
        "at_depth": float(np.mean([np.mean([look.alike() for look in looks]) for looks in strata])),
        "effective_rank": {of: {key: float(np.mean([r[key] for r in each])) for key in each[0]} for of, each in ranks.items()},
    }


def _ranks(states: Sequence[Tensor]) -> dict[str, float]:
    rows_ND = torch.stack(list(states)).numpy()
    return {"plain": effective_rank(rows_ND), "centred": effective_rank(rows_ND, centred=True)}
