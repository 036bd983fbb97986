#pragma once
// Counter-based random numbers: every value is a pure function of (seed, name, index), so a
// parameter starts from the same bits in every layout, and nothing sequential has to be saved.
//
// Source: Salmon et al., "Parallel random numbers: as easy as 1, 2, 3" (SC 2011), Philox4x32-10.

#include <array>
#include <cstdint>
#include <string_view>

namespace ttt {

/// The ten-round Philox4x32 block function.
std::array<std::uint32_t, 4> philox(std::array<std::uint32_t, 4> counter,
                                    std::array<std::uint32_t, 2> key);

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

 private:
  [[nodiscard]] std::array<std::uint32_t, 4> block(std::uint64_t index, std::uint32_t lane) const;

  std::array<std::uint32_t, 2> key_{};
  std::uint32_t name_hash_ = 0;
};

}  // namespace ttt
