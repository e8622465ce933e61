"""The question that a study asks."""

from __future__ import annotations

from cl_softcot.report.content import Section, Text
from cl_softcot.report.measures import note_on_intervals
from cl_softcot.report.studies import Study


def section(study: Study) -> Section:
    streams = "; ".join(
        f"{' → '.join(tasks)}" + (f" ({order})" if len(study.orders) > 1 else "") for order, tasks in study.orders.items()
    )
    blocks = [
        Text(
            "What does a language model forget while it learns to reason? The methods below learn the same tasks one after the "
            f"other, with the same examples and optimiser steps: {streams}. After each task everything learned before, and what "
            "the base model could do before it started, is measured again, as the method is used."
        )
    ]
    if study.control:
        blocks.append(
            Text(
                f"All methods are compared with {study.control}; a method that thinks without words stands beside the same "
                "strategy in words. A difference is claimed only where its corrected p-value is below .05; otherwise the report "
                "says that none was shown, and how large one would have had to be."
            )
        )
    blocks.append(Text(note_on_intervals(study)))
    if study.runs[0].split == "valid":
        blocks.append(
            Text("Measured on the validation split, which settings may have been chosen on: these are not test results.")
        )
    blocks += [Text(f"Note: {told}.") for told in study.told]
    return Section("The question", blocks)
