#!/bin/sh
# Runs the GPU checks and benches of this bundle with the Node that lies in it; nothing need be installed.
#
#   ./run.sh check [--part N] ...    ./run.sh bench [--part N] ...    ./run.sh doctor    ./run.sh node FILE ...
#   ./run.sh first [--patience X] ...    doctor, then what a first run can break and the first figures: at most 5.5 minutes
#   ./run.sh second ...                  the rest in order of value: at most 4.5 minutes
#
# NVIDIA's libraries: LONGSEQ_CUDA_LIBS names their folders; else those beside python3's torch are taken, where there are
# any, and then what the loader finds by itself. LONGSEQ_CUDNN is a folder that longseq_cudnn.tar.xz was unpacked in (the
# one beside this file by default): its cuDNN comes before python3's. LONGSEQ_GPU_OUT is the folder of results (results/).
case $0 in
  */*) here=${0%/*} ;;
  *) here=. ;;
esac
here=$(CDPATH= cd -- "$here" && pwd) || exit 1
if [ -z "$LONGSEQ_CUDA_LIBS" ] && command -v python3 >/dev/null 2>&1; then
  found=$(python3 -c '
import glob, site, sys, sysconfig
folders = list(dict.fromkeys([sysconfig.get_paths()["purelib"], *sys.path, *site.getsitepackages()]))
libs = [lib for folder in folders if folder for lib in sorted(glob.glob(folder + "/nvidia/*/lib"))]
# Those that are named are the only ones looked into: without cuBLAS among them they would not do.
print(":".join(libs) if any(glob.glob(lib + "/libcublasLt.so.*") for lib in libs) else "")
' 2>/dev/null)
  cudnn=${LONGSEQ_CUDNN:-$here/..}/nvidia/cudnn/lib
  if [ -e "$cudnn/libcudnn.so.9" ]; then
    # It looks for the compiler of its kernels in ../../cu13/lib.
    for lib in $(IFS=:; echo $found) /usr/local/cuda/lib64; do
      [ -e "$lib/libnvrtc.so.13" ] && [ ! -e "$cudnn/../../cu13" ] && mkdir -p "$cudnn/../../cu13" &&
        ln -s "$lib" "$cudnn/../../cu13/lib"
    done
    found=$cudnn:${found:-/usr/local/cuda/lib64}
  fi
  if [ -n "$found" ]; then
    LONGSEQ_CUDA_LIBS=$found
    export LONGSEQ_CUDA_LIBS
  fi
fi
LONGSEQ_GPU_OUT=${LONGSEQ_GPU_OUT:-$here/results}
export LONGSEQ_GPU_OUT
what=${1:-}
[ $# -gt 0 ] && shift
node=$here/node check=$here/dist/test/gpu/check.js bench=$here/dist/bench/gpu/bench.js
case $what in
  first)
    command -v nvidia-smi >/dev/null 2>&1 && nvidia-smi
    "$node" "$here/bin/longseq.mjs" doctor
    "$node" "$check" --call first --budget 200 "$@"
    checked=$?
    "$node" "$bench" --call first --budget 120 "$@" && exit $checked
    exit 1
    ;;
  second)
    "$node" "$check" --call second --budget 100 "$@"
    checked=$?
    "$node" "$bench" --call second --budget 165 "$@" && exit $checked
    exit 1
    ;;
  check) exec "$node" "$check" "$@" ;;
  bench) exec "$node" "$bench" "$@" ;;
  doctor) exec "$node" "$here/bin/longseq.mjs" doctor "$@" ;;
  node) exec "$node" "$@" ;;
  *)
    echo "run.sh first | second | check [--part N] | bench [--part N] | doctor | node FILE" >&2
    exit 2
    ;;
esac
