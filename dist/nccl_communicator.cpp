#include "dist/nccl_communicator.h"

#include <nccl.h>

#include <algorithm>
#include <condition_variable>
#include <cstring>
#include <exception>
#include <mutex>
#include <thread>
#include <utility>

#include "core/base/log.h"
#include "dist/contracts.h"

namespace ttt::dist {
namespace {

/// NCCL's text, with what it remembers of the last failure.
std::string reason_of(ncclResult_t code, ncclComm_t communicator) {
  const char* const detail = ncclGetLastError(communicator);
  const bool has_detail = detail != nullptr && *detail != '\0';
  return fmt::format("{}{}{}", ncclGetErrorString(code), has_detail ? ": " : "",
                     has_detail ? detail : "");
}

void check_nccl(ncclResult_t code, const char* call, ncclComm_t communicator = nullptr) {
  if (code == ncclSuccess) return;
  const std::string_view name = std::string_view(call).substr(0, std::string_view(call).find('('));
  const bool is_misuse = code == ncclInvalidArgument || code == ncclInvalidUsage;
  fail(is_misuse ? ExitCode::kInternal : ExitCode::kPeerLost, "{} failed: {}", name,
       reason_of(code, communicator));
}

#define TTT_NCCL_CHECK(call, ...) check_nccl((call), #call __VA_OPT__(, ) __VA_ARGS__)

struct Elements {
  void* data;
  std::size_t count;
  ncclDataType_t type;
};

/// NCCL has no 16-bit integers: they travel as bytes.
Elements elements_of(const TensorView& view) {
  const auto count = static_cast<std::size_t>(view.numel());
  switch (view.dtype()) {
    case DType::kF64:
      return {view.raw(), count, ncclFloat64};
    case DType::kF32:
      return {view.raw(), count, ncclFloat32};
    case DType::kBF16:
      return {view.raw(), count, ncclBfloat16};
    case DType::kI64:
      return {view.raw(), count, ncclInt64};
    case DType::kI32:
      return {view.raw(), count, ncclInt32};
    case DType::kU16:
      return {view.raw(), 2 * count, ncclUint8};
    case DType::kU8:
      return {view.raw(), count, ncclUint8};
  }
  fail(ExitCode::kInternal, "dtype {}", static_cast<int>(view.dtype()));
}

cudaStream_t queue_of(const Stream& stream) { return static_cast<cudaStream_t>(stream.native()); }

/// The calls until `end` are one operation: messages in both directions do not wait for each other.
class Group {
 public:
  Group() { TTT_NCCL_CHECK(ncclGroupStart()); }
  Group(const Group&) = delete;
  Group& operator=(const Group&) = delete;
  ~Group() {
    if (is_open_) ncclGroupEnd();  // after an error, which is on its way
  }
  void end() {
    is_open_ = false;
    TTT_NCCL_CHECK(ncclGroupEnd());
  }

 private:
  bool is_open_ = true;
};

/// Asks NCCL for failures of what is queued: only NCCL notices that another rank is gone, and says so only when asked.
class Watch {
 public:
  Watch(ncclComm_t communicator, std::function<void(const std::string&)> on_failure)
      : communicator_(communicator),
        on_failure_(std::move(on_failure)),
        thread_([this] { run(); }) {}
  Watch(const Watch&) = delete;
  Watch& operator=(const Watch&) = delete;
  ~Watch() {
    {
      const std::lock_guard lock(mutex_);
      ends_ = true;
    }
    changed_.notify_all();
    thread_.join();
  }

 private:
  void run() {
    constexpr auto kInterval = std::chrono::milliseconds(200);
    std::unique_lock lock(mutex_);
    while (!changed_.wait_for(lock, kInterval, [&] { return ends_; })) {
      ncclResult_t state = ncclSuccess;
      const ncclResult_t code = ncclCommGetAsyncError(communicator_, &state);
      const ncclResult_t failure = code != ncclSuccess ? code : state;
      if (failure == ncclSuccess || failure == ncclInProgress) continue;
      on_failure_(reason_of(failure, communicator_));
      return;
    }
  }

