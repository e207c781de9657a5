#!/bin/sh
# Print the Python of an environment with vLLM for the CPU; make the environment where it is
# missing. Clones with the same pins share it, so nothing of a clone is installed into it.
set -eu
python=${1:-python3.11}
pins=$(dirname "$0")/requirements.txt
cache=${XDG_CACHE_HOME:-$HOME/.cache}/actlake
name=venv-vllm-$( (cat "$pins"; "$python" --version) | sha256sum | cut -c1-12)
target=$cache/$name
if [ ! -x "$target/bin/python" ]; then
    mkdir -p "$cache"
    # Who comes second waits here, and then finds it made. A lock dies with its process.
    exec 9>"$cache/$name.lock"
    flock 9
    if [ ! -x "$target/bin/python" ]; then
        rm -rf "$target.making"
        "$python" -m venv "$target.making" >&2
        # The pins are all there is: a resolver would take torchvision for another torch.
        "$target.making/bin/python" -m pip install --quiet --disable-pip-version-check \
            --no-deps --requirement "$pins" >&2
        mv "$target.making" "$target"
    fi
fi
echo "$target/bin/python"
