"""One list of dependencies, one address, nothing of the machine in the tree."""

import os
import re
import shutil
import subprocess
import sys
import tomllib

import numpy as np
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


def targets():
    return re.findall(r"^([a-z][\w-]*):", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE)


def test_makefile_explains_its_targets():
    text = (ROOT / "Makefile").read_text("utf-8")
    assert {"lab", "test", "verify", "notebooks", "book", "benchmark", "lock", "clean", "help"} <= set(targets())
    phony = " ".join(re.findall(r"^\.PHONY: (.+)$", text, re.MULTILINE)).split()
    assert sorted(phony) == sorted(targets())
    for target in targets():
        assert re.search(rf"^{target}:.*## \w", text, re.MULTILINE), target


def test_makefile_asks_for_no_more_than_make_3_81():
    """macOS has no newer one. There, `override export X := …` sets a variable whose name is `export X`."""
    text = (ROOT / "Makefile").read_text("utf-8")
    for newer in (
        r"^(override|export) (override|export)\b",
        r"^(private|undefine|load|\.ONESHELL)\b",
        r"^\S+ *(!=|::=)",
    ):
        assert not re.search(newer, text, re.MULTILINE), newer
    assert not re.search(r"\$\((file|let|intcmp|guile) ", text)


def test_documents_name_targets_that_exist():
    named = set()
    for path in tracked_files():
        if path.suffix in {".md", ".yml", ".py"} or path.name == "run":
            found = re.findall(r"(?:`|run: |step |^)make ([a-z][a-z-]+)", path.read_text("utf-8"), re.MULTILINE)
            assert set(found) <= set(targets()), path.relative_to(ROOT)
            named |= set(found)
    assert {"lab", "test", "verify"} <= named


DIGITS = "load_digits().images[..., None] / 16"
NOISE = "__import__('numpy').random.default_rng(0).random"
YOURS = {
    "as it is": ({}, (8, 8, 1)),
    "float32": ({DIGITS: f"({DIGITS}).astype('float32')"}, (8, 8, 1)),
    "a data set": (
        {
            "vae.fit(images, ": "vae.fit(__import__('tensorflow').data.Dataset.from_tensor_slices(images).batch(32), ",
            ", validation_split=0.1": "",
        },
        (8, 8, 1),
    ),
    "in colour": ({DIGITS: f"{NOISE}((200, 8, 8, 3))"}, (8, 8, 3)),
    "27 by 31": ({DIGITS: f"{NOISE}((200, 27, 31, 1))"}, (27, 31, 1)),
}


def run_as_a_user(folder, code):
    """Run code in an empty folder, as a script of somebody who has installed the module."""
    (folder / "mine.py").write_text(code, "utf-8")
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.run([sys.executable, "mine.py"], cwd=folder, env=environment, capture_output=True, text=True)


@pytest.mark.parametrize(("changes", "shape"), YOURS.values(), ids=YOURS)
def test_readmes_lines_train_save_and_load_a_vae_in_an_empty_folder(tmp_path, changes, shape):
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text("utf-8"), re.DOTALL)
    assert len([line for line in code.splitlines() if line]) <= 12
    for old, new in {"epochs=10": "epochs=1", **changes}.items():
        assert code.count(old) == 1, old
        code = code.replace(old, new)
    outcome = run_as_a_user(tmp_path, code)
    assert outcome.stdout.splitlines()[-1:] == [str((16, *shape))], outcome.stderr

    if not changes:
        elsewhere = "import keras\nfrom vae_utils import VAE\nvae = keras.saving.load_model('my_vae.keras')\n"
        outcome = run_as_a_user(tmp_path, elsewhere + "print(isinstance(vae, VAE), vae.sample(2, seed=0).shape)")
        assert outcome.stdout.strip() == f"True {(2, *shape)}", outcome.stderr


def test_what_the_readme_says_of_other_data_holds(tmp_path):
    readme = (ROOT / "README.md").read_text("utf-8")
    for part in ('likelihood="gaussian"', "num_classes=10", "[images, labels]", "16, condition=3", '"served"'):
        assert readme.count(part) == 1, part
    code = """
import numpy as np
from vae_utils import conv_vae

rng = np.random.default_rng(0)
images, labels = rng.normal(size=(64, 8, 8, 1)), rng.integers(0, 10, 64)
vae = conv_vae(image_shape=images.shape[1:], latent_dim=8, likelihood="gaussian", num_classes=10)
vae.compile("adam")
vae.fit([images, labels], verbose=0)
np.save("sample.npy", vae.sample(16, condition=3, seed=0))
vae = conv_vae(image_shape=images.shape[1:], latent_dim=8)
vae.export("served", verbose=False)
images, z = rng.random((4, 8, 8, 1)).astype("float32"), rng.normal(size=(4, 8)).astype("float32")
served = vae.predict(images, verbose=0)
np.savez("ours.npz", images=images, z=z, encoded=vae.encode(images)[0], decoded=vae.decode(z), served=served)
"""
    outcome = run_as_a_user(tmp_path, code)
    assert outcome.returncode == 0, outcome.stderr
    assert np.load(tmp_path / "sample.npy").shape == (16, 8, 8, 1)

    elsewhere = """
import sys
import numpy as np
import tensorflow as tf

model, ours = tf.saved_model.load("served"), np.load("ours.npz")
np.testing.assert_allclose(model.encode(ours["images"])[0], ours["encoded"], atol=1e-5)
np.testing.assert_allclose(model.decode(ours["z"]), ours["decoded"], atol=1e-5)
np.testing.assert_allclose(model.serve(ours["images"]), ours["served"], atol=1e-5)
print("vae_utils" in sys.modules)
"""
    outcome = run_as_a_user(tmp_path, elsewhere)
    assert outcome.stdout.strip() == "False", outcome.stderr


def test_readme_shows_the_figure_that_the_notebook_draws():
    name, path = README_FIGURE
    drawn = [png for chapter in chapters() if (png := find_figure(chapter.read(), name))]
    assert drawn == [path.read_bytes()]
    assert f"]({path.relative_to(ROOT).as_posix()})" in (ROOT / "README.md").read_text("utf-8")
