"""One file a section. Each has ``PLACE``, which orders them, and ``section(study)``: a Section, or None where there is nothing to
tell; and where something may be missing from a study, ``missing(study)``: what, and why. A file that shows a diagnostic names it
in ``DIAGNOSTIC``.
"""
