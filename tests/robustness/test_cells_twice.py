"""Cells twice: any cell of any chapter runs twice in a row, in quick mode, without an error or a warning."""

import pytest

from tools.chapters import Chapter, chapters, code_cells
from tools.run_cells_twice import run_twice

pytestmark = pytest.mark.robustness


@pytest.mark.parametrize("chapter", chapters(), ids=str)
def test_every_cell_may_run_again_at_once(chapter, tried):
    assert run_twice(chapter) == []
    tried(len(code_cells(chapter.read())))


@pytest.mark.parametrize(
    ("cell", "fault"),
    [
        ("digits = 1\ndel digits", None),
        ("kept.pop()", "run again: IndexError"),
        ("import sys\nprint('careful', file=sys.stderr)", "run for the first time: careful"),
        ("print('WARNING:tensorflow:5 out of the last 5 calls')", "run again: WARNING"),
        ("print('MNIST is not here and could not be downloaded', file=__import__('sys').stderr)", None),
    ],
)
def test_a_cell_that_may_not_is_found(tmp_path, cell, fault):
    path = tmp_path / "01_a.py"
    path.write_text(f"# %%\nkept = [1]\n\n# %%\n{cell}\n\n# %%\nkept = [2]\n", "utf-8")
    found = run_twice(Chapter("01_a", tmp_path))
    assert bool(found) == bool(fault)
    if fault:
        assert any(said.startswith(f"cell [2], {fault}") for said in found)
