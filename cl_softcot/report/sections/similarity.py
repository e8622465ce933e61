"""How alike the states of base and method are, layer by layer."""

from __future__ import annotations

from cl_softcot.report.content import Section, Text
from cl_softcot.report.sections._diagnostics import keys_at
from cl_softcot.report.sections._layers import by_layer
from cl_softcot.report.studies import Study

DIAGNOSTIC = "similarity"
VIEWS = {"as_used": "as used", "weights_alone": "of the bare weights in plain chain of thought"}


def section(study: Study) -> Section | None:
    figures = []
    for view, words in VIEWS.items():
        sets = {name: ("sets", name, view) for name in keys_at(study, DIAGNOSTIC, "sets")}
        title = f"Linear CKA with the base's states, {words}"
        caption = (
            f"{title}, by layer (the last is behind the final norm), one panel a set of texts (general: of the base's own "
            "families); lines up and down: 95 % intervals."
        )
        label = DIAGNOSTIC if view == "as_used" else f"{DIAGNOSTIC}-{view.replace('_', '-')}"
        figures.append(by_layer(study, DIAGNOSTIC, title, caption, sets, "CKA", 1.03, label=label))
    if not any(figures):
        return None
    note = (
        "Debiased linear CKA (Kornblith et al. 2019; Song et al. 2012) at the same tokens of the same texts: 1 for states that "
        "are a rotation of the base's, near 0 for unrelated ones. Of bare weights only where a method changes them: elsewhere "
        "the states are the base's own."
    )
    return Section("How alike the states still are", [Text(note), *filter(None, figures)])
