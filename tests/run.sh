#!/bin/bash
# Builds and tests everything from a fresh clone: release build with all tests and the lint, sanitizer build with the
# unit tests, and one more build without CUDA. The last line is "N passed, N failed" (", N skipped" when there are any);
# the exit code is 0 only when nothing failed. Usage: tests/run.sh [--quick]  (--quick: the release build only)
cd "$(dirname "$0")/.." || exit 1
. launch/deps.sh
. tests/mpi-env.sh
jobs=$(nproc)
quick=0
[ "${1:-}" = --quick ] && quick=1
passed=0 failed=0 skipped=0
failures=()
started=$SECONDS

say() {
    printf '\n== %s  (%d s)\n' "$1" $((SECONDS - started))
}

# One check that is not a ctest test: check NAME COMMAND...; the output is shown only when it fails.
check() {
    local name=$1 log
    shift
    log=$(mktemp) || exit 1
    if "$@" >"$log" 2>&1; then
        passed=$((passed + 1))
        echo "ok       $name"
        rm -f "$log"
        return 0
    fi
    failed=$((failed + 1))
    failures+=("$name")
    echo "FAILED   $name: $*"
    tail -n 60 "$log"
    rm -f "$log"
    return 1
}

# Counts the test cases of a ctest JUnit file. No file, or no test in it, is a failure of its own; so is a test whose
# program is not there, which ctest itself calls "not run".
count() {
    local name=$1 file=$2 verdict test
    if [ ! -s "$file" ] || ! grep -q '<testcase ' "$file"; then
        failed=$((failed + 1))
        failures+=("$name (no test ran)")
        return 1
    fi
    while read -r verdict test; do
        case $verdict in
        passed) passed=$((passed + 1)) ;;
        skipped) skipped=$((skipped + 1)) ;;
        *)
            failed=$((failed + 1))
            failures+=("$name: $test")
            ;;
        esac
    done < <(awk '
        function flush() { if (test != "") print verdict, test; test = "" }
        /<testcase / {
            flush()
            test = $0; sub(/.*<testcase name="/, "", test); sub(/".*/, "", test)
            verdict = /status="run"/ ? "passed" : /status="disabled"/ ? "skipped" : "failed"
        }
        /<skipped message="SKIP_/ { if (verdict == "failed") verdict = "skipped" }
        END { flush() }' "$file")
}

# ctest NAME BUILD ARGS...: prints each test's line, and the whole output of those that failed. As many run beside each
# other as there are cores; of those that start ranks one at a time, and whole programs run alone.
run_ctest() {
    local name=$1 build=$2 file
    shift 2
    file=$PWD/$build/junit.xml
    rm -f "$file"
    ctest --test-dir "$build" -j "$jobs" --output-on-failure --timeout 600 --output-junit "$file" "$@"
    count "$name" "$file"
}

say "packages"
check "packages" deeprec_install clang-format g++

say "release build"
if check "configure release" cmake --preset release -DDR_CUDA=AUTO && check "build release" cmake --build --preset release -j "$jobs"; then
    say "release tests"
    run_ctest release build/release
fi

if [ $quick = 0 ]; then
    say "GPU"
    line=$(tests/gpu.sh 2>&1)
    status=$?
    echo "$line"
    if [ $status = 0 ] && [[ $line = "skipped: "* ]]; then
        skipped=$((skipped + 1))
    elif [ $status = 0 ]; then
        passed=$((passed + 1))
    else
        failed=$((failed + 1))
        failures+=("tests/gpu.sh")
    fi
    say "sanitizer build"
    if check "configure asan" cmake --preset asan && check "build asan" cmake --build --preset asan -j "$jobs"; then
        say "sanitizer tests"
        # MPI, OpenMP and oneDNN keep memory until the end of the process, so leaks are judged by tests/lsan.supp.
        export ASAN_OPTIONS=detect_leaks=1:abort_on_error=0 UBSAN_OPTIONS=print_stacktrace=1
        export LSAN_OPTIONS=suppressions=$PWD/tests/lsan.supp:print_suppressions=0
        run_ctest asan build/asan -L cpu
        unset ASAN_OPTIONS UBSAN_OPTIONS LSAN_OPTIONS
    fi
    if grep -q 'DR_HAVE_CUDA=1' build/release/build.ninja 2>/dev/null; then
        say "build without CUDA"
        check "configure without CUDA" cmake -S . -B build/nocuda -G Ninja -DCMAKE_BUILD_TYPE=Release -DDR_CUDA=OFF &&
            check "build without CUDA" cmake --build build/nocuda -j "$jobs" --target deeprec &&
            check "doctor without CUDA" build/nocuda/deeprec doctor
    else
        echo "the release build is the one without CUDA: no toolkit on this machine"
    fi
fi

say "summary"
for name in "${failures[@]}"; do
    echo "failed: $name"
done
line="$passed passed, $failed failed"
[ $skipped = 0 ] || line="$line, $skipped skipped"
echo "$line"
[ $failed = 0 ] && [ $passed != 0 ]
