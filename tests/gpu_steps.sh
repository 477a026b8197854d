# The steps of tests/gpu.sh, which sources this: step_NAME runs in a process of its own, with the settings in the environment.
# Status 0: passed. 77: skipped, the last line says why. 78: cut, a part could not be run in the step's time. All else: failed.

skip() { # REASON
    echo "skipped: $1"
    exit 77
}

cut_off() { # REASON
    echo "cut: $1"
    exit 78
}

on_device() { [ "$backend" = cuda ] || skip "about a device, and this is a rehearsal on the processor"; }

on_gpu() { [ "$place" = gpu ] || skip "about a GPU, and this is a rehearsal without"; }

work_file() { [ -e "$work/$1" ] || skip "the step before left no $1"; }

step_machine() {
    uname -srm
    nproc
    [ "$place" = gpu ] || return 0
    nvidia-smi
    nvidia-smi --query-gpu=name,compute_cap,driver_version,memory.total,clocks.max.sm,clocks.max.mem,power.limit --format=csv
    command -v nvcc >/dev/null && nvcc --version | tail -n 2
    ldconfig -p | grep -E 'libnccl|libcublasLt' || echo "no NCCL or cuBLASLt in the loader's cache"
    ls -l "$work/found"
}

step_packages() {
    [ -z "$prebuilt" ] || skip "prebuilt programs"
    . launch/deps.sh
    local missing=""
    for tool in cmake ninja gcc pkg-config mpicc mpirun; do command -v $tool >/dev/null || missing="$missing $tool"; done
    [ "$place" != gpu ] || command -v nvcc >/dev/null || [ -x /usr/local/cuda/bin/nvcc ] || missing="$missing nvcc"
    echo "tools that are missing:${missing:- none}"
    command -v dpkg-query >/dev/null || { echo "not a Debian system"; [ -z "$missing" ]; return; }
    echo "packages that are missing: $(deeprec_missing $deeprec_packages)"
    deeprec_install
}

step_build() {
    [ -z "$prebuilt" ] || skip "prebuilt programs in $prebuilt"
    local folder=$root/build/gpu-$place capability
    case $place in
        cpu) build "$folder" none ;;
        emulated) build "$folder" emulated && name_emulated "$folder" ;;
        gpu)
            capability=$(nvidia-smi --query-gpu=compute_cap --format=csv,noheader | head -n 1)
            build "$folder" "${capability/./}-real"
            ;;
    esac
}

step_doctor() { "$bin/deeprec" doctor; }

step_ops_test() {
    on_device
    local test failed=0
    for test in $op_tests; do "$bin/$test" || failed=1; done
    return $failed
}

small_job="--k 5 --k-retrieve 6 --max-retrievals 2 --max-turn-tokens 48 --max-total-tokens 384"

# Eighty steps of the warm-up: with a few it never asks the retrieval model for anything.
step_job() { # data, retrieval model, warmed-up policy, all on the processor
    cd "$work" || return 1
    "$bin/deeprec" prepare synthetic --users 40 --catalogue 60 --length 12 --out data.h5 &&
        "$bin/deeprec" trm train --dataset data.h5 --out trm --epochs 2 --hidden 16 --text-dim 64 --experts 2 --batch 64 &&
        "$bin/deeprec" init --dataset data.h5 --out fresh --preset tiny --vocab 700 &&
        "$bin/deeprec" sft --model fresh --trm trm --dataset data.h5 --out warm.part --steps 80 --batch-tokens 2048 --rate 0.005 \
            $small_job && mv warm.part warm && cat > run.yaml <<Y
protocol: {k: 5, k_retrieve: 6, max_retrievals: 2, max_turn_tokens: 48, max_total_tokens: 384}
learn: {rate: 1e-3, pack_tokens: 1024}
stage1: {steps: 1, prompts: $prompts, samples: $samples, updates: 2, difficulty_to: 0}
stage2: {steps: $more_steps, prompts: $prompts, samples: $samples, updates: 2, difficulty_to: 0}
checkpoint: {every: 1, keep: 3}
Y
}

