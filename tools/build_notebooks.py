"""Make each notebook's .ipynb from its .py: cells and tags from the .py, outputs from a full run.

Usage: build_notebooks.py [NN ...], all notebooks by default.
"""

import base64
import contextlib
import hashlib
import os
import sys
import time
from pathlib import Path

import jupytext
import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

ROOT = Path(__file__).parent.parent
NOTEBOOKS = ROOT / "notebooks"

#: The README's figure, copied out of the notebook that draws it.
README_FIGURE = ("fig-04-manifold", ROOT / "book" / "_static" / "manifold.png")

#: Asked of a kernel when its notebook is through: what its numbers stand on.
PROVENANCE = {
    "dataset": "next((v.name for v in globals().values() if type(v).__name__ == 'Digits'), 'none')",
    "mode": "'full' if __import__('os').environ.get('VAE_UTILS_QUICK', '') in ('', '0') else 'quick'",
    "versions": "{name: __import__(name).__version__ for name in ('tensorflow', 'keras', 'numpy')}",
}

#: Asked as well when it is built: the kernel's largest resident memory so far, which Linux keeps.
PEAK_MEMORY = {
    "peak_memory_mb": "next(int(row.split()[1]) * 1024 // 10**6 for row in open('/proc/self/status') if 'VmHWM' in row)"
}


def code_hash(notebook):
    """Hash the code cells, so that outputs can be told from another code's.

    All but the first: it acts in Colab only, and a fork changes the address in it.
    """
    code = [cell.source for cell in notebook.cells if cell.cell_type == "code"][1:]
    return hashlib.sha256("\0".join(code).encode()).hexdigest()


def find_figure(notebook, name):
    """Return the PNG of the figure with this name, or None."""
    for cell in notebook.cells:
        if cell.metadata.get("mystnb", {}).get("figure", {}).get("name") == name:
            return next(base64.b64decode(output.data["image/png"]) for output in cell.outputs if "data" in output)
    return None


@contextlib.contextmanager
def keep_if_it_fails(notebook, source):
    try:
        yield
    except CellExecutionError:
        path = ROOT / "build" / f"{source.stem}.failed.ipynb"
        path.parent.mkdir(exist_ok=True)
        nbformat.write(notebook, path)
        print(f"\n{source.stem} failed; what it had done stands in {path.relative_to(ROOT)}")
        raise


def build(source):
    notebook = jupytext.read(source)
    for number, cell in enumerate(notebook.cells):
        cell.id = f"cell-{number:03d}"  # jupytext's are random, and every build would differ
    client = NotebookClient(
        notebook,
        timeout=None,
        kernel_name="python3",
        coalesce_streams=True,
        record_timing=False,
        resources={"metadata": {"path": str(NOTEBOOKS)}},
    )
    start = time.time()
    with client.setup_kernel(), keep_if_it_fails(notebook, source):
        code_cells = [(i, cell) for i, cell in enumerate(notebook.cells) if cell.cell_type == "code"]
        for done, (index, cell) in enumerate(code_cells):
            print(f"\r{source.stem}: cell {done + 1} of {len(code_cells)}", end="", flush=True)
            client.execute_cell(cell, index, execution_count=done + 1)
        reply = client.kc.execute("", user_expressions=PROVENANCE | (PEAK_MEMORY if sys.platform == "linux" else {}))
        message = client.wait_for_reply(reply)
    answers = message["content"]["user_expressions"]
    notebook.metadata["vae_utils"] = {
        "code_sha256": code_hash(notebook),
        "seconds": round(time.time() - start),
        **{name: eval(answer["data"]["text/plain"], {}) for name, answer in answers.items()},
    }
    nbformat.write(notebook, source.with_suffix(".ipynb"))
    facts = notebook.metadata["vae_utils"]
    name, path = README_FIGURE
    if (png := find_figure(notebook, name)) and (facts["mode"], facts["dataset"]) == ("full", "mnist"):
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(png)
    print(f"\r{source.stem}: {facts['seconds']} s, {facts['mode']} run, data: {facts['dataset']}")


def main(prefixes):
    os.environ.setdefault("PYTHONHASHSEED", "0")
    sources = [path for path in sorted(NOTEBOOKS.glob("[0-9]*.py")) if path.name.startswith(tuple(prefixes or [""]))]
    if not sources:
        sys.exit(f"No notebook's name starts with {' or '.join(prefixes)}.")
    for source in sources:
        build(source)


if __name__ == "__main__":
    main(sys.argv[1:])
