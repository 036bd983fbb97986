#!/usr/bin/env bash
# Fuzzes the readers of foreign bytes with libFuzzer (clang), one target after the other.
#
#   bash tests/fuzz/run.sh [SECONDS_A_TARGET] [TARGET...]      default: 600 seconds, every target
#
# Needs Debian's clang, libclang-rt-14-dev and libomp-dev beside tests/packages.txt. An input that crashes, takes more than five
# seconds or 512 MiB is left in fuzz_results/TARGET: mend the reader and put the input into tests/fuzz/corpus/TARGET,
# where the tests read it again. The last line is `N passed, N failed`.
set -uo pipefail
cd "$(dirname "$0")/../.."
seconds=${1:-600}
shift $(($# > 0 ? 1 : 0))
cmake --preset fuzz >/dev/null && cmake --build --preset fuzz -j "$(nproc)" || exit 1
fuzzer=build/fuzz/bin/ttt_fuzz
[[ $# -gt 0 ]] && targets=$* || targets=$(TTT_FUZZ_TARGET='' "$fuzzer" 2>&1 | sed -n 's/.*one of://p')
passed=0
failed=0
for target in $targets; do
  export TTT_FUZZ_TARGET=$target
  work=fuzz_results/$target
  mkdir -p "$work/found"
  TTT_FUZZ_SEEDS=$work/seeds "$fuzzer" >/dev/null || exit 1
  known=()
  [[ -d tests/fuzz/corpus/$target ]] && known=("tests/fuzz/corpus/$target")
  # A zstd stream may ask for a window of 2 GiB, which costs nothing before it is filled.
  # The libraries that read SentencePiece models and HDF5 keep caches; leaks are the unit tests' business.
  if ASAN_OPTIONS=detect_leaks=0 "$fuzzer" -max_total_time="$seconds" -rss_limit_mb=512 -malloc_limit_mb=2100 -timeout=5 \
    -artifact_prefix="$work/" "$work/found" "$work/seeds" "${known[@]}" >"$work/log" 2>&1; then
    passed=$((passed + 1))
    echo "$target: $(sed -n 's/^Done \([0-9]*\) runs.*/\1 inputs/p' "$work/log"), no harm"
  else
    failed=$((failed + 1))
    echo "$target: FAILED"
    grep -E 'ERROR|SUMMARY|Test unit written|what\(\)' "$work/log"
  fi
done
echo "$passed passed, $failed failed"
[[ $failed -eq 0 ]]
