"""Sphinx settings; docs/decisions/0001 says why Sphinx."""

import logging
import sys
from importlib.metadata import version as version_of
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / "_ext"))

project = "Sojourn"
author = "The Sojourn authors"
copyright = f"2026, {author}"
version = release = version_of("sojourn")

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sojourn_tables"]
exclude_patterns = ["_build", "decisions/template.md"]
# Links to a heading, [like this](tutorial.md#the-heading), are checked.
myst_heading_anchors = 3
myst_enable_extensions = ["deflist"]
# The table of contents names pages by pattern, in reading order; that there is none yet
# for one of them is no fault. The warning has no type that `suppress_warnings` could name.
logging.getLogger("sphinx.sphinx.directives.other").addFilter(
    lambda record: getattr(record, "subtype", None) != "empty_glob"
)

autodoc_member_order = "bysource"
autodoc_typehints = "description"

html_theme = "furo"
html_title = "Sojourn"
html_show_sphinx = False
