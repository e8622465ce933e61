"""Do facts go first, or skills? Forgetting by what a task asks for: knowledge that stands in no question, or a way of working.

Costs nothing: it counts the answers that were given anyway. Tasks say themselves which they are (``Task.knowledge``).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from cl_softcot.answering.evaluate import Probe
from cl_softcot.diagnostics.base import NO_SEQUENCE, Diagnostic, Subject
from cl_softcot.metrics.intervals import stratified_difference

if TYPE_CHECKING:
    from cl_softcot.config.settings import MethodConfig


class FactsAndSkills(Diagnostic):
    """Changes of accuracy, means over the tasks of a kind: of what the stream taught, and of what the base could do before it."""

    @classmethod
    def refuses(cls, method: MethodConfig) -> str | None:
        if method.strategy.cls.reference:
            return NO_SEQUENCE
        return None if method.strategy.cls.trains else "nothing is trained, so nothing is forgotten"

    def measure(self, subject: Subject) -> dict[str, Any]:
        """
        Returns:
            by kind (``facts``, ``skill``, ``unsaid``), each with its tasks, n, and the change with a 95 % interval (as used,
            paired by example): ``learned``, from the end of each earlier task's own turn to now (backward transfer as in GEM,
            by kind); ``own_abilities``, of the base's own families, from before learning to now, and, of these,
            ``unrelated``: without those of a family that the stream trains.
        """
        earlier = [subject.probe(name) for name in subject.learned[:-1]]
        trained = {probe.task.family for probe in subject.tasks}
        unrelated = [probe for probe in subject.families if probe.task.family not in trained]
        return {
            "learned": self._by_kind(subject, earlier, {p.name: subject.learned.index(p.name) + 1 for p in earlier}),
            "own_abilities": self._by_kind(subject, subject.families, {p.name: 0 for p in subject.families}),
            "unrelated": self._by_kind(subject, unrelated, {p.name: 0 for p in unrelated}),
        }

    def _by_kind(self, subject: Subject, probes: Sequence[Probe], since: Mapping[str, int]) -> dict[str, Any]:
        """``since``: the row of R that each is compared with."""
        kinds: dict[str, list[Probe]] = {}
        for probe in probes:
            kinds.setdefault(probe.task.knowledge or "unsaid", []).append(probe)
        found = {}
        for kind, members in sorted(kinds.items()):
            now = {p.name: subject.outcomes(subject.row, p.name) for p in members}
            then = {p.name: subject.outcomes(since[p.name], p.name) for p in members}
            value, low, high = stratified_difference(now, then, subject.evaluate.bootstrap)
            n = sum(map(len, now.values()))
            found[kind] = {"tasks": list(now), "value": value, "low": low, "high": high, "n": n}
        return found
