#pragma once
// Which window is sample number n of a run: a pure function of (seed, n), so a resumed run needs one integer
// and the number of ranks changes nothing.
//
//   epoch = n / num_windows; place = n mod num_windows; window = P_(seed, epoch)(place)
//
// P is a Feistel network over the next power of four, walked along its cycle until it falls inside
// [0, num_windows): O(1) memory, where a stored permutation of the Pile would take 1.5 GB.
// Source: Black and Rogaway, "Ciphers with arbitrary finite domains" (CT-RSA 2002), section 3 (cycle walking).

#include <cstdint>
#include <memory>

#include "data/tokens/order_file.h"

namespace ttt::data {

enum class Order { kPermuted, kSequential };

class WindowSampler {
 public:
  /// `num_windows` >= 1.
  WindowSampler(std::int64_t num_windows, Order order, std::uint64_t seed);
  /// What the file says; positions end with it.
  WindowSampler(std::int64_t num_windows, std::shared_ptr<const OrderFile> file);

  [[nodiscard]] std::int64_t num_windows() const { return num_windows_; }
  /// `position` is the number of the sample, from 0.
  [[nodiscard]] std::int64_t window_at(std::int64_t position) const;
  [[nodiscard]] std::int64_t epoch_of(std::int64_t position) const;

 private:
  [[nodiscard]] std::uint64_t encrypt(std::uint64_t value, std::uint64_t epoch) const;

  std::int64_t num_windows_ = 0;
  Order order_ = Order::kPermuted;
  std::uint64_t seed_ = 0;
  unsigned half_bits_ = 0;
  std::shared_ptr<const OrderFile> file_;
};

}  // namespace ttt::data
