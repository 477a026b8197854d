# The main job as shell functions, shared by quickstart.sh and ml-1m.sh; sourced, not run. The caller sets:
#   RUN      run folder                      DATASET  prepared data set (.h5)
#   CONFIG   YAML of the two RL stages       RANKS    MPI ranks of the RL part
#   EVALUATED  policies that the last table compares, an array of folders in RUN
#   TRM_FLAGS INIT_FLAGS SFT_FLAGS TRAIN_FLAGS EVAL_FLAGS   arrays of extra flags
# Each stage leaves its result in the run folder and is skipped when that result is already there, so that a job which
# was stopped goes on where it was.

export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1        # containers run as root
export OMPI_MCA_rmaps_base_oversubscribe=1 OMPI_MCA_mpi_yield_when_idle=1 # more ranks than cores, waiting politely
export OMPI_MCA_btl_tcp_if_include=lo OMPI_MCA_oob_tcp_if_include=lo     # one machine: nothing leaves it

pipeline_started=$SECONDS

pipeline_say() {
    printf '\n== %s  (%d s since the start)\n' "$1" $((SECONDS - pipeline_started))
}

# Sets DEEPREC. Kernels for devices are left out where there is no device: nvcc takes longer than all the rest.
pipeline_build() {
    local cuda=AUTO log
    [ -e /dev/nvidiactl ] || cuda=OFF
    pipeline_say "Build"
    cmake --preset release -DDR_CUDA=$cuda > /dev/null || return 1
    log=$(cmake --build --preset release --target deeprec 2>&1) || {
        printf '%s\n' "$log" >&2
        return 1
    }
    tail -n 1 <<< "$log"
    DEEPREC=$PWD/build/release/deeprec
}

# pipeline_stage TITLE RESULT COMMAND...: runs the command unless RESULT exists, or its index where weights are in shards.
pipeline_stage() {
    local title=$1 result=$2
    shift 2
    if [ -e "$result" ] || [ -e "$result.index.json" ]; then
        pipeline_say "$title: already there ($result)"
        return 0
    fi
    pipeline_say "$title"
    echo "\$ $*"
    "$@" || {
        echo "$title failed" >&2
        return 1
    }
}

pipeline_run() {
    pipeline_stage "Retrieval model" "$RUN/trm/model.safetensors" \
        "$DEEPREC" trm train --dataset "$DATASET" --out "$RUN/trm" "${TRM_FLAGS[@]}" || return 1
    pipeline_stage "Fresh policy" "$RUN/policy_fresh/model.safetensors" \
        "$DEEPREC" init --dataset "$DATASET" --out "$RUN/policy_fresh" "${INIT_FLAGS[@]}" || return 1
    pipeline_stage "Warm-up (supervised)" "$RUN/policy_warmup/model.safetensors" \
        "$DEEPREC" sft --model "$RUN/policy_fresh" --trm "$RUN/trm" --dataset "$DATASET" \
        --out "$RUN/policy_warmup" "${SFT_FLAGS[@]}" || return 1
    pipeline_stage "Two-stage RL on $RANKS ranks" "$RUN/policy/model.safetensors" \
        mpirun -n "$RANKS" "$DEEPREC" train "$CONFIG" --resume --set "run.dir=$RUN" --set "data.dataset=$DATASET" \
        --set "model.trm=$RUN/trm" --set "model.policy=$RUN/policy_warmup" "${TRAIN_FLAGS[@]}" || return 1
    local models=() policy
    for policy in "${EVALUATED[@]}"; do
        [ ! -e "$RUN/$policy/config.json" ] || models+=(--model "$RUN/$policy") # a run without stage 1 has no such policy
    done
    pipeline_stage "Evaluation on the test users" "$RUN/eval.json" \
        "$DEEPREC" eval --dataset "$DATASET" --trm "$RUN/trm" "${models[@]}" --out "$RUN/eval.json" \
        "${EVAL_FLAGS[@]}" || return 1
    pipeline_say "What the training did"
    "$DEEPREC" inspect "$RUN/metrics.jsonl" || return 1
    pipeline_say "Done: $RUN"
}

# bf16 where the processor has AMX for it, else fp32.
pipeline_precision() {
    if grep -q amx_bf16 /proc/cpuinfo 2> /dev/null; then echo bf16; else echo fp32; fi
}
