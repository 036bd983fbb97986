#include <mpi.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <numeric>
#include <thread>

#include "core/base/fault_point.h"
#include "core/base/timer.h"
#include "dist/communicator.h"
#include "dist/contracts.h"
#include "dist/host_messages.h"
#include "dist/mpi_elements.h"
#include "dist/posted_messages.h"

namespace ttt::dist {
namespace {

constexpr int kTag = 1;

/// How a call waits for another rank. MPI's own way takes a processor.
enum class Waiting { kSpins, kSleeps };

class MpiCommunicator final : public Communicator {
 public:
  /// Takes `owned` over: a communicator of our own has no other library's messages.
  MpiCommunicator(MPI_Comm owned, std::int64_t max_message, Waiting waiting = Waiting::kSpins)
      : max_message_(max_message), waiting_(waiting), world_(owned) {
    TTT_CHECK(max_message >= 1 && max_message <= std::numeric_limits<int>::max(),
              "messages of {} elements", max_message);
    // Errors come back as codes.
    TTT_MPI_CHECK(MPI_Comm_set_errhandler(world_, MPI_ERRORS_RETURN));
    TTT_MPI_CHECK(MPI_Comm_rank(world_, &rank_));
    TTT_MPI_CHECK(MPI_Comm_size(world_, &size_));
    MPI_Comm machine = MPI_COMM_NULL;
    TTT_MPI_CHECK(
        MPI_Comm_split_type(world_, MPI_COMM_TYPE_SHARED, rank_, MPI_INFO_NULL, &machine));
    TTT_MPI_CHECK(MPI_Comm_rank(machine, &local_rank_));
    TTT_MPI_CHECK(MPI_Comm_size(machine, &local_size_));
    TTT_MPI_CHECK(MPI_Comm_free(&machine));
  }
  MpiCommunicator(const MpiCommunicator&) = delete;
  MpiCommunicator& operator=(const MpiCommunicator&) = delete;
  ~MpiCommunicator() override {
    posted_.reset();
    MPI_Comm_free(&world_);
  }

  [[nodiscard]] int rank() const override { return rank_; }
  [[nodiscard]] int size() const override { return size_; }
  [[nodiscard]] int local_rank() const override { return local_rank_; }
  [[nodiscard]] int local_size() const override { return local_size_; }

  void all_reduce_sum(TensorView inout, Stream& stream) override {
    const RecordedOperation operation(record_, Operation::kAllReduceSum, inout.num_bytes());
    check_summable(inout);
    const HostCopy host(inout, stream);
    fault_point("in_all_reduce");
    const Traffic::Call call(traffic_, Traffic::kSum, inout.num_bytes(), inout.num_bytes());
    // Reduce and broadcast: MPI does not promise that Allreduce gives all ranks the same bits.
    const bool is_root = rank_ == 0;
    for_chunks(elements_of(host.view()), [&](const Elements& chunk) {
      TTT_MPI_CHECK(MPI_Reduce(is_root ? MPI_IN_PLACE : chunk.data, is_root ? chunk.data : nullptr,
                               chunk.mpi_count(), mpi_type(chunk.dtype), MPI_SUM, 0, world_));
      broadcast_chunk(chunk, 0);
    });
    host.put_back(stream);
  }

  void reduce_scatter_sum(TensorView in, TensorView out, Stream& stream) override {
    const RecordedOperation operation(record_, Operation::kReduceScatterSum, in.num_bytes());
    check_summable(in);
    check_stacked("out", out, "in", in, size_);
    stream.synchronize();
    const Traffic::Call call(traffic_, Traffic::kSum, others(out.num_bytes()),
                             others(out.num_bytes()));
    // Pairwise: the traffic of a ring and one chunk of extra memory; Open MPI's own
    // Reduce_scatter_block is slower than its Allreduce.
    const Elements all = elements_of(in);
    const Elements sum = elements_of(out);
    copy_elements(all.part(rank_ * sum.count, sum.count), sum);
    const Tensor buffer({std::min(sum.count, kReduceChunk)}, in.dtype());
    for (int distance = 1; distance < size_; ++distance) {
      const int to = (rank_ + distance) % size_;
      const int from = (rank_ - distance + size_) % size_;
      for (std::int64_t begin = 0; begin < sum.count; begin += kReduceChunk) {
        const std::int64_t count = std::min(kReduceChunk, sum.count - begin);
        const Elements term = elements_of(buffer).part(0, count);
        send_and_receive(all.part(to * sum.count + begin, count), to, term, from);
        add_into(term, sum.part(begin, count));
      }
    }
  }

