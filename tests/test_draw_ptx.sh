#!/bin/bash
# The code of the kernels that draw: sums in shared memory are of 32 bits, which a multiprocessor adds by itself (wider ones
# become loops that compare and swap), and nothing is spilled to memory for compute capability 9.0. Skipped without nvcc.
cd "$(dirname "$0")/.." || exit 1
nvcc=$(command -v nvcc || echo "${CUDA_HOME:-/usr/local/cuda}/bin/nvcc")
[ -x "$nvcc" ] || { echo "skipped: no nvcc here"; exit 77; }
work=$(mktemp -d) || exit 1
trap 'rm -rf "$work"' EXIT
"$nvcc" -std=c++17 -O3 -arch=sm_90 -I. -Xptxas -v --keep --keep-dir "$work" -cubin -o "$work/sample.cubin" cuda/sample.cu >"$work/log" 2>&1 ||
    { cat "$work/log"; exit 1; }
operations=$(grep -hoE '\b(atom|red)(\.[a-z_]+)*\.shared[a-z0-9_.:]*' "$work"/*.ptx | sort | uniq -c)
spilled=$(grep -oE '[0-9]+ bytes spill stores' "$work/log" | awk '{ n++; sum += $1 } END { print n == 0 ? "unknown" : sum }')
printf '%s\nbytes spilled: %s\n' "$operations" "$spilled"
grep -q 'shared.*\.u32' <<<"$operations" && ! grep -qE '\.(b|u|s|f)64' <<<"$operations" && [ "$spilled" = 0 ]
