#!/usr/bin/env bash
# Builds bench_engine (release, in build/bench) and runs it; arguments go to it: bench/run.sh [--backend cpu|cuda]
# [--threads N] [--precision fp32|bf16] [--seconds S] [--json FILE] [--part NAME] …. With "ops" before them it is bench_ops.
# Works from a fresh clone.
set -euo pipefail
here=$PWD
program=bench_engine
if [ "${1:-}" = ops ]; then
    program=bench_ops
    shift
fi
cd "$(dirname "$0")/.."
root=$PWD
. launch/deps.sh
deeprec_install >&2
cmake -S . -B build/bench -G Ninja -DCMAKE_BUILD_TYPE=Release >/dev/null
cmake --build build/bench --target "$program" | tail -n 1 >&2
# What the program sets for itself (launch/main.c): threads that wait spin for some ten microseconds, then sleep. README.md
# has the figures of both policies.
export OMP_WAIT_POLICY=${OMP_WAIT_POLICY:-passive} GOMP_SPINCOUNT=${GOMP_SPINCOUNT:-3000}
cd "$here" # paths in the arguments are the caller's
exec "$root/build/bench/$program" "$@"
