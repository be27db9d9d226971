"""The environments: made from hashes alone, made anew when their list changes, and nobody else's folder is deleted.

The packages are tiny ones, made here, so that nothing is downloaded.
"""

import hashlib
import inspect
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tools.chapters import ROOT

pytestmark = pytest.mark.skipif(os.name != "posix", reason="for bash and make")

#: A project that builds itself, and asks for a package that is nowhere: only `--no-deps` installs it.
PROJECT = """
[build-system]
requires = []
build-backend = "backend"
backend-path = ["."]

[project]
name = "ours"
version = "1"
dependencies = ["nowhere-to-be-found"]
"""
BACKEND = """
def build_editable(folder, config_settings=None, metadata_directory=None):
    return make_wheel(folder, "ours", "Requires-Dist: nowhere-to-be-found\\n")
"""


def make_wheel(folder, name, metadata=""):
    """Write a wheel that holds one empty module; return its file's name."""
    import base64
    import hashlib
    import zipfile

    info = f"{name}-1.dist-info"
    files = {
        f"{name}.py": "",
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: 1\n{metadata}",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    digests = {path: base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()) for path, text in files.items()}
    files[f"{info}/RECORD"] = "".join(f"{path},sha256={d.decode().rstrip('=')},\n" for path, d in digests.items())
    with zipfile.ZipFile(f"{folder}/{name}-1-py3-none-any.whl", "w") as archive:
        for path, text in files.items():
            archive.writestr(zipfile.ZipInfo(path), text)
    return f"{name}-1-py3-none-any.whl"


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A project with a lock that pins one package, which pip finds here and nowhere else."""
    (tmp_path / "tools").mkdir()
    for name in ("Makefile", "tools/make_venv.sh"):
        shutil.copy(ROOT / name, tmp_path / name)
    (tmp_path / "pyproject.toml").write_text(PROJECT, "utf-8")
    (tmp_path / "backend.py").write_text(f"{inspect.getsource(make_wheel)}\n{BACKEND}", "utf-8")
    (tmp_path / "wheels").mkdir()
    wheel = tmp_path / "wheels" / make_wheel(tmp_path / "wheels", "theirs")
    lock = f"theirs==1 --hash=sha256:{hashlib.sha256(wheel.read_bytes()).hexdigest()}\n"
    (tmp_path / "requirements.lock").write_text(lock, "utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "wheels"))
    for name in [name for name in os.environ if name.startswith(("MAKE", "MFLAGS"))]:
        monkeypatch.delenv(name)
    return tmp_path


def run(*command):
    return subprocess.run(command, capture_output=True, text=True)


def installed(venv):
    return {path.name.split("-")[0] for path in Path(venv).glob("lib/python*/*/*.dist-info")} - {"pip"}


@pytest.mark.robustness
def test_what_the_lock_names_is_installed_and_the_project_without_more(project):
    (project / ".venv").mkdir()
    (project / ".venv" / "requirements.lock.installing").touch()  # as an interrupted run leaves it
    done = run("make", "venv")
    assert done.returncode == 0, done.stderr
    assert {"theirs", "ours"} <= installed(".venv") <= {"theirs", "ours", "setuptools"}
    assert run("make", "venv").stdout == "", "it is up to date"


@pytest.mark.robustness
@pytest.mark.parametrize("damage", ["another hash", "no hash"])
def test_what_has_not_the_locks_hash_is_refused(project, damage):
    lock = project / "requirements.lock"
    pin, digest = lock.read_text("utf-8").split(" --hash=sha256:")
    lock.write_text(pin + (f" --hash=sha256:{digest[::-1].strip()}" if damage == "another hash" else ""), "utf-8")
    done = run("make", "venv")
    assert done.returncode != 0 and "hash" in done.stderr.lower()
    assert not installed(".venv") & {"theirs", "ours"} and not (project / ".venv" / "requirements.lock").exists()


@pytest.fixture
def no_pip(project, monkeypatch):
    """A Python whose environments have a pip that installs nothing, in no time."""
    pip, python = project / "pip", project / "python"
    pip.write_text("#!/bin/sh\nsleep 0.2\n", "utf-8")
    python.write_text(
        f'#!/bin/sh\n[ "$2" = venv ] || exit 0\nmkdir "$3/bin"; cp {pip} "$3/bin"; touch "$3/pyvenv.cfg"\n'
    )
    for path in (pip, python):
        path.chmod(0o755)
    monkeypatch.setenv("PYTHON", str(python))


FILES = {
    "lock": ["requirements.lock"],
    "oldest": ["tests/constraints/oldest.txt", "pyproject.toml"],
    "backends": ["pyproject.toml"],
    "colab": ["tests/constraints/colab.txt"],
}


@pytest.mark.parametrize(
    ("kind", "changed"), [(kind, name) for kind, names in FILES.items() for name in [None, *names]]
)
def test_an_environment_is_made_anew_when_its_files_change(project, no_pip, kind, changed):
    for name in FILES[kind]:
        (project / name).parent.mkdir(parents=True, exist_ok=True)
        (project / name).write_text(f"{name}\n", "utf-8")
    venv = project / "environment"
    venv.mkdir()
    for name in ("mine", "pyvenv.cfg"):
        (venv / name).touch()
    copy = venv / Path(FILES[kind][0]).name if kind != "backends" else venv / "backends.txt"
    copy.write_text("".join(f"{name}\n" for name in FILES[kind]), "utf-8")
    if changed:
        (project / changed).write_text("changed\n", "utf-8")
    done = run("tools/make_venv.sh", "environment", kind)
    assert ("Creating environment" in done.stdout) == bool(changed)
    assert (venv / "mine").exists() == (not changed)


def test_two_at_once_make_one_environment(project, no_pip):
    (project / ".venv.lock").symlink_to("999999999")  # of a process that was killed
    command = ["tools/make_venv.sh", ".venv"]
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    printed = [process.communicate(timeout=60)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0]
    assert sum("Creating" in text for text in printed) == 1
    assert (project / ".venv" / "requirements.lock").exists() and not (project / ".venv.lock").is_symlink()


@pytest.mark.parametrize("command", ["venv", "test", "clean"])
@pytest.mark.parametrize(
    "files", [["notes.txt"], ["pyvenv.cfg", "bin/python"], ["requirements.lock", "pyproject.toml"]]
)
def test_a_folder_that_was_not_made_here_stays(project, tmp_path_factory, command, files):
    mine = tmp_path_factory.mktemp("mine")
    for name in files:
        (mine / name).parent.mkdir(exist_ok=True)
        (mine / name).write_text("mine", "utf-8")
    done = run("make", command, f"VENV={mine}")
    assert done.returncode != 0 and f"{mine} was not made by this Makefile" in done.stderr
    assert all((mine / name).read_text("utf-8") == "mine" for name in files)


def test_clean_removes_what_was_made_and_nothing_else(project):
    made = [".venv", "build", "book/_build", "offline-kit", "vae_utils.egg-info", "tests/__pycache__"]
    kept = ["mine", "mine/__pycache__", "my.egg-info", "notebooks", "vae_utils", "tools", "benchmarks", "book", "tests"]
    for name in made + kept:
        (project / name).mkdir(parents=True, exist_ok=True)
    for name in ("pyvenv.cfg", "requirements.lock"):
        (project / ".venv" / name).touch()
    done = run("make", "clean")
    assert done.returncode == 0, done.stderr
    assert [name for name in made if (project / name).exists()] == []
    assert all((project / name).exists() for name in kept)


@pytest.mark.parametrize("where", ["argument", "environment"])
@pytest.mark.parametrize("value", ["data", "/data"])
def test_a_relative_path_to_the_data_starts_at_the_project(project, monkeypatch, where, value):
    (project / "show.mk").write_text("include Makefile\nshow:\n\t@echo $$VAE_UTILS_DATA\n", "utf-8")
    monkeypatch.delenv("VAE_UTILS_DATA", raising=False)
    if where == "environment":
        monkeypatch.setenv("VAE_UTILS_DATA", value)
    argument = [f"VAE_UTILS_DATA={value}"] if where == "argument" else []
    assert run("make", "-f", "show.mk", "show", *argument).stdout.strip() == os.path.join(project.resolve(), value)
