#!/bin/bash
# The command line as a user meets it: help on every command, refusals that name the nearest known thing, exit codes, and
# the configuration commands.
deeprec=${1:?usage: test_cli.sh DEEPREC}
dir=$(mktemp -d "${TMPDIR:-/tmp}/deeprec-cli-XXXXXX") || exit 1
trap 'rm -rf "$dir"' EXIT
bad=0

# expect CODE TEXT ARGS...: exit code, and TEXT somewhere in the output.
expect() {
    local code=$1 text=$2 got out
    shift 2
    out=$("$deeprec" "$@" 2>&1)
    got=$?
    if [ $got != "$code" ] || ! printf '%s' "$out" | grep -qF -- "$text"; then
        echo "deeprec $*: exit code $got, expected $code and \"$text\" in:"
        printf '%s\n' "$out"
        bad=1
    fi
}

expect 2 'Usage: deeprec COMMAND'
expect 0 'Usage: deeprec COMMAND' --help
expect 0 'Usage: deeprec COMMAND' help
expect 0 'deeprec ' --version
expect 2 "unknown command 'doctr'; the nearest known one is 'doctor'" doctr
expect 2 "unexpected argument 'x'" doctor x
expect 2 'unknown option --hsah; the nearest known one is --hash' config --hsah
expect 2 'unknown option -x' config -x
expect 2 '--set needs a value' config --set
expect 2 '--set needs a value, found --hash' config --set --hash
expect 2 '--log takes debug|info|warn|error' config --log loud
expect 2 "expected true or false, found 'maybe'" config --hash=maybe
expect 0 'Usage: deeprec config' config --help
expect 0 'Usage: deeprec config' help config
expect 0 'Usage: deeprec config' config a b c -h

# Every command in the overview has a help of its own, with its options and the words of its summary.
"$deeprec" --help >"$dir/overview"
n=0
while read -r name; do
    n=$((n + 1))
    expect 0 "Usage: deeprec $name" $name --help
    expect 0 '--help' $name --help
    expect 2 'unknown option --no-such-option' $name --no-such-option
done < <(sed -n '/^Commands:/,/^$/s/^  \([a-z]*\( [a-z]\+\)\?\)  .*/\1/p' "$dir/overview" | sed 's/ *$//')
[ $n -ge 2 ] || { echo "the overview lists only $n commands"; cat "$dir/overview"; bad=1; }

# Configuration: defaults read back; errors name file, line, key.
"$deeprec" config >"$dir/default.yaml" || bad=1
"$deeprec" config "$dir/default.yaml" >"$dir/again.yaml" || bad=1
cmp "$dir/default.yaml" "$dir/again.yaml" || bad=1
[ "$("$deeprec" config --hash)" = "$("$deeprec" config "$dir/again.yaml" --hash)" ] || { echo "hash differs"; bad=1; }
[ "$("$deeprec" config --hash)" != "$("$deeprec" config --hash --set learn.rate=1)" ] || { echo "hash is blind"; bad=1; }
expect 0 'rate: 0.5' config --set learn.rate=0.5
expect 0 '| `rate` | a number from 0 to 1' config --reference
expect 1 "no value for 'run.dir', 'data.dataset'" config --complete
printf 'learn:\n  rat: 0.1\n' >"$dir/a.yaml"
expect 1 "a.yaml:2:3: unknown setting 'learn.rat'; the nearest known one is 'learn.rate'" config "$dir/a.yaml"
printf 'learn:\n  rate: fast\n' >"$dir/a.yaml"
expect 1 "a.yaml:2:9: 'learn.rate': expected a number from 0 to 1, found 'fast'" config "$dir/a.yaml"
printf 'learn: {rate: 1\n' >"$dir/a.yaml"
expect 1 'not valid YAML' config "$dir/a.yaml"
expect 1 "stage1.samples' is 1" config --set stage1.samples=1
expect 1 'nothing to do' config --set stage1.steps=0 --set stage2.steps=0
expect 1 "'rollout.top_p': expected a number above 0" config --set rollout.top_p=0
expect 1 'No such file' config "$dir/missing.yaml"
expect 1 'is a folder' config "$dir"

# Output that cannot be written is a failure.
if [ -c /dev/full ]; then
    "$deeprec" config >/dev/full 2>"$dir/error"
    [ $? = 1 ] && grep -q 'No space left' "$dir/error" || { echo "a full disk went unseen"; bad=1; }
fi
[ $bad = 0 ] && echo "command line: $n commands looked at"
exit $bad
