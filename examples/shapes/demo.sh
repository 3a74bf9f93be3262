#!/usr/bin/env bash
# From the built-in teacher to a one-step student, its pictures and its scores.
# Interrupt it with Ctrl-C and run it again: it goes on where it stopped.
set -euo pipefail
cd "$(dirname "$0")/../.."
run=runs/demo

driftrae distill shapes --out "$run"
driftrae sample shapes-teacher --steps 50 --out "$run/teacher-50-steps.png" --overwrite
driftrae sample shapes-teacher --steps 1 --out "$run/teacher-1-step.png" --overwrite
driftrae sample "$run" --out "$run/student-1-step.png" --overwrite
driftrae eval-fid shapes-teacher "$run" --steps 50 --steps 1 --results runs/results.jsonl

cat <<END

Pictures, one row per class:
  $run/teacher-50-steps.png   the teacher, 50 steps
  $run/teacher-1-step.png     the teacher, 1 step
  $run/student-1-step.png     the student, 1 step
  $run/previews/              the student while it learned
END
