#!/usr/bin/env bash
# One extraction shared by the tasks of a Slurm array. See first what each would do:
#   actlake extract MODEL --corpus pairs.jsonl --store s3://bucket/empathy --shard-plan 4
# then
#   MODEL=... CORPUS=... STORE=... sbatch --array=1-4 deploy/slurm-array.sh
#SBATCH --job-name=actlake
#SBATCH --gpus=1
#SBATCH --time=08:00:00
#SBATCH --signal=B:INT@300
#SBATCH --requeue
# Five minutes before the time is over Slurm sends SIGINT to this shell: the block that is being stored
# is finished, and the same sbatch line goes on. Credentials come from the environment (sbatch
# --export=ALL, the default) and stand in no line of this file.
set -uo pipefail
: "${MODEL:?set MODEL}" "${CORPUS:?set CORPUS}" "${STORE:?set STORE}"
child=
trap '[ -n "$child" ] && kill -INT "$child"' INT TERM
# A background job of a shell without job control ignores SIGINT; with it the job has its own group.
set -m
actlake extract "$MODEL" --corpus "$CORPUS" --store "$STORE" --worker auto "$@" &
child=$!
wait "$child"
code=$?
while kill -0 "$child" 2>/dev/null; do
    wait "$child"
    code=$?
done
exit "$code"
