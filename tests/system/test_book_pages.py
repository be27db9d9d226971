"""What the book's pages say of the code: public names, tests that keep promises, numbers that a run has counted."""

import ast
import importlib
import inspect
import json
import re
import sys

import pytest

from tools.chapters import ROOT, chapters, code_cells

sys.path.insert(0, str(ROOT / "book"))
import chapters as book  # the extension that `conf.py` loads

API = (ROOT / "book" / "api.md").read_text("utf-8")
PROMISES = (ROOT / "book" / "promises.md").read_text("utf-8")
CODE = {path.name: path.read_text("utf-8") for path in (ROOT / "book").glob("*.md")} | {
    "README.md": (ROOT / "README.md").read_text("utf-8")
}


def listed_names():
    """Map each module of the page to the names that it lists."""
    names = {}
    for module, members in re.findall(r"automodule:: vae_utils\.(\w+)\n   :members: (.+)", API):
        names[module] = members.split(", ")
    names |= {module: [name] for module, name in re.findall(r"autoclass:: vae_utils\.(\w+)\.(\w+)", API)}
    return names


def imported_names(code):
    """Yield (module, name) of each `from vae_utils.module import name`."""
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("vae_utils."):
            yield from ((node.module.removeprefix("vae_utils."), alias.name) for alias in node.names)


def test_the_page_of_functions_lists_each_public_module_and_its_names():
    listed = listed_names()
    modules = {path.stem for path in (ROOT / "vae_utils").glob("[a-z]*.py")}
    assert set(listed) == modules
    for module, names in listed.items():
        found = importlib.import_module(f"vae_utils.{module}")
        for name in names:
            assert not name.startswith("_") and inspect.getdoc(getattr(found, name)), name
    assert sum(map(len, listed.values())) >= 30


def test_what_chapters_and_pages_import_is_listed():
    listed = listed_names()
    snippets = [cell.source for chapter in chapters() for cell in code_cells(chapter.read_source())]
    snippets += [code for text in CODE.values() for code in re.findall(r"```python\n(.*?)```", text, re.DOTALL)]
    used = {pair for code in snippets for pair in imported_names(code)}
    assert len(used) >= 10
    assert not [(module, name) for module, name in used if name not in listed.get(module, ())]


def test_each_promise_names_a_test_and_each_test_has_a_promise():
    named = set(re.findall(r"\| `(test_\w+\.py)` \|", PROMISES))
    assert named == {path.name for path in (ROOT / "tests" / "robustness").glob("test_*.py")}


def test_cases_are_those_of_the_last_whole_run(tmp_path, monkeypatch):
    assert not re.search(r"`test_\w+\.py` \| *\S", PROMISES), "a count typed by hand"
    folder = tmp_path / "tests" / "robustness"
    folder.mkdir(parents=True)
    for name in ("test_bad_calls.py", "test_bad_files.py", "test_classroom.py"):
        (folder / name).touch()
    (folder / "cases.json").write_text(json.dumps({"test_bad_calls.py": 2_398}), "utf-8")
    monkeypatch.setattr(book, "ROOT", tmp_path)
    assert book.cases_table().splitlines()[2:] == [
        "| `test_bad_calls.py` | 2,398 |",
        "| `test_bad_files.py` | not recorded |",
    ]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "Do it:\n\n```python\nf(\n    1)\n```\n\nDone.",
            "Do it:\n\n.. code-block:: python\n\n    f(\n        1)\n\n\nDone.",
        ),
        ("Take `x` and ``y``.", "Take `x` and ``y``."),
    ],
)
def test_fenced_code_in_a_docstring_becomes_sphinx_code(text, expected):
    lines = text.split("\n")
    book.on_docstring(None, "function", "f", None, None, lines)
    assert [line.rstrip() for line in lines] == expected.split("\n")
