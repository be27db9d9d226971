"""The loop in which a notebook's cells are executed, one for all tools."""

import ast
import os
import re

from nbclient import NotebookClient
from tqdm import tqdm

from tools import memory
from tools.chapters import NOTEBOOKS

#: Asked of a kernel when its notebook is through: what its numbers stand on.
PROVENANCE = {
    "dataset": "next((v.name for v in globals().values() if type(v).__name__ == 'Digits'), 'none')",
    "mode": "'full' if __import__('os').environ.get('VAE_UTILS_QUICK', '') in ('', '0') else 'quick'",
    "versions": "{name: __import__(name).__version__ for name in ('tensorflow', 'keras', 'numpy')}",
}

#: What a notebook may say on stderr: once per home, and where there is no MNIST to be had.
EXPECTED = re.compile("building the font cache|MNIST is not here and could not be downloaded")


def execute(notebook, questions=None, label=None, allow_errors=False, **environment):
    """Execute the code cells in a new kernel, from top to bottom; return its answers to `questions`.

    Questions are expressions whose values are literals. `"peak_memory"`, in bytes, is answered whether asked or not.
    In a terminal, a bar with the label shows how far it is. The environment's variables are the kernel's only.
    """
    client = NotebookClient(
        notebook,
        timeout=None,
        kernel_name="python3",
        coalesce_streams=True,
        record_timing=False,
        allow_errors=allow_errors,
        resources={"metadata": {"path": str(NOTEBOOKS)}},
    )
    cells = [(index, cell) for index, cell in enumerate(notebook.cells) if cell.cell_type == "code"]
    with client.setup_kernel(env={"PYTHONHASHSEED": "0", **os.environ, **environment}):
        for count, (index, cell) in enumerate(tqdm(cells, label, leave=False, disable=None), start=1):
            client.execute_cell(cell, index, execution_count=count)
        asked = {"pid": "__import__('os').getpid()", **(questions or {})}
        content = client.wait_for_reply(client.kc.execute("", user_expressions=asked))["content"]
        answers = {name: literal(name, answer) for name, answer in content["user_expressions"].items()}
        return answers | {"peak_memory": memory.peak(answers.pop("pid"))}


def literal(name, answer):
    if answer["status"] != "ok":
        raise ValueError(f"The kernel could not answer `{name}`: {answer['evalue']}")
    return ast.literal_eval(answer["data"]["text/plain"])
