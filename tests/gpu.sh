#!/usr/bin/env bash
# The tests and benchmarks that need a GPU, in at most ten minutes.
#
#   bash tests/gpu.sh [BUNDLE]
#
# BUNDLE is what tests/gpu_bundle.sh made on a machine with compilers and packages, the folder or its archive; then
# nothing has to be installed here. Without BUNDLE the cuda preset is built here, which is not counted in the ten minutes.
# Everything printed also goes to $OUT/results.txt (OUT: gpu_results), figures to $OUT/bench.jsonl, the device's clocks
# while they were measured to $OUT/clocks.csv, whole logs, one a suite too, to $OUT/logs.tar.gz. Each part has a limit of time,
# what is right comes before what is fast, what instruments comes last, and whoever stops the script finds in the files all
# parts that were done. The last line is `N passed, N failed`. Without a driver it ends at once with exit code 64, as
# `ttt --device cuda` does; with 66 where BUNDLE is not there, with 1 when a part failed or none ran. Where nvidia-smi is and
# fails, a BUNDLE is tried all the same: its programs say what they see.
#
# TTT_GPU_SECONDS: for all together, unpacking too (570). TTT_GPU_GRACE: for a part from TERM to KILL (5).
# TTT_GPU_PARTS: only these, e.g. "kernels bench", of doctor kernels models graphs training cudnn bench bench_steps bench_cudnn
# peers ncu sanitizer_memcheck sanitizer_racecheck sanitizer_racecheck_clusters sanitizer_initcheck.
# TTT_GPU_REHEARSAL=1: without a GPU, with the emulated programs of the release build and the CPU in the device's place,
# on small sizes: proves this script. TTT_REFERENCE: a folder with the public reference's ttt.py, for the peers.
set -uo pipefail
cd "$(dirname "$0")/.." || exit 1
root=$PWD
is_rehearsal=${TTT_GPU_REHEARSAL:-0}
out=$(realpath -m "${OUT:-gpu_results}")
work=$(mktemp -d)
clocks_pid=
end_clocks() { [[ -n $clocks_pid ]] && kill "$clocks_pid" 2>/dev/null; clocks_pid=; }
trap 'end_clocks; rm -rf "$work"' EXIT
mkdir -p "$out" "$work/logs"
exec > >(tee "$out/results.txt") 2>&1
tee_pid=$!
# Ends the script when all of it is in results.txt.
leave() {
  exec >&- 2>&-
  wait "$tee_pid"
  exit "$1"
}
PATH=$PATH:/usr/local/cuda/bin:/usr/local/nvidia/bin

date -u
git rev-parse HEAD 2>/dev/null
if [[ $is_rehearsal == 1 ]]; then
  echo "a rehearsal: nothing below is about a GPU"
