#!/usr/bin/env bash
# Create an environment in a folder, unless it was made from these very files. Usage: make_venv.sh FOLDER [KIND]
#
# Kinds: `lock` (the default) is what requirements.lock says, `oldest` the oldest supported versions, `backends` what
# Keras' other backends need, `colab` what Colab has; `remove` deletes an environment. Only a folder that this script has
# made is ever deleted.
set -euo pipefail
venv=${1%/}
kind=${2:-lock}

made_here() {
    local name
    for name in requirements.lock oldest.txt backends.txt colab.txt; do
        if [ -e "$venv/$name.installing" ] || { [ -e "$venv/$name" ] && [ -e "$venv/pyvenv.cfg" ]; }; then return; fi
    done
    return 1
}

remove() {
    if [ -e "$venv" ] && [ -n "$(ls -A "$venv")" ] && ! made_here; then
        echo "$venv was not made by this Makefile, and is left as it is. Delete it yourself, or name another folder." >&2
        exit 1
    fi
    rm -rf "$venv"
}

pythons="${PYTHON:-python3} python3.13 python3.12 python3.11"
case $kind in
    remove) remove && exit ;;
    lock) stamp=$venv/requirements.lock && inputs=(requirements.lock) ;;
    oldest) stamp=$venv/oldest.txt && inputs=(tests/constraints/oldest.txt pyproject.toml) ;;
    backends) stamp=$venv/backends.txt && inputs=(pyproject.toml) ;;
    colab)
        stamp=$venv/colab.txt && inputs=(tests/constraints/colab.txt)
        pythons="${PYTHON:-} python3.12 python3.13 python3"
        ;;
    *) echo "There is no environment of the kind $kind." >&2 && exit 2 ;;
esac

# A copy of what it was made from, named when all is done: an interrupted run, or a file edited meanwhile, starts again.
up_to_date() { cat "${inputs[@]}" | cmp -s - "$stamp"; }
up_to_date && exit

# One at a time, or two would delete each other's work. The lock names the process that holds it.
mkdir -p "$(dirname "$venv")"
until ln -s $$ "$venv.lock" 2>/dev/null; do
    kill -0 "$(readlink "$venv.lock")" 2>/dev/null || rm -f "$venv.lock"
    sleep 1
done
trap 'rm -f "$venv.lock"' EXIT
up_to_date && exit

in_range='import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))'
python=
for candidate in $pythons; do
    # Without its variable, pyenv starts only the versions that its user has chosen.
    case $candidate in python3.*) export PYENV_VERSION=${candidate#python} ;; *) unset PYENV_VERSION ;; esac
    "$candidate" -c "$in_range" 2>/dev/null && python=$candidate && break
done
if [ -z "$python" ]; then
    echo "No Python 3.11, 3.12 or 3.13 found. Install one, or name it: make venv PYTHON=/path/to/python" >&2
    exit 1
fi

remove
echo "Creating $venv with $("$python" --version) (about 2.5 GB, a few minutes) ..."
mkdir -p "$venv"
cat "${inputs[@]}" >"$stamp.installing"
"$python" -m venv "$venv"
pip=("$venv/bin/pip" --quiet --disable-pip-version-check)
case $kind in
    lock)
        "${pip[@]}" install --require-hashes -r "$stamp.installing"
        "${pip[@]}" install --no-deps --no-build-isolation --editable .
        # TensorFlow logs its start-up from C++, past every setting: leave that to the terminal, out of the notebooks.
        mkdir -p "$venv/etc/ipython"
        echo "c.IPKernelApp.capture_fd_output = False" >"$venv/etc/ipython/ipython_kernel_config.py"
        ;;
    oldest)
        "${pip[@]}" install -c tests/constraints/oldest.txt --editable ".[cpu,notebooks,dev,book]"
        ;;
    backends)
        "${pip[@]}" install --editable ".[cpu,notebooks,dev,bench]"
        ;;
    colab)
        "${pip[@]}" install -r tests/constraints/colab.txt
        # What the install cell builds vae_utils with, so that running it needs no network.
        "${pip[@]}" download --no-deps --dest "$venv/wheels" "setuptools>=77"
        # What Binder makes its image with, apart from Colab's packages.
        "$python" -m venv "$venv/binder"
        "$venv/binder/bin/pip" --quiet --disable-pip-version-check install jupyter-repo2docker==2026.4.0
        ;;
esac
mv "$stamp.installing" "$stamp"
