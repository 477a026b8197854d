#!/usr/bin/env bash
# Everything that wants a GPU, in one command of at most nine minutes and one report: tests/gpu.sh [REPORT] (default
# build/gpu-report.md, or gpu-report.md in $OUT when that is a folder). Without a GPU: one line "skipped: ..." and status 0.
# A step that fails says so and the next one runs; the status is 1 when any failed.
#   --pack DIR       only makes DIR: programs for GPUs of compute capability 9.0, their libraries, and Open MPI
#   --prebuilt DIR   uses such a folder in the place of a build
#   --backend cpu       rehearsal on the processor: the same steps, but for those that are about a device
#   --backend emulated  rehearsal of those, too, on the emulated device (tests/emulated) at the smallest sizes
set -u
cd "$(dirname "$0")/.." || exit 2
root=$PWD
export LC_ALL=C

# ---- programs ----

op_tests="test_backend_cuda test_cuda_products test_head_cuda test_attention_cuda test_decode_cuda test_retrieval_cuda"
small_tests=$(printf '%s_small ' $op_tests) # with small cases, for compute-sanitizer
programs="deeprec bench_ops bench_engine bench_table $op_tests $small_tests gpu_nccl"
emulated="deeprec bench_ops bench_engine gpu_nccl $op_tests"

build() { # FOLDER ARCHITECTURES|none|emulated
    local cuda=(-DDR_CUDA=OFF) targets="deeprec bench_ops bench_engine bench_table"
    case $2 in
        none) ;;
        emulated) targets="bench_table $(printf '%s_emulated ' $emulated)" ;;
        *) cuda=(-DDR_CUDA=AUTO "-DCMAKE_CUDA_ARCHITECTURES=$2") targets=$programs ;;
    esac
    cmake -S . -B "$1" -G Ninja -DCMAKE_BUILD_TYPE=Release "${cuda[@]}" &&
        cmake --build "$1" -j "$(nproc)" --target $targets | tail -n 3
    return "${PIPESTATUS[0]}"
}

# The emulated programs by the names of the others.
name_emulated() { # FOLDER of the build
    local name
    mkdir -p "$bin" || return 1
    ln -sf "$1/bench_table" "$bin/bench_table" || return 1
    for name in $emulated; do ln -sf "$1/tests/emulated/${name}_emulated" "$bin/$name" || return 1; done
}

