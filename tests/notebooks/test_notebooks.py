"""What every notebook must keep: pairs, fresh outputs, alt text, the Colab cell, equations with checks, exercises."""

import ast
import re
from itertools import zip_longest

import jupytext
import nbformat
import pytest
from jupytext.config import load_jupytext_config

from tools.chapters import (
    chapters,
    code_cells,
    code_hash,
    equation_numbers,
    equations,
    exercises,
    figure_name,
    figures,
    markdown,
    tags,
    warnings_in,
)
from tools.set_slug import current_slug

CHAPTERS = chapters()
COMPARED = ("tags", "mystnb", "nbgrader")

every_chapter = pytest.mark.parametrize("chapter", CHAPTERS, ids=str)


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
        faults += [f"cell [{number}] holds a warning: {text[:200]}" for text in warnings_in(cell.outputs)]
        if "nbval-check-output" in tags(cell) and not cell.outputs:
            faults.append(f"cell [{number}] is to be compared but has no output")
    return faults


def equation_faults(notebook, number):
    """Say which equations of chapter `number` ("02") are not checked, and which checks have no equation."""
    blocks = equations(markdown(notebook))
    labels = [equation_numbers(block) for block in blocks]
    faults = [f"{len(found)} tags in: {block}" for block, found in zip(blocks, labels, strict=True) if len(found) != 1]
    numbers = [found[0] for found in labels if found]
    checks = {tag.removeprefix("eq-"): cell for cell in code_cells(notebook) for tag in tags(cell) if tag[:3] == "eq-"}
    faults += [f"equation {e} has no check" for e in numbers if e not in checks]
    faults += [f"check eq-{e} has no equation" for e in checks if e not in numbers]
    faults += [f"eq-{e} asserts nothing" for e, cell in checks.items() if not asserts(cell.source)]
    if numbers != [f"{int(number)}.{k}" for k in range(1, len(numbers) + 1)]:
        faults.append(f"equations are numbered {numbers}")
    return faults


def asserts(code):
    """Whether a cell asserts something that is not a constant, by `assert` or by NumPy's testing functions."""
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Assert) and not isinstance(node.test, ast.Constant):
            return True
        if isinstance(node, ast.Call) and "assert_" in ast.unparse(node.func):
            return True
    return False


@every_chapter
def test_pair_in_step(chapter):
    assert not pair_faults(chapter.read(), chapter.read_source()), "run `make notebooks`"


@every_chapter
def test_source_is_what_jupytext_would_write(chapter):
    """So that saving from JupyterLab changes nothing. In a caption, jupytext spells σ as \\u03c3: write $\\sigma$."""
    config = load_jupytext_config(str(chapter.source))
    written = jupytext.writes(chapter.read_source(), "py:percent", config=config)
    ours, theirs = chapter.source.read_text("utf-8").splitlines(), written.splitlines()
    changed = [(number, line) for number, (line, other) in enumerate(zip_longest(ours, theirs), 1) if line != other]
    assert not changed


@every_chapter
def test_outputs_are_those_of_a_full_run_on_mnist(chapter):
    assert not output_faults(chapter.read()), "run `make notebooks`"


@every_chapter
def test_figures_have_caption_name_and_alt_text(chapter):
    seen = set()
    for cell, _ in figures(chapter.read()):
        mystnb = cell.metadata.get("mystnb", {})
        assert len(mystnb.get("figure", {}).get("caption", "")) > 10, cell.source
        assert len(mystnb.get("image", {}).get("alt", "")) > 40, cell.source
        name = figure_name(cell)
        assert name not in seen, name
        seen.add(name)
    assert seen, "a chapter without a figure"


@every_chapter
def test_equations_and_checks_match(chapter):
    assert not equation_faults(chapter.read_source(), chapter.number)


