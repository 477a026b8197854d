#!/usr/bin/env bash
# From a fresh Debian machine to a trained policy: installs what is missing, builds, and runs the main job on the embedded
# synthetic catalogue: prepare, retrieval model, fresh policy, warm-up, two RL stages on 4 ranks, evaluation.
#   [SEED=N] launch/quickstart.sh [RUN_FOLDER]        (default runs/quickstart, seed 1: of the catalogue and of every draw)
set -euo pipefail
cd "$(dirname "$0")/.."
. launch/deps.sh
. launch/pipeline.sh
deeprec_install
RUN=${1:-runs/quickstart}
SEED=${SEED:-1}
pipeline_build
mkdir -p "$RUN"
DATASET=$RUN/data.h5
CONFIG=launch/quickstart.yaml
RANKS=4
EVALUATED=(policy_warmup policy)
PRECISION=(--precision "$(pipeline_precision)")
SHAPE=(--k-retrieve 12 --max-retrievals 3 --max-turn-tokens 110 --max-total-tokens 640)
TRM_FLAGS=("${PRECISION[@]}" --seed "$SEED" --epochs 4 --batch 128 --rate 0.002 --patience 3 --text-noise 0.3 --max-history 12)
INIT_FLAGS=(--seed "$SEED" --preset small --vocab 4096)
SFT_FLAGS=("${PRECISION[@]}" "${SHAPE[@]}" --seed "$SEED" --steps 200 --batch-tokens 1024 --rate 0.002 --warmup 30 --context-weight 0.5)
TRAIN_FLAGS=(--set "model.precision=${PRECISION[1]}" --set "run.seed=$SEED")
EVAL_FLAGS=("${PRECISION[@]}" "${SHAPE[@]}" --seed "$SEED" --max-live 96)
pipeline_stage "Data (synthetic catalogue)" "$DATASET" "$DEEPREC" prepare synthetic --users 800 --seed "$SEED" --out "$DATASET"
pipeline_run
