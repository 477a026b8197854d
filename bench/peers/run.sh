#!/usr/bin/env bash
# This engine beside PyTorch and beside a plain row-by-row program (matvec.c, fp32, one sequence), same model, same
# threads, one after the other, ours twice: bench/peers/run.sh [--threads N] [--precision fp32|bf16] [--seconds S] [--only NAME,NAME].
# PYTHON names an interpreter with torch and safetensors (default python3).
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
python=${PYTHON:-python3}
threads=$(nproc) seconds=1 precision=fp32 only= engine=()
while [ $# -gt 0 ]; do
    [ $# -gt 1 ] || { echo "bench/peers/run.sh: $1 without a value" >&2 && exit 2; }
    case $1 in
        --threads) threads=$2 ;;
        --seconds) seconds=$2 ;;
        --only) only=$2 ;;
        --precision) precision=$2 ;;
        *) echo "usage: bench/peers/run.sh [--threads N] [--precision fp32|bf16] [--seconds S] [--only NAME,NAME]" >&2 && exit 2 ;;
    esac
    [ "$1" = --only ] || engine+=("$1" "$2")
    shift 2
done
"$python" -c 'import torch, safetensors' || {
    echo "skipped: $python has no torch and safetensors (pip install torch safetensors, or PYTHON=...)" >&2
    exit 77
}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
ours() { # NAME: figures into NAME-decode.json and NAME-train.json
    for part in decode train; do "$here/../run.sh" "${engine[@]}" --part $part --json "$work/$1-$part.json" > /dev/null; done
}
"$here/../run.sh" "${engine[@]}" --write-model "$work/model" > /dev/null
ours first
"$python" "$here/torch_lm.py" "$work/model" "${engine[@]}" --only "$only" --json "$work/torch.json"
if [ "$precision" = fp32 ]; then
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
    a, b, t = first[name]["value"], second[name]["value"], row["value"]
    ratio = f"{min(a, b) / t:8.2f}" if t else f"{'-':>8}"
    plain = rows_of.get(name, {}).get("value", 0)
    more = f" {min(a, b) / plain:.2f}" if plain else ""
    rows = f"{plain:10.1f}" if plain else f"{'-':>10}"
    print(f"{name:18}{a:10.1f}{t:10.1f}{rows}{b:10.1f}{ratio}{more}   {row['note']}")
PY
