#!/bin/sh
# Print the Python of a test environment whose pins are a file; make it where it is missing.
#
#   environment.sh NAME PINS [PYTHON]
#
# Clones with the same pins share it, so nothing of a clone is installed into it: run it with
# PYTHONPATH=src.
set -eu
name=$1
pins=$2
python=${3:-python3.11}
cache=${XDG_CACHE_HOME:-$HOME/.cache}/actlake
name=venv-$name-$( (cat "$pins"; "$python" --version) | sha256sum | cut -c1-12)
target=$cache/$name
if [ ! -x "$target/bin/python" ]; then
    mkdir -p "$cache"
    # Who comes second waits here, and then finds it made. A lock dies with its process.
    exec 9>"$cache/$name.lock"
    flock 9
    if [ ! -x "$target/bin/python" ]; then
        rm -rf "$target.making"
        "$python" -m venv "$target.making" >&2
        # The pins are all there is: a resolver would take libraries for another torch.
        "$target.making/bin/python" -m pip install --quiet --disable-pip-version-check \
            --no-deps --requirement "$pins" >&2
        mv "$target.making" "$target"
    fi
fi
echo "$target/bin/python"
