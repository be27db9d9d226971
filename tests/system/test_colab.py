"""Each chapter as Colab would run it: Colab's versions, an empty folder, the install cell as it stands.

`make test-colab` makes the environment. What is not here: Colab's own kernel and its page, a GPU, the network.
"""

import json
import os
import re
import shutil
import subprocess

import nbformat
import pytest
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

from tools.chapters import ROOT, chapters, code_cells
from tools.set_slug import current_slug

VENV = ROOT / ".venv-colab"
PYTHON = VENV / "bin" / "python"
VERSIONS = ROOT / "tests" / "constraints" / "colab.txt"
CHAPTERS = chapters()
ADDRESS = f"https://github.com/{current_slug()}"

pytestmark = pytest.mark.colab


def run(*command, **options):
    return subprocess.run(command, check=True, capture_output=True, text=True, **options).stdout


def installed():
    packages = json.loads(run(PYTHON, "-m", "pip", "list", "--format=json", "--disable-pip-version-check"))
    return {package["name"].lower().replace("_", "-"): package["version"] for package in packages}


@pytest.fixture(scope="module")
def repository(tmp_path_factory):
    """This very working tree, as the branch `main` of a repository of its own: what GitHub would serve."""
    folder = tmp_path_factory.mktemp("github") / "vae.git"
    run("git", "init", "--quiet", "--bare", "--initial-branch=main", folder)
    git = ("git", f"--git-dir={folder}", f"--work-tree={ROOT}", "-c", "user.name=test", "-c", "user.email=test")
    run(*git, "add", "--all", cwd=ROOT)
    run(*git, "commit", "--quiet", "--no-verify", "--message=test", cwd=ROOT)
    return folder


def served_from(repository):
    """Variables that bring git to `repository` whenever it is sent to this project's address."""
    names = ("GIT_CONFIG_COUNT", "GIT_CONFIG_KEY_0", "GIT_CONFIG_VALUE_0")
    return dict(zip(names, ("1", f"url.file://{repository}.insteadOf", ADDRESS), strict=True))


@pytest.fixture
def runtime(repository, tmp_path, monkeypatch):
    """A new machine: run the code of a notebook there, in an empty folder, and return what it printed and drew."""
    run(PYTHON, "-m", "pip", "uninstall", "--yes", "--quiet", "vae-utils")
    before = installed()

    def execute(notebook, address=repository, modules=("google.colab",), variables=()):
        home, folder = tmp_path / "home", tmp_path / "content"
        startup = home / ".ipython" / "profile_default" / "startup"
        startup.mkdir(parents=True)
        stub = "import sys, types\n" + "".join(f"sys.modules[{m!r}] = types.ModuleType({m!r})\n" for m in modules)
        (startup / "00-stub.py").write_text(stub, "utf-8")
        folder.mkdir()
        environment = {
            "HOME": home,
            "PATH": os.environ["PATH"],
            "VAE_UTILS_QUICK": 1,
            "VAE_UTILS_DATA": os.environ.get("VAE_UTILS_DATA", ""),
            "https_proxy": "http://127.0.0.1:9",  # nobody answers there: whatever asks for the network is refused
            "PIP_CONFIG_FILE": os.devnull,
            "PIP_NO_INDEX": 1,
            "PIP_FIND_LINKS": VENV / "wheels",
            "PIP_DISABLE_PIP_VERSION_CHECK": 1,
            **served_from(address),
            **dict(variables),
        }
        kernel = tmp_path / "kernels" / "colab"
        kernel.mkdir(parents=True)
        settings = [f"{name}={value}" for name, value in environment.items()]
        argv = ["env", "--ignore-environment", *settings, str(PYTHON), "-m", "ipykernel_launcher"]
        specification = {"argv": [*argv, "-f", "{connection_file}"], "display_name": "Colab", "language": "python"}
        (kernel / "kernel.json").write_text(json.dumps(specification), "utf-8")
        monkeypatch.setenv("JUPYTER_PATH", str(tmp_path))
        nbformat.write(notebook, folder / "chapter.ipynb")
        client = NotebookClient(
            notebook, timeout=None, kernel_name="colab", coalesce_streams=True, resources={"metadata": {"path": folder}}
        )
        try:
            client.execute()
        finally:
            execute.changed = dict(installed().items() ^ before.items())
        return [cell.outputs for cell in code_cells(notebook)]

    return execute


