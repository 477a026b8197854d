#!/usr/bin/env bash
# The whole loop with a tiny policy: all roles in one process, then under mpirun; the same run twice, other worker counts, an
# interrupted run that resumes, damaged checkpoints. Argument: the deeprec binary.
set -eu
deeprec=$1
here=$(cd "$(dirname "$0")" && pwd)
. "$here/mpi-env.sh"
export OMP_NUM_THREADS=1 OMP_WAIT_POLICY=passive DR_LOG=warn
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
fail() {
    echo "FAILED: $1" >&2
    exit 1
}

"$deeprec" prepare synthetic --users 40 --catalogue 60 --length 12 --out "$work/data.h5" > /dev/null
"$deeprec" trm train --dataset "$work/data.h5" --out "$work/trm" --epochs 2 --hidden 16 --text-dim 64 --experts 2 --batch 64 > /dev/null 2>&1
"$deeprec" init --dataset "$work/data.h5" --out "$work/fresh" --preset tiny --vocab 700 > /dev/null
shape="--k 5 --k-retrieve 6 --max-retrievals 2 --max-turn-tokens 48 --max-total-tokens 384"
"$deeprec" sft --model "$work/fresh" --trm "$work/trm" --dataset "$work/data.h5" --out "$work/warm" --steps 12 --batch-tokens 2048 \
    --rate 0.005 $shape 2> /dev/null

