"""Result files: finding them, reading them, grouping them by method.

A run's `result.json` is written last, so a run folder without one belongs to a run that is not finished.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, overload

from cl_softcot.errors import UserError
from cl_softcot.results import kept
from cl_softcot.results.folder import RunFolder
from cl_softcot.results.record import RunRecord

if TYPE_CHECKING:
    import pandas


class Results(Sequence[RunRecord]):
    """The records of finished runs.

    >>> results = load_results("experiments/results/layers")
    >>> [(run.method, run.seed, round(run.summary["acc"], 3)) for run in results][:2]
    [('coconut_all', 0, 0.566), ('coconut_lower', 0, 0.227)]
    """

    def __init__(self, records: Iterable[RunRecord]):
        self._records = tuple(records)

    def __len__(self) -> int:
        return len(self._records)

    def __iter__(self) -> Iterator[RunRecord]:
        return iter(self._records)

    @overload
    def __getitem__(self, place: int) -> RunRecord: ...
    @overload
    def __getitem__(self, place: slice) -> Results: ...
    def __getitem__(self, place: int | slice) -> RunRecord | Results:
        return Results(self._records[place]) if isinstance(place, slice) else self._records[place]

    def __eq__(self, other: object) -> bool:
        return self._records == other._records if isinstance(other, Results) else NotImplemented

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"Results({', '.join(f'{r.method}.{r.order}.seed{r.seed}' for r in self._records)})"

    def to_dataframe(self) -> pandas.DataFrame:
        """A row a number: method, order, seed, experience, task, measure, value, low, high, n, reading.

        ``experience`` counts from 0, the base; what a run has once (the ``summary``, costs) stands at the last. ``task`` is a
        task of the stream, a family of the base's own abilities, or a prompt set of the drift; missing where a number is over
        all of them. ``low`` and ``high`` are the 95 % interval over test questions and ``n`` their number (of drift:
        of tokens), where a record holds them; under ``evaluate.between`` rows before the last were asked fewer. Measures are
        named like the fields of ``result.json``; losses and diagnostics, which have shapes of their own, are left out.

        ``reading`` is that of the answers which a number stands on: ``strict`` or ``flexible``, one of them the experiment's
        headline (``evaluate.reading``), missing where a number stands on no answers (drift, costs). Accuracy, retention and the
        summary of runs that hold both readings have a row for each: choose one before a mean is taken.

        >>> table = load_results("experiments/results/layers").to_dataframe()
        >>> last = table[(table.measure == "accuracy") & (table.experience == 4)]
        >>> last.groupby("method").value.mean().round(3).to_dict()["cot_all"]
        0.892
        """
        from cl_softcot.results.table import to_dataframe

        return to_dataframe(self)


def load_results(folder: str | Path) -> Results:
    """The records of the finished runs of an experiment folder (or of one run folder), also of a kept one, whose runs are packed.

    The order is that of the run folders' names; give `order_like` the experiment's methods for theirs.

    Raises:
        UserError: if there is no such folder, or a result cannot be read.
    """
    records = (kept.record(run) for run in run_folders(folder))
    return Results(record for record in records if record is not None)


def run_folders(folder: str | Path) -> list[Path]:
    """The run folders in `folder`: itself, or `runs/*` of an experiment, or those of all experiments in it.

    Packed runs of kept results are told by the folders that they had, which are not there; `kept.result` reads either.

    Raises:
        UserError: if there is none.
    """
    folder = Path(folder)
    if not folder.is_dir() and kept.result(folder) is not None:
        return [folder]
    if not folder.is_dir():
        raise UserError(
            "there is no such folder", where=str(folder), fix="Give the folder that a run printed, e.g. runs/sequence_a."
        )
    if RunFolder(folder).is_run:
        return [folder]
    for pattern, studies in (("runs/*", [folder]), ("*", []), ("*/runs/*", sorted(folder.glob("*")))):
        found = {path for path in folder.glob(pattern) if path.is_dir() and RunFolder(path).is_run}
        found |= {run for study in studies for run in kept.packed_runs(study)}
        if found:
            return sorted(found)
    raise UserError(
        "no run in this folder (a run has an events.jsonl or a result.json; kept runs are in a runs.jsonl.gz)",
        where=str(folder),
        fix="Give an experiment's folder, e.g. runs/sequence_a, or one of the folders in its runs/.",
    )


def order_like(results: Iterable[RunRecord], methods: Sequence[str]) -> Results:
    """Results sorted by the place of their method in `methods`, then by task order and seed."""
    place = {method: i for i, method in enumerate(methods)}
    return Results(sorted(results, key=lambda r: (place.get(r.method, len(place)), r.order, r.seed)))


def by_method(results: Iterable[RunRecord]) -> dict[str, list[RunRecord]]:
    """The results of each method (seeds and orders together), methods in the order of their first result."""
    groups: dict[str, list[RunRecord]] = {}
    for result in results:
        groups.setdefault(result.method, []).append(result)
    return groups
