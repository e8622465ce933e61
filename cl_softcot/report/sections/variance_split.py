"""How much of what soft thoughts bring is prompt-like, and how much belongs to the single question."""

from __future__ import annotations

from cl_softcot.report.content import Section, Text
from cl_softcot.report.sections._diagnostics import Columns, grid
from cl_softcot.report.studies import Study

DIAGNOSTIC = "variance_split"
SOURCES = ("task", "slot", "task_by_slot", "question", "question_by_slot")


def section(study: Study) -> Section | None:
    gains: Columns = {f"gain, {kind} thoughts": (("gain", kind, "accuracy_change"), "change") for kind in ("own", "mean", "swap")}
    shares: Columns = {f"{kind} / own": (("share_of_gain", kind, "accuracy"), "ratio") for kind in ("mean", "swap")}
    gained = grid(study, DIAGNOSTIC, "Gain in accuracy over no thoughts", {**gains, **shares}, label="variance-gain")
    parts: Columns = {source.replace("_", " "): (("variance", "shares", source), "fraction") for source in SOURCES}
    where = grid(study, DIAGNOSTIC, "Where the thoughts differ: shares of their variance", parts, label="variance-shares")
    tables = [table for table in (gained, where) if table]
    if not tables:
        return None
    note = (
        "Mean: the mean thoughts of other questions of the task, the same for all; swap: another question's. What they gain as "
        "a share of what the own thoughts gain is what a soft prompt would do as well; no share is told where the gain itself "
        "is not shown."
    )
    return Section("Prompt-like or the question's own?", [Text(note), *tables])
