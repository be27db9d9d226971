"""Sphinx builds the book from the executed notebooks and the pages in this folder: `make book`."""

import os
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "book")]
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
REPOSITORY = PROJECT["urls"]["Repository"]
owner, name = REPOSITORY.removeprefix("https://github.com/").split("/")
HOST = f"{owner.lower()}.github.io"  # GitHub Pages writes owners in lower case, and serves OWNER.github.io at the root
SITE = f"https://{HOST}/" if name.lower() == HOST else f"https://{HOST}/{name}/"

project = "Variational autoencoders, every equation executed"
author = copyright = "The maintainers"
version = release = PROJECT["version"]
language = "en"

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
    "sphinxcontrib.bibtex",
    "sphinxext.opengraph",
    "chapters",
]
root_doc = "book/index"
include_patterns = ["book/*.md", "notebooks/*.ipynb"]
exclude_patterns = [".*", "build", "book/_*"]

nb_execution_mode = "off"
myst_enable_extensions = ["dollarmath", "deflist", "substitution"]
myst_heading_anchors = 3
numfig = True
numfig_format = {"figure": "Figure %s"}

default_role = "code"
autodoc_member_order = "bysource"
add_module_names = False
autodoc_inherit_docstrings = False
napoleon_numpy_docstring = napoleon_use_rtype = False
bibtex_bibfiles = ["references.bib"]
bibtex_reference_style = "author_year"
copybutton_selector = "div.cell_input div.highlight pre, div.highlight-python pre, div.highlight-default pre"

html_theme = "sphinx_book_theme"
html_title = project
html_baseurl = SITE
html_static_path = ["_static"]
html_extra_path = ["_root"]
html_css_files = ["book.css"]
html_js_files = [("book.js", {"defer": "defer"})]
html_favicon = "_static/favicon.png"
html_domain_indices = html_use_index = False
html_sourcelink_suffix = ""
html_theme_options = {
    "repository_url": REPOSITORY,
    "use_repository_button": True,
    "use_download_button": False,  # every chapter has its own, beside Colab and Kaggle
    "use_fullscreen_button": False,
    "navbar_persistent": [],
    "show_toc_level": 2,
    "pygments_light_style": "a11y-high-contrast-light",
    "pygments_dark_style": "a11y-high-contrast-dark",
}
html_context = {"default_mode": "auto"}
ogp_site_url = SITE
ogp_image = f"{SITE}_static/card.png"
ogp_image_alt = "A grid of handwritten digits that turn into one another, beside the title of the book"
ogp_social_cards = {"enable": False}

# `make linkcheck`. A DOI doesn't move, and many publishers behind one turn programs away, as OpenReview does.
linkcheck_ignore = [r"https://doi\.org/", r"https://openreview\.net/", r"https://hub\.example\.org"]
linkcheck_anchors = False  # many pages make theirs with a script
linkcheck_retries = 3
linkcheck_timeout = 30

# MathJax comes with the book, in parts, so that pages stay light and read without a network.
mathjax_path = "mathjax/startup.js"
mathjax3_config = {
    "loader": {"load": ["input/tex", "output/chtml", "a11y/assistive-mml"]},
}
