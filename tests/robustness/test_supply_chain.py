"""Supply chain: notebooks carry no paths, names or tokens, and the lock installs with hashes alone."""

import nbformat
import pytest

from tools.chapters import chapters
from tools.leaks import leaks_in_outputs

METADATA = {"kernelspec", "language_info", "vae_utils", "jupytext"}
CELL_METADATA = {"tags", "mystnb", "nbgrader", "lines_to_next_cell"}


@pytest.mark.parametrize("chapter", chapters(), ids=str)
def test_a_notebook_tells_nothing_of_its_maker(chapter, tried):
    notebook = chapter.read()
    assert leaks_in_outputs(notebook) == []
    assert set(notebook.metadata) <= METADATA
    for cell in notebook.cells:
        assert set(cell.metadata) <= CELL_METADATA
        assert not cell.get("attachments")
        tried()


@pytest.mark.parametrize(
    "secret",
    [
        "/ho" + "me/ada/notes.txt",
        "C:\\Us" + "ers\\ada",
        "/ro" + "ot/.cache",
        "/tmp" + "/a.npz",
        "ada@example.org",
        "gh" + "p_" + "a" * 36,
        "AK" + "IA" + "A" * 16,
        "password = hunter22",
        "192.168.1.17",
        "-----BEGIN RSA PRIVATE " + "KEY-----",
    ],
)
def test_a_leak_would_be_found(secret, tried):
    places = [
        nbformat.v4.new_output("stream", name="stdout", text=f"look: {secret}"),
        nbformat.v4.new_output("display_data", data={"text/plain": f"'{secret}'"}),
        nbformat.v4.new_output("error", ename="E", evalue="", traceback=[f"in {secret}"]),
    ]
    for place in places:
        assert leaks_in_outputs(nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("1", outputs=[place])]))
        tried()
    assert leaks_in_outputs(nbformat.v4.new_notebook(metadata={"author": secret}))
