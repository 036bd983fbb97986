#pragma once
// What the ranks of a run do together.
//
// Numerics: sums are added in an order that depends on the number of ranks only, and every rank
//   gets the same bits. Bits that do not depend on the number of ranks: dist/tree_reduction.h.
// Errors: kInternal for shapes, dtypes and ranks that do not fit; kPeerLost when the transport fails.
//   Both are thrown on the rank that notices: its main must end the others with `abort`.
//
// Every method but rank, size and abort is collective (send and recv: between the two ranks) and
// must be called in the same order on every rank. Counts are elements and may exceed 2^31. A call
// returns when the caller's buffers may be reused. One thread at a time.

#include <cstdint>
#include <limits>
#include <memory>
#include <string>
#include <vector>

#include "core/base/error.h"
#include "core/base/stream.h"
#include "core/base/tensor.h"
#include "dist/flight_record.h"
#include "dist/traffic.h"

namespace ttt::dist {

class Communicator {
 public:
  Communicator() = default;
  Communicator(const Communicator&) = delete;
  Communicator& operator=(const Communicator&) = delete;
  virtual ~Communicator() = default;

  [[nodiscard]] virtual int rank() const = 0;
  [[nodiscard]] virtual int size() const = 0;
  /// The place among the ranks of this machine, and their number.
  [[nodiscard]] virtual int local_rank() const = 0;
  [[nodiscard]] virtual int local_size() const = 0;

  /// `inout` [n...] becomes the sum over ranks. F64, F32 or I64.
  virtual void all_reduce_sum(TensorView inout, Stream& stream) = 0;
  /// `out` [n...] is the sum over ranks of in[rank()]; `in` is [size, n...]. F64, F32 or I64.
  virtual void reduce_scatter_sum(TensorView in, TensorView out, Stream& stream) = 0;

  // Movement takes every dtype. `in` and `out` must not overlap.

  /// out[r] is the `in` of rank r; `in` is [n...], `out` is [size, n...].
  virtual void all_gather(TensorView in, TensorView out, Stream& stream) = 0;
  /// out[r] is rank r's in[rank()]; both are [size, n...].
  virtual void all_to_all(TensorView in, TensorView out, Stream& stream) = 0;
  /// Blocks until `peer` takes it or the transport has buffered it.
  virtual void send(TensorView view, int peer, Stream& stream) = 0;
  /// Like `send`, but never waits for `peer`: what is sent is a copy, kept until `peer` takes it. Sends and posts to
  /// one peer arrive in the order of the calls.
  virtual void post(TensorView view, int peer, Stream& stream) = 0;
  /// The element count must be the sender's.
  virtual void recv(TensorView view, int peer, Stream& stream) = 0;
  /// Sends `out` to `peer` and receives `in` from it at once; `peer` calls it too.
  virtual void exchange(TensorView out, TensorView in, int peer, Stream& stream) = 0;
  virtual void broadcast(TensorView view, int root, Stream& stream) = 0;

  /// The ranks that give the same `color`, ordered by `key`, as a communicator of their own.
  [[nodiscard]] virtual std::unique_ptr<Communicator> split(int color, int key) = 0;

  /// The same ranks, for work beside this communicator's: from another thread or, where calls return before the work is
  /// done, on another stream. Threads that wait in it sleep rather than keep a processor from those that compute.
  /// Collective.
  [[nodiscard]] virtual std::unique_ptr<Communicator> duplicate_for_overlap() = 0;
  /// True where calls only queue their work on the stream, as kernels do; then the buffers may be reused by what is
  /// queued after it.
  [[nodiscard]] virtual bool is_asynchronous() const { return false; }
  /// From any thread: calls of a duplicate that wait for another rank throw kPeerLost, now and from now on.
  virtual void stop() {}
  /// What was moved so far; of no meaning while a call runs.
  [[nodiscard]] const Traffic& traffic() const { return traffic_; }

  virtual void barrier() = 0;
  /// Every rank's string, in rank order, on every rank: digests, agreement on errors.
  [[nodiscard]] virtual std::vector<std::string> gather_strings(const std::string& mine) = 0;
  /// Ends all ranks at once; the launcher exits with `code`.
  [[noreturn]] virtual void abort(ExitCode code) = 0;

  /// This rank gets on, between two calls.
  void mark_progress() {
    if (record_ != nullptr) record_->mark_progress();
  }
  /// Calls are written to `record`, also those of communicators made from this one from here on; null: to none.
  void set_record(FlightRecord* record) { record_ = record; }

 protected:
  Traffic traffic_;
  FlightRecord* record_ = nullptr;
};

/// Over MPI_COMM_WORLD; MPI must be initialised (dist/launch_environment.h) and outlive it. Messages
/// are cut to `max_message` elements, since MPI counts in `int`.
std::unique_ptr<Communicator> make_mpi_communicator(
    std::int64_t max_message = std::numeric_limits<int>::max());

/// One rank, no MPI.
std::unique_ptr<Communicator> make_single_communicator();

}  // namespace ttt::dist
