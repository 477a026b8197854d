#!/usr/bin/env bash
# What a user meets when a file is damaged, missing or wrong, or the disk is full: an exit code other than 0, one error that
# names the file and says what was found, no crash, and nothing lost that was there before. Argument: the deeprec binary.
set -eu
deeprec=$1
here=$(cd "$(dirname "$0")" && pwd)
. "$here/mpi-env.sh"
export OMP_NUM_THREADS=1 DR_LOG=warn
work=$(mktemp -d)
mounted=""
trap '[ -z "$mounted" ] || umount "$mounted"; rm -rf "$work"' EXIT
failed=0
cases=0
fail() {
    echo "FAILED: $1" >&2
    failed=1
}

# refused WHAT PATTERN COMMAND...: the command ends with an error whose text matches, not with a signal.
refused() {
    local what=$1 pattern=$2 code=0
    shift 2
    cases=$((cases + 1))
    "$@" > "$work/out" 2> "$work/err" || code=$?
    [ "$code" != 0 ] || fail "$what: taken"
    [ "$code" -lt 126 ] || fail "$what: ended with $code: $(tail -n 3 "$work/err")"
    grep -qE "$pattern" "$work/err" || fail "$what: no \"$pattern\" in: $(cat "$work/err")"
}
# damaged FILE COPY: a copy whose third quarter is overwritten (single bytes: tests/test_dataset.c); truncated FILE COPY: its first half.
damaged() {
    cp "$1" "$2"
    local quarter=$(($(wc -c < "$1") / 4))
    head -c $quarter /dev/zero | tr '\0' '\377' | dd of="$2" bs=$quarter seek=2 conv=notrunc 2> /dev/null
}
truncated() {
    head -c $(($(wc -c < "$1") / 2)) "$1" > "$2"
}

"$deeprec" prepare synthetic --users 30 --catalogue 60 --length 12 --out "$work/data.h5" > /dev/null
"$deeprec" trm train --dataset "$work/data.h5" --out "$work/trm" --epochs 1 --hidden 16 --text-dim 64 --experts 2 --batch 64 > /dev/null 2>&1
"$deeprec" init --dataset "$work/data.h5" --out "$work/policy" --preset tiny --vocab 600 > /dev/null
shape=(--k 5 --k-retrieve 6 --max-retrievals 2 --max-turn-tokens 32 --max-total-tokens 300)
evaluate() { # DATASET TRM MODEL
    "$deeprec" eval --dataset "$1" --trm "$2" --model "$3" "${shape[@]}" --stride 10 --out "$work/eval.json"
}

# data set
truncated "$work/data.h5" "$work/half.h5"
refused "half a data set" "half.h5" evaluate "$work/half.h5" "$work/trm" "$work/policy"
damaged "$work/data.h5" "$work/bad.h5"
refused "a damaged data set" "bad.h5" evaluate "$work/bad.h5" "$work/trm" "$work/policy"
refused "a data set that is text" "config.json" evaluate "$work/policy/config.json" "$work/trm" "$work/policy"
refused "no data set" "nowhere.h5" evaluate "$work/nowhere.h5" "$work/trm" "$work/policy"

# model folders
cp -r "$work/policy" "$work/words"
cp "$here/fuzz/seeds/fuzz_tokenizer/wordpiece.json" "$work/words/tokenizer.json"
refused "policy: a tokenizer of words" "WordPiece" evaluate "$work/data.h5" "$work/trm" "$work/words"
for folder in policy trm; do
    for file in model.safetensors config.json $([ $folder = trm ] || echo tokenizer.json); do
        rm -rf "$work/broken"
        cp -r "$work/$folder" "$work/broken"
        truncated "$work/$folder/$file" "$work/broken/$file"
        if [ $folder = trm ]; then
            refused "trm: half of $file" "broken/$file" evaluate "$work/data.h5" "$work/broken" "$work/policy"
        else
            refused "policy: half of $file" "broken/$file" evaluate "$work/data.h5" "$work/trm" "$work/broken"
        fi
        rm "$work/broken/$file"
        if [ $folder/$file = trm/config.json ]; then # the authors' weights come without: their text vectors are external
            refused "trm: no $file" "text vectors are external" evaluate "$work/data.h5" "$work/broken" "$work/policy"
        elif [ $folder = trm ]; then
            refused "trm: no $file" "broken/$file" evaluate "$work/data.h5" "$work/broken" "$work/policy"
        else
            refused "policy: no $file" "broken/$file" evaluate "$work/data.h5" "$work/trm" "$work/broken"
        fi
    done
