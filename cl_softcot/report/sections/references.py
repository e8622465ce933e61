"""References: joint and single-task training, and what learning in sequence kept each method from learning (intransigence)."""

from __future__ import annotations

from cl_softcot.errors import UserError
from cl_softcot.report.content import Cell, Missing, Number, Section, Table, Text
from cl_softcot.report.measures import Measure, by_order, mean, number
from cl_softcot.report.studies import Result, Study
from cl_softcot.results.reading import by_method
from cl_softcot.statistics.aggregate import aggregate

NAMES = {"joint": "all tasks together", "single_task": "each task alone"}


def section(study: Study) -> Section | None:
    groups = by_method(study.references)
    if not groups:
        return None
    accuracy = Measure("acc", "accuracy", ("summary", "acc"), "fraction", "↑")
    learned = Measure("learning_accuracy", "accuracy", ("summary", "learning_accuracy"), "fraction", "↑")
    rows: list[list[Cell]] = []
    for name, runs in groups.items():
        kind = str(runs[0].reference)
        rows.append([name, NAMES.get(kind, kind), str(len(runs)), mean(study, runs, accuracy if kind == "joint" else learned)])
    own = Table(
        f"{study.name}-references", "What the references reach", ["reference", "learned", "n", "accuracy ↑"], rows, text=3
    )
    kept: list[list[Cell]] = [
        [method, *(_intransigence(study, method, runs) for runs in groups.values())]
        for method, mine in study.by_method.items()
        if any(run.trained for run in mine)
    ]
    note = (
        "Mean over tasks of the reference's accuracy minus that right after the task's own turn (Chaudhry et al. 2018), same "
        "seeds; below 0 the sequence helped."
    )
    head = ["method", *(f"against {name} ↓" for name in groups)]
    table = Table(
        f"{study.name}-intransigence",
        "Intransigence",
        head,
        kept,
        notes=[note],
        colors=[study.colors.get(str(r[0])) for r in kept],
    )
    text = (
        "References are no methods: they never have to learn in sequence, and their own forgetting has no meaning. They stand "
        "apart from the tables above."
    )
    return Section("References", [Text(text), own, table])


def _intransigence(study: Study, method: str, references: list[Result]) -> Number:
    """Mean over the runs of a method whose seed the reference has too (its tasks have no order)."""
    from cl_softcot.metrics.intransigence import against_reference

    same_order = {(r.seed, r.order): r for r in references}
    same_seed = {r.seed: r for r in references}
    found: list[tuple[Result, float]] = []
    used: dict[str, None] = {}
    for run in study.by_method[method]:
        other = same_order.get((run.seed, run.order)) or same_seed.get(run.seed)
        if other is not None:
            try:
                value = next(iter(against_reference(run, other).values()))
            except UserError:  # other tasks or other examples: nothing to compare
                continue
            if value is not None:
                found.append((run, value))
                used[study.relative(other)] = None
    path = ("intransigence", str(references[0].reference))
    names = [*(study.relative(run) for run, _ in found), *used]
    if not found:
        return Number(None, how="intransigence", path=path, style="change")
    if len(found) == 1:
        return Number(found[0][1], n=1, how="intransigence", path=path, runs=tuple(names), style="change")
    one = number(aggregate(by_order(found), "mean", n_boot=study.bootstrap), "intransigence", path, names, "change")
    return Number(one.value, one.low, one.high, len(found), one.how, path, one.runs, one.covers, one.note, "change")


def missing(study: Study) -> list[Missing]:
    have = {run.reference for run in study.references}
    return [
        Missing(f"intransigence against {words}", f"the study has no finished {kind} reference")
        for kind, words in NAMES.items()
        if kind not in have
    ]