cat > "$work/run.yaml" <<'Y'
protocol: {k: 5, k_retrieve: 6, max_retrievals: 2, max_turn_tokens: 48, max_total_tokens: 384}
learn: {rate: 1e-3, pack_tokens: 1024}
stage1: {steps: 2, prompts: 4, samples: 3, updates: 2, difficulty_to: 0}
stage2: {steps: 4, prompts: 4, samples: 3, updates: 2, difficulty_to: 0}
checkpoint: {every: 1, keep: 3}
Y
train() { # FOLDER RANKS EXTRA...
    local folder=$1 ranks=$2
    shift 2
    local launcher=""
    [ "$ranks" = 1 ] || launcher="mpirun -n $ranks"
    $launcher "$deeprec" train "$work/run.yaml" --set "run.dir=$folder" --set "data.dataset=$work/data.h5" \
        --set "model.trm=$work/trm" --set "model.policy=$work/warm" "$@"
}
plain_metrics() { # what a repeated run must repeat
    sed 's/,"timing":{[^}]*}//' "$1/metrics.jsonl"
}
same() { # FOLDER FOLDER WHAT
    cmp -s "$1/policy/model.safetensors" "$2/policy/model.safetensors" || fail "$3: other final weights"
    [ "$(plain_metrics "$1")" = "$(plain_metrics "$2")" ] || fail "$3: other metrics"
    for file in "$1"/trajectories/*.h5; do
        cmp -s "$file" "$2/trajectories/$(basename "$file")" || fail "$3: other trajectories in $(basename "$file")"
    done
}

# the memory plan: told and nothing begun; a plan that is larger than the machine ends the run before it begins
DR_LOG=info train "$work/plan" 1 --plan 2> "$work/planned"
grep -q 'memory of worker 0: weights .* in all .* MB; free are .* MB' "$work/planned" || fail "no memory plan"
grep -q 'memory of worker 0: .* retrieval model .* in all ' "$work/planned" || fail "the plan leaves out the retrieval model"
[ "$(grep -cE 'backend: cpu, [0-9]+ threads?; the default of model.backend' "$work/planned")" = 1 ] ||
    fail "not one line says what computes, and why"
[ ! -e "$work/plan" ] || fail "--plan makes a run folder"
DR_LOG=info train "$work/plan" 4 --plan 2> "$work/planned"
[ "$(grep -c 'memory of worker [01]: .*, of 2 workers here ' "$work/planned")" = 2 ] || fail "no memory plans of 2 workers"
if train "$work/plan" 1 --set learn.pack_tokens=10000000 --set rollout.max_live=65536 --set protocol.max_total_tokens=10000000 \
    2> "$work/refusal"; then fail "a plan of terabytes was begun"; fi
grep -q 'the plan does not fit: weights ' "$work/refusal" || fail "the refusal does not tell the plan"

train "$work/a" 1
[ "$(wc -l < "$work/a/metrics.jsonl")" = 6 ] || fail "six steps make six lines"
[ -e "$work/a/policy_stage1/model.safetensors" ] || fail "no policy after stage 1"
train "$work/b" 1 --set output.tensorboard=false
same "$work/a" "$work/b" "the same run twice"
curves() { cat "$1"/tensorboard/*tfevents* | wc -c; }
[ "$(curves "$work/a")" -gt 2000 ] || fail "TensorBoard file of $(curves "$work/a") bytes"
[ ! -e "$work/b/tensorboard" ] || fail "output.tensorboard=false writes curves all the same"

# interrupted after three steps, then resumed
code=0
train "$work/c" 1 --set run.stop_after=3 || code=$?
[ "$code" = 75 ] || fail "an interrupted run ends with $code, expected 75"
train "$work/c" 1 --resume
same "$work/a" "$work/c" "three steps and a resumed three"
[ "$(curves "$work/a")" = "$(curves "$work/c")" ] || fail "a resumed run draws other curves"

# without a device: asked for, it is refused in words; on auto the processor does it, and says why
if "$deeprec" doctor | grep -q 'no device'; then
    if train "$work/g" 1 --set model.backend=cuda 2> "$work/refusal"; then fail "trained on a device that is not there"; fi
    grep -q 'backend cuda: ' "$work/refusal" || fail "the refusal does not name the backend"
    if "$deeprec" trm train --backend cuda --dataset "$work/data.h5" --out "$work/none" 2> "$work/refusal"; then
        fail "trained a retrieval model on a device that is not there"
    fi
    grep -q 'backend cuda: ' "$work/refusal" && [ "$(wc -l < "$work/refusal")" = 1 ] && [ ! -e "$work/none" ] ||
        fail "the refusal of a retrieval model's training is not one line that names the backend"
    DR_LOG=info train "$work/h" 1 --set model.backend=auto > "$work/choice" 2>&1
    grep -q 'backend: cpu, ' "$work/choice" || fail "the choice of the processor is not told"
    same "$work/c" "$work/h" "backend auto"
fi

# a run folder is not started over by accident
if train "$work/a" 1 2> "$work/refusal"; then fail "a finished run was started over"; fi
grep -q "resume" "$work/refusal" || fail "the refusal does not name --resume"

# from the same weights: the same first step whatever the ranks
for ranks in 2 3 4; do
    train "$work/r$ranks" "$ranks"
    cmp -s "$work/a/trajectories/step_000001_shard_0.h5" "$work/r$ranks/trajectories/step_000001_shard_0.h5" ||
        fail "$ranks ranks: other trajectories in step 1"
done
train "$work/r4b" 4
same "$work/r4" "$work/r4b" "4 ranks twice"

# two workers' run: interrupted, resumed
code=0
train "$work/r4c" 4 --set run.stop_after=3 || code=$?
[ "$code" != 0 ] || fail "an interrupted run on 4 ranks ends with 0"
train "$work/r4c" 4 --resume
same "$work/r4" "$work/r4c" "4 ranks, resumed"

# a damaged newest checkpoint is named and the older one used; the result is the same
rm -rf "$work/a/policy"
printf 'x' | dd of="$work/a/checkpoints/step_000006/rank_0.h5" bs=1 seek=4000 conv=notrunc 2> /dev/null
train "$work/a" 1 --resume 2> "$work/damage"
grep -q "step_000006" "$work/damage" || fail "the damaged checkpoint is not named"
same "$work/a" "$work/b" "resumed from the older checkpoint"
for step in 4 5 6; do
    [ -e "$work/b/checkpoints/step_00000$step/rank_0.h5" ] || continue
    printf 'x' | dd of="$work/b/checkpoints/step_00000$step/rank_0.h5" bs=1 seek=4000 conv=notrunc 2> /dev/null
done
if train "$work/b" 1 --resume 2> "$work/damage"; then fail "started over although every checkpoint is damaged"; fi
grep -q "none of its" "$work/damage" || fail "the refusal does not say that no checkpoint is usable"
code=0
train "$work/b" 4 --resume 2> "$work/damage" || code=$? # a role that fails ends the whole job
[ "$code" = 1 ] || fail "a job of 4 ranks whose coordinator failed ends with $code, expected 1"
[ "$(grep -c "none of its" "$work/damage")" = 1 ] || fail "4 ranks do not tell once that no checkpoint is usable"

# another number of learners loads the checkpoint
code=0
train "$work/e" 4 --set run.stop_after=3 || code=$?
train "$work/e" 3 --resume
[ "$(wc -l < "$work/e/metrics.jsonl")" = 6 ] || fail "resumed on other ranks: lines of metrics"
code=0
train "$work/f" 6 --set run.stop_after=3 || code=$? # four learners, a part of the moments each
[ -e "$work/f/checkpoints/step_000003/rank_3.h5" ] || fail "four learners write four parts"
train "$work/f" 1 --resume
[ "$(wc -l < "$work/f/metrics.jsonl")" = 6 ] || fail "four learners' checkpoint resumed by one: lines of metrics"

# in bf16 two learners share the fp32 weights out: interrupted, resumed, exported; and four of them, whose checkpoint one loads
train "$work/s" 4 --set model.precision=bf16
[ -e "$work/s/policy_stage1/model.safetensors" ] || fail "bf16 on 4 ranks: no policy after stage 1"
code=0
train "$work/s2" 4 --set model.precision=bf16 --set run.stop_after=3 || code=$?
[ "$code" != 0 ] || fail "an interrupted run in bf16 ends with 0"
train "$work/s2" 4 --set model.precision=bf16 --resume
same "$work/s" "$work/s2" "bf16 on 4 ranks, resumed"
"$deeprec" export --checkpoint "$work/s/checkpoints/step_000006" --model "$work/warm" --out "$work/exported_bf16"
cmp -s "$work/exported_bf16/model.safetensors" "$work/s/policy/model.safetensors" || fail "bf16: the exported weights differ from the final ones"
printf 'x' | dd of="$work/s/checkpoints/step_000006/rank_1.h5" bs=1 seek=4000 conv=notrunc 2> /dev/null
rm -rf "$work/s/policy"
train "$work/s" 4 --set model.precision=bf16 --resume 2> "$work/damage"
grep -q "rank_1.h5 is damaged" "$work/damage" || fail "bf16: the damaged part is not named"
same "$work/s" "$work/s2" "bf16 on 4 ranks, from an older checkpoint"
code=0
train "$work/s3" 6 --set model.precision=bf16 --set run.stop_after=3 || code=$?
train "$work/s3" 1 --set model.precision=bf16 --resume
[ "$(wc -l < "$work/s3/metrics.jsonl")" = 6 ] || fail "bf16: four learners' checkpoint resumed by one: lines of metrics"

# export opens, evaluation runs, unknown settings are named
"$deeprec" export --checkpoint "$work/c/checkpoints/step_000006" --model "$work/warm" --out "$work/exported"
cmp -s "$work/exported/model.safetensors" "$work/c/policy/model.safetensors" || fail "the exported weights differ from the final ones"
"$deeprec" eval --dataset "$work/data.h5" --trm "$work/trm" --model "$work/warm" --model "$work/c/policy" $shape --out "$work/eval.json" |
    grep -q "TRM alone" || fail "no table"
grep -q '"recall@10"' "$work/eval.json" || fail "no recall in the JSON"
if train "$work/x" 1 --set learn.ratee=1 2> "$work/unknown"; then fail "an unknown setting was taken"; fi
grep -q "learn.rate" "$work/unknown" || fail "the nearest setting is not named"
echo "train: all checks hold"