  ncclComm_t communicator_;
  std::function<void(const std::string&)> on_failure_;
  std::mutex mutex_;
  std::condition_variable changed_;
  bool ends_ = false;
  std::thread thread_;  // last: it uses the others
};

class NcclCommunicator final : public Communicator {
 public:
  NcclCommunicator(std::unique_ptr<Communicator> host,
                   std::function<void(const std::string&)> on_failure)
      : host_(std::move(host)), on_failure_(std::move(on_failure)) {
    ncclUniqueId id{};
    if (rank() == 0) TTT_NCCL_CHECK(ncclGetUniqueId(&id));
    Stream cpu;
    host_->broadcast(TensorView(&id, {static_cast<std::int64_t>(sizeof(id))}, DType::kU8), 0, cpu);
    TTT_NCCL_CHECK(ncclCommInitRank(&communicator_, size(), id, rank()));
    watch_ = std::make_unique<Watch>(communicator_, [this](const std::string& reason) {
      if (on_failure_) return on_failure_(reason);
      log::error("NCCL lost another rank: {}", reason);
      host_->abort(ExitCode::kPeerLost);
    });
  }
  NcclCommunicator(const NcclCommunicator&) = delete;
  NcclCommunicator& operator=(const NcclCommunicator&) = delete;
  ~NcclCommunicator() override {
    watch_.reset();
    // Destroying waits for what is queued; peers of a failed rank may never do their part.
    const ncclResult_t code = std::uncaught_exceptions() > 0 ? ncclCommAbort(communicator_)
                                                             : ncclCommDestroy(communicator_);
    if (code != ncclSuccess) log::error("NCCL ends with: {}", ncclGetErrorString(code));
  }

  [[nodiscard]] int rank() const override { return host_->rank(); }
  [[nodiscard]] int size() const override { return host_->size(); }
  [[nodiscard]] int local_rank() const override { return host_->local_rank(); }
  [[nodiscard]] int local_size() const override { return host_->local_size(); }
  [[nodiscard]] bool is_asynchronous() const override { return true; }

  void all_reduce_sum(TensorView inout, Stream& stream) override {
    check_summable(inout);
    if (is_host(stream)) return host_->all_reduce_sum(inout, stream);
    const Traffic::Call call(traffic_, Traffic::kSum, inout.num_bytes(), inout.num_bytes());
    const Elements e = elements_of(inout);
    check(ncclAllReduce(e.data, e.data, e.count, e.type, ncclSum, communicator_, queue_of(stream)),
          "ncclAllReduce");
  }

  void reduce_scatter_sum(TensorView in, TensorView out, Stream& stream) override {
    check_summable(in);
    check_stacked("out", out, "in", in, size());
    if (is_host(stream)) return host_->reduce_scatter_sum(in, out, stream);
    const Traffic::Call call(traffic_, Traffic::kSum, others(out), others(out));
    const Elements e = elements_of(out);
    check(ncclReduceScatter(in.raw(), e.data, e.count, e.type, ncclSum, communicator_,
                            queue_of(stream)),
          "ncclReduceScatter");
  }

  void all_gather(TensorView in, TensorView out, Stream& stream) override {
    check_stacked("in", in, "out", out, size());
    if (is_host(stream)) return host_->all_gather(in, out, stream);
    const Traffic::Call call(traffic_, Traffic::kGather, others(in), others(in));
    const Elements e = elements_of(in);
    check(ncclAllGather(e.data, out.raw(), e.count, e.type, communicator_, queue_of(stream)),
          "ncclAllGather");
  }

  void all_to_all(TensorView in, TensorView out, Stream& stream) override {
    check_all_to_all(in, out, size());
    if (is_host(stream)) return host_->all_to_all(in, out, stream);
    const std::int64_t bytes = in.num_bytes() / size() * (size() - 1);
    const Traffic::Call call(traffic_, Traffic::kAllToAll, bytes, bytes);
    Group group;
    for (int peer = 0; peer < size(); ++peer) {
      queue_send(in.slice(peer, peer + 1), peer, stream);
      queue_recv(out.slice(peer, peer + 1), peer, stream);
    }
    group.end();
  }

