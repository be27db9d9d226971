"""Make each chapter's .ipynb from its .py: cells and tags from the .py, outputs from a full run.

Usage: python -m tools.build_notebooks [NN ...], all chapters by default.
"""

import contextlib
import sys
import time

import nbformat
from nbclient.exceptions import CellExecutionError

from tools.chapters import ROOT, chapters, code_hash, find_figure
from tools.execute import PROVENANCE, execute

#: The README's figure, copied out of the chapter that draws it.
README_FIGURE = ("fig-04-manifold", ROOT / "book" / "_static" / "manifold.png")


@contextlib.contextmanager
def keep_if_it_fails(notebook, name):
    try:
        yield
    except CellExecutionError:
        path = ROOT / "build" / f"{name}.failed.ipynb"
        path.parent.mkdir(exist_ok=True)
        nbformat.write(notebook, path)
        print(f"{name} failed; what it had done stands in {path.relative_to(ROOT)}")
        raise


def build(chapter):
    notebook = chapter.read_source()
    for number, cell in enumerate(notebook.cells):
        cell.id = f"cell-{number:03d}"  # jupytext's are random, and every build would differ
    start = time.time()
    with keep_if_it_fails(notebook, chapter.name):
        facts = execute(notebook, PROVENANCE, label=chapter.name)
    facts |= {"code_sha256": code_hash(notebook), "seconds": round(time.time() - start)}
    if peak := facts.pop("peak_memory"):
        facts["peak_memory_mb"] = peak // 10**6
    notebook.metadata["vae_utils"] = facts
    nbformat.write(notebook, chapter.path)
    name, path = README_FIGURE
    if (png := find_figure(notebook, name)) and (facts["mode"], facts["dataset"]) == ("full", "mnist"):
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(png)
    print(f"{chapter}: {facts['seconds']} s, {facts['mode']} run, data: {facts['dataset']}")


if __name__ == "__main__":
    for chapter in chapters(*sys.argv[1:]):
        build(chapter)
