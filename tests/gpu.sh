#!/usr/bin/env bash
# Everything that wants a GPU, in one command of at most nine minutes and one report: tests/gpu.sh [REPORT] (default
# build/gpu-report.md, or gpu-report.md in $OUT when that is a folder). Without a GPU: one line "skipped: ..." and status 0.
# First what must be run (every op, the sanitizer, the main job on one worker and two, verify, draws, NCCL), each step with a limit
# of its own; then figures, the most valuable first, while there is time. A step that fails says so and the next one runs. The status
# is 1 when any failed, or when one that must be run was not, or not wholly; the report names them.
#   --pack DIR       only makes DIR: programs for GPUs of compute capability 9.0, their libraries, and Open MPI
#   --prebuilt DIR   uses such a folder in the place of a build
#   --backend cpu       rehearsal on the processor: the same steps, but for those that are about a device
#   --backend emulated  rehearsal of those, too, on the emulated device (tests/emulated) at the smallest sizes
set -u
cd "$(dirname "$0")/.." || exit 2
root=$PWD
export LC_ALL=C DR_GOLDEN_DIR=$root/tests/golden # programs that come along were built elsewhere

. tests/gpu_programs.sh
. tests/gpu_steps.sh

# ---- the run ----

started=$SECONDS
budget=540 # seconds for everything, on a device, the build included
rows=() failed=0 not_run=()
session="" # of the step that runs

members_of() { # SESSION: its processes
    cat /proc/[0-9]*/stat 2>/dev/null | awk -v session="$1" '{ pid = $1; sub(/^.*\) /, ""); if ($4 == session && $1 != "Z") print pid }'
}

# What a step has left running, ranks in process groups of their own among it, would share the machine with the next figures.
end_session() {
    local left
    [ -n "$session" ] || return 0
    left=$(members_of "$session")
    [ -z "$left" ] || { kill -KILL $left 2>/dev/null; echo "ended what the step had left running: $(echo $left | wc -w) processes" >> "$log"; }
    session=""
}

verdict_of() { # STATUS LIMIT OWN SECONDS: of a step that had LIMIT seconds, OWN when there is time enough
    local last
    last=$(tail -n 1 "$log")
    case $1 in
        0) echo passed ;;
        77) echo "skipped: ${last#skipped: }" ;;
        78) echo "cut: ${last#cut: }" ;;
        124 | 137)
            if [ "$4" -lt $(($2 - 1)) ]; then
                echo "FAILED: status $1, ended from outside"
            elif [ "$2" -lt "$3" ]; then
                echo "cut: no time left after $2 s of its $3"
            else
                echo "FAILED: over its limit of $2 s"
            fi
            ;;
        *) echo "FAILED: status $1" ;;
    esac
}

run_step() { # NAME LIMIT WHAT [must]: the function step_NAME
    local name=$1 own=$(($2 * patience)) what=$3 must=${4:-} limit left code verdict begun=$SECONDS
    left=$((budget * patience - (SECONDS - started)))
    log=$work/log_$name limit=$own
    [ "$limit" -le $left ] || limit=$left
    if [ $limit -lt 5 ]; then
        echo "cut: no time left" > "$log"
        code=78
    elif [ "$name" != machine ] && [ "$name" != packages ] && [ "$name" != build ] && [ ! -x "$bin/deeprec" ]; then
        echo "skipped: no program, for the build failed" > "$log"
        code=77
    else
        step_seconds=$limit setsid timeout -k 5 "$limit" bash "$root/tests/gpu.sh" --step "$name" > "$log" 2>&1 &
        session=$!
        wait $session
        code=$?
        end_session
    fi
    verdict=$(verdict_of $code $limit $own $((SECONDS - begun)))
    case $verdict in
        FAILED*) failed=$((failed + 1)) ;;
        cut*) cut_figures "$name" ;;
    esac
    # In a rehearsal what is about a device is skipped by right.
    case $must:$place:$verdict in must:*:cut* | must:gpu:skipped*) not_run+=("$what: $verdict") ;; esac
    rows+=("| $what | $verdict | $((SECONDS - begun)) |")
    echo "$what: $verdict ($((SECONDS - begun)) s)"
    printf '\n## %s: %s\n\n```\n%s\n```\n' "$what" "$verdict" "$(tail -c 14000 "$log")" >> "$report"
}

# The figures that the table has to call "no time left": those of a step that was cut.
cut_figures() { # STEP
    local name file=$work/json/cut/ours
    case $1 in peers_*) file=$work/json/cut/peers ;; esac
    for name in $(figures "$1" | tr , ' '); do
        printf '{"name":"%s","model":"%s"}\n' "$name" "$(model_of "$1")" >> "$file.json"
    done
}

