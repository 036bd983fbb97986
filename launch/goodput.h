#pragma once
// How much of a run's time trains, when ranks fail and checkpoints are written.
//
//   efficiency = interval / (interval + write) * (1 - (restart + (interval + write) / 2) / mtbf)
//
// which holds while failures are rare: restart + interval << mtbf. The best interval is sqrt(2 write mtbf).
// Source: J. W. Young, CACM 17(9), 1974; J. T. Daly, FGCS 22(3), 2006. Failure rate: arXiv:2407.21783, section 3.3.4.

namespace ttt::launch {

struct GoodputInputs {
  double checkpoint_bytes = 0;
  double write_bandwidth = 0;   // bytes a second
  double interval_seconds = 0;  // of training between two checkpoints
  double failure_seconds = 0;   // mean time between failures of the whole job
  double restart_seconds = 0;   // from a failure to the next step
};

struct Goodput {
  double write_seconds = 0;
  double writing = 0;  // fractions of the time
  double lost_and_restarting = 0;
  double training = 0;               // the rest; 0 when the formula's assumption fails so far
  double best_interval_seconds = 0;  // Young and Daly
  double at_best_interval = 0;       // `training` there
};

/// All inputs > 0 (restart_seconds >= 0).
Goodput goodput(const GoodputInputs& inputs);

}  // namespace ttt::launch
