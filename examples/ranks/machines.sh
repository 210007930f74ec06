#!/bin/bash
# The same on each of several machines, without a scheduler:
#   LONGSEQ_SECRET=... examples/ranks/machines.sh 0 2 10.0.0.7 run.yaml   # on 10.0.0.7, the first of two
#   LONGSEQ_SECRET=... examples/ranks/machines.sh 1 2 10.0.0.7 run.yaml   # on the other
set -euo pipefail
: "${LONGSEQ_SECRET:?set it to the same random text on all machines}"
exec node_modules/.bin/longseq launch --nproc "${NPROC:-2}" --nnodes "$2" --node-rank "$1" --rendezvous "$3:29500" -- train "$4"
