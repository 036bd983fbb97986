#include "data/tokens/window_sampler.h"

#include <bit>
#include <utility>

#include "core/base/error.h"
#include "core/base/rng.h"

namespace ttt::data {
namespace {

// Luby and Rackoff need four rounds; tiny domains have so few bits a round that eight mix better.
constexpr std::uint32_t kRounds = 8;
// Keeps these Philox blocks apart from other uses of the same seed.
constexpr std::uint32_t kDomain = 0x77696e64;

}  // namespace

WindowSampler::WindowSampler(std::int64_t num_windows, Order order, std::uint64_t seed)
    : num_windows_(num_windows), order_(order), seed_(seed) {
  TTT_CHECK(num_windows >= 1, "{} windows", num_windows);
  const auto bits =
      static_cast<unsigned>(std::bit_width(static_cast<std::uint64_t>(num_windows_ - 1)));
  half_bits_ = (bits + 1) / 2;
}

WindowSampler::WindowSampler(std::int64_t num_windows, std::shared_ptr<const OrderFile> file)
    : num_windows_(num_windows), file_(std::move(file)) {}

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
  if (file_ != nullptr) return file_->window_at(position);
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

}  // namespace ttt::data
