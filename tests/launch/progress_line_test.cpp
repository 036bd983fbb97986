#include "launch/progress_line.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <sstream>

namespace ttt::launch {
namespace {

using testing::HasSubstr;
using testing::Not;

Progress full() {
  Progress progress;
  progress.step = 1200;
  progress.num_steps = 4800;
  progress.loss = 3.4123;
  progress.learning_rate = 2.9e-3;
  progress.grad_norm = 0.41;
  progress.tokens_per_second = 1.3112e6;
  progress.num_ranks = 8;
  progress.flops_per_second = 412.4e12;
  progress.peak_flops = 989e12;
  progress.memory_bytes = 71.2 * 1024 * 1024 * 1024;
  progress.data_share = 0.003;
  progress.communication_share = 0.061;
  progress.seconds_left = 4335;
  return progress;
}

TEST(ProgressLine, ShowsEverythingThatIsKnown) {
  EXPECT_EQ(format_progress(full()),
            "step 1200/4800 | loss 3.4123 | ppl 30.33 | lr 2.9e-03 | gnorm 0.41 | 1.31M tok/s "
            "(163.9k/rank) | 412.4 TF/s | MFU 41.7% of 989.0 TF/s | mem 71.2 GiB | data 0.3% comm "
            "6.1% | ETA 1h12m");
}

TEST(ProgressLine, LeavesOutWhatIsNot) {
  Progress progress;
  progress.step = 3;
  EXPECT_EQ(format_progress(progress), "step 3");
  progress = full();
  progress.peak_flops.reset();
  progress.data_share.reset();
  progress.num_ranks = 1;
  progress.flops_per_second = 412e9;
  EXPECT_EQ(
      format_progress(progress),
      "step 1200/4800 | loss 3.4123 | ppl 30.33 | lr 2.9e-03 | gnorm 0.41 | 1.31M tok/s | 412 "
      "GF/s | mem 71.2 GiB | comm 6.1% | ETA 1h12m");
  progress.peak_flops = 0;
  EXPECT_THAT(format_progress(progress), Not(HasSubstr("MFU")));
}

TEST(ProgressLine, ShowsALossThatIsNotFinite) {
  Progress progress;
  progress.loss = std::numeric_limits<double>::quiet_NaN();
  EXPECT_THAT(format_progress(progress), HasSubstr("loss nan"));
}

TEST(ProgressLine, CountsHaveThreeDigits) {
  EXPECT_EQ(format_count(0), "0");
  EXPECT_EQ(format_count(8), "8");
  EXPECT_EQ(format_count(163.9e3), "163.9k");
  EXPECT_EQ(format_count(999.96), "1.00k");
  EXPECT_EQ(format_count(1.31e6), "1.31M");
  EXPECT_EQ(format_count(125342208), "125.3M");
  EXPECT_EQ(format_count(2.5e12), "2.50T");
}

TEST(ProgressLine, Durations) {
  EXPECT_EQ(format_duration(45.2), "45s");
  EXPECT_EQ(format_duration(59.7), "1m00s");
  EXPECT_EQ(format_duration(725), "12m05s");
  EXPECT_EQ(format_duration(4335), "1h12m");
  EXPECT_EQ(format_duration(273600), "3d04h");
  EXPECT_EQ(format_duration(-1), "0s");
}

TEST(ProgressLine, OneLineACallWithoutATerminal) {
  std::ostringstream out;
  {
    ProgressLine line(out, 0);
    Progress progress;
    line.show(progress);
    progress.step = 1;
    line.show(progress);
  }
  EXPECT_EQ(out.str(), "step 0\nstep 1\n");
}

TEST(ProgressLine, RefreshesInPlaceOnATerminal) {
  std::ostringstream out;
  {
    ProgressLine line(out, 20);
    Progress progress = full();
    line.show(progress);
    line.finish();
    line.finish();
    progress.step = 1201;
    line.show(progress);
  }
  // Cut to 19 of 20 columns, one line end for each line that was kept.
  EXPECT_EQ(out.str(), "\r\x1b[2Kstep 1200/4800 | lo\n\r\x1b[2Kstep 1201/4800 | lo\n");
}

}  // namespace
}  // namespace ttt::launch
