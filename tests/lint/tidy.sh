#!/usr/bin/env bash
# clang-tidy over the .cpp files of build/compile_commands.json, two at a time. Tests are left out: they compile with
# the same warnings, and GoogleTest's macros would cost more time here than the product itself.
#   tests/lint/tidy.sh             the whole tree
#   tests/lint/tidy.sh REVISION    .cpp files changed since REVISION, or that include a header changed since
# The build folder is $TTT_BUILD_DIR, or build. Exit status 1 when anything is found.
set -euo pipefail
cd "$(dirname "$0")/../.."
build=${TTT_BUILD_DIR:-build}
base=${1:-}
if [[ ! -f $build/compile_commands.json ]]; then
  echo "tests/lint/tidy.sh: $build/compile_commands.json is missing: run cmake --preset release first" >&2
  exit 2
fi

# The files that are compiled and lie in the source tree, relative to it.
mapfile -t files < <(python3 - "$build" <<'PYTHON'
import json, os, sys
root, build = os.getcwd(), os.path.abspath(sys.argv[1])
for entry in json.load(open(os.path.join(build, "compile_commands.json"), encoding="utf-8")):
    path = os.path.normpath(os.path.join(entry["directory"], entry["file"]))
    if path.endswith(".cpp") and path.startswith(root + "/") and not path.startswith((build + "/", root + "/tests/")):
        if os.path.exists(path):
            print(os.path.relpath(path, root))
PYTHON
)

if [[ -n $base ]]; then
  mapfile -t changed < <(git diff --name-only --diff-filter=d "$base"; git ls-files --others --exclude-standard)
  selected=()
  for file in "${files[@]}"; do
    for other in "${changed[@]}"; do
      if [[ $file == "$other" ]] || { [[ $other == *.h ]] && grep -qF "\"$other\"" "$file"; }; then
        selected+=("$file")
        break
      fi
    done
  done
  files=("${selected[@]}")
fi
if [[ ${#files[@]} -eq 0 ]]; then
  echo "clang-tidy: nothing to check"
  exit 0
fi

# clang cannot read GCC's omp.h: it gets the declarations alone.
mkdir -p "$build/tidy/include"
rm -f "$build/tidy/include/omp.h"  # never write through a link
cat >"$build/tidy/include/omp.h" <<'HEADER'
#pragma once
extern "C" {
int omp_get_max_threads(void);
int omp_get_num_procs(void);
int omp_get_num_threads(void);
int omp_get_thread_num(void);
int omp_in_parallel(void);
double omp_get_wtime(void);
void omp_set_dynamic(int);
void omp_set_num_threads(int);
}
HEADER

echo "clang-tidy: ${#files[@]} files"
# shellcheck disable=SC2016
printf '%s\n' "${files[@]}" | xargs -P2 -I{} bash -c '
  output=$(clang-tidy --quiet -p "$1" --extra-arg=-isystem"$1/tidy/include" "$2" 2>&1) && exit 0
  printf "%s\n" "$output" | grep -vE "^[0-9]+ warnings? (generated|treated)|^Suppressed|^Use -header-filter"
  exit 1' tidy "$(realpath "$build")" {}
