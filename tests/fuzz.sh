#!/bin/bash
# Fuzzes the parsers of untrusted bytes under AddressSanitizer and UndefinedBehaviorSanitizer: every target of tests/fuzz for
# SECONDS each, from its seeds. Usage: tests/fuzz.sh [SECONDS] [TARGET...]   (default 600 seconds, all targets)
# A finding is left as build/fuzz/findings/TARGET-...; put it among tests/fuzz/seeds/TARGET, and the tests run it from then on.
set -o pipefail
cd "$(dirname "$0")/.." || exit 1
seconds=${1:-600}
shift
if ! command -v clang >/dev/null; then
    echo "skipped: no clang on this machine (Debian: clang, libclang-rt-14-dev, libomp-14-dev)"
    exit 77
fi
CC=clang cmake -S . -B build/fuzz -G Ninja -DCMAKE_BUILD_TYPE=Debug -DDR_FUZZ=ON -DDR_CUDA=OFF >/dev/null || exit 1
targets=("$@")
[ $# -gt 0 ] || targets=($(cd tests/fuzz && ls fuzz_*.c | sed 's/\.c$//'))
cmake --build build/fuzz -j "$(nproc)" --target "${targets[@]}" | tail -n 1 || exit 1
mkdir -p build/fuzz/findings
failed=0
for target in "${targets[@]}"; do
    mkdir -p "build/fuzz/corpus/$target"
    export ASAN_OPTIONS=detect_leaks=1:allocator_may_return_null=1 LSAN_OPTIONS=suppressions=$PWD/tests/lsan.supp:print_suppressions=0
    "build/fuzz/$target" -max_total_time="$seconds" -max_len=16384 -timeout=20 -rss_limit_mb=4096 -print_final_stats=1 \
        -artifact_prefix="build/fuzz/findings/$target-" "build/fuzz/corpus/$target" "tests/fuzz/seeds/$target" \
        >"build/fuzz/$target.log" 2>&1 &
    process=$!
    if wait "$process"; then
        echo "clean    $target: $(grep -o 'stat::number_of_executed_units: *[0-9]*' "build/fuzz/$target.log" | grep -o '[0-9]*$') runs in $seconds s"
    else
        failed=1
        echo "FINDING  $target"
        tail -n 40 "build/fuzz/$target.log"
    fi
    rm -rf "/dev/shm/deeprec-fuzz-$process" "/tmp/deeprec-fuzz-$process" # libFuzzer ends without cleaning up
done
exit $failed
