"""What every notebook must keep: pairs, fresh outputs, alt text, the Colab cell, equations with checks, exercises."""

import ast
import importlib.util
import re
from pathlib import Path

import jupytext
import nbformat
import pytest

from tools.build_notebooks import code_hash
from tools.set_slug import current_slug

ROOT = Path(__file__).parent.parent.parent
SOURCES = sorted((ROOT / "notebooks").glob("[0-9]*.py"))
NAMES = [path.stem for path in SOURCES]
COMPARED = ("tags", "mystnb", "nbgrader")


def read(name):
    return nbformat.read(ROOT / "notebooks" / f"{name}.ipynb", as_version=4)


def read_source(name):
    return jupytext.read(ROOT / "notebooks" / f"{name}.py")


def code_cells(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def tags(cell):
    return cell.metadata.get("tags", [])


def comparable(notebook):
    return [
        (cell.cell_type, cell.source.strip(), {key: cell.metadata[key] for key in COMPARED if key in cell.metadata})
        for cell in notebook.cells
    ]


def pair_faults(notebook, source):
    ours, theirs = comparable(notebook), comparable(source)
    if len(ours) != len(theirs):
        return [f"{len(ours)} cells in the .ipynb, {len(theirs)} in the .py"]
    return [f"cell {k} differs: {a} | {b}" for k, (a, b) in enumerate(zip(ours, theirs, strict=True)) if a != b]


def output_faults(notebook):
    """Say why stored outputs are not those of one full run, top to bottom, of this very code on MNIST."""
    facts = notebook.metadata.get("vae_utils", {})
    faults = []
    if facts.get("code_sha256") != code_hash(notebook):
        faults.append("stale: the outputs come from other code")
    if facts.get("mode") != "full":
        faults.append(f"mode is {facts.get('mode')}, not full")
    if facts.get("dataset") not in ("mnist", "none"):
        faults.append(f"data set is {facts.get('dataset')}, not MNIST")
    counts = [cell.execution_count for cell in code_cells(notebook)]
    if counts != list(range(1, len(counts) + 1)):
        faults.append(f"not executed in order: {counts}")
    for number, cell in enumerate(code_cells(notebook), start=1):
        for output in cell.outputs:
            if output.output_type == "error":
                faults.append(f"cell [{number}] holds an error")
            if output.get("name") == "stderr" or "WARNING" in output.get("text", ""):  # TensorFlow's go to stdout
                faults.append(f"cell [{number}] holds a warning: {output.text[:200]}")
        if "nbval-check-output" in tags(cell) and not cell.outputs:
            faults.append(f"cell [{number}] is to be compared but has no output")
    return faults


def figures(notebook):
    for cell in code_cells(notebook):
        for output in cell.outputs:
            if "image/png" in output.get("data", {}):
                yield cell, output


def equation_faults(notebook):
    text = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    blocks = re.findall(r"\$\$(.*?)\$\$", text, re.DOTALL)
    labels = [re.findall(r"\\tag\{([\d.]+)\}", block) for block in blocks]
    faults = [f"{len(found)} tags in: {block}" for block, found in zip(blocks, labels, strict=True) if len(found) != 1]
    equations = [found[0] for found in labels if found]
    checks = {tag.removeprefix("eq-"): cell for cell in code_cells(notebook) for tag in tags(cell) if tag[:3] == "eq-"}
    faults += [f"equation {e} has no check" for e in equations if e not in checks]
    faults += [f"check eq-{e} has no equation" for e in checks if e not in equations]
    faults += [f"eq-{e} asserts nothing" for e, cell in checks.items() if not asserts(cell.source)]
    chapter = int(Path(notebook.metadata.get("name", "0")).stem[:2] or 0)
    expected = [f"{chapter}.{k}" for k in range(1, len(equations) + 1)]
    if equations != expected:
        faults.append(f"equations are numbered {equations}")
    return faults


def asserts(code):
    """Whether a cell asserts something that is not a constant, by `assert` or by NumPy's testing functions."""
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Assert) and not isinstance(node.test, ast.Constant):
            return True
        if isinstance(node, ast.Call) and "assert_" in ast.unparse(node.func):
            return True
    return False


@pytest.mark.parametrize("name", NAMES)
def test_pair_in_step(name):
    assert not pair_faults(read(name), read_source(name)), "run `make notebooks`"


@pytest.mark.parametrize("name", NAMES)
def test_outputs_are_those_of_a_full_run_on_mnist(name):
    assert not output_faults(read(name)), "run `make notebooks`"


@pytest.mark.parametrize("name", NAMES)
def test_figures_have_caption_name_and_alt_text(name):
    seen = set()
    for cell, _ in figures(read(name)):
        mystnb = cell.metadata.get("mystnb", {})
        assert len(mystnb.get("figure", {}).get("caption", "")) > 10, cell.source
        assert len(mystnb.get("image", {}).get("alt", "")) > 40, cell.source
        figure_name = mystnb["figure"]["name"]
        assert figure_name not in seen, figure_name
        seen.add(figure_name)
    assert seen, "a chapter without a figure"


