#!/bin/bash
# test_backend_ops perf: becomes bench_ops beside it, with its options and status; says what is missing where there is none.
deeprec=${1:?usage: test_op_perf.sh DEEPREC}
ops=$(dirname "$deeprec")/test_backend_ops
[ -x "$ops" ] || { echo "skipped: $ops is not built"; exit 77; }
dir=$(mktemp -d "${TMPDIR:-/tmp}/deeprec-perf-XXXXXX") || exit 1
trap 'rm -rf "$dir"' EXIT
cp "$ops" "$dir/" || exit 1
bad=0
expect() { # expect CODE TEXT [OPTION ...]
    local code=$1 text=$2 out got
    shift 2
    out=$("$dir/test_backend_ops" perf "$@" 2>&1)
    got=$?
    if [ $got != "$code" ] || [ "$out" != "$text" ]; then
        echo "perf $*: exit code $got, expected $code, and \"$text\", found \"$out\""
        bad=1
    fi
}
expect 1 "$dir/test_backend_ops perf: $dir/bench_ops: No such file or directory; build it with \`ninja -C $dir bench_ops\`"
printf '#!/bin/sh\nprintf "%%s|" "$0" "$@"\nexit 3\n' > "$dir/bench_ops" && chmod +x "$dir/bench_ops" || exit 1
expect 3 "$dir/bench_ops|--backend|a b|--seconds|0.1|" --backend "a b" --seconds 0.1
exit $bad
