#!/usr/bin/env bash
# Runs a launcher with its arguments and passes on what happens:
#
#   bash launch/supervise.sh mpirun ARGUMENTS...
#   bash launch/supervise.sh srun ARGUMENTS...
#   bash launch/supervise.sh --restart RUN mpirun ARGUMENTS...
#
# USR1, TERM and INT ask the run for a checkpoint: the launcher gets USR1, which both forward to the ranks, since mpirun
# kills its ranks a second after a TERM. The exit code is the run's; mpirun's own for a lost host, 205, becomes 75.
#
# --restart starts again, in the same way, what ended with 75 or by a signal nobody sent here, until three starts in a row
# have added no checkpoint to RUN, the run's output directory.
set -uo pipefail
usage() {
  echo "usage: bash launch/supervise.sh [--restart RUN] LAUNCHER ARGUMENTS..." >&2
  exit 64
}
readonly max_starts_without_progress=3
run=
if [[ ${1:-} == --restart ]]; then
  [[ -n ${2:-} ]] || usage
  run=$2
  shift 2
fi
[[ $# -gt 0 ]] || usage
if [[ ${1##*/} == mpirun || ${1##*/} == mpiexec ]]; then
  # A host that is cut off is noticed after 20 s (10 + 2 * 5) without a sign of it, before the run's own watchdog: the
  # daemons then end the ranks on both sides. Without this both would wait for ever.
  export OMPI_MCA_oob_tcp_keepalive_time=${OMPI_MCA_oob_tcp_keepalive_time:-10}
  export OMPI_MCA_oob_tcp_keepalive_intvl=${OMPI_MCA_oob_tcp_keepalive_intvl:-5}
  export OMPI_MCA_oob_tcp_keepalive_probes=${OMPI_MCA_oob_tcp_keepalive_probes:-2}
fi
# What is started here carries this in its environment, by which end_orphans finds it.
export TTT_SUPERVISOR="$$-$(date +%s%N)"

launcher=
is_stopping=false
trap 'is_interrupted=true; is_stopping=true; [[ -n $launcher ]] && kill -USR1 "$launcher" 2>/dev/null' USR1 TERM INT

# Sets `code`. A trapped signal ends `wait` early, with a status that is not the launcher's.
launch() {
  "$@" &
  launcher=$!
  while true; do
    is_interrupted=false
    wait "$launcher"
    code=$?
    $is_interrupted || break
  done
  launcher=
  [[ $code -eq 205 ]] && code=75
}
# Ranks of this host outlive a launcher that was killed by a few seconds, and hold the run's lock.
end_orphans() {
  local process
  for process in /proc/[0-9]*; do
    if grep -qsz "^TTT_SUPERVISOR=$TTT_SUPERVISOR\$" "$process/environ"; then
      kill -KILL "${process#/proc/}" 2>/dev/null
    fi
  done
}
newest_checkpoint() { find "$run/checkpoints" -maxdepth 1 -name 'step-*[0-9]' 2>/dev/null | sort | tail -n 1; }

starts_without_progress=0
while true; do
  before=$(newest_checkpoint)
  launch "$@"
  [[ $code -eq 75 || $code -gt 128 ]] || break
  end_orphans
  if [[ -z $run ]] || $is_stopping; then break; fi
  if [[ $(newest_checkpoint) == "$before" ]]; then
    starts_without_progress=$((starts_without_progress + 1))
  else
    starts_without_progress=0
  fi
  if [[ $starts_without_progress -ge $max_starts_without_progress ]]; then
    echo "event=give_up exit_code=$code: $starts_without_progress starts in a row added no checkpoint to $run" >&2
    break
  fi
  echo "event=restart exit_code=$code newest_checkpoint=$(basename "$(newest_checkpoint)")" >&2
done
exit "$code"
