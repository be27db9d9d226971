"""Tests can be collected where there is no POSIX: what only Linux and macOS have is imported where it is used."""

import subprocess
import sys

import pytest

from tools.chapters import ROOT

#: Collects tests without what Windows lacks. The libraries come first, and keep what they need.
COLLECT = """
import os, signal, sys
import h5py, hypothesis, jupytext, keras, matplotlib.pyplot, nbclient, nbval.plugin, playwright.sync_api, psutil, pytest

for name in ("fcntl", "grp", "pwd", "resource", "termios"):
    sys.modules[name] = None
for name in ("fork", "geteuid", "getuid", "killpg", "mkfifo", "seteuid", "setsid"):
    delattr(os, name)
del signal.SIGKILL
sys.exit(pytest.main(["--collect-only", "-q", "-m", "", "-p", "no:cacheprovider", *sys.argv[1:]]))
"""


def collect(*paths):
    return subprocess.run([sys.executable, "-c", COLLECT, *map(str, paths)], cwd=ROOT, capture_output=True, text=True)


def test_all_tests_are_collected_without_posix():
    done = collect("tests")
    assert done.returncode == 0, done.stdout[-3000:]
    for folder in ("unit", "notebooks", "robustness", "system"):
        assert f"tests/{folder}/" in done.stdout.replace("\\", "/")


@pytest.mark.parametrize("line", ["import resource", "import os\nROOT = os.getuid() == 0"])
def test_a_test_that_could_not_be_is_found(tmp_path, line):
    (tmp_path / "test_it.py").write_text(f"{line}\n\ndef test_it():\n    pass\n", "utf-8")
    done = collect(tmp_path)
    assert done.returncode != 0 and "test_it.py" in done.stdout
