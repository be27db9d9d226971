#!/usr/bin/env bash
# Create in $1 an environment like Colab's from tests/constraints/colab.txt, unless it was made from this very list.
set -euo pipefail
venv=$1
cmp -s tests/constraints/colab.txt "$venv/colab.txt" && exit 0

python=${PYTHON:-python3}
for version in 3.13 3.12; do
    # Without its variable, pyenv starts only the versions that its user has chosen.
    if PYENV_VERSION=$version "python$version" -c "" 2>/dev/null; then
        python=python$version
        export PYENV_VERSION=$version
    fi
done
echo "Creating $venv with $("$python" --version), where Colab has 3.12 or 3.13 (about 2 GB, a few minutes) ..."
rm -rf "$venv"
"$python" -m venv "$venv"
pip=("$venv/bin/pip" --quiet --disable-pip-version-check)
"${pip[@]}" install -r tests/constraints/colab.txt
# What the install cell builds vae_utils with, so that running it needs no network.
"${pip[@]}" download --no-deps --dest "$venv/wheels" "setuptools>=77"
# What Binder makes its image with, apart from Colab's packages.
"$python" -m venv "$venv/binder"
"$venv/binder/bin/pip" --quiet --disable-pip-version-check install jupyter-repo2docker==2026.4.0
cp tests/constraints/colab.txt "$venv/colab.txt"