@pytest.mark.parametrize("name", NAMES)
def test_equations_and_checks_match(name):
    notebook = read_source(name)
    notebook.metadata["name"] = name
    assert not equation_faults(notebook)


@pytest.mark.parametrize("name", NAMES)
def test_shape_of_a_chapter(name):
    notebook = read_source(name)
    text = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    first = notebook.cells[0].source
    assert first.startswith("# ")
    assert f"github/{current_slug()}/blob/main/notebooks/{name}.ipynb" in first
    for part in ("**What you'll do.**", "**What you'll learn", "**What you'll need", "**Time.**"):
        assert part in first, part
    assert all(cell.source.strip() for cell in notebook.cells), "Lab shows an empty cell as 'Type Markdown and LaTeX'"
    for heading in ("## In this notebook", "## Exercises", "## Further reading"):
        assert heading in text, heading
    for word in ("simply", "obviously", "it can be shown", "as we all know"):
        assert not re.search(rf"\b{word}\b", text, re.IGNORECASE), word
    for construct in ("```{", ":::", r"\newcommand", "<style", "<div"):
        assert construct not in text, f"{construct}: not portable"


def test_colab_cell_is_the_same_everywhere():
    first = {code_cells(read_source(name))[0].source for name in NAMES}
    assert len(first) == 1
    assert f"git+https://github.com/{current_slug()}@main" in first.pop()


@pytest.mark.parametrize("name", NAMES)
def test_nothing_of_the_machine_leaks(name):
    text = (ROOT / "notebooks" / f"{name}.ipynb").read_text("utf-8")
    leak = re.search(r"(?<![\w./~-])/(home|root|Users|work|mnt|tmp)/\w|/site-packages/", text)
    assert not leak, text[leak.start() - 80 : leak.end() + 80]


# The exercises: a check must fail on the untouched stub and on a plausible wrong answer, and pass on the solution.


def exercises(name):
    notebook = read_source(name)
    stubs = [cell.source for cell in notebook.cells if "exercise" in tags(cell)]
    checks = [cell.source for cell in notebook.cells if "exercise-check" in tags(cell)]
    text = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    solutions = re.findall(r"<summary>Solution.*?```python\n(.*?)```", text, re.DOTALL)
    return stubs, checks, solutions


@pytest.mark.parametrize("name", NAMES)
def test_exercises_come_with_checks_solutions_and_wrong_answers(name):
    stubs, checks, solutions = exercises(name)
    assert len(stubs) == len(checks) == len(solutions) >= 4
    assert sorted(wrong_answers(name)) == list(range(1, len(stubs) + 1))


def wrong_answers(name):
    path = ROOT / "tests" / "notebooks" / "exercises" / f"{name[:2]}.py"
    spec = importlib.util.spec_from_file_location(f"wrong_{name}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.WRONG


# Deliberate damage: what the checks above are for, they find.


@pytest.fixture
def chapter():
    name = NAMES[-1]
    notebook, source = read(name), read_source(name)
    notebook.metadata["name"] = source.metadata["name"] = name
    return notebook, source


def test_damage_to_a_pair_is_found(chapter):
    notebook, source = chapter
    notebook.cells[0].source += " "
    assert not pair_faults(notebook, source), "blanks at the end are no difference"
    notebook.cells[0].source += "!"
    assert pair_faults(notebook, source)


def test_a_lost_cell_and_a_lost_tag_are_found(chapter):
    notebook, source = chapter
    tagged = next(cell for cell in notebook.cells if tags(cell))
    tagged.metadata["tags"] = []
    assert pair_faults(notebook, source)
    del source.cells[-1]
    assert "cells in the .ipynb" in pair_faults(notebook, source)[0]


def test_stale_outputs_are_found(chapter):
    notebook, _ = chapter
    code_cells(notebook)[-1].source += "\n1 + 1"
    assert output_faults(notebook)[0].startswith("stale")


def test_outputs_from_elsewhere_are_found(chapter):
    notebook, _ = chapter
    notebook.metadata["vae_utils"].update(mode="quick", dataset="optical-digits")
    code_cells(notebook)[1].execution_count = 99
    code_cells(notebook)[2].outputs = [nbformat.v4.new_output("error", ename="E", evalue="", traceback=[])]
    code_cells(notebook)[3].outputs = [nbformat.v4.new_output("stream", text="WARNING:tensorflow:5 out of 5 calls")]
    faults = " ".join(output_faults(notebook))
    for fault in ("not full", "not MNIST", "not executed in order", "holds an error", "holds a warning"):
        assert fault in faults


def test_a_missing_and_an_empty_check_are_found(chapter):
    _, source = chapter
    checks = [cell for cell in code_cells(source) if any(tag[:3] == "eq-" for tag in tags(cell))]
    checks[0].source = "assert True"
    assert any("asserts nothing" in fault for fault in equation_faults(source))
    checks[0].metadata["tags"] = ["eq-99.1"]
    faults = " ".join(equation_faults(source))
    assert "has no check" in faults and "check eq-99.1 has no equation" in faults
