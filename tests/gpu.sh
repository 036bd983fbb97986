#!/usr/bin/env bash
# The tests and benchmarks that need a GPU, in at most ten minutes.
#
#   bash tests/gpu.sh [BUNDLE]
#
# BUNDLE is a folder made by tests/gpu_bundle.sh on a machine with compilers and packages: programs, the libraries they
# need and golden data; then nothing has to be installed here. Without BUNDLE the cuda preset is built here. Everything
# goes to $OUT (default: gpu_results); the last line is `N passed, N failed`.
set -uo pipefail
cd "$(dirname "$0")/.."
out=${OUT:-gpu_results}
mkdir -p "$out"
if [[ $# -gt 0 ]]; then
  bin=$1/bin
  export LD_LIBRARY_PATH=$1/lib:${LD_LIBRARY_PATH:-}
else
  cmake --preset cuda && cmake --build --preset cuda -j "$(nproc)" || exit 1
  bin=build/cuda/bin
fi
export TTT_SOURCE_DIR=$PWD
passed=0
failed=0

# check NAME COMMAND...: runs it with its output in $out/NAME.log and counts its exit status.
check() {
  local name=$1
  shift
  local started=$SECONDS
  if "$@" >"$out/$name.log" 2>&1; then
    passed=$((passed + 1))
    echo "$name: passed, $((SECONDS - started)) s"
  else
    failed=$((failed + 1))
    echo "$name: FAILED, $((SECONDS - started)) s"
    tail -n 30 "$out/$name.log"
  fi
}

nvidia-smi | tee "$out/nvidia_smi.txt"

# Tests read what a kernel wrote as soon as the call returns.
check kernels env CUDA_LAUNCH_BLOCKING=1 "$bin/cuda_tests" --gtest_filter='*Float*:Cuda*' --gtest_print_time=0
check models env CUDA_LAUNCH_BLOCKING=1 "$bin/cuda_model_tests" --gtest_filter='*_f32:*CudaModel*' --gtest_print_time=0
if command -v compute-sanitizer >/dev/null; then
  for tool in memcheck racecheck initcheck; do
    check "sanitizer_$tool" env CUDA_LAUNCH_BLOCKING=1 timeout 120 compute-sanitizer --tool "$tool" --error-exitcode 1 \
      "$bin/cuda_tests" --gtest_filter='CudaRace*'
  done
else
  echo "compute-sanitizer: not on this machine, left out"
fi

# The same 200 steps on both devices: the curves of fp32 agree to the rounding of sums.
check training python3 tests/gpu_training.py "$bin/ttt" "$out"
echo
echo "$passed passed, $failed failed"
[[ $failed -eq 0 ]]
