#!/bin/bash
# bench_table: goals beside lines of figures, what is missing, what is not met, what cannot be read.
deeprec=${1:?usage: test_goals.sh DEEPREC}
table=$(dirname "$deeprec")/bench_table
[ -x "$table" ] || { echo "skipped: $table is not built"; exit 77; }
dir=$(mktemp -d "${TMPDIR:-/tmp}/deeprec-goals-XXXXXX") || exit 1
trap 'rm -rf "$dir"' EXIT
bad=0
cat > "$dir/ours.json" <<'J'
{"name":"decode","model":"7b","value":9000,"unit":"tokens/s","ceiling":12000,"share":0.75,"seconds":0.02,"mfu":null,"backend":"cuda"}
{"name":"decode","model":"7b","value":11100,"unit":"tokens/s","ceiling":12000,"share":0.925,"seconds":0.02,"mfu":null,"backend":"cuda-graphs"}
{"name":"decode","model":"0.5b","value":40000,"unit":"tokens/s","ceiling":null,"share":null,"seconds":0.02,"mfu":null,"backend":"cuda"}
{"name":"shared","model":"7b","value":14985,"unit":"tokens/s","ceiling":null,"share":null,"seconds":0.01,"mfu":null,"backend":"cuda"}
{"name":"train","model":"7b","value":10,"unit":"tokens/s","ceiling":20,"share":0.5,"seconds":1,"mfu":0.47,"backend":"cuda"}
{"name":"head.1","model":null,"value":1,"unit":"TFLOP/s","share":0.5,"seconds":0.01,"mfu":null,"backend":"cuda"}
{"name":"head.2","model":null,"value":1,"unit":"TFLOP/s","share":0.5,"seconds":0.03,"mfu":null,"backend":"cuda"}
{"name":"backward","model":null,"value":300,"unit":"TFLOP/s","seconds":0.02,"backend":"cuda"}
{"name":"backward","model":null,"value":600,"unit":"TFLOP/s","seconds":0.01,"backend":"cuda-wgmma"}
{"name":"only","model":null,"value":600,"unit":"TFLOP/s","seconds":0.01,"backend":"cuda-wgmma"}
{"name":"bytes","model":"7b","value":0,"unit":"bytes","share":null,"seconds":null,"mfu":null,"backend":"cuda"}
J
cat > "$dir/peers.json" <<'J'
{"name":"decode","model":"7b","value":12000,"unit":"tokens/s","seconds":0.02,"note":"torch, graph"}
{"name":"head","model":null,"value":3,"unit":"s","seconds":3,"note":"torch, compiled"}
{"name":"head","model":null,"value":0.1,"unit":"s","seconds":0.1,"note":"torch, eager"}
J
cat > "$dir/cut.json" <<'J'
{"name":"late","model":"7b"}
J
expect() { # expect CODE TEXT GOAL [FILES...]
    local code=$1 text=$2 goal=$3 out got
    shift 3
    [ $# -gt 0 ] || set -- "$dir/ours.json" "$dir/absent.json" --peers "$dir/peers.json"
    printf '# a comment\n%s\n' "$goal" > "$dir/goals"
    out=$("$table" "$dir/goals" "$@" 2>&1)
    got=$?
    if [ $got != "$code" ] || ! printf '%s' "$out" | grep -qF -- "$text"; then
        echo "goal '$goal': exit code $got, expected $code and \"$text\" in: $out"
        bad=1
    fi
}
expect 0 '| D | 11100 tokens/s, cuda-graphs | 11000 tokens/s | 92 % | | met |' 'D | 7b | decode | cuda-graphs | - | rate | 11000'
expect 0 'ours 0.93 times (torch, graph) | NOT MET |' 'D | 7b | decode | cuda-graphs | decode | rate | 11000'
expect 0 '| D | 40000 tokens/s, cuda | 50000 tokens/s | | not measured | NOT MET |' 'D | 0.5b | decode | cuda | decode | rate | 50000'
expect 0 '| D | 40000 tokens/s, no ceiling known here | 85 % of the ceiling | | |  |' 'D | 0.5b | decode | cuda | - | share | 85'
expect 0 '| S | 66.5 % (14985 tokens/s, cuda) | 25 % more | | | met |' 'S | 7b | shared decode | cuda | - | gain | 25'
expect 0 '| T | 47.0 % (10 tokens/s, cuda) | 48 % MFU | 50 % | | NOT MET |' 'T | 7b | train | cuda | - | mfu | 48'
expect 0 '| H | 2.50 times | 3.0 times the peer | |' 'H | - | head.1 head.2 | cuda | head | times | 3'
expect 0 '| B | 0 bytes, cuda | 0 bytes | | | met |' 'B | 7b | bytes | cuda | - | count | 0'
expect 0 '| X | not measured | 1  | | |  |' 'X | - | nothing | cuda | - | rate | 1'
expect 0 '0 of 1 answered' 'X | 1.5b | decode | cuda | - | rate | 1'
# Another backend than the goal's gives no verdict, however fast; what time did not allow is called so.
expect 0 '| A | 300 TFLOP/s, cuda | 500 TFLOP/s | | | NOT MET |' 'A | - | backward | cuda | - | rate | 500'
expect 0 '| (A, by cuda-wgmma) | 600 TFLOP/s, cuda-wgmma | 500 TFLOP/s | | | not judged |' 'A | - | backward | cuda | - | rate | 500'
expect 0 '| A | not measured |' 'A | - | only | cuda | - | rate | 500'
expect 0 '| (A, by cuda-wgmma) | 600 TFLOP/s, cuda-wgmma |' 'A | - | only | cuda | - | rate | 500'
expect 0 '| L | not measured: no time left |' 'L | 7b | late | cuda | late | rate | 1' --cut "$dir/cut.json"
expect 0 '| L | not measured |' 'L | 1.5b | late | cuda | late | rate | 1' --cut "$dir/cut.json"
expect 0 '| not measured: no time left |  |' 'L | 7b | bytes | cuda | late | cost | 0' "$dir/ours.json" --cut-peers "$dir/cut.json"
expect 1 'fields, expected 7' 'X | 7b | decode | -'
expect 1 'kind best' 'X | 7b | decode | cuda-graphs | - | best | 1'
expect 1 'a gain is of two figures' 'X | 7b | decode | cuda | - | gain | 1'
printf '{"name":"decode"' > "$dir/torn.json"
expect 1 'torn.json:1' 'D | 7b | decode | cuda-graphs | - | rate | 1' "$dir/torn.json"
expect 1 'no goals' '# only comments'
# The goals of tests/gpu.sh themselves: each of them is read.
goals=$(dirname "$0")/../bench/goals.txt
"$table" "$goals" | grep -qx "0 of $(grep -vc '^#' "$goals") answered" || { echo "bench/goals.txt is not read whole"; bad=1; }
exit $bad
