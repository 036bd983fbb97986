#pragma once
// How work on a stream is timed, and what the machine under it can do at most.

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "core/base/stream.h"
#include "core/base/tensor.h"

namespace ttt::bench {

struct Times {
  double median_ms = 0;
  double least_ms = 0;
  double most_ms = 0;
  std::int64_t repeats = 0;
};

/// Of at least one repeat.
Times times_of(std::vector<double> repeats_ms);

/// Times `work`, which queues on `stream`: twice to warm up, then as often as fits `budget_ms`, at least three times.
/// On a device all repeats are queued behind each other and each is timed by events, so that the host's share shows
/// only where the host is the slower one; elsewhere by the clock.
Times time_work(Stream& stream, double budget_ms, const std::function<void()>& work);

/// What a device can do: from its data sheet by name (0: not in the list), free memory and the cache of all its
/// multiprocessors.
struct DeviceFacts {
  std::string name;
  double sheet_flops = 0;  // bf16 on tensor cores, dense, a second
  double sheet_bytes = 0;  // memory, a second
  std::int64_t free_bytes = 0;
  std::int64_t l2_bytes = 0;
};
DeviceFacts device_facts(const Stream& stream);

/// "cudnn" where attention of queries and keys like `q` [B, T, H, F] is the library's, else "own".
std::string attention_of(TensorView q, const Stream& stream);

/// What it does in this program, on this day: the ceilings of the roofline.
struct Ceilings {
  double flops = 0;  // a square product of bf16 matrices, a second
  double bytes = 0;  // a copy, bytes read and written a second
};
/// `size` of the square matrices and `elements` of the copied tensor: beyond any cache, for figures that mean anything.
Ceilings measure_ceilings(Stream& stream, double budget_ms, std::int64_t size,
                          std::int64_t elements);

}  // namespace ttt::bench