  void all_gather(TensorView in, TensorView out, Stream& stream) override {
    const RecordedOperation operation(record_, Operation::kAllGather, out.num_bytes());
    check_stacked("in", in, "out", out, size_);
    stream.synchronize();
    const Traffic::Call call(traffic_, Traffic::kGather, others(in.num_bytes()),
                             others(in.num_bytes()));
    const Elements mine = elements_of(in);
    const Elements all = elements_of(out);
    if (mine.count <= max_message_) {
      TTT_MPI_CHECK(MPI_Allgather(mine.data, mine.mpi_count(), mpi_type(mine.dtype), all.data,
                                  mine.mpi_count(), mpi_type(mine.dtype), world_));
      return;
    }
    copy_elements(mine, all.part(rank_ * mine.count, mine.count));
    for (int root = 0; root < size_; ++root) {
      for_chunks(all.part(root * mine.count, mine.count),
                 [&](const Elements& chunk) { broadcast_chunk(chunk, root); });
    }
  }

  void all_to_all(TensorView in, TensorView out, Stream& stream) override {
    const RecordedOperation operation(record_, Operation::kAllToAll, in.num_bytes());
    check_all_to_all(in, out, size_);
    stream.synchronize();
    const Traffic::Call call(traffic_, Traffic::kAllToAll, others(in.num_bytes() / size_),
                             others(in.num_bytes() / size_));
    const Elements from_all = elements_of(out);
    const Elements to_all = elements_of(in);
    const std::int64_t count = to_all.count / size_;
    if (count <= max_message_) {
      TTT_MPI_CHECK(MPI_Alltoall(to_all.data, static_cast<int>(count), mpi_type(in.dtype()),
                                 from_all.data, static_cast<int>(count), mpi_type(in.dtype()),
                                 world_));
      return;
    }
    for (int distance = 0; distance < size_; ++distance) {
      const int to = (rank_ + distance) % size_;
      const int from = (rank_ - distance + size_) % size_;
      send_and_receive(to_all.part(to * count, count), to, from_all.part(from * count, count),
                       from);
    }
  }

  void send(TensorView view, int peer, Stream& stream) override {
    const RecordedOperation operation(record_, Operation::kSend, view.num_bytes(), peer);
    check_peer(peer, rank_, size_);
    stream.synchronize();
    const Traffic::Call call(traffic_, Traffic::kMessage, view.num_bytes(), 0);
    for_messages(elements_of(view), [&](const Elements& chunk) {
      TTT_MPI_CHECK(
          MPI_Send(chunk.data, chunk.mpi_count(), mpi_type(chunk.dtype), peer, kTag, world_));
    });
  }

  void post(TensorView view, int peer, Stream& stream) override {
    const RecordedOperation operation(record_, Operation::kPost, view.num_bytes(), peer);
    check_peer(peer, rank_, size_);
    stream.synchronize();
    const Traffic::Call call(traffic_, Traffic::kMessage, view.num_bytes(), 0);
    const Tensor kept(view.shape(), view.dtype());
    copy_elements(elements_of(view), elements_of(kept));
    for_messages(elements_of(kept), [&](const Elements& chunk) {
      MPI_Request request = MPI_REQUEST_NULL;
      TTT_MPI_CHECK(MPI_Isend(chunk.data, chunk.mpi_count(), mpi_type(chunk.dtype), peer, kTag,
                              world_, &request));
      posted_->add(kept, request);
    });
  }

  void recv(TensorView view, int peer, Stream& stream) override {
    const RecordedOperation operation(record_, Operation::kRecv, view.num_bytes(), peer);
    check_peer(peer, rank_, size_);
    stream.synchronize();
    const Traffic::Call call(traffic_, Traffic::kMessage, 0, view.num_bytes());
    for_messages(elements_of(view), [&](const Elements& chunk) {
      MPI_Status status;
      TTT_MPI_CHECK(MPI_Probe(peer, kTag, world_, &status));
      expect_received(status, chunk, peer);
      TTT_MPI_CHECK(MPI_Recv(chunk.data, chunk.mpi_count(), mpi_type(chunk.dtype), peer, kTag,
                             world_, MPI_STATUS_IGNORE));
    });
  }