# The sanitizer slows kernels down a hundredfold: small cases of every op, a few draws and passes of the smallest model.
# Errors of the runtime's calls are not asked for: tests provoke some, and the programs look at each.
# The programs of a tool run side by side, for nothing is measured: each has all of the tool's time.
find_sanitizer() {
    sanitizer=$(command -v compute-sanitizer || ls /usr/local/cuda/bin/compute-sanitizer 2>/dev/null) || skip "no compute-sanitizer here"
}

# In the background; its status goes to $dir/code, what it says to $dir/said.
sanitize() { # TOOL SECONDS PROGRAM OPTIONS...
    local tool=$1 seconds=$2 dir=$work/sanitized/$1-${3##*/}
    shift 2
    mkdir -p "$dir/tmp" || return 1
    {
        TMPDIR=$dir/tmp timeout -k 2 "$seconds" "$sanitizer" --tool "$tool" --target-processes all --report-api-errors no --print-limit 10 \
            --error-exitcode 9 "$@" > "$dir/said" 2>&1
        echo $? > "$dir/code"
    } &
}

# Every program must end, and with 0. Those that time cut short, by TERM or by KILL behind it, are named.
sanitize_end() {
    local dir code failed=0 not_ended=""
    wait
    for dir in "$work"/sanitized/*; do
        echo "-- ${dir##*/}"
        tail -n 40 "$dir/said"
        ! grep -q 'Device not supported' "$dir/said" || skip "compute-sanitizer does not support this device"
        code=$(cat "$dir/code" 2>/dev/null)
        case $code in
            0) ;;
            124 | 137 | "") not_ended="$not_ended ${dir##*/}" ;;
            *) echo "status $code" && failed=1 ;;
        esac
    done
    [ $failed = 0 ] || return 1
    [ -z "$not_ended" ] || cut_off "not ended in time:$not_ended"
}

sanitize_small() { # TOOL...
    local tool test tools=$# seconds
    on_gpu
    find_sanitizer
    rm -rf "$work/sanitized"
    for tool in "$@"; do
        seconds=$(((step_seconds - SECONDS - 4) / tools))
        tools=$((tools - 1))
        for test in $small_tests; do sanitize "$tool" $seconds "$bin/$test"; done
        wait
    done
    sanitize_end
}

step_sanitizer() { sanitize_small memcheck synccheck; }
step_racecheck() { sanitize_small racecheck; }

step_memcheck_verify() {
    on_gpu
    work_file warm
    find_sanitizer
    rm -rf "$work/sanitized"
    sanitize memcheck $((step_seconds - 4)) "$bin/deeprec" verify --backend cuda --model "$work/warm" --tokens 200 --live 4 --alone 4
    sanitize_end
}

train() { # FOLDER RANKS EXTRA...
    local folder=$1 ranks=$2 launcher=""
    shift 2
    [ "$ranks" = 1 ] || launcher="mpirun -n $ranks"
    $launcher "$bin/deeprec" train "$work/run.yaml" --set "run.dir=$folder" --set "data.dataset=$work/data.h5" \
        --set "model.trm=$work/trm" --set "model.policy=$work/warm" --set "model.backend=$backend" "$@"
}

# One worker twice, then two workers on one device: a coordinator, a reward shard and they. From the same weights the first
# step is the same bytes whatever the workers; the same run is the same bytes to its end.
step_train() {
    work_file run.yaml
    train "$work/one" 1 && train "$work/again" 1 && train "$work/two" 4 --set ranks.share_devices=true || return 1
    local first=trajectories/step_000001_shard_0.h5 same=0
    cmp "$work/one/policy/model.safetensors" "$work/again/policy/model.safetensors" || same=1
    cmp "$work/one/$first" "$work/two/$first" || same=1
    [ $same = 0 ] && echo "one worker twice: the same weights; two workers: the same first step"
    return $same
}