pack() {
    local dir=$1 built=build/gpu-pack file plugins pmix
    build "$built" 90-real || return 1
    rm -rf "$dir/bin" "$dir/lib" "$dir/share" "$dir/pack.tar.gz"
    mkdir -p "$dir/bin" "$dir/lib/plugins" "$dir/lib/pmix" "$dir/share" || return 1
    for file in $programs; do
        [ -x "$built/$file" ] || { echo "$built/$file is not there: no CUDA toolkit?" >&2; return 1; }
        strip -o "$dir/bin/$file" "$built/$file" || return 1
    done
    for file in mpirun orted; do cp -L "$(command -v $file)" "$dir/bin/" || return 1; done
    plugins=$(ompi_info --parsable --path pkglibdir | sed 's/.*://')
    cp "$plugins"/*.so "$dir/lib/plugins/" || return 1
    pmix=$(ldd "$plugins"/mca_pmix_*.so | awk '$1 ~ /^libpmix/ { print $3; exit }')
    [ -z "$pmix" ] || cp "$(dirname "$(readlink -f "$pmix")")"/pmix/*.so "$dir/lib/pmix/" || return 1
    cp -r /usr/share/openmpi "$dir/share/" 2>/dev/null || echo "without Open MPI's help texts"
    # All but the C library, which belongs to the machine's loader, and what the driver brings. Plugins for networks that
    # need more than the programs do are left out.
    for file in "$dir"/lib/plugins/*; do
        case $file in *ucx* | *ofi* | *psm* | *portals* | *verbs* | *openib* | *usnic*) rm "$file" ;; esac
    done
    ldd "$dir"/bin/* "$dir"/lib/plugins/*.so "$dir"/lib/pmix/*.so | awk '$2 == "=>" && $3 ~ /^\// { print $3 }' | sort -u |
        grep -vE '/(libc|libm|libdl|librt|libpthread|libresolv|libutil|ld-linux[^/]*|libcuda|libnvidia[^/]*|libnccl)\.so' |
        while read -r file; do cp -L "$file" "$dir/lib/"; done
    tar -C "$dir" -czf "$dir/pack.tar.gz" bin lib share && rm -rf "$dir/bin" "$dir/lib" "$dir/share" || return 1
    local kib
    kib=$(du -sk "$dir" | cut -f1)
    echo "$dir: $((kib / 1024)) MiB"
    [ "$kib" -lt 65536 ] || { echo "more than 64 MiB" >&2; return 1; }
}

# Programs through wrappers: only they see the libraries that came along, not Python or the toolkit's tools, which have
# newer ones. Ranks copy through shared memory, for sandboxes forbid them to read each other's.
use_prebuilt() {
    local packed=$work/packed file
    bin=$work/bin
    mkdir -p "$bin" "$packed" && tar -C "$packed" -xzf "$1/pack.tar.gz" || return 1
    for file in "$packed"/bin/*; do
        printf '#!/bin/sh\nLD_LIBRARY_PATH="%s${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}" exec "%s" "$@"\n' "$packed/lib" "$file" \
            > "$bin/${file##*/}" || return 1
    done
    chmod +x "$bin"/* || return 1
    export PATH=$bin:$PATH OPAL_PREFIX=$packed OMPI_MCA_mca_base_component_path=$packed/lib/plugins
    export PMIX_MCA_mca_base_component_path=$packed/lib/pmix OMPI_MCA_btl_vader_single_copy_mechanism=none
}

# NCCL and cuBLASLt where the loader does not look but a Python package has them.
find_libraries() {
    local packages name file
    packages=$("${PYTHON:-python3}" -c 'import sysconfig; print(sysconfig.get_path("purelib"))' 2>/dev/null) || return 0
    for name in libnccl.so.2 libcublasLt.so.13 libcublasLt.so.12; do
        ! ldconfig -p | grep -qF "$name" || continue
        file=$(ls "$packages"/nvidia/*/lib/$name 2>/dev/null | head -n 1)
        [ -z "$file" ] || ln -sf "$file" "$work/found/$name" || return 1
    done
    export LD_LIBRARY_PATH=$work/found${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}
}

# ---- steps: functions of their own process; 77 is skipped, the last line says why ----

