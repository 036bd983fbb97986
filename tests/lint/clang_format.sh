#!/usr/bin/env bash
# Every C++ file is as clang-format writes it.
set -euo pipefail
cd "$(dirname "$0")/../.."
mapfile -t files < <(git ls-files --cached --others --exclude-standard '*.h' '*.cpp' '*.cu' '*.cuh' |
  while read -r file; do [[ -f $file ]] && echo "$file"; done)
clang-format --dry-run -Werror "${files[@]}"
echo "format: ${#files[@]} files"
