#!/bin/sh
# What the toolkit does on one GPU, in at most ten minutes: see scripts/gpu_check.py. Options are passed on.
#
#     scripts/gpu_check.sh [--output FOLDER] [--only CHECK …] [--device cpu]
#
# Ends with 0: every check that ran passed · 1: one failed · 3: no GPU, nothing was run.
exec "${PYTHON:-python}" "$(dirname "$0")/gpu_check.py" "$@"