# From the lines of all steps; what a step has left before it was ended counts. In a rehearsal the goals' sizes are small.
goals_table() {
    local goals=bench/goals.txt
    [ -x "$bin/bench_table" ] || { echo "no program, for the build failed"; return; }
    if [ "$place" != gpu ]; then
        goals=$work/goals.txt
        sed -E "/^#/!{s/p8192.c4096/p$pack.c$length/g;s/b256.c4096/b$batch.c$context/g;s/b1.c512/b1.c$short/g
            s/7b\/4/$large\/$layers/g;s/(7b|1.5b|0.5b)/$large/g;s/t4096/t$op_rows/g;s/t8192/t$head_rows/g;s/t256/t$batch/g}" \
            bench/goals.txt > "$goals"
        [ "$place" != cpu ] || sed -Ei 's/\| cuda(-graphs)? \|/| cpu |/' "$goals"
    fi
    "$bin/bench_table" "$goals" "$work"/json/*.json --peers "$work"/json/peers/*.json --cut "$work/json/cut/ours.json" \
        --cut-peers "$work/json/cut/peers.json" || echo "the table failed"
}

heading() {
    local title="GPU report"
    [ "$place" = gpu ] || title="REHEARSAL ON THE PROCESSOR: no figure here is a device's"
    [ "$place" != emulated ] || title="REHEARSAL ON AN EMULATED DEVICE: no figure here is a device's"
    printf '# %s\n\n%s\n\n' "$title" "$(date -u +%Y-%m-%dT%H:%M:%SZ)"
    echo "tree: $(source_state)"
    [ -z "$prebuilt" ] || echo "programs: $(packed_state)"
}

# The limits of what must be run come to 345 s, those of tools and build before it to 170 s: they fit into the budget together, and
# with prebuilt programs most of the time is left for figures.
run_all() {
    mkdir -p "$(dirname "$report")" && heading > "$report" || return 2
    run_step machine 10 "machine"
    run_step packages 30 "tools and packages"
    run_step build 130 "build"
    run_step doctor 10 "doctor" must
    run_step ops_test 55 "every op against the processor" must
    run_step sanitizer 55 "compute-sanitizer: memory and barriers, small cases" must
    run_step job 35 "a small job's data and policy" must
    run_step train 50 "the main job, one worker and two" must
    run_step train_bf16 25 "the main job in bf16" must
    run_step verify 40 "sampling and training agree, fp32 and bf16" must
    run_step same_draws 15 "the processor's draws in fp32" must
    run_step nccl 35 "NCCL, 2 and 4 ranks on one device" must
    run_step train_nccl 25 "the main job, gradients through NCCL" must
    # What bench/goals.txt asks for, the peers of the largest goals before the smaller goals; then tables of everything.
    run_step goal_decode_large 75 "goals: decoding, $large"
    run_step goal_attention 30 "goals: attention"
    run_step goal_train 35 "goals: training, $middle"
    run_step peers_attention 30 "PyTorch: attention"
    run_step goal_slice 35 "goals: training, a slice of $large"
    run_step goal_exactness 30 "goals: what exactness costs"
    run_step peers_decode 45 "PyTorch: decoding, $large"
    run_step peers_train 45 "PyTorch: training, $middle"
    run_step goal_head 20 "goals: loss head"
    run_step goal_rows 20 "goals: norms and AdamW"
    run_step goal_decode 30 "goals: decoding, $shape"
    run_step peers_head 30 "PyTorch: loss head"
    run_step goal_handover 20 "goals: hand-over of weights"
    run_step peers_slice 40 "PyTorch: training, a slice of $large"
    run_step peers_rows 30 "PyTorch: norms and AdamW"
    run_step peers_small 40 "PyTorch and transformers: decoding, $shape"
    run_step goal_wgmma 20 "attention, forward with wgmma too"
    run_step engine_rollout 30 "rollout"
    run_step engine_long 30 "one long trajectory"
    run_step racecheck 90 "compute-sanitizer: races, small cases"
    run_step memcheck_verify 60 "compute-sanitizer: memory, passes of a model"
    run_step engine_decode 45 "decoding"
    run_step engine_train 45 "training"
    run_step ops_bf16 90 "figures by op, bf16"
    run_step ops_wgmma 45 "attention's figures, wgmma"
    run_step ops_fp32 45 "figures by op, fp32"
    {
        printf '\n## Summary\n\n| step | result | seconds |\n|---|---|---|\n'
        printf '%s\n' "${rows[@]}"
        printf '\n%s steps failed, %s s in all\n' "$failed" $((SECONDS - started))
        [ ${#not_run[@]} = 0 ] || printf 'must be run, and was not: %s\n' "${not_run[@]}"
        printf '\n## Figures asked for\n\n'
        goals_table
    } >> "$report" 2>&1
    sed -n '/^## Summary/,$p' "$report"
    echo "report: $report"
    [ $failed = 0 ] && [ ${#not_run[@]} = 0 ]
}

absolute() { case $1 in /*) echo "$1" ;; *) echo "$PWD/$1" ;; esac; }

if [ "${1:-}" = --step ]; then # from run_step; all settings are in the environment
    . tests/mpi-env.sh
    "step_$2"
    exit
fi

place=gpu prebuilt="" report=build/gpu-report.md
[ -z "${OUT:-}" ] || [ ! -d "$OUT" ] || report=$OUT/gpu-report.md
while [ $# -gt 0 ]; do
    case $1 in
        --pack | --prebuilt | --backend) [ $# -ge 2 ] || { echo "$1 wants a value" >&2; exit 2; } ;;&
        --pack)
            pack "$(absolute "$2")"
            exit
            ;;
        --prebuilt)
            prebuilt=$(absolute "$2")
            shift
            ;;
        --backend)
            case $2 in
                cuda) place=gpu ;;
                cpu | emulated) place=$2 ;;
                *) echo "--backend $2: expected cuda, cpu or emulated" >&2 && exit 2 ;;
            esac
            shift
            ;;
        -*) echo "usage: tests/gpu.sh [--backend cuda|cpu|emulated] [--prebuilt DIR | --pack DIR] [REPORT]" >&2 && exit 2 ;;
        *) report=$1 ;;
    esac
    shift
done
[ "$place" != emulated ] || [ -z "$prebuilt" ] || { echo "--prebuilt has no programs for --backend emulated" >&2; exit 2; }
[ -z "$prebuilt" ] || [ -e "$prebuilt/pack.tar.gz" ] || { echo "$prebuilt/pack.tar.gz is not there: make it with --pack" >&2; exit 2; }
report=$(absolute "$report")
if [ "$place" = gpu ]; then
    if ! command -v nvidia-smi >/dev/null; then
        echo "skipped: no GPU (no nvidia-smi here)"
        exit 0
    elif ! list=$(nvidia-smi -L 2>&1) || [ -z "$list" ]; then
        echo "skipped: no GPU ($(echo "$list" | head -n 1))"
        exit 0
    fi
fi

work=$(mktemp -d) || exit 2
log=/dev/null
trap 'end_session; rm -rf "$work"' EXIT
trap 'exit 130' INT TERM
command -v setsid >/dev/null || { echo "setsid (util-linux) is not here" >&2; exit 2; }
bin=$root/build/gpu-$place
[ "$place" != emulated ] || bin=$work/bin
[ -z "$prebuilt" ] || use_prebuilt "$prebuilt" || exit 2
export OMP_WAIT_POLICY=passive GOMP_SPINCOUNT=3000 DR_LOG=${DR_LOG:-info}
mkdir -p "$work/json/peers" "$work/json/cut" "$work/found" || exit 2
[ "$place" != gpu ] || find_libraries || exit 2
prompts=4 samples=3 more_steps=2 users="u1 u2 u3 u5 u8" warm_tokens=3000 verify_few="" written=small train_options=""
case $place in
    gpu)
        backend=cuda patience=1 verify_tokens=20000 live=128 exact_type=bf16 seconds=0.1 shape=0.5b ops_options=""
        large=7b middle=1.5b layers=4 op_rows=4096 head_rows=8192 batch=256 short=512 context=4096 pack=8192 length=4096
        ;;
    cpu)
        backend=cpu patience=4 verify_tokens=500 live=24 exact_type=fp32 seconds=0.01 shape=small ops_options="--shape small --rows 64"
        large=small middle=small layers=2 op_rows=64 head_rows=64 batch=8 short=128 context=128 pack=256 length=128
        ;;
    emulated)
        export DR_EMULATED_OPEN=1
        backend=cuda patience=9 verify_tokens=20 live=2 exact_type=bf16 seconds=0.001 shape=tiny ops_options="--shape tiny --rows 16 --batch 2"
        large=tiny middle=tiny layers=2 op_rows=16 head_rows=16 batch=8 short=128 context=128 pack=32 length=16
        prompts=2 samples=2 more_steps=0 users="u1 u2 u3" warm_tokens=20 verify_few="--live 2 --samples 2 --alone 8" written=tiny train_options="--pack 32 --length 16"
        ;;
esac
export root patience place backend prebuilt bin work verify_tokens live exact_type seconds shape ops_options
export large middle layers op_rows head_rows batch short context pack length
export prompts samples more_steps users warm_tokens verify_few written train_options
run_all
