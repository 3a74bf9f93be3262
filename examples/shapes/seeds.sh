#!/usr/bin/env bash
# Three seeds of the preset and of the paper's own field; half an hour on two cores.
# Run it again after an interruption: finished runs are kept.
set -euo pipefail
cd "$(dirname "$0")/../.."
runs=()
for seed in 0 1 2; do
  driftrae distill shapes --set seed=$seed --out runs/seeds/preset-$seed
  driftrae distill shapes --set seed=$seed --set field.group=1 --set field.normalize=token \
    --out runs/seeds/paper-$seed
  runs+=("runs/seeds/preset-$seed" "runs/seeds/paper-$seed")
done
driftrae eval-fid "${runs[@]}" --results runs/results.jsonl
