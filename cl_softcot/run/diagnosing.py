"""What is measured beside a row and inside a turn, where the experiment asks for it: kept on disk like the rows themselves."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from cl_softcot.answering.subject import Subject
from cl_softcot.config.plugins import DiagnosticConfig
from cl_softcot.diagnostics.base import Diagnostic, undisturbed
from cl_softcot.files import jsonable, read_json
from cl_softcot.machine import processes
from cl_softcot.machine.lanes import working_seconds
from cl_softcot.results.checksums import Checksums
from cl_softcot.results.folder import RunFolder
from cl_softcot.run.progress import Progress, too_late

Measured = tuple[dict[str, Any], float]  # numbers, and the seconds of what they needed before


class Diagnosing:
    """
    Attributes:
        found: of each diagnostic its numbers, ``{"rows": {row: numbers}, "seconds": s}``, or why it makes no sense here,
            ``{"skipped": reason}``.
    """

    def __init__(
        self,
        wanted: Sequence[DiagnosticConfig],
        subject: Subject,
        folder: RunFolder,
        progress: Progress,
        say: Callable[[str, float], None],
    ):
        self.subject, self.folder, self.progress, self.say = subject, folder, progress, say
        reasons = {one.name: one.cls.refuses(subject.method) for one in wanted}
        self.found: dict[str, dict[str, Any]] = {
            name: {"skipped": reason} if reason else {"rows": {}, "seconds": 0.0} for name, reason in reasons.items()
        }
        self._diagnostics: dict[str, Diagnostic] = {one.name: one.make() for one in wanted if not reasons[one.name]}

    def after(self, i: int) -> None:
        """What the experiment wants to know beside row i: taken from disk where it was measured before."""
        for name, diagnostic in self._diagnostics.items():
            if not diagnostic.wants(i, len(self.subject.tasks)):
                continue
            found = self.found[name]

            def measure(name: str = name, diagnostic: Diagnostic = diagnostic) -> Measured:
                inside = self._found_inside(name, diagnostic, i)
                earlier = {int(row): numbers for row, numbers in self.found[name]["rows"].items()}
                subject = self.subject.after(i).knowing({step: kept["numbers"] for step, kept in inside.items()}, earlier)
                with undisturbed(subject):
                    return diagnostic.measure(subject), sum(kept["seconds"] for kept in inside.values())

            kept = self._kept_or(measure, i, name)
            found["rows"][str(i)] = kept["numbers"]
            found["seconds"] += kept["seconds"]

    def inside(self, i: int, step: int, steps: int) -> None:
        """The same inside the turn that leads to row i. A checkpoint of this step comes later, so that a resumed run has what was
        measured before its checkpoint, and comes by again where it was not measured.
        """
        for name, diagnostic in self._diagnostics.items():
            if step not in diagnostic.moments(self.subject.parts.reasoning, steps):
                continue

            def measure(diagnostic: Diagnostic = diagnostic) -> Measured:
                subject = self.subject.inside_turn(i, step)
                with undisturbed(subject):
                    return diagnostic.measure_inside(subject), 0.0

            self._kept_or(measure, i, name, step)

    def _found_inside(self, name: str, diagnostic: Diagnostic, i: int) -> dict[int, dict[str, Any]]:
        turns = self.progress.turns
        if i == 0 or not turns:
            return {}
        turn = min(i, len(turns))  # tasks that are learned together have one
        moments = sorted(diagnostic.moments(self.subject.parts.reasoning, turns[turn - 1]["steps"]))
        return {step: self._kept_or(None, turn, name, step) for step in moments}

    def _kept_or(self, measure: Callable[[], Measured] | None, i: int, name: str, step: int | None = None) -> dict[str, Any]:
        """Numbers and seconds from disk, or else from ``measure`` (which says what it needed before); None: it is too late."""
        path = self.folder.diagnostic(name, i, step)
        sums = Checksums(self.folder.path)
        changed = processes.from_main(lambda: sums.changed(path))
        kept = processes.from_main(lambda: read_json(path) if path.exists() and not changed else None)
        if kept is not None:
            return kept
        if changed:
            self.progress.tell_changed(path)
        if measure is None:
            raise too_late(i, path)
        if step is None:
            self.progress.refuse_late(i, path)
        done = self.progress.while_measuring(i, 1.0) if step is None else self.progress.while_learning(i - 1, step)
        self.say(f"measuring {name}", done)
        started = working_seconds()
        numbers, before = measure()
        kept = {"numbers": jsonable(numbers), "seconds": working_seconds() - started + before}
        processes.from_main(lambda: sums.write_json(path, kept))
        return kept
