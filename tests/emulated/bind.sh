#!/usr/bin/env bash
# Which worker gets which device: bind.sh DEEPREC_EMULATED. As launchers show devices to ranks and place ranks on nodes: all
# of them or one each, in blocks or in turns, and two ranks on one device. Then what is said of the choice, and that a plan
# that does not fit is refused before the device's memory is taken. What the sums give is job.sh's.
set -eu
emulated=$1
cd "$(dirname "$0")/../.."
. tests/mpi-env.sh
export OMP_WAIT_POLICY=passive DR_LOG=info DR_EMULATED_OPEN=1 DR_EMULATED_ORDER=early DR_EMULATED_DEVICES=2
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"

fail() {
    echo "FAILED: $*"
    cat said
    exit 1
}

said() { # COUNT PATTERN: lines of what was said
    [ "$(grep -cE -- "$2" said)" = "$1" ] || fail "not $1 times: $2"
}

rules="--k 5 --k-retrieve 6 --max-retrievals 2 --max-turn-tokens 48 --max-total-tokens 384"
models="--trm trm --dataset data.h5"
DR_LOG=error
"$emulated" prepare synthetic --users 40 --catalogue 60 --length 12 --out data.h5 >/dev/null
"$emulated" trm train --dataset data.h5 --out trm --epochs 1 --hidden 16 --text-dim 64 --experts 2 --batch 64 >/dev/null
"$emulated" init --dataset data.h5 --out fresh --preset tiny --vocab 700 >/dev/null
DR_LOG=info

cat >run.yaml <<'Y'
run: {deadline: 60}
data: {dataset: data.h5}
model: {trm: trm, policy: fresh, backend: cuda}
protocol: {k: 5, k_retrieve: 6, max_retrievals: 2, max_turn_tokens: 24, max_total_tokens: 256}
learn: {rate: 1e-3, pack_tokens: 512}
stage1: {steps: 1, prompts: 2, samples: 2, updates: 1, difficulty_to: 0}
stage2: {steps: 0}
Y

# What each rank sees, from its number on its node.
cat >each.sh <<'S'
#!/bin/sh
export DR_EMULATED_VISIBLE=$((OMPI_COMM_WORLD_LOCAL_RANK % 2))
exec "$@"
S
# A launcher of daemons for nodes that are this machine.
cat >node.sh <<'S'
#!/bin/sh
host=$1
shift
NCCL_HOSTID=$host exec sh -c "$*"
S
chmod +x each.sh node.sh

