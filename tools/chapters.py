"""The chapters: which there are, how they are read, and what is in them. Whatever looks at a chapter asks here."""

import base64
import hashlib
import re
import runpy
from dataclasses import dataclass
from pathlib import Path

import jupytext
import nbformat

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = ROOT / "notebooks"
WRONG_ANSWERS = ROOT / "tests" / "notebooks" / "exercises"


@dataclass(frozen=True)
class Chapter:
    """A pair of files: `NN_title.py`, which is edited, and `NN_title.ipynb`, which has been executed."""

    name: str
    folder: Path = NOTEBOOKS

    def __str__(self):
        return self.name

    @property
    def number(self):
        return self.name[:2]

    @property
    def source(self):
        return self.folder / f"{self.name}.py"

    @property
    def path(self):
        return self.folder / f"{self.name}.ipynb"

    def read(self):
        """Return the executed notebook."""
        return nbformat.read(self.path, as_version=4)

    def read_source(self):
        """Return the notebook as it is written in the .py, without outputs."""
        return jupytext.read(self.source)


def chapters(*beginnings, folder=NOTEBOOKS):
    """List the chapters whose names begin so (`"04"`), or all; a folder may hold .py, .ipynb or both."""
    names = sorted({path.stem for path in folder.glob("[0-9][0-9]_*") if path.suffix in (".py", ".ipynb")})
    found = [Chapter(name, folder) for name in names if name.startswith(beginnings or "")]
    if not found:
        raise SystemExit(f"No chapter begins with {' or '.join(beginnings) or 'a number'} in {folder.name}.")
    return found


# Cells


def code_cells(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def tags(cell):
    return cell.metadata.get("tags", [])


def code_hash(notebook):
    """Hash the code cells, so that outputs can be told from another code's.

    All but the first: it acts in Colab only, and a fork changes the address in it.
    """
    code = [cell.source for cell in code_cells(notebook)][1:]
    return hashlib.sha256("\0".join(code).encode()).hexdigest()


def warnings_in(outputs):
    """List what a cell said that it should not have. TensorFlow's warnings go to stdout."""
    return [output.text for output in outputs if output.get("name") == "stderr" or "WARNING" in output.get("text", "")]


# Text


def markdown(notebook):
    return "\n\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")


def without_code(text):
    return re.sub(r"`[^`\n]*`", "", re.sub(r"```(?!\{figure\}).*?```", "", text, flags=re.DOTALL))


def equations(text):
    """List the displayed equations, in TeX."""
    return re.findall(r"\$\$(.*?)\$\$", text, re.DOTALL)


def equation_numbers(equation):
    """List the numbers of one equation, which should be one: `["2.3"]`."""
    return re.findall(r"\\tag\{([\d.]+)\}", equation)


def count_equations(text):
    """Return how many equations a text displays, and how many stand in its lines."""
    text = without_code(text)
    in_lines = re.sub(r"\$\$.*?\$\$", "", text, flags=re.DOTALL)
    return len(equations(text)), len(re.findall(r"\$[^$]+?\$", in_lines))


# Figures


def figures(notebook):
    """List (cell, output) of each picture."""
    return [
        (cell, output)
        for cell in code_cells(notebook)
        for output in cell.outputs
        if "image/png" in output.get("data", {})
    ]


def figure_name(cell):
    return cell.metadata.get("mystnb", {}).get("figure", {}).get("name")


def find_figure(notebook, name):
    """Return the PNG of the figure with this name, or None."""
    pictures = (output.data["image/png"] for cell, output in figures(notebook) if figure_name(cell) == name)
    return next(map(base64.b64decode, pictures), None)


# Exercises


@dataclass(frozen=True)
class Exercise:
    """What a learner fills in, the cell that checks it, an answer that is right and one that is plausibly wrong."""

    number: int
    stub: str
    check: str
    solution: str
    wrong_answer: str

    @property
    def answer(self):
        """The name of the function or the variable that the stub leaves open."""
        return re.search(r"^(?:def )?(\w+)(?: =|\()", self.stub, re.MULTILINE)[1]


def exercises(notebook, number):
    """List the exercises of chapter `number`; wrong answers stand in files of their own, where no learner looks."""
    stubs, checks = ([c.source for c in notebook.cells if tag in tags(c)] for tag in ("exercise", "exercise-check"))
    solutions = re.findall(r"<summary>Solution.*?```python\n(.*?)```", markdown(notebook), re.DOTALL)
    path = WRONG_ANSWERS / f"{number}.py"
    wrong = runpy.run_path(str(path))["WRONG"] if path.exists() else {}
    if not len(stubs) == len(checks) == len(solutions) == len(wrong) or sorted(wrong) != list(range(1, len(wrong) + 1)):
        raise ValueError(
            f"Chapter {number} has {len(stubs)} exercises, {len(checks)} checks, {len(solutions)} solutions, and wrong "
            f"answers to {sorted(wrong)}"
        )
    return [Exercise(k, *parts, wrong[k]) for k, parts in enumerate(zip(stubs, checks, solutions, strict=True), 1)]
