#!/usr/bin/env bash
# A run whose retrieval model has a sentence encoder, from training it to the tables; the encoder's folder moved, gone and changed.
# Argument: the deeprec binary.
set -eu
deeprec=$1
here=$(cd "$(dirname "$0")" && pwd)
. "$here/mpi-env.sh"
export OMP_NUM_THREADS=1 OMP_WAIT_POLICY=passive DR_LOG=warn
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
fail() {
    echo "FAILED: $1" >&2
    exit 1
}
refused() { # TEXT COMMAND...
    local text=$1
    shift
    if "$@" > "$work/said" 2>&1; then fail "taken: $*"; fi
    grep -qF -- "$text" "$work/said" || { cat "$work/said" >&2; fail "refused without \"$text\": $*"; }
}

cp -r "$here/golden/sentence_bert" "$work/bert"
"$deeprec" prepare synthetic --users 30 --catalogue 50 --length 10 --out "$work/data.h5" > /dev/null
trm_train() {
    "$deeprec" trm train --dataset "$work/data.h5" --epochs 1 --hidden 16 --experts 2 --batch 64 "$@"
}
trm_train --out "$work/trm" --text-encoder "$work/bert" 2> /dev/null
(cd "$work" && trm_train --out "$work/near" --text-encoder bert 2> /dev/null)
cmp -s "$work/near/config.json" "$work/trm/config.json" || fail "the encoder's folder is kept as it was named, not where it is"
grep -q '"text_dim": 24' "$work/trm/config.json" || fail "the encoder's width is not the model's"
grep -q '"query_instruction": "Represent this sentence' "$work/trm/config.json" || fail "the instruction is not stored"
trm_train --out "$work/other" --text-encoder "$work/bert" --query-instruction "find: " --max-text-tokens 64 2> /dev/null
grep -q '"query_instruction": "find: "' "$work/other/config.json" || fail "another instruction is not stored"
grep -q '"max_text_tokens": 64' "$work/other/config.json" || fail "the limit of tokens is not stored"
refused "no UTF-8" trm_train --out "$work/no" --text-encoder "$work/bert" --query-instruction "$(printf '\377')"
refused "fp32 only" trm_train --out "$work/no" --text-encoder "$work/bert" --precision bf16
refused "known by name: hashed-ngram" trm_train --out "$work/no" --text-encoder "$work/nowhere"

# what training will take is said before it is taken, and refused with the numbers where it does not fit
DR_LOG=info trm_train --out "$work/other" --text-encoder "$work/bert" 2>&1 | grep -qE 'memory of the training: text encoder [0-9.]+, weights .* in all [0-9.]+ MB; free are' ||
    fail "training does not say what it will take"
if [ "$(awk '/^MemTotal/ {print $2}' /proc/meminfo)" -lt 100000000 ]; then
    refused "the plan does not fit: weights" trm_train --out "$work/no" --batch 65536 --max-history 64 --hidden 256 --experts 64 --text-dim 65536
    grep -qE 'in all [0-9.]+ MB; free are [0-9.]+ of [0-9.]+ MB\. A smaller batch' "$work/said" || fail "the refusal lacks the numbers"
    [ ! -e "$work/no" ] || fail "a refused training left its folder"
else
    echo "skipped: this machine has memory for whatever is asked"
fi

shape="--k 5 --k-retrieve 6 --max-retrievals 2 --max-turn-tokens 48 --max-total-tokens 384"
parts="--dataset $work/data.h5 --trm $work/trm"
"$deeprec" init --dataset "$work/data.h5" --out "$work/fresh" --preset tiny --vocab 700 > /dev/null
"$deeprec" sft --model "$work/fresh" $parts --out "$work/warm" --steps 8 --batch-tokens 2048 --rate 0.005 $shape 2> /dev/null
cat > "$work/run.yaml" <<'Y'
protocol: {k: 5, k_retrieve: 6, max_retrievals: 2, max_turn_tokens: 48, max_total_tokens: 384}
learn: {rate: 1e-3, pack_tokens: 1024}
stage1: {steps: 1, prompts: 3, samples: 2, updates: 1, difficulty_to: 0}
stage2: {steps: 1, prompts: 3, samples: 2, updates: 1, difficulty_to: 0}
Y
train() { # FOLDER RANKS EXTRA...
    local folder=$1 ranks=$2 launcher=""
    shift 2
    [ "$ranks" = 1 ] || launcher="mpirun -n $ranks"
    $launcher "$deeprec" train "$work/run.yaml" --set "run.dir=$folder" --set "data.dataset=$work/data.h5" \
        --set "model.trm=$work/trm" --set "model.policy=$work/warm" "$@"
}
train "$work/a" 1

# the folder moves: named as missing, found where one says it is, with the same trajectories on other ranks
mv "$work/bert" "$work/moved"
refused "model.text_encoder" train "$work/no" 1
train "$work/b" 3 --set "model.text_encoder=$work/moved"
cmp -s "$work/a/policy/model.safetensors" "$work/b/policy/model.safetensors" || fail "another place and ranks: other weights"
for file in "$work"/a/trajectories/*.h5; do
    cmp -s "$file" "$work/b/trajectories/$(basename "$file")" || fail "other trajectories in $(basename "$file")"
done
refused "text-encoder" "$deeprec" eval --model "$work/warm" $parts $shape
"$deeprec" eval --model "$work/warm" $parts --text-encoder "$work/moved" $shape --out "$work/eval.json" | grep -q "TRM alone" ||
    fail "no table"
echo '{"user": "u1", "completion": "x"}' > "$work/completions"
for trm in "" "--trm $work/trm"; do
    "$deeprec" reward --dataset "$work/data.h5" $trm --text-encoder "$work/moved" --input "$work/completions" 2> /dev/null |
        grep -q '"diversity"' || fail "no rewards with the encoder ($trm)"
done

# another tokenizer is another encoder
sed 's/"\[CLS\] /"[CLS]/; s/"pair"/ "pair"/' "$work/moved/tokenizer.json" > "$work/changed"
mv "$work/changed" "$work/moved/tokenizer.json"
refused "another text encoder" "$deeprec" eval --model "$work/warm" $parts --text-encoder "$work/moved" $shape
echo "text encoder: all checks hold"
