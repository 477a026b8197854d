#!/usr/bin/env bash
# From the start of the program to its first sampled token: the small preset, and a model of Qwen2.5-0.5B's shape with random
# weights, beside the time to read its file: bench/startup.sh [MODEL_FOLDER]. About 4 GB of disk in $TMPDIR without a folder.
set -euo pipefail
cd "$(dirname "$0")/.."
cmake --preset release > /dev/null
cmake --build --preset release --target deeprec bench_engine | tail -n 1 >&2
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
first_token() { # FOLDER
    build/release/deeprec verify --model "$1" --tokens 1 --live 1 --samples 1 | grep 'first token'
}
if [ $# -gt 0 ]; then
    folders=("$1")
else
    for shape in small 0.5b; do build/release/bench_engine --shape $shape --write-model "$work/$shape" > /dev/null; done
    folders=("$work/small" "$work/0.5b")
fi
for folder in "${folders[@]}"; do
    bytes=$(cat "$folder"/*.safetensors | wc -c)
    cat "$folder"/*.safetensors > /dev/null # the file is in the system's cache from here on, as on a second start
    begun=$(date +%s.%N)
    cat "$folder"/*.safetensors > /dev/null
    ended=$(date +%s.%N)
    echo "$(basename "$folder"): $((bytes / 1000000)) MB, read in $(awk "BEGIN { printf \"%.2f\", $ended - $begun }") s"
    for _ in 1 2 3; do first_token "$folder"; done
done
