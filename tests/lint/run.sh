#!/usr/bin/env bash
# Every check that needs no build. The last line is `N passed, N failed`; the exit status is 1 if any failed.
# clang-tidy, which needs build/compile_commands.json, is tests/lint/tidy.py.
set -uo pipefail
cd "$(dirname "$0")/../.."
export PYTHONDONTWRITEBYTECODE=1
passed=0
failed=0
run() {
  local name=$1
  shift
  if "$@"; then
    passed=$((passed + 1))
  else
    echo "lint: $name FAILED"
    failed=$((failed + 1))
  fi
}
run "self-test" python3 tests/lint/self_test.py --quiet
for script in include_direction file_limits header_contracts doc_paths no_marks clocks; do
  run "$script" python3 "tests/lint/$script.py"
done
run "clang_format" bash tests/lint/clang_format.sh
run "presets" bash tests/lint/presets.sh
echo "$passed passed, $failed failed"
[[ $failed -eq 0 ]]
