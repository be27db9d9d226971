"""One list of dependencies, one address, nothing of the machine in the tree."""

import os
import re
import shutil
import subprocess
import sys
import tomllib

import pytest
import yaml

from tools.build_notebooks import README_FIGURE
from tools.chapters import ROOT, chapters, find_figure
from tools.leaks import leaks
from tools.set_slug import current_slug

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
EXTRAS_IN_LOCK = ("cpu", "notebooks", "dev", "book")


def tracked_files():
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("not a git checkout")
    return [ROOT / name for name in listed.stdout.split("\0") if name]


def test_lock_has_every_dependency_with_hashes_and_no_address():
    lock = (ROOT / "requirements.lock").read_text("utf-8")
    pins = dict(re.findall(r"^([A-Za-z0-9._-]+)==(\S+)", lock, re.MULTILINE))
    wanted = [*PROJECT["dependencies"], *(d for e in EXTRAS_IN_LOCK for d in PROJECT["optional-dependencies"][e])]
    for requirement in wanted:
        name, minimum = re.match(r"([\w-]+)[^>]*>=([\d.]+)", requirement).groups()
        assert version(pins[name]) >= version(minimum), requirement
    entries = re.split(r"^(?=[A-Za-z0-9._-]+==)", lock, flags=re.MULTILINE)[1:]
    assert len(entries) > 50 and all("--hash=sha256:" in entry for entry in entries)
    assert "://" not in lock and "index-url" not in lock and "find-links" not in lock


def version(text):
    return tuple(int(part) for part in re.findall(r"\d+", text)[:3])


def test_environment_yml_adds_no_second_list():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text("utf-8"))
    assert environment["dependencies"] == ["python=3.11", "pip", {"pip": ["-e .[cpu,notebooks]"]}]
    assert PROJECT["requires-python"].startswith(">=3.11")
    assert {"cpu", "notebooks"} <= set(PROJECT["optional-dependencies"])
    readme = (ROOT / "README.md").read_text("utf-8")
    assert f"conda env create -f environment.yml\nconda run -n {environment['name']} " in readme
    assert 'pip install -e ".[cpu,notebooks]"' in readme


def test_no_other_file_lists_dependencies():
    names = {path.relative_to(ROOT).as_posix() for path in tracked_files()}
    for name in ("requirements.txt", "setup.py", "setup.cfg", "Pipfile", "conda.yml", "binder/environment.yml"):
        assert name not in names


def test_tree_holds_no_path_address_or_unfinished_work():
    unfinished = "|".join(["TO" + "DO", "FIX" + "ME", "XX" + "X"])  # spelt so that this line is not one
    texts = [path for path in tracked_files() if path.suffix not in {".png", ".keras", ".npz", ".h5", ".woff"}]
    assert len(texts) > 100
    for path in texts:
        text = re.sub(r'"image/png": "[^"]*"', "", path.read_text("utf-8"))  # pictures spell anything
        assert not leaks(text) and not re.search(rf"\b({unfinished})\b", text), path.relative_to(ROOT)


def test_one_address_everywhere():
    slug = current_slug()
    for path in tracked_files():
        if path.suffix in {".py", ".ipynb", ".md", ".yml", ".cff"}:
            for found in re.findall(
                r"(?:colab\.research\.google\.com/github|git\+https://github\.com|kaggle\.com/kernels/welcome\?src=https://github\.com)/([\w.-]+/[\w.-]+?)(?:[@/\"')\s]|$)",
                path.read_text("utf-8"),
            ):
                assert found == slug, path


def test_fork_with_its_own_address_passes_the_structure_tests(tmp_path):
    old = current_slug()
    for path in tracked_files():
        copy = tmp_path / path.relative_to(ROOT)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, copy)
    subprocess.run("git init -q && git add -A", cwd=tmp_path, shell=True, check=True)
    subprocess.run([sys.executable, "tools/set_slug.py", "you/fork"], cwd=tmp_path, check=True, capture_output=True)
    found = subprocess.run(["git", "grep", "-l", old], cwd=tmp_path, capture_output=True, text=True)
    assert not found.stdout
    tests = ["tests/notebooks", "tests/system/test_packaging.py", "-k", "not fork and not lines"]
    outcome = subprocess.run([sys.executable, "-m", "pytest", *tests], cwd=tmp_path, capture_output=True, text=True)
    assert outcome.returncode == 0, outcome.stdout


@pytest.mark.parametrize(
    ("slug", "site"),
    [
        ("every-equation-executed/vae", "https://every-equation-executed.github.io/vae/"),
        ("Ada/VAE", "https://ada.github.io/VAE/"),
        ("Ada/ada.github.io", "https://ada.github.io/"),
    ],
)
def test_the_book_knows_where_github_publishes_it(tmp_path, slug, site):
    project = (ROOT / "pyproject.toml").read_text("utf-8").replace(current_slug(), slug)
    (tmp_path / "book").mkdir()
    (tmp_path / "pyproject.toml").write_text(project, "utf-8")
    shutil.copyfile(ROOT / "book" / "conf.py", tmp_path / "book" / "conf.py")
    ask = "import runpy; print(runpy.run_path('book/conf.py')['html_baseurl'])"
    printed = subprocess.run([sys.executable, "-c", ask], cwd=tmp_path, check=True, capture_output=True, text=True)
    assert printed.stdout.strip() == site


def test_citation_has_the_version():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text("utf-8"))
    assert citation["version"] == PROJECT["version"]
    assert citation["repository-code"] == PROJECT["urls"]["Repository"]


def test_makefile_explains_its_targets():
    text = (ROOT / "Makefile").read_text("utf-8")
    targets = re.search(r"^\.PHONY: (.+)$", text, re.MULTILINE)[1].split()
    assert {"lab", "test", "verify", "notebooks", "book", "benchmark", "lock", "clean", "help"} <= set(targets)
    for target in targets:
        assert re.search(rf"^{target}:.*## \w", text, re.MULTILINE), target


def test_readmes_ten_lines_train_a_vae_in_an_empty_folder(tmp_path):
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text("utf-8"), re.DOTALL)
    assert len([line for line in code.splitlines() if line]) == 10 and "epochs=10" in code
    (tmp_path / "mine.py").write_text(code.replace("epochs=10", "epochs=1"), "utf-8")
    printed = subprocess.run(
        [sys.executable, "mine.py"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert printed.stdout.splitlines()[-1:] == ["(16, 8, 8, 1)"], printed.stderr
    assert (tmp_path / "my_vae.keras").exists()


def test_readme_shows_the_figure_that_the_notebook_draws():
    name, path = README_FIGURE
    drawn = [png for chapter in chapters() if (png := find_figure(chapter.read(), name))]
    assert drawn == [path.read_bytes()]
    assert f"]({path.relative_to(ROOT).as_posix()})" in (ROOT / "README.md").read_text("utf-8")