@every_chapter
def test_shape_of_a_chapter(chapter):
    notebook = chapter.read_source()
    text, first = markdown(notebook), notebook.cells[0].source
    assert first.startswith("# ")
    assert f"github/{current_slug()}/blob/main/notebooks/{chapter}.ipynb" in first
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
    first = {code_cells(chapter.read_source())[0].source for chapter in CHAPTERS}
    assert len(first) == 1
    assert f"git+https://github.com/{current_slug()}@main" in first.pop()


@every_chapter
def test_exercises_come_with_checks_solutions_and_wrong_answers(chapter):
    """`make test` also tries them: a check refuses the stub and the wrong answer, and passes the solution."""
    assert len(exercises(chapter.read_source(), chapter.number)) >= 4


# Deliberate damage: what the checks above are for, they find.


@pytest.fixture
def pair():
    return CHAPTERS[-1].read(), CHAPTERS[-1].read_source()


def test_damage_to_a_pair_is_found(pair):
    notebook, source = pair
    notebook.cells[0].source += " "
    assert not pair_faults(notebook, source), "blanks at the end are no difference"
    notebook.cells[0].source += "!"
    assert pair_faults(notebook, source)


def test_a_lost_cell_and_a_lost_tag_are_found(pair):
    notebook, source = pair
    tagged = next(cell for cell in notebook.cells if tags(cell))
    tagged.metadata["tags"] = []
    assert pair_faults(notebook, source)
    del source.cells[-1]
    assert "cells in the .ipynb" in pair_faults(notebook, source)[0]


def test_stale_outputs_are_found(pair):
    notebook, _ = pair
    code_cells(notebook)[-1].source += "\n1 + 1"
    assert output_faults(notebook)[0].startswith("stale")


def test_outputs_from_elsewhere_are_found(pair):
    notebook, _ = pair
    notebook.metadata["vae_utils"].update(mode="quick", dataset="optical-digits")
    code_cells(notebook)[1].execution_count = 99
    code_cells(notebook)[2].outputs = [nbformat.v4.new_output("error", ename="E", evalue="", traceback=[])]
    code_cells(notebook)[3].outputs = [nbformat.v4.new_output("stream", text="WARNING:tensorflow:5 out of 5 calls")]
    faults = " ".join(output_faults(notebook))
    for fault in ("not full", "not MNIST", "not executed in order", "holds an error", "holds a warning"):
        assert fault in faults


def test_a_missing_and_an_empty_check_are_found(pair):
    _, source = pair
    checks = [cell for cell in code_cells(source) if any(tag[:3] == "eq-" for tag in tags(cell))]
    checks[0].source = "assert True"
    assert any("asserts nothing" in fault for fault in equation_faults(source, CHAPTERS[-1].number))
    checks[0].metadata["tags"] = ["eq-99.1"]
    faults = " ".join(equation_faults(source, CHAPTERS[-1].number))
    assert "has no check" in faults and "check eq-99.1 has no equation" in faults


@pytest.mark.parametrize("damage", ["no check", "no solution", "no wrong answer", "an answer too many"])
def test_an_exercise_with_a_part_missing_is_found(pair, monkeypatch, tmp_path, damage):
    _, source = pair
    number, wrong = CHAPTERS[-1].number, [e.wrong_answer for e in exercises(source, CHAPTERS[-1].number)]
    if damage == "no check":
        source.cells = [cell for cell in source.cells if "exercise-check" not in tags(cell)]
    elif damage == "no solution":
        for cell in source.cells:
            cell.source = cell.source.replace("<summary>Solution", "<summary>Hint")
    else:
        wrong = wrong[1:] if damage == "no wrong answer" else [*wrong, "x = 1"]
        (tmp_path / f"{number}.py").write_text(f"WRONG = {dict(enumerate(wrong, start=1))!r}", "utf-8")
        monkeypatch.setattr("tools.chapters.WRONG_ANSWERS", tmp_path)
    with pytest.raises(ValueError, match=f"Chapter {number} has"):
        exercises(source, number)
