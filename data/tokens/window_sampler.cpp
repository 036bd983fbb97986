#include "data/tokens/window_sampler.h"

#include <algorithm>
#include <bit>
#include <vector>

#include "core/base/error.h"
#include "core/base/rng.h"

namespace ttt::data {
namespace {

// Luby and Rackoff need four rounds; tiny domains have so few bits a round that eight mix better.
constexpr std::uint32_t kRounds = 8;
// Keeps these Philox blocks apart from other uses of the same seed.
constexpr std::uint32_t kDomain = 0x77696e64;

}  // namespace

WindowSampler::WindowSampler(std::int64_t num_tokens, std::int64_t context_length, Order order,
                             std::uint64_t seed, std::string_view source)
    : context_length_(context_length), order_(order), seed_(seed) {
  if (context_length < 1) {
    fail(ExitCode::kUsage, "a context length of {}; at least 1 is needed", context_length);
  }
  num_windows_ = num_tokens < 1 ? 0 : (num_tokens - 1) / context_length;
  if (num_windows_ < 1) {
    fail(ExitCode::kUsage,
         "{} tokens in {} are fewer than one window: context_length {} needs {} tokens", num_tokens,
         source, context_length, context_length + 1);
  }
  const auto bits =
      static_cast<unsigned>(std::bit_width(static_cast<std::uint64_t>(num_windows_ - 1)));
  half_bits_ = (bits + 1) / 2;
}

std::uint64_t WindowSampler::encrypt(std::uint64_t value, std::uint64_t epoch) const {
  const std::uint64_t mask = (std::uint64_t{1} << half_bits_) - 1;
  std::uint64_t left = value >> half_bits_;
  std::uint64_t right = value & mask;
  for (std::uint32_t round = 0; round < kRounds; ++round) {
    const auto word =
        philox({static_cast<std::uint32_t>(right), round, static_cast<std::uint32_t>(epoch),
                static_cast<std::uint32_t>(epoch >> 32U) ^ kDomain},
               {static_cast<std::uint32_t>(seed_), static_cast<std::uint32_t>(seed_ >> 32U)});
    const std::uint64_t mixed = left ^ (word[0] & mask);
    left = right;
    right = mixed;
  }
  return (left << half_bits_) | right;
}

std::int64_t WindowSampler::epoch_of(std::int64_t position) const {
  return position / num_windows_;
}

std::int64_t WindowSampler::window_at(std::int64_t position) const {
  TTT_CHECK(position >= 0, "sample {}", position);
  const std::int64_t place = position % num_windows_;
  if (order_ == Order::kSequential || num_windows_ == 1) return place;
  const auto epoch = static_cast<std::uint64_t>(epoch_of(position));
  // The cycle through `place` comes back to it, so the walk ends; it takes under four steps on
  // average because the domain is less than four times num_windows.
  auto window = static_cast<std::uint64_t>(place);
  do {
    window = encrypt(window, epoch);
  } while (window >= static_cast<std::uint64_t>(num_windows_));
  return static_cast<std::int64_t>(window);
}

void read_window(const TokenArray& tokens, std::int64_t window, std::int64_t masked_target,
                 std::span<std::int64_t> inputs, std::span<std::int64_t> targets,
                 std::span<double> token_weight) {
  const std::size_t length = inputs.size();
  TTT_CHECK(length > 0 && targets.size() == length && token_weight.size() == length,
            "inputs {}, targets {} and token_weight {} differ in length", length, targets.size(),
            token_weight.size());
  std::vector<std::int64_t> row(length + 1);
  tokens.read(window * static_cast<std::int64_t>(length), row);
  std::copy(row.begin(), row.end() - 1, inputs.begin());
  std::copy(row.begin() + 1, row.end(), targets.begin());
  std::transform(targets.begin(), targets.end(), token_weight.begin(), [&](std::int64_t target) {
    return masked_target >= 0 && target == masked_target ? 0.0 : 1.0;
  });
}

}  // namespace ttt::data
