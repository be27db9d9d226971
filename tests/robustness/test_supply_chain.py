"""Supply chain: notebooks carry no paths, names or tokens, and the lock installs with hashes alone."""

import getpass
import re
import socket

import nbformat
import pytest

from tools.chapters import ROOT

pytestmark = pytest.mark.robustness

NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
LEAKS = {
    "a path": r"(?<![\w./~-])/(home|root|Users|work|mnt|tmp|var|opt|private)/[\w.]|[A-Z]:\\\\?Users|site-packages",
    "a temporary file": r"ipykernel_\d",
    "an address": r"\b(?!127\.0\.0\.1)(?:10|127|172|192)(?:\.\d{1,3}){3}\b|\blocalhost:\d+",
    "a mail address": r"[\w.+-]+@(?!main\b)[\w-]+\.[a-z]{2,}",
    "a token": r"\b((gh[pousr]|github_pat|hf)_\w{20,}|sk-[\w-]{20,}|AKIA[0-9A-Z]{16}|AIza[\w-]{30,}|xox\w-\w+)",
    "a private key": r"-----BEGIN [A-Z ]*PRIVATE KEY",
    "a secret": r"(?i)\b(password|passwd|api[_-]?key|secret|access[_-]?token)\b\s*[=:]\s*[\"']?\w{6,}",
}
METADATA = {"kernelspec", "language_info", "vae_utils", "jupytext"}
CELL_METADATA = {"tags", "mystnb", "nbgrader", "lines_to_next_cell"}


def leaks(notebook):
    """What a reader should not learn from the notebook's outputs and metadata."""
    texts = [str(notebook.metadata)]
    for cell in notebook.cells:
        texts.append(str(cell.metadata))
        for output in cell.get("outputs", []):
            kept = {name: value for name, value in output.get("data", {}).items() if not name.startswith("image/")}
            texts += [
                str(kept),
                output.get("text", ""),
                str(output.get("metadata", "")),
                str(output.get("traceback", "")),
            ]
    names = {name for name in (socket.gethostname(), getpass.getuser()) if len(name) > 4 and name != "localhost"}
    patterns = {**LEAKS, **{f"the name {name}": rf"\b{re.escape(name)}\b" for name in names}}
    return [
        f"{what}: {found[0]}"
        for text in texts
        for what, pattern in patterns.items()
        if (found := re.search(pattern, text))
    ]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_tells_nothing_of_its_maker(path, tried):
    notebook = nbformat.read(path, as_version=4)
    assert leaks(notebook) == []
    assert set(notebook.metadata) <= METADATA
    for cell in notebook.cells:
        assert set(cell.metadata) <= CELL_METADATA
        assert not cell.get("attachments")
        tried()


@pytest.mark.parametrize(
    "secret",
    [
        "/ho" + "me/ada/notes.txt",
        "C:\\Users\\ada",
        "/ro" + "ot/.cache",
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
        assert leaks(nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("1", outputs=[place])]))
        tried()
    assert leaks(nbformat.v4.new_notebook(metadata={"author": secret}))


def test_the_lock_is_installed_with_hashes_alone(tried):
    script = (ROOT / "tools" / "make_venv.sh").read_text("utf-8")
    installs = [line for line in script.splitlines() if "pip[@]" in line]
    assert len(installs) == 2
    assert "--require-hashes -r" in installs[0]
    assert "--no-deps" in installs[1] and "--editable ." in installs[1], "our own code, and nothing else"
    pins = re.split(r"^(?=\S)", (ROOT / "requirements.lock").read_text("utf-8"), flags=re.MULTILINE)[1:]
    for pin in pins:
        assert re.match(r"[\w.-]+==\S+", pin) and re.search(r"--hash=sha256:[0-9a-f]{64}", pin), pin[:80]
        tried()
