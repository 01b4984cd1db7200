"""The guide, built by Sphinx: ``make docs``, or ``sphinx-build -W -b html docs docs/_build``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

import made  # noqa: E402 - stands beside this file

from fanin import __version__  # noqa: E402

project = "fanin"
author = "the fanin authors"
project_copyright = "the fanin authors"
release = version = __version__

extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["_build", "made", "**.ipynb_checkpoints", "jupyter_execute"]

html_theme = "furo"
html_title = "fanin"
html_static_path = ["style"]
html_css_files = ["guide.css"]
html_extra_path = ["made/extra"]
html_copy_source = False
html_show_sphinx = False

# Notebooks are committed without outputs and run here; a cell that fails ends the build.
nb_execution_mode = "auto"
nb_execution_raise_on_error = True
nb_execution_timeout = 600  # seconds a cell; the longest takes half a minute
nb_execution_show_tb = True
nb_merge_streams = True
nb_output_stderr = "remove"  # progress bars of libraries

myst_heading_anchors = 3

# Docstrings write code as `code`.
default_role = "code"
# Dashes alone: a prime stays a prime (q').
smartquotes_action = "D"
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
python_maximum_signature_line_length = 88
napoleon_numpy_docstring = False

made.write(HERE)


def setup(app: Any) -> None:
    """Read the pages as the guide shows them; see `made.adapted`."""
    app.connect("source-read", adapt)


def adapt(_app: Any, page: str, source: list[str]) -> None:
    """Change the text of a page before it is read."""
    source[0] = made.adapted(page, source[0])
