"""What CONTRIBUTING.md and the README tell people to do can be done: targets, links, tags, a chapter's first steps."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import jupytext
import pytest
from test_packaging import tracked_files

ROOT = Path(__file__).parents[2]
PAGES = {path.name: path.read_text("utf-8") for path in ROOT.glob("*.md")} | {
    f"book/{path.name}": path.read_text("utf-8") for path in (ROOT / "book").glob("*.md")
}
GUIDE = PAGES["CONTRIBUTING.md"]


def test_every_target_that_a_page_names_exists():
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE))
    for name, text in PAGES.items():
        named = set(re.findall(r"(?:^|`)make ([a-z-]+)", text, re.MULTILINE))
        assert named <= targets, (name, named - targets)
    assert len(set(re.findall(r"`make ([a-z-]+)", GUIDE))) >= 12


def anchors(text):
    headings = re.findall(r"^#+ (.+)", text, re.MULTILINE)
    return [re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings]


@pytest.mark.parametrize("name", [name for name in PAGES if not name.startswith("book/")])
def test_links_between_files_lead_somewhere(name):
    text = re.sub(r"```.*?```", "", PAGES[name], flags=re.DOTALL)
    for path, part in re.findall(r"\]\((?!http)([^)\s#]*)#?([^)\s]*)\)", text):
        assert (ROOT / (path or name)).exists(), path
        assert not part or part in anchors(PAGES[path or name]), part


def test_files_that_the_guide_names_exist():
    named = re.findall(r"`((?:tests|book|tools|notebooks|\.github)/[\w./]+)`", GUIDE)
    named = [name for name in named if not re.search("99|NN", name)]
    assert len(named) >= 8 and not [name for name in named if not (ROOT / name).exists()]


def test_the_guide_explains_every_tag_and_every_heading_that_chapters_use():
    used = set()
    for path in (ROOT / "notebooks").glob("[0-9]*.py"):
        for cell in jupytext.read(path).cells:
            used |= {re.sub(r"^eq-.*", "eq-99.1", tag) for tag in cell.metadata.get("tags", [])}
    assert used >= {"eq-99.1", "exercise", "exercise-check", "nbval-check-output"}
    for tag in used:
        assert f"`{tag}`" in GUIDE, tag


def test_the_readme_lists_every_chapter():
    for path in (ROOT / "notebooks").glob("[0-9]*.ipynb"):
        assert PAGES["README.md"].count(f"notebooks/{path.name}") == 2, path.name  # the title, and the badge


@pytest.mark.skipif(not shutil.which("make"), reason="needs make")
def test_a_chapter_from_the_template_is_green_when_the_guide_is_followed(tmp_path):
    for path in tracked_files():
        copy = tmp_path / path.relative_to(ROOT)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, copy)
        shutil.copymode(path, copy)
    steps = re.search(r"### From nothing to green\n(.*?)\n###", GUIDE, re.DOTALL)[1]
    commands = [line.strip() for block in re.findall(r"```\n(.*?)```", steps, re.DOTALL) for line in block.splitlines()]
    commands = [line for line in commands if line]
    assert [line.split()[0] for line in commands] == ["cp", "cp", "make", ".venv/bin/python"]
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS", "PYTEST"))
    }
    environment |= {"PYTHONPATH": str(tmp_path)}
    warm = [sys.executable, "-c", "import matplotlib.font_manager"]  # which says so when it must look for fonts first
    subprocess.run(warm, env=environment, check=True, capture_output=True)
    for line in commands:
        line = line.replace("make ", f"make -o venv VENV={sys.prefix} ").replace(".venv/bin/python", sys.executable)
        outcome = subprocess.run(line, shell=True, cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert outcome.returncode == 0, outcome.stdout + outcome.stderr
    assert re.search(r"^[5-9]\d* passed", outcome.stdout, re.MULTILINE), outcome.stdout