def text_of(outputs):
    return "".join(output.get("text", "") for output in outputs)


def pictures(outputs):
    return [sum("image/png" in output.get("data", {}) for output in of_cell) for of_cell in outputs]


def test_environment_has_the_versions_of_the_list():
    have = installed()
    pins = re.findall(r"^([\w-]+)==([\d.]+)", VERSIONS.read_text("utf-8"), re.MULTILINE)
    wrong = {name: have.get(name) for name, version in pins if have.get(name) != version}
    assert set(wrong) <= {"tensorflow", "tensorflow-cpu"} and len(wrong) == 1, "all but one of TensorFlow's two names"


@pytest.mark.parametrize("chapter", CHAPTERS, ids=str)
def test_chapter_runs_and_changes_no_package(chapter, runtime):
    stored = pictures([cell.outputs for cell in code_cells(chapter.read())])
    outputs = runtime(chapter.read())
    # A restart is asked for when a package is installed that was imported already. This one was not there.
    assert set(runtime.changed) == {"vae-utils"}
    assert "rror" not in text_of(outputs[0])
    run(PYTHON, "-m", "pip", "check")
    assert pictures(outputs) == stored and sum(stored) > 0


def test_failed_install_stops_in_the_first_cell_and_says_why(runtime, tmp_path):
    notebook = CHAPTERS[0].read()
    with pytest.raises(CellExecutionError, match="No module named 'vae_utils'") as stopped:
        runtime(notebook, address=tmp_path / "gone.git")
    assert "is this notebook online?" in str(stopped.value)
    assert not runtime.changed
    said = text_of(code_cells(notebook)[0].outputs)
    assert ADDRESS in said and "error" in said.lower()  # the spelling is pip's
    assert not code_cells(notebook)[1].outputs


def test_first_cell_installs_on_kaggle_too(runtime):
    """Kaggle builds on Colab's image; it has no google.colab, and sets a variable of its own."""
    outputs = runtime(CHAPTERS[0].read(), modules=(), variables={"KAGGLE_KERNEL_RUN_TYPE": "Interactive"})
    assert set(runtime.changed) == {"vae-utils"}
    assert sum(pictures(outputs)) > 0


def test_readmes_lines_train_a_vae_in_a_fresh_environment(repository, tmp_path):
    readme = (ROOT / "README.md").read_text("utf-8")
    (line,) = re.findall(r"^pip install .*vae-utils.*$", readme, re.MULTILINE)
    (code,) = re.findall(r"```python\n(.*?)```", readme, re.DOTALL)
    (tmp_path / "mine.py").write_text(code, "utf-8")
    fresh = tmp_path / "fresh"
    run(PYTHON, "-m", "venv", fresh)
    environment = os.environ | served_from(repository)
    environment |= {"PATH": f"{fresh / 'bin'}:{os.environ['PATH']}", "PYTHONPATH": ""}
    environment["PIP_CONSTRAINT"] = VERSIONS  # so that pip's cache holds the large wheels
    try:
        run("bash", "-c", line, env=environment)
        printed = run("python", "mine.py", cwd=tmp_path, env=environment)
    finally:
        shutil.rmtree(fresh)
    assert printed.splitlines()[-1] == "(16, 8, 8, 1)"
    assert (tmp_path / "my_vae.keras").exists()


def test_binder_reads_environment_yml():
    """Without Docker, repo2docker gets as far as the Dockerfile."""
    binder = VENV / "binder" / "bin" / "repo2docker"
    made = subprocess.run([binder, "--no-build", "--debug", ROOT], check=True, capture_output=True, text=True)
    assert "Building conda environment for python=3.11\n" in made.stderr
    # `-e .` in environment.yml needs the repository to be there first.
    assert made.stdout.index("\nCOPY --chown=0:0 src/ ") < made.stdout.index('--file "environment.yml"')
