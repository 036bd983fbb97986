#!/usr/bin/env bash
# Trains on the hosts of a list. Edit two lines; run it on the first of them, which must reach the others by ssh without a
# password. All see this folder under the same path.
set -uo pipefail
hosts=launch/mpirun/hosts.example               # a line a host, with the ranks it gets
run=(--config configs/small.textproto)          # what `ttt train --help` lists

cd "$(dirname "$0")/../.." || exit
# -x passes a variable on to the other hosts. With several networks say which one carries the run:
# --mca btl_tcp_if_include NAME --mca oob_tcp_if_include NAME, and for NCCL -x NCCL_SOCKET_IFNAME=NAME.
exec bash launch/supervise.sh mpirun --bind-to none --hostfile "$hosts" ${LD_LIBRARY_PATH:+-x LD_LIBRARY_PATH} \
  "${TTT_BINARY:-build/bin/ttt}" train "${run[@]}"
