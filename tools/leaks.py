"""What the project's files must not tell: paths and names of a machine, addresses, tokens. One list for all tests."""

import getpass
import re
import socket

#: In no file at all.
LEAKS = {
    "a path": r"(?<![\w./~-])/(home|root|Users|work|mnt)/[\w.]|[A-Z]:\\\\?Users\b|/site" + "-packages/",
    "a registry": "/sim" + r"ple/?\b",  # in two parts, so that this line is no address
    "a token": r"\b((gh[pousr]|github_pat|hf)_\w{20,}|sk-[\w-]{20,}|AKIA[0-9A-Z]{16}|AIza[\w-]{30,}|xox\w-\w+)",
    "a private key": r"-----BEGIN [A-Z ]*PRIVATE KEY",
}

#: Nor in what a notebook's outputs and metadata say, though a text may.
IN_OUTPUTS = LEAKS | {
    "a folder": r"(?<![\w./~-])/(tmp|var|opt|private)/[\w.]|site-packages",
    "a temporary file": r"ipykernel_\d",
    "an address": r"\b(?!127\.0\.0\.1)(?:10|127|172|192)(?:\.\d{1,3}){3}\b|\blocalhost:\d+",
    "a mail address": r"[\w.+-]+@(?!main\b)[\w-]+\.[a-z]{2,}",
    "a secret": r"(?i)\b(password|passwd|api[_-]?key|secret|access[_-]?token)\b\s*[=:]\s*[\"']?\w{6,}",
}


def leaks(text, patterns=LEAKS):
    """List what a text tells that it should not."""
    return [f"{what}: {found[0]}" for what, pattern in patterns.items() if (found := re.search(pattern, text))]


def leaks_in_outputs(notebook):
    """List what a notebook's outputs and metadata tell of its maker, pictures left out."""
    names = {name for name in (socket.gethostname(), getpass.getuser()) if len(name) > 4 and name != "localhost"}
    patterns = IN_OUTPUTS | {f"the name {name}": rf"\b{re.escape(name)}\b" for name in names}
    texts = [str(notebook.metadata), *(str(cell.metadata) for cell in notebook.cells)]
    for output in (output for cell in notebook.cells for output in cell.get("outputs", [])):
        kept = {name: value for name, value in output.get("data", {}).items() if not name.startswith("image/")}
        texts += [str(kept), *(str(output.get(key, "")) for key in ("text", "metadata", "traceback"))]
    return [fault for text in texts for fault in leaks(text, patterns)]
