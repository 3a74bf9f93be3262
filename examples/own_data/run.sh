#!/usr/bin/env bash
# From a folder of pictures to a one-step student, on a CPU. Run it again to go on.
set -euo pipefail
here="$(dirname "${BASH_SOURCE[0]}")"
work="${1:-runs/own-data}"
mkdir -p "$work"

test -d "$work/photos" || "${PYTHON:-python3}" "$here/make_pictures.py" "$work/photos"
driftrae pretrain "$here/teacher.yaml" --data "$work/photos" --out "$work/teacher"
driftrae distill "$here/student.yaml" --data "$work/photos" --teacher "$work/teacher" \
  --out "$work/student"
driftrae sample "$work/teacher" --out "$work/teacher-50-steps.png" --overwrite
driftrae sample "$work/teacher" --steps 1 --out "$work/teacher-1-step.png" --overwrite
driftrae sample "$work/student" --out "$work/student-1-step.png" --overwrite
