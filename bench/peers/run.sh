#!/usr/bin/env bash
# This engine beside PyTorch and beside a plain row-by-row program (matvec.c, fp32, one sequence), same model, same
# threads, one after the other, ours twice: bench/peers/run.sh [--device cpu|cuda] [--threads N] [--precision fp32|bf16]
# [--seconds S] [--shape small|0.5b] [--only NAME,NAME]. With --device cuda both run on device 0, without the row-by-row program. PYTHON names an
# interpreter with torch and safetensors (default python3), BENCH_ENGINE a built bench_engine
# (default: bench/run.sh; the row-by-row program comes with it).
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
python=${PYTHON:-python3}
device=cpu threads=$(nproc) seconds=1 shape=small precision=fp32 only=
while [ $# -gt 0 ]; do
    case $1:${2:-} in
        --device:cpu | --device:cuda) device=$2 ;;
        --threads:[0-9]*) threads=$2 ;;
        --seconds:[0-9]*) seconds=$2 ;;
        --precision:fp32 | --precision:bf16) precision=$2 ;;
        --shape:small | --shape:0.5b) shape=$2 ;;
        --only:?*) only=$2 ;;
        *)
            echo "usage: bench/peers/run.sh [--device cpu|cuda] [--threads N] [--precision fp32|bf16] [--seconds S] [--shape small|0.5b] [--only NAME,NAME]" >&2
            exit 2
            ;;
    esac
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
ours_options=(--threads "$threads" --precision "$precision" --seconds "$seconds" --shape "$shape")
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
ours() { # NAME: figures into NAME-decode.json and NAME-train.json
    for part in decode train; do
        "${engine[@]}" "${ours_options[@]}" --backend $device --part $part --json "$work/$1-$part.json" > /dev/null
    done
}
"${engine[@]}" "${ours_options[@]}" --write-model "$work/model" > /dev/null
ours first
"$python" "$here/torch_lm.py" "$work/model" --device $device --threads "$threads" --precision "$precision" --seconds "$seconds" \
    --only "$only" --json "$work/torch.json"
if [ $device = cpu ] && [ "$precision" = fp32 ] && [ -z "${BENCH_ENGINE:-}" ]; then
    cmake --build "$here/../../build/bench" --target peer_matvec > /dev/null
    "$here/../../build/bench/peer_matvec" "$work/model" "$threads" "$seconds" "$work/matvec.json"
fi
ours second
"$python" - "$work" <<'PY'
import glob
import json
import os
import sys

work = sys.argv[1]


def read(pattern):
    rows = {}
    for path in sorted(glob.glob(os.path.join(work, pattern))):
        with open(path) as f:
            rows.update((row["name"], row) for row in map(json.loads, f))
    return rows


first, second, torch, rows_of = read("first-*.json"), read("second-*.json"), read("torch.json"), read("matvec.json")
print(f"{'':18}{'before':>10}{'PyTorch':>10}{'rows':>10}{'after':>10}{'ratios':>8}   (tokens/s; ratios of the slower of ours)")
for name, row in torch.items():
    a, b, t = (rows.get(name, {}).get("value", 0) for rows in (first, second, torch))
    ratio = f"{min(a, b) / t:8.2f}" if t and a else f"{'-':>8}"
    plain = rows_of.get(name, {}).get("value", 0)
    more = f" {min(a, b) / plain:.2f}" if plain else ""
    rows = f"{plain:10.1f}" if plain else f"{'-':>10}"
    print(f"{name:18}{a:10.1f}{t:10.1f}{rows}{b:10.1f}{ratio}{more}   {row['note']}")
PY
