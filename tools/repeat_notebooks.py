"""Run each chapter twice, and compare what is checked and what was learned.

Usage: python -m tools.repeat_notebooks [NN ...]

Compared are the outputs of the cells that carry `nbval-check-output`, and the weights of every model that is left at
the end. Nothing is written.
"""

import sys

from tools.chapters import chapters, code_cells, tags
from tools.execute import execute

#: Asked of a kernel when its notebook is through.
WEIGHTS = """{
    name: __import__("hashlib").sha256(b"".join(w.tobytes() for w in value.get_weights())).hexdigest()
    for name, value in sorted(globals().items())
    if name[0] != "_" and hasattr(value, "get_weights") and not isinstance(value, type)
}"""


def run(chapter):
    """Return the checked outputs, cell by cell, and the digest of each model's weights."""
    notebook = chapter.read_source()
    weights = execute(notebook, {"weights": WEIGHTS}, label=chapter.name)["weights"]
    checked = [cell.outputs for cell in code_cells(notebook) if "nbval-check-output" in tags(cell)]
    texts = [[(output.get("text"), output.get("data", {}).get("text/plain")) for output in cell] for cell in checked]
    return texts, weights


def main(beginnings):
    different = []
    for chapter in chapters(*beginnings):
        (first, weights), (second, again) = run(chapter), run(chapter)
        same = first == second and weights == again
        print(f"{chapter}: {len(first)} checked outputs, {len(weights)} models:", "the same" if same else "DIFFERENT")
        if not same:
            different.append(chapter.name)
            print([name for name in weights if weights[name] != again.get(name)])
    sys.exit(bool(different))


if __name__ == "__main__":
    main(sys.argv[1:])
