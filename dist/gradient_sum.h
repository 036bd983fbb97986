#pragma once
// The sum of all gradients over all ranks, and the way back of the new parameters.
//
// The flat buffers are cut in buckets. Backward completes gradients from the end of the buffer to its beginning, so a
// bucket of the last virtual shard is reduced while backward goes on in the layers before it; forward reads parameters from
// the beginning, so that the update's results are gathered while forward already runs. Reducing leaves every rank with
// one part of every bucket (dist/tree_collectives.h). ZERO_OPTIMIZER: the rank updates its parts and the new
// parameters are gathered. ZERO_NONE: the sums are gathered and every rank updates everything. The bytes are the same.
//
//   per rank: slot, push, ..., slot, expect_final, [backward], finish, sum_of_squares, [update of updated()],
//             gather_parameters
//
// Numerics: dist/tree_reduction.h; buckets, overlap and ZeRO change no bit of a sum. The squares are added in fp64 in
//   blocks of kernels::kSquaresBlock from each bucket's begin, block by block: the same bits on any number of ranks.
// Errors: those of the communicators. What fails on the thread is thrown by the next call.
// Source: arXiv:1910.02054 section 5.1 (ZeRO-1); buckets as in arXiv:2006.15704 (PyTorch DDP) section 3.2.

#include <atomic>
#include <functional>
#include <memory>
#include <vector>

#include "core/base/work_timer.h"
#include "core/context.h"
#include "dist/job_thread.h"
#include "dist/tree_collectives.h"
#include "dist/tree_reduction.h"

namespace ttt::dist {

struct GradientSumOptions {
  bool shard_optimizer = true;  // ZERO_OPTIMIZER
  bool overlap = true;
  /// A second queue on the compute stream's device, for overlap.
  std::function<Stream()> make_stream = [] { return Stream(); };
};

class GradientSum final : public PassObserver {
 public:
  /// `buckets` cover the flat buffer without gaps, in order. Gradients are added over the ranks of the first axis, then of
  /// the second. The communicators must outlive this. Collective.
  GradientSum(std::vector<FlatRange> buckets, DType dtype, GradientSumOptions options,
              std::vector<Communicator*> axes);
  GradientSum(const GradientSum&) = delete;
  GradientSum& operator=(const GradientSum&) = delete;
  ~GradientSum() override;

  /// Of this rank alone: over all ranks these parts cover the buffer once. One of each bucket, some may be empty.
  [[nodiscard]] const std::vector<FlatRange>& owned() const { return owned_; }
  /// What this rank's optimiser updates.
  [[nodiscard]] std::vector<FlatRange> updated() const;

  TensorView slot(Stream& stream) { return accumulator_.slot(stream); }
  void push(Stream& stream) { accumulator_.push(stream); }
  /// Marks in `timer`, until it is another one or null, what the stream waits for other ranks.
  void time_waits(WorkTimer* timer) { timer_ = timer; }
  /// The pass that follows is the last shard's last: what the model reports from here on is final.
  void expect_final() { is_final_ = true; }
  /// The whole sum, in place of push for the last shard: [n], complete in updated(). Valid until the next slot.
  TensorView finish(Stream& stream);
  /// Of the finished sum, over all elements.
  /// [1] F64, in the order of the stream.
  TensorView sum_of_squares(Stream& stream);
  /// Of the finished sum, before other ranks' gradients were added to this one's: the place of the first element that is
  /// not finite, else infinity. [1] F64, in the order of the stream.
  TensorView first_non_finite(Stream& stream);

  /// `values` [n] are updated in updated(): makes them whole on every rank, by the time they are read. ZERO_NONE: nothing.
  void gather_parameters(TensorView values, Stream& stream);
  /// Returns when all parameters are whole.
  void wait_for_parameters(Stream& stream);

  void before_reading(std::int64_t end, Stream& stream) override;
  void after_gradients(std::int64_t begin, Stream& stream) override;

  struct Seconds {
    double total = 0;    // spent communicating
    double exposed = 0;  // of these, while the compute thread waited
  };
  /// Since the last call.
  Seconds take_seconds();
  /// Bytes that this rank has sent for sums and parameters so far.
  [[nodiscard]] std::int64_t bytes_sent() const;

 private:
  using Work = std::function<void(TreeCollectives&, Stream&)>;
  struct Job {
    std::int64_t number = 0;  // on the thread
    Stream::Event done;       // on the second queue
  };

  /// Begins `work` after what `stream` has queued so far.
  Job start(Work work, Stream& stream);
  void wait(const Job& job, Stream& stream);
  void count_exposed(double seconds);
  void reduce_from(std::int64_t begin, Stream& stream);
  [[nodiscard]] bool is_alone() const;

  std::vector<FlatRange> buckets_;
  GradientSumOptions options_;
  std::vector<Communicator*> axes_;
  std::vector<std::unique_ptr<Communicator>> overlap_axes_;  // empty without overlap
  std::unique_ptr<TreeCollectives> collectives_;
  std::vector<FlatRange> owned_;
  TreeAccumulator accumulator_;
  TensorView sum_;
  std::vector<std::int64_t> first_blocks_;  // of each bucket
  Tensor squares_;                          // one a block
  Tensor sum_of_squares_;                   // [1]
  Tensor places_;                           // one a block: kernels/non_finite.h
  Tensor first_place_;                      // [1]

  bool is_final_ = false;
  bool has_finished_ = false;      // a sum
  std::size_t num_unreduced_ = 0;  // buckets [0, num_unreduced_)
  Job last_reduction_;
  std::vector<Job> gathers_;      // of each bucket
  std::size_t num_gathered_ = 0;  // buckets known to be whole
  WorkTimer* timer_ = nullptr;
  double exposed_seconds_ = 0;
  std::atomic<double> total_seconds_ = 0;
  Stream overlap_stream_;
  std::unique_ptr<JobThread> thread_;  // for communicators that block; last: it uses the others
};

}  // namespace ttt::dist
