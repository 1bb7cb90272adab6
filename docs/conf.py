"""Sphinx's configuration: python -m pip install -e ".[docs]" && python -m sphinx -W docs build/docs."""

import re
from pathlib import Path

import fastattn

project = "fastattn"
author = "the fastattn authors"
copyright = "2026, the fastattn authors"
version = release = fastattn.config.version()

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.napoleon",
    "sphinx.ext.intersphinx",
    "sphinx.ext.viewcode",
    "matplotlib.sphinxext.plot_directive",
]
source_suffix = {".md": "markdown", ".rst": "restructuredtext"}
exclude_patterns = ["plots"]
myst_enable_extensions = ["dollarmath", "colon_fence"]
myst_heading_anchors = 3

autosummary_generate = True
autodoc_typehints = "none"  # the docstrings say what an argument may be
autodoc_member_order = "bysource"
autodoc_default_options = {"members": True, "inherited-members": False, "show-inheritance": False}
napoleon_google_docstring = False
napoleon_use_param = False  # "q, k, v" stay one entry
napoleon_use_rtype = False
highlight_language = "text"  # of equations; examples have prompts, by which they are known

intersphinx_mapping = {}  # the build needs no network
plot_html_show_source_link = False
plot_html_show_formats = False
plot_formats = [("svg", 96)]
plot_rcparams = {"savefig.bbox": "tight", "savefig.transparent": True, "font.size": 9}

html_theme = "furo"
html_title = "fastattn"
html_static_path = ["_static"]
html_css_files = ["fastattn.css"]
html_copy_source = False
html_theme_options = {"source_directory": "docs/"}

# Pages of the site that are files of the checkout.
ROOT = Path(__file__).parent.parent
PAGES = {"contributing": "CONTRIBUTING.md", "kernels": "csrc/README.md", "error-ratios": "tests/error_ratios.md"}


def read_page(app, name, source):
    """The text of a page that is a file elsewhere, with its links to files of the checkout as plain names."""
    if name in PAGES:
        text = (ROOT / PAGES[name]).read_text(encoding="utf-8")
        pages = {file: page for page, file in PAGES.items()}

        def link(match):
            words, target = match[1], match[2].removeprefix("../")
            return f"[{words}]({pages[target]}.md)" if target in pages else f"{words} (`{target}`)"

        source[0] = re.sub(r"\[([^\]]+)\]\((?!https?:|#)([^)]+)\)", link, text)


def mark_equations(app, what, name, obj, options, lines):
    """Indented equations become literal blocks, and what follows the parameters becomes notes."""
    marked, section = [], False
    for i, line in enumerate(lines):
        following = lines[i + 1] if i + 1 < len(lines) else ""
        starts = i > 0 and not lines[i - 1].strip()
        if following and set(following) == {"-"}:
            section = True
        elif section and starts and line and not line.startswith(" ") and not following.startswith(" "):
            marked += ["Notes", "-----"]
            section = False
        if not section and starts and line.startswith("    ") and not in_block(lines, i):
            marked += ["::", ""]
        code = (line.startswith("    ") and not section) or line.lstrip().startswith(">>>")
        marked.append(line if code else plain(line))
    lines[:] = marked


def plain(line):
    """|x| is no substitution, and `x`[B, T] is a name with a shape."""
    return re.sub(r"(?<!`)`([^`]+)`(?=\[)", r"``\1``\\ ", line.replace("|", r"\|"))


def in_block(lines, i):
    """Whether the indented line before the blank ones before line i belongs to the same block."""
    while i > 0 and not lines[i - 1].strip():
        i -= 1
    return i > 0 and lines[i - 1].startswith("    ")


def setup(app):
    app.connect("source-read", read_page)
    app.connect("autodoc-process-docstring", mark_equations, priority=400)  # before napoleon
