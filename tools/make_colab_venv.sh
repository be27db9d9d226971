#!/usr/bin/env bash
# Create in $1 an environment like Colab's from tests/colab.txt, unless it was made from this very list.
set -euo pipefail
venv=$1
cmp -s tests/colab.txt "$venv/colab.txt" && exit 0

for python in python3.12 python3.13 "${PYTHON:-python3}"; do
    "$python" -c "" 2>/dev/null && break
done
echo "Creating $venv with $("$python" --version), where Colab has 3.12 or 3.13 (about 2 GB, a few minutes) ..."
rm -rf "$venv"
"$python" -m venv "$venv"
pip=("$venv/bin/pip" --quiet --disable-pip-version-check)
"${pip[@]}" install -r tests/colab.txt
# What the install cell builds vae_utils with, so that running it needs no network.
"${pip[@]}" download --no-deps --dest "$venv/wheels" "setuptools>=77"
# What Binder makes its image with, apart from Colab's packages.
"$python" -m venv "$venv/binder"
"$venv/binder/bin/pip" --quiet --disable-pip-version-check install jupyter-repo2docker==2026.4.0
cp tests/colab.txt "$venv/colab.txt"
