#!/usr/bin/env bash
# Prepare a machine with a GPU: an environment with actlake, and a folder for model weights.
#   deploy/setup.sh [FOLDER]     ACTLAKE_PACKAGE: what pip installs, by default the released one
set -euo pipefail
folder=${1:-$HOME/actlake}
mkdir -p "$folder/models"
if [ ! -x "$folder/venv/bin/actlake" ]; then
    for python in python3.13 python3.12 python3.11 python3; do
        if "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null &&
            "$python" -m venv --system-site-packages "$folder/venv"; then
            break
        fi
        rm -rf "$folder/venv"
    done
    if [ ! -d "$folder/venv" ]; then
        echo "no Python 3.11 or newer that can make an environment" >&2
        exit 1
    fi
    "$folder/venv/bin/python" -m pip install --quiet --no-input \
        "${ACTLAKE_PACKAGE:-actlake[extract,vllm]}"
fi
echo "export PATH=\"$folder/venv/bin:\$PATH\" HF_HOME=\"\${HF_HOME:-$folder/models}\"" >"$folder/env.sh"
"$folder/venv/bin/actlake" --version
echo "next: . $folder/env.sh; deploy/run.sh --max-hours 8"
