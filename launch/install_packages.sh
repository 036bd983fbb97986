#!/usr/bin/env bash
# Installs what a list (default: tests/packages.txt) names and the machine lacks; says nothing when nothing is missing.
set -euo pipefail
cd "$(dirname "$0")/.."
list=${1:-tests/packages.txt}
missing=()
while read -r package; do
  [[ -z $package ]] && continue
  status=$(dpkg-query -W -f='${db:Status-Status}' "$package" 2>/dev/null || true)
  [[ $status == installed ]] || missing+=("$package")
done <"$list"
[[ ${#missing[@]} -eq 0 ]] && exit 0

if [[ $(id -u) -eq 0 ]]; then
  as_root=()
elif command -v sudo >/dev/null; then
  as_root=(sudo)
else
  echo "missing packages, and neither root nor sudo to install them: ${missing[*]}" >&2
  exit 77
fi
echo "installing: ${missing[*]}"
export DEBIAN_FRONTEND=noninteractive
apt=("${as_root[@]}" apt-get -o DPkg::Lock::Timeout=300 -qq)
install=("${apt[@]}" install -y --no-install-recommends "${missing[@]}")
# The lists may be absent or old: one update, one retry.
"${install[@]}" >/dev/null 2>&1 || { "${apt[@]}" update && "${install[@]}" >/dev/null; }