# In bf16, as runs on a device are: the ratio of what was drawn to what training computes is 1 to the last bit, so the first update's
# log-probabilities have no gap, and a run is the same bytes again.
step_train_bf16() {
    work_file run.yaml
    train "$work/bf16" 1 --set model.precision=bf16 --set stage2.steps=0 --set stage1.updates=1 || return 1
    train "$work/bf16_again" 1 --set model.precision=bf16 --set stage2.steps=0 --set stage1.updates=1 || return 1
    cmp "$work/bf16/policy/model.safetensors" "$work/bf16_again/policy/model.safetensors" || return 1
    ! cmp -s "$work/bf16/policy/model.safetensors" "$work/warm/model.safetensors" || { echo "nothing was learned"; return 1; }
    grep -o '"ratio_mean":[^,]*' "$work/bf16/metrics.jsonl"
    grep -q '"ratio_mean": *1\(\.0*\)\?[,}]' "$work/bf16/metrics.jsonl" || { echo "the ratio is not 1 at first"; return 1; }
    echo "bf16: the same weights twice, and the ratio is 1 at first"
}

# Two learners on one device, each a machine of its own to NCCL: the bytes of their sum through MPI.
step_train_nccl() {
    on_device
    work_file run.yaml
    has_nccl
    work_file two/policy/model.safetensors
    local job=("$bin/deeprec" train "$work/run.yaml" --set "run.dir=$work/joined" --set "data.dataset=$work/data.h5"
        --set "model.trm=$work/trm" --set "model.policy=$work/warm" --set "model.backend=$backend" --set ranks.share_devices=true)
    mpirun -n 2 "${job[@]}" : -n 1 -x NCCL_HOSTID=one "${job[@]}" : -n 1 -x NCCL_HOSTID=two "${job[@]}" > "$work/joined.log" 2>&1 || {
        cat "$work/joined.log"
        return 1
    }
    grep 'gradients: summed up' "$work/joined.log"
    grep -q 'gradients: summed up through NCCL' "$work/joined.log" || return 1
    cmp "$work/two/policy/model.safetensors" "$work/joined/policy/model.safetensors" &&
        echo "two learners on one device: the same weights through NCCL as through MPI"
}

# What the processor draws in fp32, the device draws: sums in another order move log-probabilities by some 1e-6, and a draw
# changes only where it was that close.
step_same_draws() {
    work_file warm
    local user body different=0 retrieved=0
    for user in $users; do
        for body in cpu "$backend"; do
            "$bin/deeprec" recommend --model "$work/warm" --trm "$work/trm" --dataset "$work/data.h5" --user $user --temperature 1 \
                --backend $body $small_job > "$work/draws_$body.$user" || return 1
        done
        cmp "$work/draws_cpu.$user" "$work/draws_$backend.$user" || different=1
        ! grep -q 'Asks for:' "$work/draws_$backend.$user" || retrieved=$((retrieved + 1))
    done
    echo "trajectories of $users: $retrieved asked the retrieval model for items"
    [ $different = 0 ] && echo "the same texts on cpu and $backend"
    [ $retrieved -gt 0 ] && return $different
}

has_nccl() {
    [ "$place" = emulated ] || [ -e "$work/found/libnccl.so.2" ] || ldconfig -p | grep -qF libnccl.so.2 || skip "no NCCL here"
    ! "$bin/deeprec" doctor | grep -q '^  NCCL  *built without' || skip "a build without nccl.h of 2.14 or later"
}

step_nccl() {
    on_device
    has_nccl
    local ranks failed=0
    for ranks in 2 4; do
        NCCL_DEBUG=WARN timeout -k 2 $((15 * patience)) mpirun -n $ranks "$bin/gpu_nccl" || { echo "$ranks ranks: status $?"; failed=1; }
    done
    return $failed
}

step_verify() {
    work_file warm
    local dtype failed=0
    "$bin/bench_engine" --shape "$written" --write-model "$work/small" || return 1
    for dtype in fp32 bf16; do
        echo "-- $dtype"
        "$bin/deeprec" verify --backend "$backend" --dtype $dtype --model "$work/warm" --tokens "$warm_tokens" $verify_few || failed=1
        "$bin/deeprec" verify --backend "$backend" --dtype $dtype --model "$work/small" --tokens "$verify_tokens" $verify_few || failed=1
    done
    return $failed
}

