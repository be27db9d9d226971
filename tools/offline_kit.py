"""Put what a class needs without a network into one folder: `make offline-kit` builds the book first."""

import os
import platform
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from tools.chapters import ROOT, chapters
from vae_utils.datasets import load_mnist

KIT = ROOT / "offline-kit"
BOOK = ROOT / "book" / "_build" / "html"

README = """\
Variational autoencoders, every equation executed: offline kit

For {system}, with Python {python}. Another system or another Python needs a kit of its own.
Copy this folder to your disk, open a terminal in the copy, and enter three lines. None of them needs a network.

Linux, macOS:

    python{python} -m venv vae
    vae/bin/pip install --no-index --find-links wheels "vae-utils[cpu,notebooks]"
    {posix_data}vae/bin/jupyter lab notebooks

Windows (PowerShell):

    py -{python} -m venv vae
    vae\\Scripts\\pip install --no-index --find-links wheels "vae-utils[cpu,notebooks]"
    {windows_data}vae\\Scripts\\jupyter lab notebooks

The second line takes a few minutes and up to 2.5 GB of disk.
{data}
The book, to read without running anything: book/index.html
"""


def pip(*arguments):
    subprocess.run([sys.executable, "-m", "pip", "--disable-pip-version-check", *map(str, arguments)], check=True)


def download_wheels(folder):
    pip("download", "--quiet", "--require-hashes", "--only-binary", ":all:", "-d", folder, "-r", "requirements.lock")
    with tempfile.TemporaryDirectory() as copy:  # in the tree, an old build/ would get into the wheel
        shutil.copytree(ROOT / "vae_utils", Path(copy, "vae_utils"), ignore=shutil.ignore_patterns("__pycache__"))
        for name in ("pyproject.toml", "README.md", "LICENSE"):
            shutil.copy(ROOT / name, copy)
        pip("wheel", "--quiet", "--no-deps", "--no-build-isolation", "-w", folder, copy)


def copy_mnist(folder):
    """Copy MNIST from where VAE_UTILS_DATA says, and check that it is MNIST; say whether there was any."""
    if not (place := os.environ.get("VAE_UTILS_DATA")):
        return False
    folder.mkdir()
    if os.path.isfile(place):
        shutil.copyfile(place, folder / "mnist.npz")
    for path in [*Path(place).glob("mnist.npz"), *Path(place).glob("*-ubyte*")]:
        shutil.copyfile(path, folder / path.name)
    load_mnist(folder)
    return True


def write_readme(path, with_mnist):
    facts = {
        "system": f"{platform.system().replace('Darwin', 'macOS')} on {platform.machine()}",
        "python": f"{sys.version_info.major}.{sys.version_info.minor}",
        "posix_data": 'VAE_UTILS_DATA="$PWD/data" ' if with_mnist else "",
        "windows_data": '$env:VAE_UTILS_DATA = "$PWD\\data"; ' if with_mnist else "",
        "data": "MNIST is in data/, and the third line says so to the notebooks."
        if with_mnist
        else "MNIST is not in this kit: the notebooks fall back to the 1,797 digits of scikit-learn, and say so.",
    }
    path.write_text(README.format(**facts), "utf-8")


def main():
    shutil.rmtree(KIT, ignore_errors=True)
    (KIT / "notebooks").mkdir(parents=True)
    download_wheels(KIT / "wheels")
    for chapter in chapters():
        shutil.copy(chapter.path, KIT / "notebooks")
    shutil.copytree(BOOK, KIT / "book")
    write_readme(KIT / "README.txt", copy_mnist(KIT / "data"))
    size = sum(path.stat().st_size for path in KIT.rglob("*") if path.is_file())
    print(f"offline-kit/: {size / 1e6:.0f} MB. Its README.txt says how to install it.")


if __name__ == "__main__":
    os.chdir(ROOT)
    main()
