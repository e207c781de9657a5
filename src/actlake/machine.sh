#!/usr/bin/env bash
# What a rented machine runs first: install actlake, run the commands under the budget, and give the
# machine back, whatever happened. Everything comes in the environment (see cloud.py); nothing secret
# is on a command line or in the log.
set -uo pipefail
umask 077
work=${ACTLAKE_WORK:-/var/tmp/actlake-job}
mkdir -p "$work"
cd "$work" || exit 1
exec >>"$work/log.txt" 2>&1

# The machine's own key destroys the machine. Lambda's machines have none: there the computer that
# started the job ends it.
give_back() {
    until python3 - <<'PY'; do sleep "${ACTLAKE_RETRY_SECONDS:-15}"; done
import os
import urllib.error
import urllib.request

env = os.environ
base = env.get("ACTLAKE_API", "")
provider = env.get("ACTLAKE_PROVIDER", "")
if provider == "vast":
    url, key = f"{base}/api/v0/instances/{env.get('CONTAINER_ID', '')}/", env.get("CONTAINER_API_KEY", "")
elif provider == "runpod":
    url, key = f"{base}/pods/{env.get('RUNPOD_POD_ID', '')}", env.get("RUNPOD_API_KEY", "")
else:
    raise SystemExit(0)
request = urllib.request.Request(url, method="DELETE", headers={"Authorization": f"Bearer {key}"})
try:
    urllib.request.urlopen(request, timeout=60).close()
except urllib.error.HTTPError as err:
    print(f"giving the machine back: {err.code}", flush=True)
    raise SystemExit(0 if err.code == 404 else 1)
except OSError as err:
    print(f"giving the machine back: {err}", flush=True)
    raise SystemExit(1)
print("the machine is given back", flush=True)
PY
}

finish() {
    code=$?
    trap - EXIT INT TERM HUP
    echo "job ${ACTLAKE_JOB:-} ends with exit code $code"
    give_back
    exit "$code"
}
trap finish EXIT
trap 'exit 130' INT TERM HUP

# The last guard: also when the installation hangs, or the budget guard itself.
(
    trap - EXIT INT TERM HUP
    sleep "${ACTLAKE_HARD_STOP_SECONDS:-86400}"
    echo "the hard stop was reached"
    give_back
) &

new_enough() { "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; }

install() {
    for python in python3.13 python3.12 python3.11 python3; do
        if new_enough "$python" && "$python" -m venv --system-site-packages "$work/venv"; then
            break
        fi
        rm -rf "$work/venv"
    done
    if [ ! -d "$work/venv" ]; then # an older system: uv brings a Python of its own
        python3 -m pip install --quiet --target "$work/uv" uv &&
            "$work/uv/bin/uv" venv --quiet --seed --python 3.12 "$work/venv" || return 1
    fi
    "$work/venv/bin/python" -m pip install --quiet --no-input "$ACTLAKE_PACKAGE" || return 1
    export PATH="$work/venv/bin:$PATH"
}

if [ -n "${ACTLAKE_PACKAGE:-}" ]; then
    install || { echo "the installation of actlake failed"; exit 1; }
fi
export HF_HOME=${HF_HOME:-$work/models}
printf %s "${ACTLAKE_COMMANDS:-}" | base64 -d >"$work/commands.txt" || exit 1
unset ACTLAKE_SCRIPT ACTLAKE_COMMANDS
actlake cloud guard --commands "$work/commands.txt" --job "${ACTLAKE_JOB:-}" \
    --limits "${ACTLAKE_LIMITS:-}" --started-at "${ACTLAKE_STARTED_AT:-}" \
    --report "${ACTLAKE_REPORT:-}" --log "$work/log.txt"
