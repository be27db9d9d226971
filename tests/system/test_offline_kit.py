"""The offline kit, installed by its own three lines with the network cut: `make offline-kit`."""

import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import nbformat
import pytest

from tools.offline_kit import KIT, write_readme

LABS = "vae/bin/jupyter lab notebooks"
CONNECT = "import socket; socket.create_connection(('1.1.1.1', 443), timeout=5)"


def lines_to_enter(readme, system):
    block = re.search(rf"^{system}.*:\n\n((?: {{4}}.+\n)+)", readme, re.MULTILINE)[1]
    return [line.strip() for line in block.splitlines()]


def wall_off():
    """Return what goes before a shell command to cut it off from the network, where the system can do that."""
    wall = ["unshare", "--map-root-user", "--net", "sh", "-c", 'ip link set lo up && exec sh -c "$0"']
    can = shutil.which("unshare") and not subprocess.run([*wall, "true"], capture_output=True).returncode
    return wall if can else ["sh", "-c"]


@pytest.fixture
def run_offline():
    """Copy the kit, and return (the copy, a function that runs a shell command there, without a network)."""
    assert (KIT / "README.txt").exists(), "run `make offline-kit` first"
    wall = wall_off()
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(shutil.copytree(KIT, Path(folder, "kit")))
        dropped = ("PIP_", "PYTHON", "JUPYTER", "IPYTHON", "VIRTUAL_ENV", "VAE_UTILS")
        environment = {name: value for name, value in os.environ.items() if not name.startswith(dropped)}
        environment |= {"HOME": folder, "VAE_UTILS_QUICK": "1", "https_proxy": "http://127.0.0.1:9"}
        environment["PATH"] = os.pathsep.join([str(Path(sys.base_prefix, "bin")), environment["PATH"]])

        def run(command):
            done = subprocess.run([*wall, command], cwd=copy, env=environment, capture_output=True, text=True)
            assert not done.returncode, f"{command}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
            return done.stdout

        if "unshare" in wall:
            with pytest.raises(AssertionError, match="unreachable"):
                run(f'python3 -c "{CONNECT}"')
        yield copy, run


@pytest.mark.kit
def test_the_kit_installs_and_runs_without_a_network(run_offline):
    copy, run = run_offline
    create, install, start = lines_to_enter((copy / "README.txt").read_text("utf-8"), "Linux")
    run(create)
    run(install)
    assert start.endswith(LABS)
    prefix = start.removesuffix(LABS)
    run(f"{prefix}vae/bin/jupyter lab --version")
    found = run(
        f"""{prefix}vae/bin/python -c 'from vae_utils import datasets; print(datasets.__file__, """
        """datasets.load_mnist(fallback="optical-digits").name)'"""
    ).split()
    assert Path(found[0]).is_relative_to(copy / "vae")
    assert found[-1] == ("mnist" if (copy / "data").exists() else "optical-digits")
    (chapter,) = (copy / "notebooks").glob("01_*.ipynb")
    run(f"{prefix}vae/bin/jupyter execute --inplace {chapter.relative_to(copy)}")
    outputs = [output for cell in nbformat.read(chapter, as_version=4).cells for output in cell.get("outputs", [])]
    assert not [output for output in outputs if output.output_type == "error"]
    assert sum("image/png" in output.get("data", {}) for output in outputs) > 1
    assert (copy / "book" / "index.html").is_file() and (copy / "book" / "notebooks").is_dir()


@pytest.mark.parametrize("with_mnist", [True, False])
def test_both_systems_get_the_same_three_lines(tmp_path, with_mnist):
    write_readme(tmp_path / "README.txt", with_mnist)
    text = (tmp_path / "README.txt").read_text("utf-8")
    python = f"{sys.version_info.major}.{sys.version_info.minor}"
    posix, windows = (lines_to_enter(text, system) for system in ("Linux", "Windows"))
    assert posix[0] == f"python{python} -m venv vae" and windows[0] == f"py -{python} -m venv vae"
    assert [line.replace("Scripts\\", "bin/").replace("vae\\", "vae/") for line in windows][1] == posix[1]
    assert posix[2].endswith(LABS) and windows[2].endswith("vae\\Scripts\\jupyter lab notebooks")
    assert ("VAE_UTILS_DATA" in posix[2]) == ("VAE_UTILS_DATA" in windows[2]) == with_mnist
