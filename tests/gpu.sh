#!/usr/bin/env bash
# The tests and benchmarks that need a GPU, in at most ten minutes.
#
#   bash tests/gpu.sh [BUNDLE]
#
# BUNDLE is what tests/gpu_bundle.sh made on a machine with compilers and packages, the folder or its archive; then
# nothing has to be installed here. Without BUNDLE the cuda preset is built here. Everything printed also goes to
# $OUT/results.txt (OUT: gpu_results), figures to $OUT/bench.jsonl, whole logs to $OUT/logs.tar.gz. Each part has a
# limit of time, and what is done is in the files when a later part runs out of it. The last line is
# `N passed, N failed`.
#
# TTT_GPU_SECONDS: for all parts together (570). TTT_GPU_PARTS: only these, e.g. "kernels bench".
# TTT_GPU_REHEARSAL=1: without a GPU, with the emulated programs of the release build and the CPU in the device's place,
# on small sizes: proves this script. TTT_REFERENCE: a folder with the public reference's ttt.py, for the peers.
set -uo pipefail
cd "$(dirname "$0")/.." || exit 1
root=$PWD
is_rehearsal=${TTT_GPU_REHEARSAL:-0}
out=$(realpath -m "${OUT:-gpu_results}")
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir -p "$out" "$work/logs"
exec > >(tee "$out/results.txt") 2>&1
tee_pid=$!

# Where cuBLASLt, NCCL and cuDNN lie: the toolkit's folders, or those of Python's packages.
cuda_libraries() {
  ls -d /usr/local/cuda/lib64 2>/dev/null
  python3 -c 'import glob, sys
print("\n".join(found for path in sys.path if path for found in sorted(glob.glob(path + "/nvidia/*/lib"))))'
}

device=cuda
prefix=cuda
if [[ $is_rehearsal == 1 ]]; then
  bin=${TTT_GPU_BIN:-$root/build/bin}
  device=cpu
  prefix=cuda_emulated
elif [[ $# -gt 0 ]]; then
  if [[ -f $1 ]]; then
    mkdir "$work/bundle"
    python3 -m tarfile -e "$1" "$work/bundle" || exit 1
    bin=$work/bundle/bin
  else
    bin=$(realpath "$1")/bin
  fi
else
  cmake --preset cuda && cmake --build --preset cuda -j "$(nproc)" || exit 1
  bin=$root/build/cuda/bin
fi
# For our programs alone: PyTorch finds its own.
libraries=${LD_LIBRARY_PATH:+$LD_LIBRARY_PATH:}$(cuda_libraries | paste -sd:)
export TTT_SOURCE_DIR=$root
export CUDA_MODULE_LOADING=LAZY
passed=0
failed=0
limit=${TTT_GPU_SECONDS:-570}
SECONDS=0

# check NAME SECONDS COMMAND...: runs it with its output in logs/NAME, shows the log's end and counts its exit status.
check() {
  local name=$1 seconds=$2 started=$SECONDS
  shift 2
  [[ -n ${TTT_GPU_PARTS:-} && " $TTT_GPU_PARTS " != *" $name "* ]] && return
  local left=$((limit - SECONDS))
  ((seconds > left)) && seconds=$left
  if ((seconds < 5)); then
    failed=$((failed + 1))
    echo "== $name: NOT RUN, no time left"
    return
  fi
  echo "== $name"
  timeout -k 5 "$seconds" env PYTHONUNBUFFERED=1 "$@" >"$work/logs/$name" 2>&1
  local status=$?
  tail -n 60 "$work/logs/$name"
  if [[ $status -eq 0 ]]; then
    passed=$((passed + 1))
    echo "-- $name: passed, $((SECONDS - started)) s"
  else
    failed=$((failed + 1))
    [[ $status -eq 124 ]] && echo "$name: stopped after its $seconds s"
    echo "-- $name: FAILED with $status, $((SECONDS - started)) s"
  fi
}
ours() { check "$1" "$2" env LD_LIBRARY_PATH="$libraries" "${@:3}"; }

date -u
git -C "$root" rev-parse HEAD 2>/dev/null
if [[ $is_rehearsal == 1 ]]; then
  echo "a rehearsal: nothing below is about a GPU"
else
  nvidia-smi || { echo "no GPU: nvidia-smi does not run"; exit 1; }
fi

# Tests read what a kernel wrote as soon as the call returns; each suite is a process, so that an error that ends the
# device's context ends one suite.
blocking=(env CUDA_LAUNCH_BLOCKING=1)
kernel_filter='*Float*:Cuda*'
model_filter='*_f32:*CudaModel*'
race_filter='CudaRace*'
steps=200
bench=(--presets "$root/configs/pile" --json "$out/bench.jsonl")
if [[ $is_rehearsal == 1 ]]; then
  kernel_filter='Activation*Float*:Rope*Float*:CudaAttention.Unaligned*'
  model_filter='*model_linear_tf_f32'
  race_filter='CudaRace*:-*'
  steps=25
  bench+=(--smoke --budget 1)
fi
rm -f "$out/bench.jsonl"
ours kernels 100 "${blocking[@]}" python3 tests/gpu_suites.py "$bin/${prefix}_tests" "$kernel_filter"
ours models 60 "${blocking[@]}" python3 tests/gpu_suites.py "$bin/${prefix}_model_tests" "$model_filter"
ours bench 100 "$bin/${prefix}_bench" "${bench[@]}" ttt attention
if [[ $is_rehearsal != 1 ]]; then
  ours cudnn 40 "${blocking[@]}" TTT_ATTENTION=cudnn python3 tests/gpu_suites.py "$bin/cuda_tests" '*Attention*BFloat16*:CudaAttention*'
  ours bench_cudnn 40 env TTT_ATTENTION=cudnn "$bin/cuda_bench" "${bench[@]}" attention
fi
ours bench_steps 160 "$bin/${prefix}_bench" "${bench[@]}" steps
# The same steps on both devices: the curves of fp32 agree to the rounding of sums.
ours training 120 python3 tests/gpu_training.py "$bin/ttt" "$work/training" --device "$device" --steps "$steps"
if command -v compute-sanitizer >/dev/null; then
  for tool in memcheck racecheck initcheck; do
    ours "sanitizer_$tool" 40 "${blocking[@]}" compute-sanitizer --tool "$tool" --target-processes all --error-exitcode 1 "$bin/${prefix}_tests" --gtest_filter="$race_filter"
  done
else
  echo "== compute-sanitizer: not on this machine, left out"
fi
peers=(tests/bench/device_peers.py --json "$out/bench.jsonl" ${TTT_REFERENCE:+--reference "$TTT_REFERENCE"})
if [[ $is_rehearsal == 1 ]]; then peers+=(--device cpu --smoke); fi
if python3 -c 'import torch' 2>/dev/null; then
  check peers 90 python3 "${peers[@]}"
else
  echo "== peers: PyTorch is not on this machine, left out"
fi

tar -C "$work" -czf "$out/logs.tar.gz" logs
echo
echo "$SECONDS s"
echo "$passed passed, $failed failed"
exec >&- 2>&-
wait "$tee_pid"  # it writes the last lines
[[ $failed -eq 0 ]]
