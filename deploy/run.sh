#!/usr/bin/env bash
# Run the GPU stages on this machine under a budget; the arguments go to `actlake cloud guard`:
#   STORE=s3://bucket/empathy deploy/run.sh --max-dollars 5 --price-per-hour 1.5
# TEARDOWN is a shell command that gives this machine back; it runs whatever happened, for example
#   TEARDOWN='runpodctl remove pod "$RUNPOD_POD_ID"'. Credentials come from the environment.
set -uo pipefail
here=$(cd "$(dirname "$0")" && pwd)
: "${STORE:?set STORE to the bucket, such as s3://bucket/empathy}"
export STORE
# shellcheck disable=SC2329  # the trap calls it
teardown() {
    code=$?
    trap - EXIT
    if [ -n "${TEARDOWN:-}" ]; then
        for wait in 5 15 60 300 0; do
            bash -c "$TEARDOWN" && break
            echo "the teardown failed; again in $wait s" >&2
            sleep "$wait"
        done
    fi
    exit "$code"
}
trap teardown EXIT
child=
# The guard answers SIGTERM by stopping the work cleanly; bash itself would wait for it.
trap '[ -n "$child" ] && kill -TERM "$child"' INT TERM HUP
set -m # else the job would ignore SIGINT, and its children too
actlake cloud guard --commands "${COMMANDS:-$here/gpu-stages.txt}" "$@" &
child=$!
wait "$child"
code=$?
while kill -0 "$child" 2>/dev/null; do # a signal ended the wait, not the guard
    wait "$child"
    code=$?
done
exit "$code"
