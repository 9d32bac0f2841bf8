"""Sphinx configuration. Builds offline unless PDMD_INTERSPHINX=1."""

import os

import pdmd

project = "pdmd"
author = "The pdmd authors"
copyright = "The pdmd authors"
release = version = pdmd.__version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.mathjax",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinx-mathjax-offline",  # ships MathJax: pages render offline
]
exclude_patterns = ["_build", "evidence/intro.md", "evidence/*_notes.md"]
source_suffix = {".md": "markdown"}
html_theme = "furo"
html_title = "pdmd"

myst_enable_extensions = ["amsmath", "colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3

napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_rtype = False
napoleon_use_ivar = True

autodoc_default_options = {"members": True, "show-inheritance": True}
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_preserve_defaults = True

if os.environ.get("PDMD_INTERSPHINX") == "1":
    extensions.append("sphinx.ext.intersphinx")
    intersphinx_mapping = {
        "python": ("https://docs.python.org/3", None),
        "torch": ("https://docs.pytorch.org/docs/stable", None),
    }