elif ! command -v nvidia-smi >/dev/null || ! timeout -k 2 20 nvidia-smi; then
  state=$(command -v nvidia-smi >/dev/null && echo fails || echo "is not here")
  if [[ $# -eq 0 || $state != fails ]]; then
    echo "tests/gpu.sh: no driver: nvidia-smi $state." \
      "This needs a machine with an NVIDIA GPU; TTT_GPU_REHEARSAL=1 rehearses it without one"
    leave 64
  fi
  echo "tests/gpu.sh: nvidia-smi $state; trying all the same"
fi

# Where cuBLASLt, NCCL, cuDNN and the driver lie: the toolkit's folders, or those of Python's packages.
cuda_libraries() {
  ls -d /usr/local/cuda/lib64 /usr/local/nvidia/lib64 2>/dev/null
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
    tar -C "$work/bundle" -xJf "$1" 2>/dev/null || python3 -m tarfile -e "$1" "$work/bundle" || leave 1
    bin=$work/bundle/bin
    [[ -f $work/bundle/COMMIT ]] && echo "programs of $(cat "$work/bundle/COMMIT")"
  elif [[ -x $1/bin/ttt ]]; then
    bin=$(realpath "$1")/bin
    [[ -f $1/COMMIT ]] && echo "programs of $(cat "$1/COMMIT")"
  else
    echo "tests/gpu.sh: $1 is neither an archive nor a folder that tests/gpu_bundle.sh made"
    leave 66
  fi
else
  cmake --preset cuda && cmake --build --preset cuda -j "$(nproc)" || leave 1
  bin=$root/build/cuda/bin
  SECONDS=0
fi
# For our programs alone: PyTorch finds its own.
libraries=${LD_LIBRARY_PATH:+$LD_LIBRARY_PATH:}$(cuda_libraries | paste -sd:)
export TTT_SOURCE_DIR=$root
export CUDA_MODULE_LOADING=LAZY
passed=0
failed=0
limit=${TTT_GPU_SECONDS:-570}

is_wanted() { [[ -z ${TTT_GPU_PARTS:-} || " $TTT_GPU_PARTS " == *" $1 "* ]]; }

# check NAME SECONDS COMMAND...: runs it with its output in logs/NAME, shows the log's end and counts its exit status.
check() {
  local name=$1 seconds=$2 started=$SECONDS
  shift 2
  is_wanted "$name" || return
  local left=$((limit - SECONDS))
  ((seconds > left)) && seconds=$left
  if ((seconds < 3)); then
    failed=$((failed + 1))
    echo "== $name: NOT RUN, no time left"
    return
  fi
  echo "== $name, $(date +%T)"
  timeout -k "${TTT_GPU_GRACE:-5}" "$seconds" env PYTHONUNBUFFERED=1 "$@" >"$work/logs/$name" 2>&1
  local status=$?
  tail -n $((status == 0 ? 60 : 200)) "$work/logs/$name"
  if [[ $status -eq 0 ]]; then
    passed=$((passed + 1))
    echo "-- $name: passed, $((SECONDS - started)) s"
  else
    failed=$((failed + 1))
    # 124: ended by TERM; 137: it ignored that, or something else killed it before
    ((status == 124 || (status == 137 && SECONDS - started >= seconds))) && echo "$name: stopped after its $seconds s"
    echo "-- $name: FAILED with $status, $((SECONDS - started)) s"
  fi
  tar -C "$work" -czf "$work/logs.tar.gz" logs && cp "$work/logs.tar.gz" "$out/logs.tar.gz"
}
ours() { check "$1" "$2" env LD_LIBRARY_PATH="$libraries" "${@:3}"; }
# suites NAME SECONDS SECONDS_OF_A_SUITE PROGRAM FILTER [VARIABLE=VALUE...]
suites() { ours "$1" "$2" env "${@:6}" python3 tests/gpu_suites.py "$4" "$5" --seconds "$3" --logs "$work/logs/$1_suites"; }

# Tests read what a kernel wrote as soon as the call returns; each suite is a process, so that an error that ends the
# device's context ends one suite. Graphs have a part of their own: whether blocking launches can be captured is not known here.
blocking=(CUDA_LAUNCH_BLOCKING=1 TTT_GRAPHS=off)
kernel_filter='*Float*:Cuda*'
model_filter='*_f32:*CudaModel*:-*CudaModelDecoder*'
graph_filter='*CudaModelDecoder*'
steps=200
bench=(--presets "$root/configs/pile" --json "$out/bench.jsonl")
if [[ $is_rehearsal == 1 ]]; then
  kernel_filter='Activation*Float*:Rope*Float*:CudaAttention.Unaligned*'
  model_filter='*model_linear_tf_f32'
  graph_filter='*CudaModelDecoder*/TttLinear'
  steps=25
  bench+=(--smoke --budget 1)
  export OMP_WAIT_POLICY=passive # the emulator's threads share their cores with whatever else runs
fi
rm -f "$out/bench.jsonl" "$out/clocks.csv"
# Whether the programs start: the machine's libraries and the driver's version.
ours doctor 20 "$bin/ttt" doctor --device "$device"
suites kernels 100 20 "$bin/${prefix}_tests" "$kernel_filter" "${blocking[@]}"
suites models 60 40 "$bin/${prefix}_model_tests" "$model_filter" "${blocking[@]}"
suites graphs 20 15 "$bin/${prefix}_model_tests" "$graph_filter"
# The same steps on both devices: the curves of fp32 agree to the rounding of sums.
ours training 100 python3 tests/gpu_training.py "$bin/ttt" "$work/training" --device "$device" --steps "$steps"
if [[ $is_rehearsal != 1 ]]; then
  suites cudnn 25 15 "$bin/cuda_tests" '*Attention*BFloat16*:CudaAttention*' "${blocking[@]}" TTT_ATTENTION=cudnn
fi

if command -v nvidia-smi >/dev/null && [[ ${TTT_GPU_PARTS:-bench} =~ bench|peers ]]; then
  nvidia-smi --query-gpu=timestamp,clocks.sm,clocks.mem,power.draw,temperature.gpu,clocks_event_reasons.active \
    --format=csv -lms 500 >"$out/clocks.csv" 2>&1 &
  clocks_pid=$!
fi
ours bench 80 "$bin/${prefix}_bench" "${bench[@]}" ttt attention decoding
ours bench_steps 120 "$bin/${prefix}_bench" "${bench[@]}" steps
if [[ $is_rehearsal != 1 ]]; then
  ours bench_cudnn 20 env TTT_ATTENTION=cudnn "$bin/cuda_bench" "${bench[@]}" attention
fi
peers=(tests/bench/device_peers.py --json "$out/bench.jsonl" ${TTT_REFERENCE:+--reference "$TTT_REFERENCE"})
if [[ $is_rehearsal == 1 ]]; then peers+=(--device cpu --smoke); fi
if python3 -c 'import importlib.util, sys; sys.exit(importlib.util.find_spec("torch") is None)'; then
  check peers 90 python3 "${peers[@]}"
else
  echo "== peers: PyTorch is not on this machine, left out"
fi
end_clocks

if command -v ncu >/dev/null; then
  ours ncu 60 python3 tests/gpu_counters.py "$bin/${prefix}_bench" --logs "$work/logs/ncu_kernels"
else
  echo "== ncu: not on this machine, left out"
fi
# A kernel whose blocks write into each other's shared memory may be called a race where it has none: it has a run of its own.
sanitize() { # NAME SECONDS TOOL FILTER
  ours "sanitizer_$1" "$2" env "${blocking[@]}" compute-sanitizer --tool "$3" --target-processes all --error-exitcode 1 \
    "$bin/${prefix}_tests" --gtest_filter="$4"
}
if [[ $is_rehearsal == 1 ]] || ! command -v compute-sanitizer >/dev/null; then
  echo "== compute-sanitizer: not on this machine or nothing for it here, left out"
else
  sanitize memcheck 60 memcheck 'CudaRace*'
  sanitize racecheck 60 racecheck 'CudaRace*:-CudaRaceTttMlp*'
  sanitize racecheck_clusters 60 racecheck 'CudaRaceTttMlp*'
  sanitize initcheck 30 initcheck 'CudaRace*'
fi

echo
echo "$SECONDS s"
echo "$passed passed, $failed failed"
leave $((failed > 0 || passed == 0))
