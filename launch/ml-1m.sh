#!/usr/bin/env bash
# The main job on MovieLens-1M: launch/ml-1m.sh DATA_FOLDER [RUN_FOLDER]. The folder holds movies.dat and either sequences.txt (one
# line a user: user movie movie …) or the original ratings.dat. Needs about an hour on two cores.
set -eu
cd "$(dirname "$0")/.."
data=${1:?usage: launch/ml-1m.sh DATA_FOLDER [RUN_FOLDER]}
RUN=${2:-runs/ml-1m}
. launch/deps.sh
. launch/pipeline.sh
deeprec_install
pipeline_say "Build"
cmake --preset release > /dev/null
cmake --build --preset release --target deeprec | tail -n 1
DEEPREC=$PWD/build/release/deeprec
mkdir -p "$RUN"
DATASET=$RUN/data.h5
CONFIG=launch/ml-1m.yaml
RANKS=4
PRECISION=(--precision "$(pipeline_precision)")
SHAPE=(--k-retrieve 15 --max-retrievals 3 --max-turn-tokens 160 --max-total-tokens 900)
TRM_FLAGS=("${PRECISION[@]}" --epochs 5 --samples 300000 --patience 2 --text-noise 0.3)
INIT_FLAGS=(--preset small --vocab 8192)
SFT_FLAGS=("${PRECISION[@]}" "${SHAPE[@]}" --steps 1800 --batch-tokens 4096 --rate 0.002 --warmup 40 --context-weight 0.5)
TRAIN_FLAGS=(--set "model.precision=${PRECISION[1]}")
EVAL_FLAGS=("${PRECISION[@]}" "${SHAPE[@]}" --max-live 128)
if [ -e "$data/sequences.txt" ]; then
    prepare=(prepare plain --interactions "$data/sequences.txt" --items "$data/movies.dat" --name ml-1m)
else
    prepare=(prepare ml-1m --input "$data")
fi
pipeline_stage "Data" "$DATASET" "$DEEPREC" "${prepare[@]}" --k-core 5 --out "$DATASET"
pipeline_run