done
cp -r "$work/policy" "$work/other"
sed -i 's/Qwen2ForCausalLM/MambaForCausalLM/' "$work/other/config.json"
refused "another architecture" "MambaForCausalLM" evaluate "$work/data.h5" "$work/trm" "$work/other"
cp "$work/policy/config.json" "$work/other/config.json"
sed -i 's/"hidden_size": 64/"hidden_size": 128/' "$work/other/config.json"
refused "other shapes than the configuration's" "128" evaluate "$work/data.h5" "$work/trm" "$work/other"

# configuration
cat > "$work/run.yaml" <<'Y'
protocol: {k: 5, k_retrieve: 6, max_retrievals: 2, max_turn_tokens: 32, max_total_tokens: 300}
stage1: {steps: 2, prompts: 2, samples: 2, updates: 1, difficulty_to: 0}
stage2: {steps: 0}
checkpoint: {every: 1, keep: 2}
Y
train() { # YAML FOLDER EXTRA...
    local yaml=$1 folder=$2
    shift 2
    "$deeprec" train "$yaml" --set "run.dir=$folder" --set "data.dataset=$work/data.h5" --set "model.trm=$work/trm" \
        --set "model.policy=$work/policy" "$@"
}
yaml() { # TEXT: a configuration with one more line
    { cat "$work/run.yaml"; printf '%b\n' "$1"; } > "$work/wrong.yaml"
}
yaml 'learn: {ratee: 1}'
refused "an unknown key" "wrong.yaml:5.*learn.ratee" train "$work/wrong.yaml" "$work/x"
yaml 'learn: {rate: fast}'
refused "a wrong type" "wrong.yaml:5.*learn.rate" train "$work/wrong.yaml" "$work/x"
yaml 'learn: {rate: [1, 2}'
refused "broken YAML" "wrong.yaml:5" train "$work/wrong.yaml" "$work/x"
yaml 'learn: {clip_low: -4}'
refused "a value out of range" "learn.clip_low" train "$work/wrong.yaml" "$work/x"
refused "no configuration" "nowhere.yaml" train "$work/nowhere.yaml" "$work/x"
refused "no policy" "nowhere" train "$work/run.yaml" "$work/x" --set "model.policy=$work/nowhere"
[ ! -e "$work/x/checkpoints" ] || fail "a refused run left checkpoints"

# texts to score
printf '{"user": "u1", "completion": "x"}\n{"user": "u2", "compl\n' > "$work/texts.jsonl"
refused "a broken line of texts" "texts.jsonl:2" "$deeprec" reward --dataset "$work/data.h5" --stage cold --input "$work/texts.jsonl"
printf '{"user": "nobody", "completion": "x"}\n' > "$work/texts.jsonl"
refused "an unknown user" "texts.jsonl:1.*nobody" "$deeprec" reward --dataset "$work/data.h5" --stage cold --input "$work/texts.jsonl"

# a full disk while a checkpoint is saved: the run ends with an error, the last good checkpoint still resumes
mkdir "$work/small"
if mount -t tmpfs -o size=8m tmpfs "$work/small" 2> /dev/null; then
    mounted=$work/small
    train "$work/run.yaml" "$work/small/run" --set run.stop_after=1 > /dev/null 2>&1 || true
    [ -e "$work/small/run/checkpoints/step_000001/manifest.json" ] || fail "no checkpoint before the disk is full"
    dd if=/dev/zero of="$work/small/filler" bs=1k 2> /dev/null || true
    refused "a full disk" "[Nn]o space left" train "$work/run.yaml" "$work/small/run" --resume
    [ ! -e "$work/small/run/checkpoints/step_000002/manifest.json" ] || fail "a checkpoint counts although the disk was full"
    rm "$work/small/filler"
    train "$work/run.yaml" "$work/small/run" --resume > "$work/out" 2> "$work/err" || fail "no resume after the disk had space again: $(tail -n 3 "$work/err")"
    [ -e "$work/small/run/policy/model.safetensors" ] || fail "the resumed run left no policy"
else
    echo "bad input: the full disk is skipped: no right to mount one"
fi
[ $failed = 0 ] || exit 1
echo "bad input: $cases cases refused"
