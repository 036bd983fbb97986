#!/usr/bin/env bash
# The end of a batch job: runs a launcher and, when the run can go on later, puts the job back in the queue.
#
#   exec bash launch/slurm/run_and_requeue.sh srun|mpirun ARGUMENTS...
#
# The job asks for `--signal=B:USR1@SECONDS`: Slurm then tells this script that time is short, the run saves and ends
# with 80. 75 is a lost rank or host. A job that was cancelled (TERM) does not come back, nor one that was started again
# TTT_MAX_RESTARTS times (100).
set -uo pipefail
bash launch/supervise.sh "$@" &
run=$!
is_cancelled=false
is_interrupted=false
trap 'is_interrupted=true; kill -USR1 "$run" 2>/dev/null' USR1
trap 'is_interrupted=true; is_cancelled=true' TERM  # Slurm has told the ranks itself
while true; do
  is_interrupted=false
  wait "$run"
  code=$?
  $is_interrupted || break
done
restarts=${SLURM_RESTART_COUNT:-0}
if [[ $code -eq 80 || $code -eq 75 ]] && ! $is_cancelled; then
  if ((restarts < ${TTT_MAX_RESTARTS:-100})); then
    echo "code $code after $restarts restarts: back to the queue"
    scontrol requeue "$SLURM_JOB_ID"
  else
    echo "code $code after $restarts restarts: not again"
  fi
fi
exit "$code"
