"""A classroom: twelve learners run a chapter at the same moment, from notebooks that none of them may change.

`make test-classroom`; it takes 15 GB of memory.
"""

import hashlib
import os
import shutil
import subprocess
import sys

import pytest

from tools.chapters import NOTEBOOKS, ROOT, chapters

pytestmark = [pytest.mark.classroom, pytest.mark.skipif(os.name != "posix", reason="mounts and measures as POSIX does")]
LEARNERS = 12

#: What Jupyter, IPython, Matplotlib and Keras keep in a home.
SETTINGS = {".cache", ".config", ".ipython", ".jupyter", ".keras", ".local"}

#: TensorFlow's own temporary files, compiled or not, which stay when a kernel is shut down.
AUTOGRAPH = "__autograph_generated_file"


@pytest.fixture
def handout(tmp_path):
    """The chapters on a disk that is read-only for everyone, root included."""
    folder = tmp_path / "handout"
    shutil.copytree(NOTEBOOKS, folder, ignore=shutil.ignore_patterns("*.py", ".ipynb_checkpoints"))
    bind = [["mount", "--bind", folder, folder], ["mount", "-o", "remount,bind,ro", folder]]
    mounted = all(subprocess.run(command, capture_output=True, check=False).returncode == 0 for command in bind)
    if not mounted:
        for path in [folder, *folder.iterdir()]:
            path.chmod(path.stat().st_mode & 0o555)
    with pytest.raises(OSError):
        (folder / "touched").touch()
    yield folder
    if mounted:
        subprocess.run(["umount", "-l", folder], check=True)
    folder.chmod(0o755)


def test_twelve_kernels_at_once_and_every_chapter(handout, tmp_path, tried):
    import resource

    home, temporary = tmp_path / "home", tmp_path / "temporary"
    home.mkdir(), temporary.mkdir()
    places = {
        "HOME": str(home),
        "TMPDIR": str(temporary),
        "PYTHONPATH": str(ROOT),
        "MPLCONFIGDIR": str(home / ".config"),
    }
    command = [sys.executable, "-m", "pytest", "--nbval-lax", "--nbval-current-env", "-q", "-x"]
    command += ["-p", "no:python", "-p", "no:cacheprovider", "-p", "tools.nbval_plugin", "--rootdir", handout]
    every, [chapter_03] = chapters(folder=handout), chapters("03", folder=handout)
    before = digest(handout)
    learners = [
        subprocess.Popen(
            [*command, chapter.path],
            cwd=handout,
            env={**os.environ, **places, "VAE_UTILS_QUICK": "1", "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for chapter in [chapter_03] * LEARNERS + [chapter for chapter in every if chapter != chapter_03]
    ]
    for learner in learners:
        output, _ = learner.communicate(timeout=1_200)
        assert learner.returncode == 0, output[-3_000:]
    assert digest(handout) == before
    assert {path.name for path in home.iterdir()} <= SETTINGS, "a chapter wrote into the home"
    left = [path for path in temporary.rglob("*") if path.is_file() and not path.name.startswith(AUTOGRAPH)]
    assert not left, "a chapter left temporary files"
    unit = 1 if sys.platform == "darwin" else 1_024
    in_full = [chapter.read().metadata["vae_utils"]["peak_memory_mb"] for chapter in every]
    assert resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * unit / 1e6 < max(in_full)
    tried(len(learners))


def digest(folder):
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir() if path.is_file()}
