#!/usr/bin/env bash
# A training step that takes longer than run.deadline on a worker that hardly gets on: nobody takes it for dead. Then the
# worker stops in training: the coordinator names it within the deadline, and the run ends. Argument: the deeprec binary.
set -eu
deeprec=$1
here=$(cd "$(dirname "$0")" && pwd)
. "$here/mpi-env.sh"
export OMP_NUM_THREADS=1 OMP_WAIT_POLICY=passive
if ! command -v mpirun > /dev/null; then
    echo "skipped: no mpirun"
    exit 77
fi
deadline=3
work=$(mktemp -d)
job="" slow=""
finish() {
    [ -z "$slow" ] || kill -CONT "$slow" 2> /dev/null || true
    [ -z "$job" ] || kill "$job" 2> /dev/null || true
    rm -rf "$work"
}
trap finish EXIT
fail() {
    echo "FAILED: $1" >&2
    cat "$work/log" >&2
    exit 1
}

"$deeprec" prepare synthetic --users 40 --catalogue 60 --length 12 --out "$work/data.h5" > /dev/null
"$deeprec" trm train --dataset "$work/data.h5" --out "$work/trm" --epochs 1 --hidden 16 --text-dim 64 --experts 2 --batch 64 > /dev/null 2>&1
"$deeprec" init --dataset "$work/data.h5" --out "$work/fresh" --preset small --vocab 700 > /dev/null
cat > "$work/run.yaml" <<'Y'
protocol: {k: 5, k_retrieve: 6, max_retrievals: 2, max_turn_tokens: 48, max_total_tokens: 384}
learn: {rate: 1e-4, pack_tokens: 384}
stage1: {steps: 3, prompts: 16, samples: 4, updates: 2, difficulty_to: 0}
stage2: {steps: 0}
checkpoint: {every: 0}
Y
mpirun -n 4 "$deeprec" train "$work/run.yaml" --set "run.dir=$work/run" --set "data.dataset=$work/data.h5" --set "run.deadline=$deadline" \
    --set "model.trm=$work/trm" --set "model.policy=$work/fresh" > "$work/log" 2>&1 &
job=$!
# A step's trajectories are written when its training has begun.
wait_for_training() { # STEP
    for _ in $(seq 1200); do
        [ -s "$work/run/trajectories/step_00000$1_shard_0.h5" ] && return 0
        kill -0 "$job" 2> /dev/null || fail "the run ended before step $1 was trained"
        sleep 0.05
    done
    fail "step $1 did not come"
}
steps_done() { wc -l < "$work/run/metrics.jsonl"; }

wait_for_training 1
for pid in $(pgrep -P "$job"); do
    if tr '\0' '\n' < "/proc/$pid/environ" | grep -qx 'OMPI_COMM_WORLD_RANK=3'; then slow=$pid; fi
done
[ -n "$slow" ] || fail "no process of rank 3"
begun=$(date +%s%N)
# It works a tenth of the time, until training has taken longer than the deadline, and is then left alone.
while [ $((($(date +%s%N) - begun) / 1000000)) -lt $((deadline * 1700)) ] && [ "$(steps_done)" = 0 ]; do
    kill -STOP "$slow" 2> /dev/null || fail "the slow worker's run has ended"
    sleep 0.6
    kill -CONT "$slow" 2> /dev/null || fail "the slow worker's run has ended"
    sleep 0.07
done
wait_for_training 2
took=$(sed -n '1s/.*"train_s":\([0-9]*\).*/\1/p' "$work/run/metrics.jsonl")
[ -n "$took" ] || fail "no train_s in the metrics"
[ "$took" -lt "$deadline" ] && echo "skipped: a slow worker's step, which is trained in $took s here"

kill -STOP "$slow"
stopped=$(date +%s)
code=0
wait "$job" || code=$?
job="" slow=""
[ "$code" = 1 ] || fail "a run with a worker that has stopped ends with $code, expected 1"
[ $(($(date +%s) - stopped)) -lt $((deadline + 30)) ] || fail "a worker that has stopped is noticed late"
grep -q "coordinator (endpoint 0), phase training: endpoint 3 has been silent for $deadline s" "$work/log" || fail "the worker that has stopped is not named"
[ "$(grep -c ' error ' "$work/log")" = 1 ] || fail "a worker that has stopped is not told in one line"
echo "alive: all checks hold"
