#include "launch/collective_timing.h"

#include <algorithm>
#include <chrono>
#include <functional>
#include <limits>
#include <utility>

#include "core/base/timer.h"

namespace ttt::launch {
namespace {

double median(std::vector<double> values) {
  std::ranges::sort(values);
  return values[values.size() / 2];
}

double largest_over_ranks(double mine, dist::Communicator& communicator) {
  Stream cpu;
  const Tensor value = Tensor::zeros({1}, DType::kF64);
  const Tensor all({communicator.size(), 1}, DType::kF64);
  value.data<double>()[0] = mine;
  communicator.all_gather(value, all, cpu);
  return std::ranges::max(all.span<double>());
}

// A tenth of a second's worth, the same number on every rank. Each repetition starts together, so that no rank's time
// holds another's delay.
double time_repeated(const std::function<void()>& operation, dist::Communicator& communicator,
                     const Stream& stream) {
  const auto time_once = [&] {
    stream.synchronize();
    communicator.barrier();
    const Timer timer;
    operation();
    stream.synchronize();
    return timer.seconds();
  };
  operation();  // connections are made by first use
  const double first = largest_over_ranks(time_once(), communicator);
  std::vector<double> seconds;
  for (const int count = static_cast<int>(std::clamp(0.1 / std::max(first, 1e-9), 3.0, 50.0));
       static_cast<int>(seconds.size()) < count;) {
    seconds.push_back(time_once());
  }
  return largest_over_ranks(median(seconds), communicator);
}

std::int64_t nanoseconds_now() {
  return std::chrono::duration_cast<std::chrono::nanoseconds>(
             std::chrono::system_clock::now().time_since_epoch())
      .count();
}

}  // namespace

std::vector<CollectiveTime> time_collectives(dist::Communicator& communicator,
                                             std::int64_t largest_bytes, Stream& stream) {
  std::vector<CollectiveTime> times;
  const std::int64_t size = communicator.size();
  const auto add = [&](const char* name, std::int64_t bytes,
                       const std::function<void()>& operation) {
    const double seconds = time_repeated(operation, communicator, stream);
    times.push_back({name, bytes, seconds, static_cast<double>(bytes) / seconds * 1e-9});
  };
  add("barrier", 0, [&] { communicator.barrier(); });
  add("gather_strings", 0, [&] { (void)communicator.gather_strings("rank"); });
  const int peer = communicator.rank() ^ 1;
  for (std::int64_t bytes = 4; bytes <= largest_bytes; bytes *= 16) {
    const std::int64_t count = bytes / 4;
    const Tensor one = Tensor::zeros({count}, DType::kF32);
    const Tensor other = Tensor::zeros({count}, DType::kF32);
    add("all_reduce_sum", bytes, [&] { communicator.all_reduce_sum(one, stream); });
    add("broadcast", bytes, [&] { communicator.broadcast(one, 0, stream); });
    add("exchange", bytes, [&] {
      if (peer < communicator.size()) communicator.exchange(one, other, peer, stream);
    });
    // The whole of these has `bytes`; a rank's part is a share of it.
    const std::int64_t part = std::max<std::int64_t>(1, count / size);
    const Tensor parts = Tensor::zeros({size, part}, DType::kF32);
    const Tensor others = Tensor::zeros({size, part}, DType::kF32);
    const Tensor mine = Tensor::zeros({part}, DType::kF32);
    const std::int64_t whole = size * part * 4;
    add("reduce_scatter_sum", whole, [&] { communicator.reduce_scatter_sum(parts, mine, stream); });
    add("all_gather", whole, [&] { communicator.all_gather(mine, parts, stream); });
    add("all_to_all", whole, [&] { communicator.all_to_all(parts, others, stream); });
  }
  return times;
}

LinkTime time_link(dist::Communicator& communicator, int peer, Stream& stream) {
  LinkTime link;
  for (const std::int64_t count : {std::int64_t{1}, std::int64_t{1} << 18}) {
    const Tensor message = Tensor::zeros({count}, DType::kF32);
    std::vector<double> seconds;
    communicator.barrier();
    for (int i = 0; i < 12; ++i) {
      const Timer timer;
      if (communicator.rank() == 0) {
        communicator.send(message, peer, stream);
        communicator.recv(message, peer, stream);
      } else if (communicator.rank() == peer) {
        communicator.recv(message, 0, stream);
        communicator.send(message, 0, stream);
      }
      seconds.push_back(timer.seconds() / 2);
    }
    const double one_way = median(seconds);
    if (count == 1) {
      link.latency_seconds = one_way;
    } else {
      link.gigabytes_per_second = static_cast<double>(4 * count) / one_way * 1e-9;
    }
  }
  return link;
}

double clock_offset(dist::Communicator& communicator, int peer) {
  Stream cpu;
  const Tensor clock = Tensor::zeros({1}, DType::kI64);
  std::int64_t* const time = clock.data<std::int64_t>();
  std::int64_t shortest = std::numeric_limits<std::int64_t>::max();
  std::int64_t offset = 0;
  for (int i = 0; i < 12; ++i) {
    if (communicator.rank() == 0) {
      const std::int64_t begin = nanoseconds_now();
      communicator.send(clock, peer, cpu);
      communicator.recv(clock, peer, cpu);
      const std::int64_t end = nanoseconds_now();
      if (end - begin < shortest) {
        shortest = end - begin;
        offset = *time - (begin + (end - begin) / 2);
      }
    } else if (communicator.rank() == peer) {
      communicator.recv(clock, 0, cpu);
      *time = nanoseconds_now();
      communicator.send(clock, 0, cpu);
    }
  }
  return static_cast<double>(offset) * 1e-9;
}

}  // namespace ttt::launch
