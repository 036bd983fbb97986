#!/usr/bin/env bash
# Trains on one host. Edit two lines; run it from anywhere: bash launch/mpirun/one_host.sh
set -uo pipefail
ranks=2                                         # one a GPU; on CPUs one a socket
run=(--config configs/small.textproto)          # what `ttt train --help` lists

cd "$(dirname "$0")/../.." || exit
# Unbound, ranks share the host's processors: train.num_threads = 0 gives each its part.
exec bash launch/supervise.sh mpirun --bind-to none -np "$ranks" "${TTT_BINARY:-build/bin/ttt}" train "${run[@]}"
