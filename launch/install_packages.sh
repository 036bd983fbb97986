#!/usr/bin/env bash
# Installs what a list (default: tests/packages.txt) names and the machine lacks; says nothing when nothing is missing.
# Without an argument also the Python packages of tests/pip_packages.txt, into build/pip, for this tree alone. They are
# optional: without them Parquet is not read, and its tests are not run.
set -euo pipefail
cd "$(dirname "$0")/.."

install_debian_packages() {
  local missing=() package status
  while read -r package; do
    [[ -z $package ]] && continue
    status=$(dpkg-query -W -f='${db:Status-Status}' "$package" 2>/dev/null || true)
    [[ $status == installed ]] || missing+=("$package")
  done
  [[ ${#missing[@]} -eq 0 ]] && return

  local as_root=()
  if [[ $(id -u) -ne 0 ]]; then
    if ! command -v sudo >/dev/null; then
      echo "missing packages, and neither root nor sudo to install them: ${missing[*]}" >&2
      exit 77
    fi
    as_root=(sudo)
  fi
  echo "installing: ${missing[*]}"
  export DEBIAN_FRONTEND=noninteractive
  local apt=("${as_root[@]}" apt-get -o DPkg::Lock::Timeout=300 -qq)
  local install=("${apt[@]}" install -y --no-install-recommends "${missing[@]}")
  # The lists may be absent or old: one update, one retry.
  "${install[@]}" >/dev/null 2>&1 || { "${apt[@]}" update && "${install[@]}" >/dev/null; }
}

install_python_packages() {
  local list=tests/pip_packages.txt python
  cmp -s "$list" build/pip/installed.txt && return
  for python in python3 /usr/bin/python3; do
    "$python" -m pip --version >/dev/null 2>&1 || continue
    echo "installing into build/pip: $(paste -sd ' ' "$list")"
    rm -rf build/pip
    if "$python" -m pip install -q --retries 1 --timeout 15 --disable-pip-version-check --root-user-action ignore \
      --no-compile --target build/pip -r "$list" >/dev/null && cp "$list" build/pip/installed.txt; then
      return
    fi
    break
  done
  rm -rf build/pip
  echo "$(paste -sd ' ' "$list") could not be installed: Parquet is not read, its tests are not run"
}

if [[ $# -gt 0 ]]; then
  install_debian_packages <"$1"
else
  install_debian_packages <tests/packages.txt
  python3 -m pip --version >/dev/null 2>&1 || install_debian_packages <<<python3-pip
  install_python_packages
fi