# ---- figures that bench/goals.txt asks for; their lines are in $work/json, those of peers in $work/json/peers ----

ops() { # NAME OPTIONS...: bench_ops in bf16
    local name=$1
    shift
    "$bin/bench_ops" --precision bf16 --seconds "$seconds" --json "$work/json/$name.json" "$@"
}

engine() { # NAME OPTIONS...
    local name=$1
    shift
    "$bin/bench_engine" --backend "$backend" --precision bf16 --seconds "$seconds" --json "$work/json/$name.json" "$@"
}

# The figures of a step, with commas between; the model that they are of.
figures() { # STEP
    local t=$large.t$op_rows
    case $1 in
        goal_attention | peers_attention) echo "attention_forward.$t,attention_backward.$t,attention_cached.c4096.$large.t$batch" ;;
        goal_wgmma) echo "attention_forward.$t,attention_backward.$t" ;;
        goal_rows | peers_rows) echo "rmsnorm_residual_forward.$t,rmsnorm_backward.$t,adamw.$t" ;;
        goal_head)
            local h=$large.t$head_rows
            echo "head_forward.$h,head_backward.$h,head_forward_kept.$h,head_backward_kept.$h"
            ;;
        peers_head) echo "head_forward.$large.t$head_rows,loss_head.$large.t$head_rows" ;;
        goal_decode_large) echo "decode.b$batch.c$context.sampled,decode.b$batch.c$context.nucleus,decode.b$batch.c$context,decode.b1.c$short,decode.b$batch.c$context.shared" ;;
        goal_decode) echo "decode.b1.c$short.sampled,decode.b$batch.c$context.sampled,decode.b$batch.c$context.nucleus" ;;
        peers_decode) echo "decode.b1.c$short,decode.b$batch.c$context" ;;
        peers_small) echo "decode.b1.c$short,decode.b$batch.c$context,generate.b1.c512" ;;
        goal_train | goal_slice | peers_train | peers_slice) echo "train.p$pack.c$length" ;;
        goal_handover) echo "handover.bytes,handover.packed" ;;
        goal_exactness) echo "exactness.sampling,exactness.training" ;;
    esac
}

model_of() { # STEP
    case $1 in
        *_train | goal_handover) echo "$middle" ;;
        *_slice) echo "$large/$layers" ;;
        goal_decode | peers_small | goal_exactness) echo "$shape" ;;
        *) echo "$large" ;;
    esac
}

is_wgmma() {
    on_device
    [ "$place" != emulated ] || return 0 # its compute capability is 9.0
    [ "$(nvidia-smi --query-gpu=compute_cap --format=csv,noheader | head -n 1)" = 9.0 ] || skip "not a device of compute capability 9.0"
}

step_goal_attention() {
    local t=$large.t$op_rows
    ops attention --backend "$backend" --shape "$large" --part attention --rows "$op_rows" \
        --only "attention_forward.$t,attention_backward.$t" &&
        ops cached --backend "$backend" --shape "$large" --part attention --batch "$batch" --only "attention_cached.c4096.$large.t$batch"
}

step_goal_rows() { ops rows --backend "$backend" --shape "$large" --part rows --rows "$op_rows" --only "$(figures goal_rows)"; }
step_goal_head() { ops head --backend "$backend" --shape "$large" --part head --rows "$head_rows" --only "$(figures goal_head)"; }

step_goal_wgmma() {
    is_wgmma
    ops wgmma --backend cuda-wgmma --shape "$large" --part attention --rows "$op_rows" --only "$(figures goal_wgmma)"
}

# With each step as one graph; without, should that fail, for the figures.
step_goal_decode_large() {
    local only
    only=$(figures goal_decode_large)
    if [ "$backend" = cuda ]; then
        engine decode_graphs --backend cuda-graphs --part decode --shape "$large" --only "$only" && return
        echo "failed with graphs; without:"
    fi
    engine decode_large --part decode --shape "$large" --only "$only" && [ "$backend" = cpu ]
}

