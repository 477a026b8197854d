#!/usr/bin/env bash
# The main job on MovieLens-1M: [SEED=N] launch/ml-1m.sh DATA_FOLDER [RUN_FOLDER] (seed 1). The folder holds movies.dat and either sequences.txt (one
# line a user: user movie movie …) or the original ratings.dat, each as it is or as .xz. Takes under an hour on two cores.
set -euo pipefail
cd "$(dirname "$0")/.."
data=${1:?usage: launch/ml-1m.sh DATA_FOLDER [RUN_FOLDER]}
RUN=${2:-runs/ml-1m}
SEED=${SEED:-1}
. launch/deps.sh
. launch/pipeline.sh
deeprec_install
pipeline_build
mkdir -p "$RUN"
DATASET=$RUN/data.h5
CONFIG=launch/ml-1m.yaml
RANKS=4
EVALUATED=(policy_warmup policy_stage1 policy)
PRECISION=(--precision "$(pipeline_precision)")
SHAPE=(--k-retrieve 12 --max-retrievals 3 --max-turn-tokens 200 --max-total-tokens 1000)
TRM_FLAGS=("${PRECISION[@]}" --seed "$SEED" --epochs 3 --samples 250000 --patience 2 --text-noise 0.3 --text-dim 512)
INIT_FLAGS=(--seed "$SEED" --preset small --vocab 4096)
SFT_FLAGS=("${PRECISION[@]}" "${SHAPE[@]}" --seed "$SEED" --steps 500 --batch-tokens 2048 --rate 0.002 --warmup 30 --context-weight 0.5)
TRAIN_FLAGS=(--set "model.precision=${PRECISION[1]}" --set "run.seed=$SEED")
EVAL_FLAGS=("${PRECISION[@]}" "${SHAPE[@]}" --seed "$SEED" --max-live 128)
has() { [ -e "$data/$1" ] || [ -e "$data/$1.xz" ]; }
unpacked() { # NAME: its path, out of the .xz where only that is there
    if [ -e "$data/$1" ]; then
        echo "$data/$1"
    else
        xz -dc "$data/$1.xz" > "$RUN/source/$1"
        echo "$RUN/source/$1"
    fi
}
if [ ! -e "$DATASET" ]; then
    mkdir -p "$RUN/source"
    movies=$(unpacked movies.dat)
    if has sequences.txt; then
        prepare=(prepare plain --interactions "$(unpacked sequences.txt)" --items "$movies" --name ml-1m)
    else
        prepare=(prepare ml-1m --interactions "$(unpacked ratings.dat)" --items "$movies")
    fi
fi
pipeline_stage "Data" "$DATASET" "$DEEPREC" "${prepare[@]:-}" --k-core 5 --out "$DATASET"
rm -rf "$RUN/source"
pipeline_run