  void send(TensorView view, int peer, Stream& stream) override {
    check_peer(peer, rank(), size());
    if (is_host(stream)) return host_->send(view, peer, stream);
    const Traffic::Call call(traffic_, Traffic::kMessage, view.num_bytes(), 0);
    queue_send(view, peer, stream);
  }

  /// The host never waits for `peer`, the stream may; what it queues later keeps `view` as it is until then.
  void post(TensorView view, int peer, Stream& stream) override {
    if (is_host(stream)) return host_->post(view, peer, stream);
    send(view, peer, stream);
  }

  void recv(TensorView view, int peer, Stream& stream) override {
    check_peer(peer, rank(), size());
    if (is_host(stream)) return host_->recv(view, peer, stream);
    const Traffic::Call call(traffic_, Traffic::kMessage, 0, view.num_bytes());
    queue_recv(view, peer, stream);
  }

  void exchange(TensorView out, TensorView in, int peer, Stream& stream) override {
    check_peer(peer, rank(), size());
    if (is_host(stream)) return host_->exchange(out, in, peer, stream);
    const Traffic::Call call(traffic_, Traffic::kMessage, out.num_bytes(), in.num_bytes());
    Group group;
    queue_send(out, peer, stream);
    queue_recv(in, peer, stream);
    group.end();
  }

  void broadcast(TensorView view, int root, Stream& stream) override {
    check_root(root, size());
    if (is_host(stream)) return host_->broadcast(view, root, stream);
    const bool is_root = rank() == root;
    const Traffic::Call call(traffic_, Traffic::kBroadcast, is_root ? view.num_bytes() : 0,
                             is_root ? 0 : view.num_bytes());
    const Elements e = elements_of(view);
    check(ncclBroadcast(e.data, e.data, e.count, e.type, root, communicator_, queue_of(stream)),
          "ncclBroadcast");
  }

  [[nodiscard]] std::unique_ptr<Communicator> split(int color, int key) override {
    return make_nccl_communicator(host_->split(color, key), on_failure_);
  }
  [[nodiscard]] std::unique_ptr<Communicator> duplicate_for_overlap() override {
    return split(0, rank());
  }

  void barrier() override { host_->barrier(); }
  [[nodiscard]] std::vector<std::string> gather_strings(const std::string& mine) override {
    return host_->gather_strings(mine);
  }
  [[noreturn]] void abort(ExitCode code) override {
    host_->abort(code);
    std::terminate();  // [[noreturn]] is not seen through a virtual call
  }

 private:
  static bool is_host(const Stream& stream) { return stream.device() == Device::kCpu; }
  [[nodiscard]] std::int64_t others(const TensorView& part) const {
    return (size() - 1) * part.num_bytes();
  }
  void check(ncclResult_t code, const char* call) const { check_nccl(code, call, communicator_); }

  // An empty message is none: both sides know the length.
  void queue_send(const TensorView& view, int peer, const Stream& stream) const {
    const Elements e = elements_of(view);
    if (e.count == 0) return;
    check(ncclSend(e.data, e.count, e.type, peer, communicator_, queue_of(stream)), "ncclSend");
  }
  void queue_recv(const TensorView& view, int peer, const Stream& stream) const {
    const Elements e = elements_of(view);
    if (e.count == 0) return;
    check(ncclRecv(e.data, e.count, e.type, peer, communicator_, queue_of(stream)), "ncclRecv");
  }

  std::unique_ptr<Communicator> host_;
  std::function<void(const std::string&)> on_failure_;
  ncclComm_t communicator_ = nullptr;
  std::unique_ptr<Watch> watch_;
};

}  // namespace

std::unique_ptr<Communicator> make_nccl_communicator(
    std::unique_ptr<Communicator> host, std::function<void(const std::string&)> on_failure) {
  return std::make_unique<NcclCommunicator>(std::move(host), std::move(on_failure));
}

std::string nccl_version() {
  int version = 0;
  TTT_NCCL_CHECK(ncclGetVersion(&version));
  return fmt::format("{}.{}.{}", version / 10000, version / 100 % 100, version % 100);
}

}  // namespace ttt::dist
