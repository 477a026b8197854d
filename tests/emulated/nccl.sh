#!/usr/bin/env bash
# The collective on devices, over an emulated NCCL: nccl.sh GPU_NCCL_EMULATED. Sums and gathers of 2 and 4 ranks in several
# orders of streams; then what becomes of all ranks when one of them fails, stands still, dies or has another's device.
set -u
program=$1
cd "$(dirname "$0")/../.." || exit 2
. tests/mpi-env.sh
export OMP_WAIT_POLICY=passive
output=$(mktemp)
trap 'rm -f "$output"' EXIT

fail() {
    echo "FAILED: $*"
    cat "$output"
    exit 1
}

run() { # RANKS ARGUMENT...
    local ranks=$1
    shift
    timeout --foreground -k 5 60 mpirun -n "$ranks" "$program" "$@" >"$output" 2>&1
}

for ranks in 2 4; do
    for order in late early 7; do
        DR_EMULATED_ORDER=$order run $ranks || fail "$ranks ranks, $order: status $?"
        [ "$(grep -c 'values summed up in rank order' "$output")" = $ranks ] || fail "$ranks ranks, $order: not all say so"
        [ "$(grep -c ' % queued early' "$output")" = $ranks ] || fail "$ranks ranks, $order: how much was early is not said"
    done
done
echo "2 and 4 ranks, three orders: summed up in rank order"

begun=$SECONDS
run 4 3 5 || fail "a late rank that works: status $?"
[ $((SECONDS - begun)) -ge 5 ] || fail "no rank was late"
[ "$(grep -c 'values summed up in rank order' "$output")" = 4 ] || fail "a late rank that works: not all say so"
echo "a rank that works for longer than the deadline, and says so, is waited for"

refused() { # RANKS WHAT SECONDS PATTERN...: none hangs, and each pattern is in as many ranks' only line as it says, COUNT:TEXT
    local ranks=$1 what=$2 bound=$3 code=0 begun=$SECONDS
    shift 3
    run "$ranks" 5 || code=$?
    [ $code != 0 ] && [ $code != 124 ] && [ $code != 137 ] || fail "$what: status $code"
    [ $((SECONDS - begun)) -le "$bound" ] || fail "$what: after $((SECONDS - begun)) s"
    [ "$(grep -c '^rank [0-9]* of ' "$output")" = "$ranks" ] || fail "$what: not one line of each rank"
    for pattern in "$@"; do
        [ "$(grep -c "${pattern#*:}" "$output")" = "${pattern%%:*}" ] || fail "$what: not ${pattern%%:*} times '${pattern#*:}'"
    done
}

DR_EMULATED_NCCL_FAULT=error:1:3 refused 4 "an error" 20 '1:^rank 1 of 4: input/output error: .*sum of .*: a fault asked for in group 3' \
    '3:^rank [023] of 4: peer failure: .*sum of .*closed its connection'
DR_EMULATED_NCCL_FAULT=stall:0:3 refused 2 "a rank that stands still" 25 '2:^rank .*sum of .*\(did not finish within 5 s\|closed its connection\)'
NCCL_COMM_BLOCKING=1 refused 2 "calls that block" 20 '2:^rank .*NCCL_COMM_BLOCKING=1 in the environment.*unset it'
NCCL_HOSTID=one refused 2 "two ranks on one device" 20 '2:^rank .*Duplicate GPU detected.*ranks.share_devices'
echo "an error, a rank that stands still, one device: each rank names the cause"

# Among chunks of a sum that was begun. Rank 0 gives memory back there, for which a device waits for all of its work.
DR_EMULATED_NCCL_FAULT=stall:1:11 refused 4 "a rank that stands still while another one gives memory back" 25 \
    '4:^rank .*sum of .*\(did not finish within 5 s\|closed its connection\)'
for fault in error:1:11 die:1:11; do
    code=0 begun=$SECONDS
    DR_EMULATED_NCCL_FAULT=$fault run 4 5 || code=$?
    [ $code != 0 ] && [ $code != 124 ] || fail "$fault: status $code"
    [ $((SECONDS - begun)) -le 25 ] || fail "$fault: after $((SECONDS - begun)) s"
done
echo "an error among early chunks, a rank that stands still or dies there: the end of all"
