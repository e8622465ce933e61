"""Where the weights changed: by layer, by module, and in which half of the model."""

from __future__ import annotations

from cl_softcot.report.content import Block, Section, Table
from cl_softcot.report.measures import Path
from cl_softcot.report.sections._diagnostics import Columns, grid, keys_at
from cl_softcot.report.sections._layers import by_layer
from cl_softcot.report.studies import Study

DIAGNOSTIC = "weight_change"


def section(study: Study) -> Section | None:
    copies = keys_at(study, DIAGNOSTIC, "copies")
    sets: dict[str, Path] = {"since the base": ("since_base", "layers")}
    sets |= {"since the experience before": ("since_row_before", "layers")}
    sets |= {f"since the base, copy of {task}": ("copies", task, "layers") for task in copies}
    caption = (
        "Change of the weights that a method may change, ‖W − W₀‖ / ‖W₀‖ (Frobenius), layer by layer after the last experience "
        "(layer 1 is next to the embeddings); lines up and down: 95 % intervals over runs."
    )
    figure = by_layer(study, DIAGNOSTIC, "Relative change of the weights, by layer", caption, sets, "relative change", None)
    if not figure:
        return None
    tables = (_places(study), _modules(study), _copies(study, copies), _ranks(study))
    blocks: list[Block] = [figure, *(table for table in tables if table)]
    return Section("Where the weights changed", blocks)


def _places(study: Study) -> Table | None:
    columns: Columns = {"all weights": (("since_base", "relative"), "fraction")}
    for part, words in (("halves", "{} half of the layers"), ("share", "share of the squared change, {}")):
        for key in keys_at(study, DIAGNOSTIC, "since_base", part):
            columns[words.format(key)] = (("since_base", part, key), "fraction")
    note = "The lower half is the smaller of an odd number of layers; the shares (outside: in no layer) sum to 1."
    return grid(study, DIAGNOSTIC, "Relative change, by place", columns, notes=[note], label="weight-change-places")


def _modules(study: Study) -> Table | None:
    columns: Columns = {
        key: (("since_base", part, key), "fraction")
        for part in ("kinds", "outside")
        for key in keys_at(study, DIAGNOSTIC, "since_base", part)
    }
    return grid(study, DIAGNOSTIC, "Relative change, by module", columns, label="weight-change-modules")


def _copies(study: Study, copies: list[str]) -> Table | None:
    columns: Columns = {f"copy of {task}": (("copies", task, "relative"), "fraction") for task in copies}
    return grid(study, DIAGNOSTIC, "Relative change of each task's copy", columns, label="weight-change-copies")


def _ranks(study: Study) -> Table | None:
    columns: Columns = {
        kind: (("since_base", "effective_rank", kind, "mean"), "ratio")
        for kind in keys_at(study, DIAGNOSTIC, "since_base", "effective_rank")
    }
    note = (
        "exp of the entropy of the singular values of a matrix's change, mean over its matrices (Roy & Vetterli 2007): 1 for a "
        "product of two vectors, the width of the matrix where all directions change alike."
    )
    return grid(study, DIAGNOSTIC, "Effective rank of the change", columns, notes=[note], label="weight-change-ranks")
