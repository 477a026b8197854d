#!/usr/bin/env bash
# This engine beside PyTorch, same model, same threads, one after the other twice: bench/peers/run.sh [--threads N]
# [--precision fp32|bf16] [--seconds S]. PYTHON names an interpreter with torch and safetensors (default python3).
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
python=${PYTHON:-python3}
for argument in "$@"; do
    case $argument in
        --threads | --precision | --seconds | [0-9]* | fp32 | bf16) ;;
        *) echo "usage: bench/peers/run.sh [--threads N] [--precision fp32|bf16] [--seconds S]" >&2 && exit 2 ;;
    esac
done
"$python" -c 'import torch, safetensors' || {
    echo "skipped: $python has no torch and safetensors (pip install torch safetensors, or PYTHON=...)" >&2
    exit 77
}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
ours() { # NAME: figures into NAME-decode.json and NAME-train.json
    for part in decode train; do "$here/../run.sh" "${@:2}" --part $part --json "$work/$1-$part.json" > /dev/null; done
}
"$here/../run.sh" "$@" --write-model "$work/model" > /dev/null
ours first "$@"
"$python" "$here/torch_lm.py" "$work/model" "$@" --json "$work/torch.json"
ours second "$@"
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


first, second, torch = read("first-*.json"), read("second-*.json"), read("torch.json")
print(f"{'':18}{'before':>10}{'PyTorch':>10}{'after':>10}{'ratio':>8}   (tokens/s; ratio of the slower of ours)")
for name, row in torch.items():
    a, b, t = first[name]["value"], second[name]["value"], row["value"]
    ratio = f"{min(a, b) / t:8.2f}" if t else f"{'-':>8}"
    print(f"{name:18}{a:10.1f}{t:10.1f}{b:10.1f}{ratio}   {row['note']}")
PY
