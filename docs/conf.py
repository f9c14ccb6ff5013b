"""The documentation site: `make docs` builds it into docs/_build, without any network."""

import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent)]  # our two generators; the packages, uninstalled

import daal  # noqa: E402

project = "daal"
release = version = daal.__version__
extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
    "command_reference",
    "config_reference",
]
exclude_patterns = ["_build"]
highlight_language = "text"
smartquotes = False  # messages are quoted as they are printed
default_role = "code"  # docstrings are plain text, with `names` in single backticks

myst_enable_extensions = ["deflist"]
myst_heading_anchors = 3  # other pages link to headings, as on GitHub

autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
# Docstrings and names say shapes and types (features_ND) better than NumPy's annotations do.
autodoc_typehints = "none"

html_theme = "furo"
html_title = f"daal {release}"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_show_sphinx = False
html_show_copyright = False
html_copy_source = False
html_theme_options = {"navigation_with_keys": True}