  void exchange(TensorView out, TensorView in, int peer, Stream& stream) override {
    const RecordedOperation operation(record_, Operation::kExchange, out.num_bytes(), peer);
    check_peer(peer, rank_, size_);
    stream.synchronize();
    const Traffic::Call call(traffic_, Traffic::kMessage, out.num_bytes(), in.num_bytes());
    send_and_receive(elements_of(out), peer, elements_of(in), peer);
  }

  void broadcast(TensorView view, int root, Stream& stream) override {
    const RecordedOperation operation(record_, Operation::kBroadcast, view.num_bytes(), root);
    check_root(root, size_);
    stream.synchronize();
    const Traffic::Call call(traffic_, Traffic::kBroadcast, rank_ == root ? view.num_bytes() : 0,
                             rank_ == root ? 0 : view.num_bytes());
    for_chunks(elements_of(view), [&](const Elements& chunk) { broadcast_chunk(chunk, root); });
  }

  [[nodiscard]] std::unique_ptr<Communicator> split(int color, int key) override {
    MPI_Comm part = MPI_COMM_NULL;
    TTT_MPI_CHECK(MPI_Comm_split(world_, color, key, &part));
    auto communicator = std::make_unique<MpiCommunicator>(part, max_message_);
    communicator->set_record(record_);
    return communicator;
  }
  [[nodiscard]] std::unique_ptr<Communicator> duplicate_for_overlap() override {
    int provided = MPI_THREAD_SINGLE;
    TTT_MPI_CHECK(MPI_Query_thread(&provided));
    if (provided < MPI_THREAD_MULTIPLE) {
      fail(ExitCode::kUsage,
           "this MPI library lets one thread communicate (level {} of {}), overlap needs two: set "
           "parallel.overlap = false",
           provided, MPI_THREAD_MULTIPLE);
    }
    MPI_Comm copy = MPI_COMM_NULL;
    TTT_MPI_CHECK(MPI_Comm_dup(world_, &copy));
    auto communicator = std::make_unique<MpiCommunicator>(copy, max_message_, Waiting::kSleeps);
    communicator->set_record(record_);
    return communicator;
  }
  void stop() override { is_stopped_ = true; }

  void barrier() override {
    const RecordedOperation operation(record_, Operation::kBarrier, 0);
    TTT_MPI_CHECK(MPI_Barrier(world_));
  }

  [[nodiscard]] std::vector<std::string> gather_strings(const std::string& mine) override {
    const RecordedOperation operation(record_, Operation::kGatherStrings,
                                      static_cast<std::int64_t>(mine.size()));
    TTT_CHECK(mine.size() <= std::size_t{1} << 20U, "a string of {} bytes is too long to gather",
              mine.size());
    const int my_length = static_cast<int>(mine.size());
    std::vector<int> lengths(static_cast<std::size_t>(size_));
    TTT_MPI_CHECK(MPI_Allgather(&my_length, 1, MPI_INT, lengths.data(), 1, MPI_INT, world_));
    const std::int64_t total = std::accumulate(lengths.begin(), lengths.end(), std::int64_t{0});
    TTT_CHECK(total <= std::numeric_limits<int>::max(), "{} bytes are too many to gather", total);
    std::vector<int> offsets(lengths.size());
    std::exclusive_scan(lengths.begin(), lengths.end(), offsets.begin(), 0);
    std::string all(static_cast<std::size_t>(total), '\0');
    TTT_MPI_CHECK(MPI_Allgatherv(mine.data(), my_length, MPI_CHAR, all.data(), lengths.data(),
                                 offsets.data(), MPI_CHAR, world_));
    std::vector<std::string> strings;
    for (std::size_t r = 0; r < lengths.size(); ++r) {
      strings.push_back(
          all.substr(static_cast<std::size_t>(offsets[r]), static_cast<std::size_t>(lengths[r])));
    }
    return strings;
  }

  [[noreturn]] void abort(ExitCode code) override {
    MPI_Abort(MPI_COMM_WORLD, static_cast<int>(code));
    std::_Exit(static_cast<int>(code));
  }

 private:
  /// Bounds the buffer of reduce_scatter_sum: large enough to hide a message's latency.
  static constexpr std::int64_t kReduceChunk = std::int64_t{1} << 20U;

  /// What each of the other ranks gets, or gives.
  [[nodiscard]] std::int64_t others(std::int64_t bytes) const { return (size_ - 1) * bytes; }

