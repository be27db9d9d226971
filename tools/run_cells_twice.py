"""Run every cell of a chapter twice in a row, in quick mode, as a reader does who presses Shift+Enter again.

Usage: python -m tools.run_cells_twice [NN ...]. It lists each cell that fails or warns, and goes on behind it.
"""

import copy
import sys

from tools.chapters import chapters, code_cells, tags, warnings_in
from tools.execute import EXPECTED, execute


def double(notebook):
    """Return the notebook with each code cell doubled."""
    doubled = copy.deepcopy(notebook)
    doubled.cells = [copy.deepcopy(cell) for cell in notebook.cells for _ in range(1 + (cell.cell_type == "code"))]
    return doubled


def faults(notebook):
    """Say what went wrong in an executed notebook of doubled cells."""
    found = []
    for k, cell in enumerate(code_cells(notebook)):
        errors = [output for output in cell.outputs if output.output_type == "error"]
        said = [] if "raises-exception" in tags(cell) else [f"{error.ename}: {error.evalue}" for error in errors]
        for text in said + [text for text in warnings_in(cell.outputs) if not EXPECTED.search(text)]:
            when = "again" if k % 2 else "for the first time"
            found.append(f"cell [{k // 2 + 1}], run {when}: {text.strip()[:400]}\n  {cell.source[:200]!r}")
    return found


def run_twice(chapter):
    """Return the faults of a chapter, every cell of which runs twice in a row."""
    notebook = double(chapter.read_source())
    execute(notebook, label=chapter.name, allow_errors=True, VAE_UTILS_QUICK="1")
    return faults(notebook)


def main(beginnings):
    failed = False
    for chapter in chapters(*beginnings):
        found = run_twice(chapter)
        print(f"{chapter.name}: {len(found)} faults in cells that ran twice in a row", *found, sep="\n")
        failed |= bool(found)
    sys.exit(failed)


if __name__ == "__main__":
    main(sys.argv[1:])
