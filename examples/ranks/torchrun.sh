#!/bin/bash
# Ranks started by torchrun, as other trainers' are: examples/ranks/torchrun.sh run.yaml
set -euo pipefail

LONGSEQ_SECRET=$(od -An -N32 -tx1 /dev/urandom | tr -d ' \n')
export LONGSEQ_SECRET
torchrun --nproc-per-node "${NPROC:-2}" --no-python node_modules/.bin/longseq train "${1:-run.yaml}"
