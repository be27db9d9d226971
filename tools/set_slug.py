"""Rewrite the repository's address (owner/name) wherever it stands. Usage: set_slug.py you/fork"""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def current_slug():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    return project["urls"]["Repository"].removeprefix("https://github.com/")


def main(new):
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", new):
        sys.exit(f"The address must look like you/fork. Received: {new!r}")
    old = current_slug()
    names = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, check=True, capture_output=True, text=True)
    for path in (ROOT / name for name in names.stdout.split("\0") if name):
        if path.suffix not in {".py", ".ipynb", ".md", ".toml", ".yml", ".cff"}:
            continue
        text = path.read_text("utf-8")
        if old in text:
            path.write_text(text.replace(old, new), "utf-8")
            print(path.relative_to(ROOT))


if __name__ == "__main__":
    main(*sys.argv[1:] or [""])
