#!/usr/bin/env bash
# A small job on the emulated device: job.sh DEEPREC DEEPREC_EMULATED. It draws what the processor draws, trains on what it
# drew (verify), and a training run has the same bytes whatever order streams and threads work in, the same step whatever the
# workers, and the same weights whether the gradients of two go through NCCL or MPI.
set -eu
deeprec=$1 emulated=$2
cd "$(dirname "$0")/../.."
. tests/mpi-env.sh
export OMP_WAIT_POLICY=passive DR_LOG=${DR_LOG:-error}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"

rules="--k 5 --k-retrieve 6 --max-retrievals 2 --max-turn-tokens 48 --max-total-tokens 384"
"$deeprec" prepare synthetic --users 40 --catalogue 60 --length 12 --out data.h5 >/dev/null
"$deeprec" trm train --dataset data.h5 --out trm --epochs 2 --hidden 16 --text-dim 64 --experts 2 --batch 64 >/dev/null
"$deeprec" init --dataset data.h5 --out fresh --preset tiny --vocab 700 >/dev/null
"$deeprec" sft --model fresh --trm trm --dataset data.h5 --out warm --steps 80 --batch-tokens 2048 --rate 0.005 $rules >/dev/null

fail() {
    echo "FAILED: $*"
    exit 1
}

retrievals=0
for user in u1 u2 u3; do
    for body in cpu cuda; do
        "$emulated" recommend --model warm --trm trm --dataset data.h5 --user $user --temperature 1 --backend $body $rules >draws_$body
    done
    cmp draws_cpu draws_cuda || fail "user $user: other draws than the processor's"
    if grep -q 'preference' draws_cuda; then retrievals=$((retrievals + 1)); fi
done
[ $retrievals -gt 0 ] || fail "no trajectory asked the retrieval model for anything"
DR_LOG=warn DR_EMULATED_NO_GRAPHS=1 "$emulated" recommend --model warm --trm trm --dataset data.h5 --user $user --temperature 1 \
    --backend cuda $rules >draws_plain 2>warnings
cmp draws_plain draws_cuda || fail "other draws where no pass can be recorded"
grep -q 'op by op' warnings || fail "no word of passes that cannot be recorded"
echo "three users: the processor's draws, as graphs or not"

for dtype in fp32 bf16; do
    DR_EMULATED_OPEN=1 "$emulated" verify --backend cuda --dtype $dtype --model warm --tokens 20 --live 2 --alone 1 >verify.txt || {
        cat verify.txt
        fail "verify in $dtype"
    }
    [ "$(grep -v '^not exact' verify.txt | grep -c 'max |delta| = 0 over')" = 4 ] || {
        cat verify.txt
        fail "verify in $dtype: differences, or not four comparisons"
    }
    grep -q '^not exact (cuBLASLt), packed: .* over' verify.txt && grep -q '^exactness costs ' verify.txt || {
        cat verify.txt
        fail "verify in $dtype: no word of what exactness costs"
    }
done
DR_EMULATED_OPEN=1 "$emulated" verify --backend cuda --kernels reference --dtype bf16 --model warm --tokens 20 --live 2 --alone 1 >verify.txt || {
    cat verify.txt
    fail "verify with the simple kernels"
}
echo "verify: what is trained on is what was drawn"

cat >run.yaml <<'Y'
protocol: {k: 5, k_retrieve: 6, max_retrievals: 2, max_turn_tokens: 48, max_total_tokens: 384}
learn: {rate: 1e-3, pack_tokens: 1024}
stage1: {steps: 1, prompts: 2, samples: 2, updates: 2, difficulty_to: 0}
stage2: {steps: 0}
Y
train() { # FOLDER ORDER RANKS EXTRA...
    local folder=$1 ranks=$3 launcher=""
    export DR_EMULATED_ORDER=$2
    shift 3
    [ "$ranks" = 1 ] || launcher="mpirun -n $ranks"
    $launcher "$emulated" train run.yaml --set run.dir=$folder --set data.dataset=data.h5 --set model.trm=trm \
        --set model.policy=warm --set model.backend=cuda "$@"
}
train late late 1
export DR_EMULATED_OPEN=1
train mixed 20 1 --set rollout.graphs=false
train two early 4 --set ranks.share_devices=true
cmp late/policy/model.safetensors mixed/policy/model.safetensors || fail "other weights where streams and threads work in another order"
cmp late/trajectories/step_000001_shard_0.h5 two/trajectories/step_000001_shard_0.h5 || fail "other trajectories with two workers"
if cmp -s warm/model.safetensors late/policy/model.safetensors; then fail "nothing was learned"; fi
echo "training: the same weights in two orders, the same step with two workers"

# In bf16 the ratio is 1 at first by the simple kernels too; where products and attention add in any order it is near 1.
once="--set stage1.updates=1 --set model.precision"
train simple late 1 $once=bf16 --set model.kernels=reference
train loose late 1 $once=bf16-loose
grep -q '"ratio_mean":1\.0[,}]' simple/metrics.jsonl || fail "simple kernels: the ratio is not 1 at first"
grep -q '"ratio_mean":\(0\.9\|1\.0\)[0-9]*[,}]' loose/metrics.jsonl || fail "bf16-loose: the ratio is far from 1 at first"
code=0
train refused late 1 $once=bf16-loose --set model.kernels=reference 2>refused.txt || code=$?
[ $code != 0 ] && grep -q 'simple kernels are exact' refused.txt || fail "simple kernels that are not exact: not refused"
echo "training in bf16: simple kernels and loose ones"

# Each of the two workers has a device, so that gradients go through NCCL.
export DR_EMULATED_DEVICES=2
train devices late 4
cmp two/policy/model.safetensors devices/policy/model.safetensors || fail "other weights where gradients go through NCCL"
# In bf16 each of them keeps its share of the fp32 weights.
train devices_bf16 late 4 --set model.precision=bf16
unset DR_EMULATED_DEVICES
train two_bf16 7 4 --set model.precision=bf16 --set ranks.share_devices=true
cmp two_bf16/policy/model.safetensors devices_bf16/policy/model.safetensors || fail "bf16: other weights where they go through NCCL"
if cmp -s two/policy/model.safetensors two_bf16/policy/model.safetensors; then fail "bf16 and fp32 end in the same weights"; fi
export DR_EMULATED_DEVICES=2
code=0
DR_EMULATED_NCCL_FAULT=error:1:4 train failed early 4 2>failed.txt || code=$?
[ $code = 1 ] || fail "a failure of NCCL ends with $code, expected 1"
grep -q 'learner 1 of 2: NCCL .*: a fault asked for in group 4' failed.txt || fail "a failure of NCCL is not told"
echo "training: the same weights through NCCL, whose failure ends the job"
