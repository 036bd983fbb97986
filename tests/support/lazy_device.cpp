#include "tests/support/lazy_device.h"

#include <utility>

#include "kernels/device_ops.h"

namespace ttt::test {
namespace {

class LazyEvent final : public QueueEvent {
 public:
  LazyEvent(LazyQueue& queue, std::int64_t count) : queue_(queue), count_(count) {}
  void wait() override { queue_.run_until(count_); }

 private:
  LazyQueue& queue_;
  std::int64_t count_;
};

std::int64_t num_pieces_done = 0;  // by all queues

class LazyTime final : public QueueTime {
 public:
  explicit LazyTime(std::shared_ptr<const std::int64_t> reached) : reached_(std::move(reached)) {}
  [[nodiscard]] double seconds_since(const QueueTime& earlier) const override {
    return static_cast<double>(*reached_ - *static_cast<const LazyTime&>(earlier).reached_);
  }

 private:
  std::shared_ptr<const std::int64_t> reached_;
};

template <typename Op>
void queue_on_cpu(const Stream& stream, Op op) {
  static_cast<LazyQueue*>(stream.native())->add([op] {
    Stream cpu;
    op(cpu);
  });
}

void add(TensorView x, TensorView y, Stream& stream) {
  queue_on_cpu(stream, [=](Stream& cpu) { kernels::add(x, y, cpu); });
}
void copy(TensorView from, TensorView to, Stream& stream) {
  queue_on_cpu(stream, [=](Stream& cpu) { kernels::copy(from, to, cpu); });
}
void fill(TensorView y, double value, Stream& stream) {
  queue_on_cpu(stream, [=](Stream& cpu) { kernels::fill(y, value, cpu); });
}
void add_up(TensorView partial, TensorView sum, Stream& stream) {
  queue_on_cpu(stream, [=](Stream& cpu) { kernels::add_up(partial, sum, cpu); });
}
void block_sums_of_squares(TensorView x, TensorView partial, Stream& stream) {
  queue_on_cpu(stream, [=](Stream& cpu) { kernels::block_sums_of_squares(x, partial, cpu); });
}

void find_non_finite(TensorView x, std::int64_t begin, TensorView partial, Stream& stream) {
  queue_on_cpu(stream, [=](Stream& cpu) { kernels::find_non_finite(x, begin, partial, cpu); });
}
void smallest(TensorView partial, TensorView result, Stream& stream) {
  queue_on_cpu(stream, [=](Stream& cpu) { kernels::smallest(partial, result, cpu); });
}

const kernels::DeviceOps kOps = [] {
  kernels::DeviceOps ops;
  ops.add = &add;
  ops.copy = &copy;
  ops.fill = &fill;
  ops.block_sums_of_squares = &block_sums_of_squares;
  ops.add_up = &add_up;
  ops.find_non_finite = &find_non_finite;
  ops.smallest = &smallest;
  return ops;
}();

}  // namespace

void LazyQueue::run_until(std::int64_t count) {
  while (num_done_ < count) {
    const std::function<void()> work = std::move(work_.front());
    work_.pop_front();
    ++num_done_;
    ++num_pieces_done;
    work();
  }
}

std::unique_ptr<QueueEvent> LazyQueue::record() {
  return std::make_unique<LazyEvent>(*this, num_done_ + static_cast<std::int64_t>(work_.size()));
}

std::unique_ptr<QueueTime> LazyQueue::record_time() {
  const auto reached = std::make_shared<std::int64_t>(0);
  add([reached] { *reached = num_pieces_done; });
  return std::make_unique<LazyTime>(reached);
}

void LazyQueue::wait_for(QueueEvent& event) {
  // The event may be gone when the queue comes to it.
  add([event = static_cast<LazyEvent&>(event)]() mutable { event.wait(); });
}

void use_lazy_device() {
  kernels::CudaBackend backend;
  backend.ops = &kOps;
  backend.num_devices = [] { return 2; };
  backend.make_stream = [](int device) { return Stream(std::make_unique<LazyQueue>(device == 1)); };
  kernels::set_cuda_backend(backend);
}

}  // namespace ttt::test
