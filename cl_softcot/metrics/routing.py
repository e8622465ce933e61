"""What routing costs a method of one copy a task: isolation never forgets by construction, but questions must find their copy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from cl_softcot.metrics import Meaning


def routing_accuracy(
    routing: Mapping[str, Mapping[str, float]] | None, tasks: Sequence[str], n: Sequence[int], learned: int
) -> float | None:
    """Share of the stream's questions that go to their own task's copy, or to none where their task has none yet.

    ``routing``: task -> {copy: share of its questions}, ``base`` where no copy claims them; None (before the first experience,
    and of methods without copies) gives None. ``n``: questions of each task; the first ``learned`` tasks have a copy.
    """
    if not routing or not sum(n):
        return None
    wanted = [task if j < learned else "base" for j, task in enumerate(tasks)]
    right = [round(routing[task].get(copy, 0.0) * count) for task, copy, count in zip(tasks, wanted, n, strict=True)]
    return sum(right) / sum(n)


CATALOGUE: dict[str, Meaning] = {
    "routing_accuracy": Meaning(
        "share of the stream's questions that go to their own task's copy, or to none where it has none yet",
        "ours",
        "fraction",
        "higher is better",
    )
}
