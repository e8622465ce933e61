"""Does the answer follow from the written chain? Early termination, other words, filler."""

from __future__ import annotations

from cl_softcot.report.content import Section, Text
from cl_softcot.report.sections._diagnostics import grid, keys_at
from cl_softcot.report.studies import Study

DIAGNOSTIC = "faithfulness"


def section(study: Study) -> Section | None:
    tests = keys_at(study, DIAGNOSTIC, "tests")
    changes = grid(
        study, DIAGNOSTIC, "Change in accuracy when the written chain is changed",
        {test: (("tests", test, "accuracy_change"), "change") for test in tests}, label="faithfulness",
    )  # fmt: skip
    same = grid(
        study, DIAGNOSTIC, "Share of answers that stay the same",
        {test: (("tests", test, "same_answer"), "fraction") for test in tests}, label="faithfulness-same",
    )  # fmt: skip
    if not changes:
        return None
    note = (
        "keep: the answer is forced after that share of the own chain's steps; filler: tokens that say nothing in place of the "
        "chain; paraphrase: other words by rule (Lanham et al. 2023, arXiv 2307.13702). Near 0 everywhere: the chain is not "
        "what the answer rests on; a paraphrase should change nothing. Each test counts only the chains that it changes, so that "
        "columns are not of the same questions."
    )
    return Section("Does the answer follow from the written chain?", [Text(note), changes, *([same] if same else [])])
