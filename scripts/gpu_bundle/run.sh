#!/bin/sh
# Runs the GPU checks and benches of this bundle with the Node that lies in it; nothing need be installed.
#
#   ./run.sh check [--part N] ...    ./run.sh bench [--part N] ...    ./run.sh doctor    ./run.sh node FILE ...
#
# NVIDIA's libraries: LONGSEQ_CUDA_LIBS names their folders; else those beside python3's torch are taken, where there are
# any, and then what the loader finds by itself. LONGSEQ_GPU_OUT is the folder of results (here: results/).
here=$(CDPATH= cd -- "$(dirname -- "$0")" && pwd) || exit 1
if [ -z "$LONGSEQ_CUDA_LIBS" ] && command -v python3 >/dev/null 2>&1; then
  found=$(python3 -c '
import glob, site, sys, sysconfig
folders = list(dict.fromkeys([sysconfig.get_paths()["purelib"], *sys.path, *site.getsitepackages()]))
print(":".join(lib for folder in folders if folder for lib in sorted(glob.glob(folder + "/nvidia/*/lib"))))
' 2>/dev/null)
  if [ -n "$found" ]; then
    LONGSEQ_CUDA_LIBS=$found
    export LONGSEQ_CUDA_LIBS
  fi
fi
LONGSEQ_GPU_OUT=${LONGSEQ_GPU_OUT:-$here/results}
export LONGSEQ_GPU_OUT
what=${1:-}
[ $# -gt 0 ] && shift
case $what in
  check) exec "$here/node" "$here/dist/test/gpu/check.js" "$@" ;;
  bench) exec "$here/node" "$here/dist/bench/gpu/bench.js" "$@" ;;
  doctor) exec "$here/node" "$here/bin/longseq.mjs" doctor "$@" ;;
  node) exec "$here/node" "$@" ;;
  *)
    sed -n '2,8s/^# \{0,1\}//p' "$0" >&2
    exit 2
    ;;
esac