  /// Nothing is called for no elements: right for collectives, where all ranks know the count.
  template <typename Function>
  void for_chunks(const Elements& all, const Function& function) const {
    for (std::int64_t begin = 0; begin < all.count; begin += max_message_) {
      function(all.part(begin, std::min(max_message_, all.count - begin)));
    }
  }

  /// One empty message for no elements, so that a receiver who expects some can say so.
  template <typename Function>
  void for_messages(const Elements& all, const Function& function) const {
    if (all.count == 0) {
      function(all);
    }
    for_chunks(all, function);
  }

  void broadcast_chunk(const Elements& chunk, int root) const {
    TTT_MPI_CHECK(MPI_Bcast(chunk.data, chunk.mpi_count(), mpi_type(chunk.dtype), root, world_));
  }

  void send_and_receive(const Elements& out, int to, const Elements& in, int from) const {
    std::int64_t begin = 0;
    do {
      const Elements sent = chunk_at(out, begin);
      const Elements received = chunk_at(in, begin);
      std::array<MPI_Request, 2> requests{MPI_REQUEST_NULL, MPI_REQUEST_NULL};
      TTT_MPI_CHECK(MPI_Isend(sent.data, sent.mpi_count(), mpi_type(sent.dtype), to, kTag, world_,
                              requests.data()));
      // Checked before it is received: Open MPI writes a message that is longer than the buffer past its end.
      expect_received(wait_for_message(from), received, from);
      TTT_MPI_CHECK(MPI_Irecv(received.data, received.mpi_count(), mpi_type(received.dtype), from,
                              kTag, world_, &requests[1]));
      wait_for(requests, from);
      begin += max_message_;
    } while (begin < std::max(out.count, in.count));
  }

  [[nodiscard]] MPI_Status wait_for_message(int from) const {
    MPI_Status status{};
    if (waiting_ == Waiting::kSpins) {
      TTT_MPI_CHECK(MPI_Probe(from, kTag, world_, &status));
    } else {
      sleep_until(from, [&](int& is_done) {
        TTT_MPI_CHECK(MPI_Iprobe(from, kTag, world_, &is_done, &status));
      });
    }
    return status;
  }

  void wait_for(std::array<MPI_Request, 2>& requests, int peer) const {
    const int count = static_cast<int>(requests.size());
    if (waiting_ == Waiting::kSpins) {
      TTT_MPI_CHECK(MPI_Waitall(count, requests.data(), MPI_STATUSES_IGNORE));
    } else {
      sleep_until(peer, [&](int& is_done) {
        TTT_MPI_CHECK(MPI_Testall(count, requests.data(), &is_done, MPI_STATUSES_IGNORE));
      });
    }
  }

  /// Looks often at first, when the message is likely on its way, then rarely.
  template <typename Look>
  void sleep_until(int peer, const Look& look) const {
    constexpr double kLongestSleep = 200e-6;
    const Timer timer;
    for (;;) {
      int is_done = 0;
      look(is_done);
      if (is_done != 0) return;
      if (is_stopped_) {
        fail(ExitCode::kPeerLost, "stopped after {:.1f} s of waiting for rank {}", timer.seconds(),
             peer);
      }
      const double sleep = std::min(kLongestSleep, timer.seconds() / 16);
      std::this_thread::sleep_for(std::chrono::duration<double>(sleep));
    }
  }

  [[nodiscard]] Elements chunk_at(const Elements& all, std::int64_t begin) const {
    const std::int64_t start = std::min(begin, all.count);
    return all.part(start, std::min(max_message_, all.count - start));
  }

  std::int64_t max_message_;
  Waiting waiting_;
  std::atomic<bool> is_stopped_ = false;
  MPI_Comm world_ = MPI_COMM_NULL;
  std::unique_ptr<PostedMessages> posted_ = std::make_unique<PostedMessages>();
  int rank_ = 0;
  int size_ = 1;
  int local_rank_ = 0;
  int local_size_ = 1;
};

}  // namespace

std::unique_ptr<Communicator> make_mpi_communicator(std::int64_t max_message) {
  int is_initialized = 0;
  TTT_MPI_CHECK(MPI_Initialized(&is_initialized));
  TTT_CHECK(is_initialized != 0, "MPI is not initialised");
  MPI_Comm world = MPI_COMM_NULL;
  TTT_MPI_CHECK(MPI_Comm_dup(MPI_COMM_WORLD, &world));
  return std::make_unique<MpiCommunicator>(world, max_message);
}

}  // namespace ttt::dist
