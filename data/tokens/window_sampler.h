#pragma once
// Which window of the token array is sample number n of a run: a pure function of (seed, n), so a
// resumed run needs one integer and the number of ranks changes nothing.
//
//   window i covers tokens [i L, i L + L]: L inputs and L targets, the last token shared with i + 1
//   num_windows = (num_tokens - 1) / L
//   epoch = n / num_windows; place = n mod num_windows; window = P_(seed, epoch)(place)
//
// P is a Feistel network over the next power of four, walked along its cycle until it falls inside
// [0, num_windows): O(1) memory, where a stored permutation of the Pile would take 1.5 GB.
// Source: ttt-lm-jax lm_dataset.py (windows); Black and Rogaway, "Ciphers with arbitrary finite
// domains" (CT-RSA 2002), section 3 (cycle walking).

#include <cstdint>
#include <span>
#include <string>
#include <string_view>

#include "data/tokens/token_file.h"

namespace ttt::data {

enum class Order { kPermuted, kSequential };

class WindowSampler {
 public:
  /// Fewer than context_length + 1 tokens is 64; `source` names the files in that message.
  WindowSampler(std::int64_t num_tokens, std::int64_t context_length, Order order,
                std::uint64_t seed, std::string_view source = "the token files");

  [[nodiscard]] std::int64_t num_windows() const { return num_windows_; }
  [[nodiscard]] std::int64_t context_length() const { return context_length_; }
  /// `position` is the global sample number, from 0.
  [[nodiscard]] std::int64_t window_at(std::int64_t position) const;
  [[nodiscard]] std::int64_t epoch_of(std::int64_t position) const;

 private:
  [[nodiscard]] std::uint64_t encrypt(std::uint64_t value, std::uint64_t epoch) const;

  std::int64_t num_windows_ = 0;
  std::int64_t context_length_ = 0;
  Order order_ = Order::kPermuted;
  std::uint64_t seed_ = 0;
  unsigned half_bits_ = 0;
};

/// Reads window `window` of length T = inputs.size(): inputs are tokens [window T, window T + T),
/// targets the ones after each. token_weight is 0 where the target is `masked_target`, else 1
/// (`masked_target` < 0: none is masked).
void read_window(const TokenArray& tokens, std::int64_t window, std::int64_t masked_target,
                 std::span<std::int64_t> inputs,   // [T] out
                 std::span<std::int64_t> targets,  // [T] out
                 std::span<double> token_weight);  // [T] out

}  // namespace ttt::data