skip() { # REASON
    echo "skipped: $1"
    exit 77
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
# Errors of the runtime's calls are not asked for: tests provoke some, and the programs look at each. A program that the
# step's time is too short for says so and is no failure.
sanitized=0 # programs that ended
sanitize() { # TOOL PROGRAM OPTIONS...
    local tool=$1 sanitizer code left=$((step_seconds - SECONDS - 8))
    shift
    sanitizer=$(command -v compute-sanitizer || ls /usr/local/cuda/bin/compute-sanitizer 2>/dev/null) || skip "no compute-sanitizer here"
    echo "-- $tool: ${1##*/}"
    [ $left -ge 5 ] || { echo "no time left"; return 0; }
    timeout -k 2 $left "$sanitizer" --tool "$tool" --target-processes all --report-api-errors no --print-limit 10 --error-exitcode 9 "$@" \
        > "$work/sanitized" 2>&1
    code=$?
    tail -n 40 "$work/sanitized"
    ! grep -q 'Device not supported' "$work/sanitized" || skip "compute-sanitizer does not support this device"
    [ $code != 124 ] || { echo "not done after $left s"; return 0; }
    sanitized=$((sanitized + 1))
    [ $code = 0 ] || echo "status $code"
    return $code
}

step_memcheck() {
    on_gpu
    local test failed=0
    [ ! -e "$work/warm" ] || sanitize memcheck "$bin/deeprec" verify --backend cuda --model "$work/warm" --tokens 200 --live 4 \
        --alone 4 || failed=1
    for test in $small_tests; do sanitize memcheck "$bin/$test" || failed=1; done
    [ $sanitized -gt 0 ] || skip "no program ended in time"
    return $failed
}

step_racecheck() {
    on_gpu
    local tool test failed=0
    for tool in synccheck racecheck; do
        for test in $small_tests; do sanitize $tool "$bin/$test" || failed=1; done
    done
    [ $sanitized -gt 0 ] || skip "no program ended in time"
    return $failed
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

step_nccl() {
    on_device
    [ "$place" = emulated ] || [ -e "$work/found/libnccl.so.2" ] || ldconfig -p | grep -qF libnccl.so.2 || skip "no NCCL here"
    ! "$bin/deeprec" doctor | grep -q '^  NCCL  *built without' || skip "a build without nccl.h of 2.14 or later"
    local ranks failed=0
    for ranks in 2 4; do
        NCCL_DEBUG=WARN timeout 40 mpirun -n $ranks "$bin/gpu_nccl" || { echo "$ranks ranks: status $?"; failed=1; }
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

is_wgmma() {
    on_device
    [ "$place" != emulated ] || return 0 # its compute capability is 9.0
    [ "$(nvidia-smi --query-gpu=compute_cap --format=csv,noheader | head -n 1)" = 9.0 ] || skip "not a device of compute capability 9.0"
}

step_goal_ops() {
    local t=$large.t$op_rows h=$large.t$head_rows
    ops rows --backend "$backend" --shape "$large" --rows "$op_rows" \
        --only "attention_forward.$t,attention_backward.$t,rmsnorm_residual_forward.$t,rmsnorm_backward.$t,adamw.$t" &&
        ops cached --backend "$backend" --shape "$large" --part attention --batch "$batch" \
            --only "attention_cached.c4096.$large.t$batch" &&
        ops head --backend "$backend" --shape "$large" --part head --rows "$head_rows" \
            --only "head_forward.$h,head_backward.$h,head_forward_kept.$h,head_backward_kept.$h"
}

step_goal_wgmma() {
    is_wgmma
    ops wgmma --backend cuda-wgmma --shape "$large" --part attention --rows "$op_rows" \
        --only "attention_forward.$large.t$op_rows,attention_backward.$large.t$op_rows"
}

# With each step as one graph; without, should that fail, for the figures.
step_goal_decode_large() {
    local only=decode.b1.c$short,decode.b$batch.c$context,decode.b$batch.c$context.shared
    if [ "$backend" = cuda ]; then
        engine decode_graphs --backend cuda-graphs --part decode --shape "$large" --only "$only" && return
        echo "failed with graphs; without:"
    fi
    engine decode_large --part decode --shape "$large" --only "$only" && [ "$backend" = cpu ]
}

step_goal_decode() {
    local only=decode.b1.c$short,decode.b$batch.c$context failed=0
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
'{"name":"exactness.sampling","value":\1,"unit":"%"}\n{"name":"exactness.training","value":\2,"unit":"%"}/p' \
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

step_peers_ops() {
    peers ops --part ops --shape "$large" --rows "$op_rows" --head-rows "$head_rows" --batch "$batch" --context 4096
}

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

# ---- the run ----

started=$SECONDS
budget=540 # seconds for everything, on a device
rows=() failed=0

run_step() { # NAME LIMIT WHAT: the function step_NAME
    local name=$1 limit=$(($2 * patience)) what=$3 log code verdict begun=$SECONDS left
    left=$((budget * patience - (SECONDS - started)))
    log=$work/log_$name
    [ "$limit" -le $left ] || limit=$left
    if [ $limit -lt 5 ]; then
        echo "skipped: no time left" > "$log"
        code=77
    elif [ "$name" != machine ] && [ "$name" != packages ] && [ "$name" != build ] && [ ! -x "$bin/deeprec" ]; then
        echo "skipped: no program, for the build failed" > "$log"
        code=77
    else
        step_seconds=$limit timeout -k 5 "$limit" bash "$root/tests/gpu.sh" --step "$name" > "$log" 2>&1
        code=$?
    fi
    case $code in
        0) verdict=passed ;;
        77) verdict="skipped: $(tail -n 1 "$log" | sed 's/^skipped: //')" ;;
        124 | 137) verdict="FAILED: over its limit of $limit s" ;;
        *) verdict="FAILED: status $code" ;;
    esac
    case $verdict in FAILED*) failed=$((failed + 1)) ;; esac
    rows+=("| $what | $verdict | $((SECONDS - begun)) |")
    echo "$what: $verdict ($((SECONDS - begun)) s)"
    printf '\n## %s: %s\n\n```\n%s\n```\n' "$what" "$verdict" "$(tail -c 14000 "$log")" >> "$report"
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
    fi
    "$bin/bench_table" "$goals" "$work"/json/*.json --peers "$work"/json/peers/*.json || echo "the table failed"
}

run_all() {
    mkdir -p "$(dirname "$report")" && : > "$report" || return 2
    local title="GPU report"
    [ "$place" = gpu ] || title="REHEARSAL ON THE PROCESSOR: no figure here is a device's"
    [ "$place" != emulated ] || title="REHEARSAL ON AN EMULATED DEVICE: no figure here is a device's"
    printf '# %s\n\n%s, commit %s\n' "$title" "$(date -u +%Y-%m-%dT%H:%M:%SZ)" \
        "$(git rev-parse --short HEAD 2>/dev/null || echo unknown)" >> "$report"
    run_step machine 20 "machine"
    run_step packages 60 "tools and packages"
    run_step build 240 "build"
    run_step doctor 20 "doctor"
    run_step ops_test 90 "every op against the processor"
    # First what bench/goals.txt asks for, with the peers of each, so that a short loan of a device answers it; then what
    # tests on one worker and two show; then tables of everything, which time may cut off.
    run_step goal_ops 60 "goals: ops"
    run_step goal_wgmma 30 "goals: attention with wgmma"
    run_step goal_decode_large 120 "goals: decoding, $large"
    run_step goal_train 45 "goals: training, $middle"
    run_step goal_slice 45 "goals: training, a slice of $large"
    run_step goal_decode 40 "goals: decoding, $shape"
    run_step goal_handover 30 "goals: hand-over of weights"
    run_step goal_exactness 45 "goals: what exactness costs"
    run_step peers_ops 75 "PyTorch: ops"
    run_step peers_decode 45 "PyTorch: decoding, $large"
    run_step peers_train 60 "PyTorch: training, $middle"
    run_step peers_slice 45 "PyTorch: training, a slice of $large"
    run_step peers_small 45 "PyTorch and transformers: decoding, $shape"
    run_step job 60 "a small job's data and policy"
    run_step verify 60 "sampling and training agree, fp32 and bf16"
    run_step same_draws 30 "the processor's draws in fp32"
    run_step train 90 "the main job, one worker and two"
    run_step nccl 90 "NCCL, 2 and 4 ranks on one device"
    run_step engine_rollout 45 "rollout"
    run_step memcheck 90 "compute-sanitizer: memory"
    run_step engine_long 45 "one long trajectory"
    run_step engine_decode 45 "decoding"
    run_step engine_train 45 "training"
    run_step ops_bf16 90 "figures by op, bf16"
    run_step ops_wgmma 45 "attention's figures, wgmma"
    run_step ops_fp32 45 "figures by op, fp32"
    run_step racecheck 120 "compute-sanitizer: barriers and races"
    {
        printf '\n## Summary\n\n| step | result | seconds |\n|---|---|---|\n'
        printf '%s\n' "${rows[@]}"
        printf '\n%s steps failed, %s s in all\n' "$failed" $((SECONDS - started))
        printf '\n## Figures asked for\n\n'
        goals_table
    } >> "$report" 2>&1
    sed -n '/^## Summary/,$p' "$report"
    echo "report: $report"
    [ $failed = 0 ]
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
trap 'rm -rf "$work"' EXIT
bin=$root/build/gpu-$place
[ "$place" != emulated ] || bin=$work/bin
[ -z "$prebuilt" ] || use_prebuilt "$prebuilt" || exit 2
export OMP_WAIT_POLICY=passive GOMP_SPINCOUNT=3000 DR_LOG=${DR_LOG:-info}
mkdir -p "$work/json/peers" "$work/found" || exit 2
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
        backend=cuda patience=6 verify_tokens=20 live=2 exact_type=bf16 seconds=0.001 shape=tiny ops_options="--shape tiny --rows 16 --batch 2"
        large=tiny middle=tiny layers=2 op_rows=16 head_rows=16 batch=8 short=128 context=128 pack=32 length=16
        prompts=2 samples=2 more_steps=0 users="u1 u2 u3" warm_tokens=20 verify_few="--live 2 --samples 2 --alone 8" written=tiny train_options="--pack 32 --length 16"
        ;;
esac
export root place backend prebuilt bin work verify_tokens live exact_type seconds shape ops_options
export large middle layers op_rows head_rows batch short context pack length
export prompts samples more_steps users warm_tokens verify_few written train_options
run_all
