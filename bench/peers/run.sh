#!/usr/bin/env bash
# This engine beside PyTorch and beside a plain row-by-row program (matvec.c, fp32, one sequence), same model, same threads, one after
# the other, ours twice: bench/peers/run.sh [OPTIONS].
#   --part lm|ops       bench_engine's decode and train parts beside torch_lm.py (default), or bench_ops beside torch_ops.py
#   --device cpu|cuda   with cuda both run on device 0, without the row-by-row program
#   --threads N  --precision fp32|bf16  --seconds S  --shape small|0.5b|1.5b|7b
#   --layers N          lm: a slice of the shape. --pack N --length N: of training
#   --only NAME,NAME    lm: figures; ops: attention, decode, head, norm, adamw
#   --rows N --head-rows N --batch N --context N   ops: as of torch_ops.py
#   --ours FILE,FILE    figures of ours taken before, in the place of runs before and after
#   --model FOLDER      lm: one that bench_engine --write-model wrote; then --shape is of random weights, --label names its own
#   --generate          lm, cuda: transformers' generate, too
#   --json FILE         keeps PyTorch's lines, also of a run that is ended
# PYTHON names an interpreter with torch and safetensors (default python3), BENCH_ENGINE and BENCH_OPS built programs
# (default: bench/run.sh; the row-by-row program comes with it).
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
python=${PYTHON:-python3}
part=lm device=cpu threads=$(nproc) seconds=1 shape="" precision=fp32 layers="" ours="" model="" kept="" generate="" label=""
pack=4096 length=512 only="" rows="" head_rows="" batch="" context=""
usage() {
    sed -n '2,/^set /{/^#/p}' "$0" >&2
    exit 2
}
while [ $# -gt 0 ]; do
    case $1:${2:-} in
        --part:lm | --part:ops) part=$2 ;;
        --device:cpu | --device:cuda) device=$2 ;;
        --threads:[0-9]*) threads=$2 ;;
        --seconds:[0-9]*) seconds=$2 ;;
        --precision:fp32 | --precision:bf16) precision=$2 ;;
        --shape:small | --shape:0.5b | --shape:1.5b | --shape:7b) shape=$2 ;;
        --layers:[0-9]*) layers=$2 ;;
        --pack:[0-9]*) pack=$2 ;;
        --length:[0-9]*) length=$2 ;;
        --rows:[0-9]*) rows=$2 ;;
        --head-rows:[0-9]*) head_rows=$2 ;;
        --batch:[0-9]*) batch=$2 ;;
        --context:[0-9]*) context=$2 ;;
        --only:?*) only=$2 ;;
        --ours:*) ours=$2 ;;
        --model:?*) model=$2 ;;
        --label:?*) label=$2 ;;
        --json:?*) kept=$2 ;;
        --generate:*)
            generate=--generate
            shift
            continue
            ;;
        *) usage ;;
    esac
    [ $# -ge 2 ] || usage
    shift 2
done
"$python" -c 'import torch, safetensors' || {
    echo "skipped: $python has no torch and safetensors (pip install torch safetensors, or PYTHON=...)" >&2
    exit 77
}
[ $device = cpu ] || "$python" -c 'import torch; assert torch.cuda.is_available()' 2>/dev/null || {
    echo "skipped: torch of $python finds no CUDA device" >&2
    exit 77
}
if [ -n "${BENCH_ENGINE:-}" ]; then engine=("$BENCH_ENGINE"); else engine=("$here/../run.sh"); fi
if [ -n "${BENCH_OPS:-}" ]; then ops=("$BENCH_OPS"); else ops=("$here/../run.sh" ops); fi
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
common=(--threads "$threads" --precision "$precision" --seconds "$seconds")

ours_lm() { # NAME: figures into NAME-decode.json and NAME-train.json
    local each
    for each in decode train; do
        "${engine[@]}" "${common[@]}" --shape "${shape:-small}" ${layers:+--layers "$layers"} --pack "$pack" --length "$length" \
            --backend $device --part $each --json "$work/$1-$each.json" > /dev/null
    done
}
ours_ops() { # NAME
    "${ops[@]}" "${common[@]}" --shape "${shape:-small}" ${rows:+--rows "$rows"} ${batch:+--batch "$batch"} --backend $device \
        --json "$work/$1-ops.json" > /dev/null
    [ -z "$head_rows" ] || "${ops[@]}" "${common[@]}" --shape "${shape:-small}" --rows "$head_rows" --part head --backend $device \
        --json "$work/$1-ops-head.json" > /dev/null
}
ours() { # NAME; with --ours once, what they are
    local file
    if [ -z "$ours" ]; then
        "ours_$part" "$1"
    else
        for file in ${ours//,/ }; do cp "$file" "$work/$1-$(basename "$file")"; done
    fi
}

ours first
if [ $part = ops ]; then
    "$python" "$here/torch_ops.py" --device $device "${common[@]}" --shape "${shape:-small}" ${rows:+--rows "$rows"} \
        ${head_rows:+--head-rows "$head_rows"} ${batch:+--batch "$batch"} ${context:+--context "$context"} --only "$only" \
        --json "${kept:-$work/torch.json}"
else
    sizes=()
    if [ -z "$model" ]; then
        model=$work/model
        "${engine[@]}" "${common[@]}" --shape "${shape:-small}" ${layers:+--layers "$layers"} --write-model "$model" > /dev/null
    elif [ -n "$shape" ]; then
        sizes=(--shape "$shape" ${layers:+--layers "$layers"})
    fi
    "$python" "$here/torch_lm.py" "$model" --device $device "${common[@]}" --only "$only" --pack "$pack" --length "$length" $generate \
        ${sizes[@]+"${sizes[@]}"} --label "${label:-${shape:-small}${layers:+/$layers}}" --json "${kept:-$work/torch.json}"
    if [ $device = cpu ] && [ "$precision" = fp32 ] && [ -z "${BENCH_ENGINE:-}$ours" ]; then
        cmake --build "$here/../../build/bench" --target peer_matvec > /dev/null
        "$here/../../build/bench/peer_matvec" "$model" "$threads" "$seconds" "$work/matvec.json"
    fi
fi
[ -z "$kept" ] || cp "$kept" "$work/torch.json"
[ -n "$ours" ] || ours second
"$python" "$here/ratios.py" "$work"
