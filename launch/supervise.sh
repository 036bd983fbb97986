#!/usr/bin/env bash
# Runs a launcher with its arguments and passes on what happens:
#
#   bash launch/supervise.sh mpirun ARGUMENTS...
#   bash launch/supervise.sh srun ARGUMENTS...
#
# USR1, TERM and INT ask the run for a checkpoint: the launcher gets USR1, which both forward to the ranks, since mpirun
# kills its ranks a second after a TERM. The exit code is the run's; mpirun's own for a lost host, 205, becomes 75.
set -uo pipefail
if [[ $# -eq 0 ]]; then
  echo "usage: bash launch/supervise.sh LAUNCHER ARGUMENTS..." >&2
  exit 64
fi
if [[ ${1##*/} == mpirun || ${1##*/} == mpiexec ]]; then
  # A host that is cut off is noticed after 20 s (10 + 2 * 5) without a sign of it, before the run's own watchdog: the
  # daemons then end the ranks on both sides. Without this both would wait for ever.
  export OMPI_MCA_oob_tcp_keepalive_time=${OMPI_MCA_oob_tcp_keepalive_time:-10}
  export OMPI_MCA_oob_tcp_keepalive_intvl=${OMPI_MCA_oob_tcp_keepalive_intvl:-5}
  export OMPI_MCA_oob_tcp_keepalive_probes=${OMPI_MCA_oob_tcp_keepalive_probes:-2}
fi

"$@" &
launcher=$!
is_interrupted=false
trap 'is_interrupted=true; kill -USR1 "$launcher" 2>/dev/null' USR1 TERM INT
# A trapped signal ends `wait` early, with a status that is not the launcher's.
while true; do
  is_interrupted=false
  wait "$launcher"
  code=$?
  $is_interrupted || break
done
[[ $code -eq 205 ]] && code=75
exit "$code"
