#!/bin/bash
# deeprec inspect: what it says about files made here, and that a damaged one is an error that names it.
deeprec=${1:?usage: test_inspect.sh DEEPREC}
dir=$(mktemp -d "${TMPDIR:-/tmp}/deeprec-inspect-XXXXXX") || exit 1
trap 'rm -rf "$dir"' EXIT
bad=0
expect() { # expect CODE TEXT FILE...: exit code, and TEXT in the output
    local code=$1 text=$2 got out
    shift 2
    out=$("$deeprec" inspect "$@" 2>&1)
    got=$?
    if [ $got != "$code" ] || ! printf '%s' "$out" | grep -qF -- "$text"; then
        echo "deeprec inspect $*: exit code $got, expected $code and \"$text\" in:"
        printf '%s\n' "$out" | head -40
        bad=1
    fi
}

printf '{"step": 1, "loss": 2.5}\n{"step": 2, "loss": 1.5, "note": "x"}\n' >"$dir/metrics.jsonl"
expect 0 'JSON lines, 2 lines' "$dir/metrics.jsonl"
expect 0 'loss                                  2.5          1.5          1.5          2.5' "$dir/metrics.jsonl"
mkdir "$dir/run"
for step in 1 2 3 4 5; do
    printf '{"step": %s, "stage": "%s", "reward": %s, "reward_parts": {}, "timing": {"rollout_s": 2}}\n' $step \
        "$([ $step -lt 2 ] && echo stage1 || echo stage2)" $step.5
done >"$dir/run/metrics.jsonl"
expect 0 'stage2, quarter 4              5.5000' "$dir/run/metrics.jsonl"
expect 0 'stage1                         1.5000' "$dir/run/metrics.jsonl"
printf '{"step": 1}\n{"step": \n' >"$dir/bad.jsonl"
expect 1 'bad.jsonl, line 2:' "$dir/bad.jsonl"
"$deeprec" config --set learn.rate=0.5 >"$dir/config.yaml"
expect 0 'training configuration, hash ' "$dir/config.yaml"
printf 'learn: {rate: 2}\n' >"$dir/bad.yaml"
expect 1 "bad.yaml:1:15: 'learn.rate'" "$dir/bad.yaml"
printf '{"model": {"type": "BPE", "vocab": {"a": 0, "b": 1}, "merges": []}, "added_tokens": [{"id": 2, "content": "<x>"}]}' \
    >"$dir/tokenizer.json"
expect 0 'BPE, 2 tokens, 0 merges, 1 added tokens' "$dir/tokenizer.json"
expect 0 '2 <x>' "$dir/tokenizer.json"
# One tensor of two floats: an 8-byte length, the header, the data.
header='{"a.weight":{"dtype":"F32","shape":[1,2],"data_offsets":[0,8]}}'
{ printf "\\x$(printf %x ${#header})\\0\\0\\0\\0\\0\\0\\0%s" "$header"; printf '\0\0\0\0\0\0\0\0'; } >"$dir/m.safetensors"
expect 0 '1 tensors, 2 values' "$dir/m.safetensors"
expect 0 'F32   1 x 2' "$dir/m.safetensors"
head -c 70 "$dir/m.safetensors" >"$dir/cut.safetensors"
expect 1 'cut.safetensors' "$dir/cut.safetensors"
printf '\211HDF\r\n\032\nnothing behind the signature' >"$dir/bad.h5"
expect 1 'HDF5 cannot open it' "$dir/bad.h5"
printf 'hello' >"$dir/hello"
expect 1 'of a kind this program does not write' "$dir/hello"
expect 1 'no such file' "$dir/missing"
expect 2 'expected FILE_OR_FOLDER'

# A folder: every file is looked at, and one bad file makes the exit code 1.
expect 1 'training configuration' "$dir"
rm "$dir"/bad.* "$dir"/cut.* "$dir/hello"
expect 0 'run folder' "$dir"
expect 0 'm.safetensors: safetensors' "$dir"
mkdir "$dir/policy" # weights in shards are a policy too
printf '{}' >"$dir/policy/model.safetensors.index.json"
cp "$dir/tokenizer.json" "$dir/policy/"
expect 0 'policy (Hugging Face folder)' "$dir/policy"
exit $bad
