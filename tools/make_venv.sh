#!/usr/bin/env bash
# Create the environment in $1 from requirements.lock, unless it was made from this very lock.
set -euo pipefail
venv=$1
cmp -s requirements.lock "$venv/requirements.lock" && exit 0

in_range='import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))'
for python in "${PYTHON:-python3}" python3.13 python3.12 python3.11; do
    "$python" -c "$in_range" 2>/dev/null && break
    python=
done
if [ -z "$python" ]; then
    echo "No Python 3.11, 3.12 or 3.13 found. Install one, or name it: make venv PYTHON=/path/to/python" >&2
    exit 1
fi

echo "Creating $venv with $("$python" --version) (about 2.5 GB, a few minutes) ..."
rm -rf "$venv"
"$python" -m venv "$venv"
# Install from a copy, and name the copy last: an interrupted run or a lock edited meanwhile starts again.
cp requirements.lock "$venv/lock.installing"
pip=("$venv/bin/pip" install --quiet --disable-pip-version-check)
"${pip[@]}" --require-hashes -r "$venv/lock.installing"
"${pip[@]}" --no-deps --no-build-isolation --editable .
# TensorFlow logs its start-up from C++, past every setting: leave that to the terminal, out of the notebooks.
mkdir -p "$venv/etc/ipython"
echo "c.IPKernelApp.capture_fd_output = False" >"$venv/etc/ipython/ipython_kernel_config.py"
mv "$venv/lock.installing" "$venv/requirements.lock"
