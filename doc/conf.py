"""Sphinx configuration; `make doc` builds the pages in doc/_build/html."""

from sklearn_wbfuse import __version__

project = "sklearn_wbfuse"
author = "the sklearn_wbfuse developers"
copyright = "2026, the sklearn_wbfuse developers"
version = release = __version__

extensions = [
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.mathjax",
    "sphinx.ext.viewcode",
    "numpydoc",
    "myst_parser",
    "sphinx_gallery.gen_gallery",
]

root_doc = "index"
source_suffix = {".md": "markdown", ".rst": "restructuredtext"}
exclude_patterns = ["_build"]

# Markdown: $...$ and $$...$$ are mathematics.
myst_enable_extensions = ["amsmath", "colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3

# The API reference: one page per name listed in an autosummary table.
autosummary_generate = True
autodoc_typehints = "none"  # numpydoc's Parameters section gives the types
numpydoc_show_class_members = False

# The gallery: examples/plot_*.py are run and their figures shown.
sphinx_gallery_conf = {
    "examples_dirs": "../examples",
    "gallery_dirs": "auto_examples",
    "filename_pattern": r"[/\\]plot_",
    "download_all_examples": False,
    "show_memory": False,
}

html_theme = "alabaster"
html_theme_options = {
    "description": "Fuse trained networks by Wasserstein barycenters of their neurons",
    "page_width": "1100px",
}
