"""The site of docs/ and the docstrings: nox -s docs"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

project = "denet-torch"
copyright = "2026, the authors of denet-torch"
extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.viewcode"]
exclude_patterns = ["_build", "jupyter_execute"]
html_theme = "furo"
html_title = "denet-torch"
html_extra_path = ["demo.html"]
myst_heading_anchors = 3
myst_enable_extensions = ["colon_fence"]
nb_execution_mode = "off"  # tests/test_docs.py executes the notebook; its outputs are stored
autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_preserve_defaults = True
default_role = "code"
nitpicky = False


def name_levels(app, page, template, context, doctree):
    """Sphinx makes captions headings of no level, which screen readers need."""
    for part in ("body", "furo_navigation_tree"):
        context[part] = context.get(part, "").replace('role="heading">', 'role="heading" aria-level="2">')


def setup(app):
    app.connect("html-page-context", name_levels, priority=900)
