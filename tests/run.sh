#!/usr/bin/env bash
# The tests that need no GPU: installs what is missing, builds, and runs lint, the unit and MPI tests, and
# the unit tests under AddressSanitizer and UndefinedBehaviorSanitizer.
#
#   bash tests/run.sh          everything
#   bash tests/run.sh --fast   without the sanitizers
#   bash tests/run.sh --tidy   with clang-tidy over the whole tree as well: some minutes more
#
# TTT_JOBS: compile jobs (the number of cores). TTT_TIDY_BASE: a git revision; clang-tidy then looks only at what
# changed since. The last line is `N passed, N failed`: lint scripts, tests and sanitizer tests together.
set -uo pipefail
cd "$(dirname "$0")/.."
is_fast=false
runs_tidy=false
for argument in "$@"; do
  case $argument in
    --fast) is_fast=true ;;
    --tidy) runs_tidy=true ;;
    *)
      echo "usage: bash tests/run.sh [--fast] [--tidy]" >&2
      exit 64
      ;;
  esac
done

jobs=${TTT_JOBS:-$(nproc)}
passed=0
failed=0
started=$SECONDS
section_started=$SECONDS

section() {
  echo
  echo "== $1"
  section_started=$SECONDS
}
section_ends() { echo "-- $((SECONDS - section_started)) s"; }
finish() {
  echo
  echo "== total: $((SECONDS - started)) s"
  echo "$passed passed, $failed failed"
  [[ $failed -eq 0 ]]
  exit
}
# Counts one thing: a script or a build, by its exit status.
count_status() {
  if [[ $1 -eq 0 ]]; then passed=$((passed + 1)); else failed=$((failed + 1)); fi
}
# Counts the `N passed, N failed` line that ends a log, or one failure when there is none.
count_log() {
  if [[ $(tail -n 1 "$1") =~ ^([0-9]+)\ passed,\ ([0-9]+)\ failed$ ]]; then
    passed=$((passed + BASH_REMATCH[1]))
    failed=$((failed + BASH_REMATCH[2]))
  else
    failed=$((failed + 1))
  fi
}
# A build that fails ends the run: there is nothing to test.
build() {
  if ! { cmake --preset "$1" >"$logs/configure_$1.log" 2>&1 || { cat "$logs/configure_$1.log"; false; }; } ||
    ! { cmake --build --preset "$1" -j "$jobs" >"$logs/build_$1.log" 2>&1 || { cat "$logs/build_$1.log"; false; }; }; then
    echo "the $1 build FAILED"
    failed=$((failed + 1))
    section_ends
    finish
  fi
}

logs=$(mktemp -d)
trap 'rm -rf "$logs"' EXIT

section "packages"
if ! bash launch/install_packages.sh; then
  echo "packages could not be installed"
  failed=$((failed + 1))
  finish
fi
section_ends

# shellcheck source=launch/mpi_env.sh
source launch/mpi_env.sh

section "lint"
bash tests/lint/run.sh 2>&1 | tee "$logs/lint.log"
count_log "$logs/lint.log"
section_ends

section "build: release"
build release
section_ends

section "tests: release"
ctest --test-dir build --output-on-failure --no-tests=error 2>&1 | tee "$logs/ctest.log"
ctest_status=${PIPESTATUS[0]}
summary=$(grep -E '^[0-9]+% tests passed, [0-9]+ tests failed out of [0-9]+$' "$logs/ctest.log" | tail -n 1)
if [[ $summary =~ ,\ ([0-9]+)\ tests\ failed\ out\ of\ ([0-9]+)$ ]]; then
  failed=$((failed + BASH_REMATCH[1]))
  passed=$((passed + BASH_REMATCH[2] - BASH_REMATCH[1]))
elif [[ $ctest_status -ne 0 ]]; then
  failed=$((failed + 1))
fi
# A test that skips itself is a failure unless tests/README.md lists it.
while read -r test; do
  if ! grep -qF -- "- \`$test\`:" tests/README.md; then
    echo "$test skipped itself and tests/README.md does not list it"
    failed=$((failed + 1))
  fi
done < <(sed -nE 's/^\[  SKIPPED \] ([^ ,]+)( \(.*)?$/\1/p' build/Testing/Temporary/LastTest.log 2>/dev/null | sort -u)
section_ends

section "CUDA: the kernels compile, registers and spills"
python3 tests/ptxas_report.py 2>&1 | tee "$logs/ptxas.log"
count_log "$logs/ptxas.log"
section_ends

if $runs_tidy; then
  section "clang-tidy"
  python3 tests/lint/tidy.py ${TTT_TIDY_BASE:+"$TTT_TIDY_BASE"}
  count_status $?
  section_ends
fi

if ! $is_fast; then
  section "build: asan"
  build asan
  section_ends

  section "tests: asan"
  python3 tests/asan_tests.py build/asan 2>&1 | tee "$logs/asan.log"
  count_log "$logs/asan.log"
  section_ends
fi
finish
