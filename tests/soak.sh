#!/usr/bin/env bash
# A run under random faults, half an hour: tests/run/soak.py says what it does and takes the arguments.
set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source=launch/mpi_env.sh
source launch/mpi_env.sh
exec python3 -B tests/run/soak.py "$@"