train() { # STATUS RANKS LAUNCHED...: behind --, more settings
    local expected=$1 ranks=$2 code=0 launched=() words=()
    shift 2
    while [ $# -gt 0 ] && [ "$1" != -- ]; do launched+=("$1"); shift; done
    [ $# = 0 ] || shift
    words=("$emulated" train run.yaml --set "run.dir=$work/run" "$@")
    rm -rf run
    if [ "$ranks" = 1 ]; then
        "${words[@]}" >said 2>&1 || code=$?
    else
        timeout --foreground -k 5 120 mpirun -n "$ranks" "${launched[@]}" "${words[@]}" >said 2>&1 || code=$?
    fi
    [ $code = "$expected" ] || fail "$ranks ranks, ${launched[*]} $*: status $code, expected $expected"
}

# All devices before every rank: the node's workers take them in turn.
train 0 2 -- --plan
said 1 'backend: cuda, device 0 at 0000:10:00.0, the first of 2 that no other worker takes; asked for by model.backend'
train 0 4 -- --plan
said 1 'backend: cuda, device 0 at 0000:10:00.0, the first of 2 that no other worker takes'
said 1 'backend: cuda, device 1 at 0000:11:00.0, the first of 2 that no other worker takes'
said 2 'fp32 on a device has the simple kernels only, .*; model.precision=bf16 is the fast one'
echo "every rank sees all devices: one each"

# Ranks in turns over two nodes, workers 2 to 5; then in blocks, of which the second has three workers.
export OMPI_MCA_plm_rsh_agent=$work/node.sh
nodes="--mca plm rsh --mca btl self,tcp --host h1:3,h2:3"
train 0 6 $nodes --map-by node -- --plan
said 2 'device 0 at 0000:10:00.0, the first of 2 that no other worker takes'
said 2 'device 1 at 0000:11:00.0, the first of 2 that no other worker takes'
train 1 6 $nodes --map-by slot -- --plan
said 2 '3 workers on a node see 2 devices between them, and 2 of them would use that at 0000:10:00.0: .*ranks.share_devices'
echo "two nodes, ranks in turns and in blocks: counted by node"

# One device before each rank, as --gpus-per-task=1 does it: gradients go through NCCL, also where sharing is allowed.
for may_share in false true; do
    train 0 4 ./each.sh -- --set ranks.share_devices=$may_share
    said 1 'backend: cuda, device 0 at 0000:10:00.0, the only one that is visible here'
    said 1 'backend: cuda, device 0 at 0000:11:00.0, the only one that is visible here'
    said 0 'host memory and MPI'
done
echo "every rank sees its own device: one each, NCCL"

# One device before all.
export DR_EMULATED_VISIBLE=1
train 1 4
said 2 '2 workers on a node see 1 device between them, and 2 of them would use that at 0000:11:00.0: '
[ ! -e run/policy ] || fail "trained on a device that may not be shared"
train 0 4 -- --set ranks.share_devices=true
said 2 "backend: cuda, device 0 at 0000:11:00.0, shared by 2 of the node's 2 workers"
said 1 'gradients: summed up through host memory and MPI: 2 of 2 learners share devices'
said 2 'memory of worker [01]: .* of 2 workers here'
export NCCL_HOSTID=one # the same machine for all: as if nothing was said
train 0 4 -- --set ranks.share_devices=true
said 1 'gradients: summed up through host memory and MPI: 2 of 2 learners share devices'
unset NCCL_HOSTID DR_EMULATED_VISIBLE
echo "two workers on one device: refused, or shared with sums through MPI"

# Devices that are too old are passed by.
export DR_EMULATED_OLD=1
train 0 1
said 1 'backend: cuda, device 1 at 0000:11:00.0, the only one that is new enough here; asked for by model.backend'
train 1 4 -- --plan
said 2 '2 workers on a node see 1 device between them, and 2 of them would use that at 0000:11:00.0: '
export DR_EMULATED_OLD=2
train 0 1 -- --plan --set model.backend=auto
said 1 'backend: cpu, .*; model.backend is auto: no device of compute capability 8.0 or newer: device 0, emulated .*, has 7.0'
train 1 1 -- --plan
said 1 'backend cuda: no device of compute capability 8.0 or newer'
unset DR_EMULATED_OLD
echo "devices that are too old: passed by"

# One line a run says what computes it, and why.
train 0 1 -- --plan --set model.backend=auto --set model.precision=bf16
said 1 'backend: cuda, device 0 at 0000:10:00.0, .*; model.backend is auto: there is a device'
said 0 'the simple kernels only'
train 0 1 -- --plan --set model.backend=cpu
said 1 'backend: cpu, [0-9]* threads?; asked for by model.backend'
for command in "recommend --user u1 --temperature 1 --model fresh $models $rules" "verify --model fresh --tokens 20 --live 2"; do
    "$emulated" $command --backend cuda >out 2>said || fail "$command"
    said 1 'backend: cuda, device 0 at 0000:10:00.0, the first of 2; asked for by --backend'
    ! grep -q 'backend: ' out || fail "$command: its line is among the results"
    "$emulated" $command >out 2>said || fail "$command"
    said 1 'backend: cpu, [0-9]* threads?; the default of --backend'
done
echo "one line says which backend and why"

# The plans: at least what the device gave, their reserve aside; refused before a tenth of it was taken.
export DR_EMULATED_METER=1
taken() { sed -n 's/^emulated device: at most \([0-9]*\) bytes were taken$/\1/p' said; }
planned() { # WHO: of the device, without the reserve, in bytes: at most so much, two figures were rounded to 0.1 MB
    sed -nE "s/.* memory of $1: (.*) MB; free are .* of .* MB;.*/\1/p" said | sed -E 's/.* libraries ([0-9.]*), in all ([0-9.]*)/\2 \1/' |
        awk '{ printf "%.0f\n", ($1 - $2 + 0.1) * 1e6 }'
}
check_plan() { # WHO
    [ "$(taken)" -gt 0 ] && [ "$(planned "$1")" -ge "$(taken)" ] || fail "$1: $(planned "$1") bytes planned, $(taken) taken"
    echo "$1: $(planned "$1") bytes planned, $(taken) taken"
}
train 0 1
check_plan "worker 0"
whole=$(taken)
train 1 1 -- --set learn.pack_tokens=10000000
said 1 'memory: the plan does not fit: weights .*, retrieval model .*, reserve for the device.s libraries .* MB; free are'
[ "$(taken)" -le $((whole / 10)) ] || fail "$(taken) bytes were taken before the refusal"
warm="sft --model fresh $models $rules --backend cuda --steps 2 --batch-tokens 512 --out warm"
"$emulated" $warm --pack-tokens 512 >said 2>&1 || fail "the warm-up"
check_plan "the warm-up"
if "$emulated" $warm --pack-tokens 100000000 >said 2>&1; then fail "a warm-up of terabytes was begun"; fi
said 1 'memory: the plan does not fit: weights .* MB; free are'
[ "$(taken)" -le $((whole / 10)) ] || fail "$(taken) bytes were taken before the refusal"
"$emulated" trm train --dataset data.h5 --out trained --epochs 1 --hidden 16 --text-dim 64 --experts 2 --batch 64 --samples 64 --backend cuda \
    >said 2>&1 || fail "the retrieval model's training"
check_plan "the training"
echo "the plan covers what the device gives, and is refused before"