step_goal_decode() {
    local only failed=0
    only=$(figures goal_decode)
    [ "$backend" = cpu ] || engine small_graphs --backend cuda-graphs --part decode --shape "$shape" --only "$only" || failed=1
    engine small --part decode --shape "$shape" --only "$only" || failed=1
    return $failed
}

step_goal_train() { engine train --part train --shape "$middle" --pack "$pack" --length "$length"; }
step_goal_slice() { engine slice --part train --shape "$large" --layers "$layers" --pack "$pack" --length "$length"; }
step_goal_handover() { engine handover --part handover --shape "$middle"; }

# Also the check that sampling and training agree, on a model of real width. What it says of exactness becomes lines.
step_goal_exactness() {
    "$bin/bench_engine" --backend "$backend" --shape "$shape" --write-model "$work/goal" || return 1
    "$bin/deeprec" verify --backend "$backend" --dtype $exact_type --model "$work/goal" --tokens "$verify_tokens" --live "$live" $verify_few |
        tee "$work/exactness"
    [ "${PIPESTATUS[0]}" = 0 ] || return 1
    sed -nE 's/^exactness costs (-?[0-9]+) %.* and (-?[0-9]+) % of the training pass.*/'\
'{"name":"exactness.sampling","value":\1,"unit":"%","backend":"'"$backend"'"}\n{"name":"exactness.training","value":\2,"unit":"%","backend":"'"$backend"'"}/p' \
        "$work/exactness" > "$work/json/exactness.json"
}

peers() { # NAME OPTIONS...
    local name=$1 device=cpu ours
    shift
    [ "$backend" = cpu ] || device=cuda
    "${PYTHON:-python3}" -c 'import torch, safetensors' 2>/dev/null || skip "no torch and safetensors here"
    [ $device = cpu ] || "${PYTHON:-python3}" -c 'import torch; assert torch.cuda.is_available()' 2>/dev/null || skip "no torch with CUDA here"
    ours=$(ls "$work"/json/*.json 2>/dev/null | paste -sd,)
    BENCH_ENGINE=$bin/bench_engine BENCH_OPS=$bin/bench_ops bench/peers/run.sh --device $device --precision bf16 --seconds "$seconds" --ours "${ours:-/dev/null}" --json "$work/json/peers/$name.json" "$@"
}

peers_ops() { # NAME PARTS
    peers "$1" --part ops --only "$2" --shape "$large" --rows "$op_rows" --head-rows "$head_rows" --batch "$batch" --context 4096
}
step_peers_attention() { peers_ops attention attention,decode; }
step_peers_head() { peers_ops head head; }
step_peers_rows() { peers_ops rows norm,adamw; }

step_peers_decode() {
    work_file goal/check.safetensors
    peers decode_large --model "$work/goal" --shape "$large" --only "decode.b1.c$short,decode.b$batch.c$context"
}

step_peers_small() {
    work_file goal/check.safetensors
    local generate=--generate
    [ "$backend" = cuda ] || generate=""
    peers decode --model "$work/goal" --label "$shape" $generate --only "decode.b1.c$short,decode.b$batch.c$context"
}

step_peers_train() {
    work_file goal/check.safetensors
    peers train --model "$work/goal" --shape "$middle" --pack "$pack" --length "$length" --only "train.p$pack.c$length"
}

step_peers_slice() {
    work_file goal/check.safetensors
    peers slice --model "$work/goal" --shape "$large" --layers "$layers" --pack "$pack" --length "$length" \
        --only "train.p$pack.c$length"
}

# ---- the other figures ----

step_ops_bf16() { ops all --backend "$backend" $ops_options; }
step_ops_wgmma() {
    is_wgmma
    ops wgmma_all --backend cuda-wgmma --part attention $ops_options
}
step_ops_fp32() { "$bin/bench_ops" --backend "$backend" --precision fp32 --seconds "$seconds" --shape "$written" $ops_options; }

step_engine_decode() { engine decode_all --part decode --shape "$shape"; }
step_engine_train() { engine train_all --part train --shape "$shape" $train_options; }
step_engine_rollout() { engine rollout --part rollout; }
step_engine_long() {
    on_device
    engine long --part long --shape "$shape" --layers "$layers"
}
