#pragma once
// How much of a run's time trains, when ranks fail and checkpoints are written.
//
//   efficiency = interval / (interval + stall) * (1 - (restart + write + (interval + stall) / 2) / mtbf)
//
// which holds while failures are rare: restart + interval << mtbf. Training stands still for `stall` at each checkpoint,
// which can be resumed from `write` seconds later. The best interval is sqrt(2 stall mtbf), but at least `write`, since
// one checkpoint is written at a time.
// Source: J. W. Young, CACM 17(9), 1974; J. T. Daly, FGCS 22(3), 2006. Failure rate: arXiv:2407.21783, section 3.3.4.

namespace ttt::launch {

struct GoodputInputs {
  double stall_seconds = 0;     // a checkpoint
  double write_seconds = 0;     // a checkpoint; at least stall_seconds
  double interval_seconds = 0;  // of training between two checkpoints
  double failure_seconds = 0;   // mean time between failures of the whole job
  double restart_seconds = 0;   // from a failure to the next step
};

struct Goodput {
  double stalled = 0;  // fractions of the time
  double lost_and_restarting = 0;
  double training = 0;               // the rest; 0 when the formula's assumption fails so far
  double best_interval_seconds = 0;  // Young and Daly
  double at_best_interval = 0;       // `training` there
};

/// All inputs > 0 (restart_seconds >= 0, write_seconds >= stall_seconds).
Goodput goodput(const GoodputInputs& inputs);

}  // namespace ttt::launch
