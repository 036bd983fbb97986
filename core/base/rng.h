#pragma once
// Counter-based random numbers: every value is a pure function of (seed, name, index), so a
// parameter starts from the same bits in every layout, and nothing sequential has to be saved.
//
// Source: Salmon et al., "Parallel random numbers: as easy as 1, 2, 3" (SC 2011), Philox4x32-10.

#include <array>
#include <cstdint>
#include <numbers>
#include <string_view>

namespace ttt {

using PhiloxBlock = std::array<std::uint32_t, 4>;

/// The ten-round Philox4x32 block function. Here and below, what is constexpr also runs in CUDA kernels.
constexpr PhiloxBlock philox(PhiloxBlock counter, std::array<std::uint32_t, 2> key) {
  for (int round = 0; round < 10; ++round) {
    const std::uint64_t p0 = std::uint64_t{0xD2511F53U} * counter[0];
    const std::uint64_t p1 = std::uint64_t{0xCD9E8D57U} * counter[2];
    counter = {static_cast<std::uint32_t>(p1 >> 32U) ^ counter[1] ^ key[0],
               static_cast<std::uint32_t>(p1),
               static_cast<std::uint32_t>(p0 >> 32U) ^ counter[3] ^ key[1],
               static_cast<std::uint32_t>(p0)};
    key[0] += 0x9E3779B9U;
    key[1] += 0xBB67AE85U;
  }
  return counter;
}

/// Uniform in [0, 1) with 53 random bits.
constexpr double to_unit(std::uint32_t high, std::uint32_t low) {
  const std::uint64_t word = (std::uint64_t{high} << 32U) | low;
  return static_cast<double>(word >> 11U) * 0x1.0p-53;
}

/// What a block says to Box and Muller: sqrt(-2 log(u)) cos(angle) is a standard normal.
struct PolarDraw {
  double u;  // in (0, 1]: the logarithm is finite
  double angle;
};
constexpr PolarDraw polar_draw(const PhiloxBlock& word) {
  return {1.0 - to_unit(word[0], word[1]), 2.0 * std::numbers::pi * to_unit(word[2], word[3])};
}

/// Standard deviation of a normal cut off at two: sqrt(1 - 4 phi(2) / (2 Phi(2) - 1)).
inline constexpr double kTruncatedDeviation = 0.87962566103423978;

class CounterRng {
 public:
  CounterRng(std::uint64_t seed, std::string_view name);

  [[nodiscard]] std::uint64_t bits(std::uint64_t index) const;
  /// Uniform in [0, 1) with 53 random bits.
  [[nodiscard]] double uniform(std::uint64_t index) const;
  /// Standard normal (Box-Muller on one Philox block).
  [[nodiscard]] double normal(std::uint64_t index) const;
  /// Standard normal cut off at +-2 and rescaled to unit variance; uses its own sub-sequence.
  [[nodiscard]] double truncated_normal(std::uint64_t index) const;

  /// Lane 0 is what the numbers above are made of; truncated_normal takes the first of lanes 1, 2, ... within its limits.
  [[nodiscard]] constexpr PhiloxBlock block(std::uint64_t index, std::uint32_t lane) const {
    return philox({static_cast<std::uint32_t>(index), static_cast<std::uint32_t>(index >> 32U),
                   lane, name_hash_},
                  key_);
  }

 private:
  std::array<std::uint32_t, 2> key_{};
  std::uint32_t name_hash_ = 0;
};

}  // namespace ttt
