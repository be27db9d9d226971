"""Run each notebook twice, and compare what is checked and what was learned.

Usage: python -m tools.repeat_notebooks [NN ...]

Compared are the outputs of the cells that carry `nbval-check-output`, and the weights of every model that is left at
the end. Nothing is written.
"""

import os
import sys

import jupytext
from nbclient import NotebookClient

from tools.build_notebooks import NOTEBOOKS

#: Asked of a kernel when its notebook is through.
WEIGHTS = """{
    name: __import__("hashlib").sha256(b"".join(w.tobytes() for w in value.get_weights())).hexdigest()
    for name, value in sorted(globals().items())
    if name[0] != "_" and hasattr(value, "get_weights") and not isinstance(value, type)
}"""


def run(source):
    """Return the checked outputs, cell by cell, and the digest of each model's weights."""
    notebook = jupytext.read(source)
    client = NotebookClient(
        notebook, timeout=None, coalesce_streams=True, resources={"metadata": {"path": str(NOTEBOOKS)}}
    )
    with client.setup_kernel():
        for index, cell in enumerate(notebook.cells):
            client.execute_cell(cell, index)
        message = client.wait_for_reply(client.kc.execute("", user_expressions={"weights": WEIGHTS}))
    answer = message["content"]["user_expressions"]["weights"]
    if answer["status"] != "ok":
        sys.exit(f"{source.stem}: {answer}")
    checked = [
        [(output.get("text"), output.get("data", {}).get("text/plain")) for output in cell.outputs]
        for cell in notebook.cells
        if cell.cell_type == "code" and "nbval-check-output" in cell.metadata.get("tags", [])
    ]
    return checked, eval(answer["data"]["text/plain"], {})


def main(prefixes):
    os.environ.setdefault("PYTHONHASHSEED", "0")
    different = []
    for source in sorted(NOTEBOOKS.glob("[0-9]*.py")):
        if not source.name.startswith(tuple(prefixes or [""])):
            continue
        (first, weights), (second, again) = run(source), run(source)
        same = first == second and weights == again
        print(
            f"{source.stem}: {len(first)} checked outputs, {len(weights)} models:", "the same" if same else "DIFFERENT"
        )
        if not same:
            different.append(source.stem)
            print([name for name in weights if weights[name] != again.get(name)])
    sys.exit(bool(different))


if __name__ == "__main__":
    main(sys.argv[1:])
