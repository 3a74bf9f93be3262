#!/usr/bin/env bash
# What helps and what does not: one change each from whole latents, in about the same time.
# An hour on two cores. Run it again after an interruption: finished runs are kept.
set -euo pipefail
cd "$(dirname "$0")/../.."
out=runs/ablations

driftrae distill shapes --out $out/start --set field.group=all
driftrae distill shapes --out $out/tokens --set field.group=1
driftrae distill shapes --out $out/blocks --set field.group=2
driftrae distill shapes --out $out/paper --set field.group=1 --set field.normalize=token
driftrae distill shapes --out $out/original --set field.group=all \
  --set field.softmax=joint --set field.perturb=false
driftrae distill shapes --out $out/fewer-classes --set field.group=all --set step.classes=5 \
  --set step.positives=256 --set step.grad_negatives=64 --set step.detached_negatives=192
driftrae distill shapes --out $out/fewer-classes-blocks --set field.group=2 --set step.classes=5 \
  --set step.positives=256 --set step.grad_negatives=64 --set step.detached_negatives=192
driftrae distill shapes --out $out/fewer-samples --set field.group=all --set optim.steps=480 \
  --set step.positives=64 --set step.grad_negatives=16 --set step.detached_negatives=48 \
  --set optim.learning_rate=3e-3 --set optim.final_learning_rate=3e-5 --set optim.ema_decay=0.99
driftrae distill shapes --out $out/slower --set field.group=all \
  --set optim.learning_rate=7e-4 --set optim.final_learning_rate=7e-6
driftrae distill shapes --out $out/faster --set field.group=all \
  --set optim.learning_rate=5e-3 --set optim.final_learning_rate=5e-5
driftrae eval-fid $out/{start,tokens,blocks,paper,original} --results runs/results.jsonl
driftrae eval-fid $out/{fewer-classes,fewer-classes-blocks,fewer-samples} --results runs/results.jsonl
driftrae eval-fid $out/{slower,faster} --results runs/results.jsonl
