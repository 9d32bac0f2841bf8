"""Sphinx configuration. Builds offline unless PDMD_INTERSPHINX=1."""

import importlib
import inspect
import os
import pydoc
from typing import TypeVar

from sphinx.util.nodes import make_refnode

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
html_static_path = ["_static"]
html_css_files = ["pages.css"]
toc_object_entries_show_parents = "hide"

myst_enable_extensions = ["amsmath", "colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3
numfig = True  # numbers equations across pages
numfig_format = {"figure": "Figure %s"}

napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_rtype = False
napoleon_use_ivar = True

autodoc_default_options = {
    "members": True,
    "special-members": "__call__",
    "show-inheritance": True,
}
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_preserve_defaults = True
# Annotated for the command line, which nobody needs to read in a signature.
autodoc_type_aliases = {
    name: f"pdmd.cli.values.{name}" for name in ("Arguments", "Plain", "Table", "Terms")
}

# Every name of pdmd has to resolve. Those of other packages do with PDMD_INTERSPHINX=1 alone.
nitpicky = True
PACKAGES = (
    "collections|contextlib|enum|fsspec|inspect|matplotlib|numpy|pathlib|tensordict|torch"
    "|torchtitan|tyro"
)
# imported for their types alone, which leaves no module in an annotation
SHORT = (
    "AbstractFileSystem|Figure|Metadata|Path|ProcessGroup|SavePlan|SavePlanner|Tensor|TensorDict"
)
nitpick_ignore_regex = [
    ("py:.*", rf"({PACKAGES})\..*"),
    ("py:class", f"abc.ABC|{SHORT}"),
    ("py:class", "Fixed|SuppressFixed"),  # tyro's marks of an option
]

if os.environ.get("PDMD_INTERSPHINX") == "1":
    extensions.append("sphinx.ext.intersphinx")
    intersphinx_mapping = {
        "python": ("https://docs.python.org/3", None),
        "torch": ("https://docs.pytorch.org/docs/stable", None),
    }


def skip_other_modules(app, what, name, obj, skip, options):
    """Documents what a module imports where it is defined, and nowhere else."""
    if what == "module" and (inspect.isclass(obj) or inspect.isfunction(obj)):
        module = app.env.current_document.autodoc_module
        if obj.__module__.startswith("pdmd.") and obj.__module__ != module:
            return True
    return None


def public_bases(app, name, obj, options, bases):
    """Replaces private base classes by their own bases."""
    for i in reversed(range(len(bases))):
        if getattr(bases[i], "__name__", "").startswith("_"):
            bases[i : i + 1] = bases[i].__bases__


TEXTS = {}


def keep_text(app, what, name, obj, options, lines):
    """Keeps the text of an attribute, in which napoleon takes ``A word: more`` for a type."""
    if what in ("attribute", "data", "property"):
        TEXTS[name] = list(lines)


def restore_text(app, what, name, obj, options, lines):
    """Restores the text of an attribute after napoleon."""
    if name in TEXTS:
        lines[:] = TEXTS.pop(name)


def plain_signature(app, what, name, obj, options, signature, returned):
    """Writes defaults that a factory makes as ``...``, so that signatures can be parsed."""
    if signature and "<" in signature:
        return signature.replace("<factory>", "..."), returned
    return None


def places(target, node):
    """Yields where a name may be described: where it is defined, or where its docstring is."""
    found = pydoc.locate(target) if target.startswith("pdmd.") else None
    if hasattr(found, "__qualname__"):
        yield f"{found.__module__}.{found.__qualname__}"
    try:  # docstrings that a subclass inherits
        module = importlib.import_module(node["py:module"])
        for base in getattr(module, node["py:class"]).__mro__:
            yield f"{base.__module__}.{base.__qualname__}.{target}"
            yield f"{base.__module__}.{target}"
    except (AttributeError, ImportError, KeyError, TypeError, ValueError):
        pass


def resolve(app, env, node, contnode):
    """Resolves names of pdmd that Sphinx does not: imported, inherited, or of types alone."""
    if node.get("refdomain") != "py":
        return None
    target, domain = node["reftarget"], env.domains.python_domain
    if target.startswith("pdmd.") and isinstance(
        pydoc.locate(target), TypeVar
    ):  # which has no description of its own
        return contnode
    found = [place for place in places(target, node) if place in domain.objects]
    if not found and not target.startswith("pdmd."):  # imported for its type alone
        kinds = ("class", "method")
        ends = [
            n for n, o in domain.objects.items() if n.endswith(f".{target}") and o.objtype in kinds
        ]
        found = ends if len(ends) == 1 else []
    if not found:
        return None
    entry = domain.objects[found[0]]
    return make_refnode(
        app.builder, node["refdoc"], entry.docname, entry.node_id, contnode, found[0]
    )


def setup(app):
    """Connects the functions above; napoleon's priority is 500."""
    app.extensions["sphinx-mathjax-offline"].parallel_read_safe = True  # it adds a script
    app.connect("autodoc-skip-member", skip_other_modules)
    app.connect("autodoc-process-bases", public_bases)
    app.connect("autodoc-process-signature", plain_signature)
    app.connect("autodoc-process-docstring", keep_text, priority=400)
    app.connect("autodoc-process-docstring", restore_text, priority=600)
    app.connect("missing-reference", resolve)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
