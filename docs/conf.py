"""Settings of the documentation: ``sphinx-build -W docs docs/_build``."""

from pathlib import Path

project = "cl_softcot"
author = "the cl_softcot authors"
copyright = "the cl_softcot authors, Apache-2.0"

_init = Path(__file__).parents[1] / "cl_softcot" / "__init__.py"
version = release = next(line.split('"')[1] for line in _init.read_text().splitlines() if line.startswith("__version__"))

extensions = ["myst_parser"]
source_suffix = {".md": "markdown"}
exclude_patterns = ["_build"]
myst_enable_extensions = ["colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3

html_theme = "furo"
html_title = "cl_softcot"
html_static_path = ["_static"]
html_css_files = ["pages.css"]
html_show_sphinx = False
html_copy_source = False
