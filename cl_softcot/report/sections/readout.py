"""What is in a thought, read through the model's own head."""

from __future__ import annotations

from cl_softcot.report.content import Block, Listing, Section, Text
from cl_softcot.report.measures import at
from cl_softcot.report.sections._diagnostics import Columns, grid, last, measured
from cl_softcot.report.studies import Result, Study

DIAGNOSTIC = "readout"
_KEPT = 1  # examples of a task that are shown


def section(study: Study) -> Section | None:
    columns: Columns = {}
    for part in ("step", "answer"):
        columns[f"of the {part}"] = (("head", "of_its_question", part), "fraction")
        columns[f"of another question's {part}"] = (("head", "of_another_question", part), "fraction")
        columns[f"random place, of the {part}"] = (("random_place", "of_its_question", part), "fraction")
    table = grid(study, DIAGNOSTIC, "Shares of thoughts whose top token is ...", columns)
    more: Columns = {
        "entropy of a thought": (("head", "entropy"), "nats"),
        "entropy at a random place": (("random_place", "entropy"), "nats"),
        "nearest embedding is of the step": (("nearest", "of_its_question", "step"), "fraction"),
        "nearest embedding is of the answer": (("nearest", "of_its_question", "answer"), "fraction"),
    }
    beside = grid(study, DIAGNOSTIC, "Entropy (nats) and nearest embeddings", more, label="readout-more")
    if not table:
        return None
    note = (
        "A thought read through the model's own head. Controls: the same tokens held against another question's step and "
        "answer, and the head's reading of states at random places of the question."
    )
    blocks: list[Block] = [Text(note), table, *([beside] if beside else [])]
    for method, runs in measured(study, DIAGNOSTIC).items():
        lines = _examples(runs[0])
        blocks += (
            [Text(f"{method}, {study.relative(runs[0])}: examples, with the top tokens of each thought."), Listing(lines)]
            if lines
            else []
        )
    return Section("What is in a thought?", blocks)


def _examples(run: Result) -> str:
    lines = []
    for task, numbers in (at(run, (*last(run, DIAGNOSTIC), "tasks")) or {}).items():
        for example in (numbers.get("examples") or [])[:_KEPT]:
            lines.append(f"{task} {example['id']}: {' | '.join(example['steps'])} → {example['answer']}")
            for k, thought in enumerate(example["thoughts"], start=1):
                head = "  ".join(f"{token.strip() or token!r} {p:.2f}" for token, p in thought["head"])
                lines.append(f"    thought {k}: {head}")
    return "\n".join(lines)
