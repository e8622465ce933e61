"""One file a section. Each has ``section(study)``: a Section, or None where there is nothing to tell; and where something may be
missing from a study, ``missing(study)``: what, and why. A file that shows a diagnostic names it in ``DIAGNOSTIC``.
"""

# How a report reads. A file that is not named here comes after those that are.
ORDER = (
    "question",
    "setup",
    "main_table",
    "differences",
    "references",
    "heat_maps",
    "curves",
    "during",
    "law",
    "retention",
    "flips",
    "profiles",
    "interventions",
    "faithfulness",
    "variance_split",
    "readout",
    "frontier",
    "curriculum",
    "weight_change",
    "similarity",
    "facts_and_skills",
    "plasticity",
    "relearning",
    "other_diagnostics",
    "not_measured",
    "reproduce",
)
