#include "core/base/rng.h"

#include <cmath>
#include <numbers>

#include "core/base/error.h"

namespace ttt {
namespace {

double to_unit(std::uint32_t high, std::uint32_t low) {
  const std::uint64_t word = (std::uint64_t{high} << 32U) | low;
  return static_cast<double>(word >> 11U) * 0x1.0p-53;
}

// FNV-1a; part of the definition of every initial weight, so it may never change.
std::uint64_t hash_name(std::string_view name) {
  std::uint64_t hash = 0xcbf29ce484222325ULL;
  for (const char c : name) {
    hash = (hash ^ static_cast<unsigned char>(c)) * 0x100000001b3ULL;
  }
  return hash;
}

}  // namespace

std::array<std::uint32_t, 4> philox(std::array<std::uint32_t, 4> counter,
                                    std::array<std::uint32_t, 2> key) {
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

CounterRng::CounterRng(std::uint64_t seed, std::string_view name) {
  const std::uint64_t name_bits = hash_name(name);
  key_ = {static_cast<std::uint32_t>(seed ^ (name_bits >> 32U)),
          static_cast<std::uint32_t>(seed >> 32U)};
  name_hash_ = static_cast<std::uint32_t>(name_bits);
}

std::array<std::uint32_t, 4> CounterRng::block(std::uint64_t index, std::uint32_t lane) const {
  return philox({static_cast<std::uint32_t>(index), static_cast<std::uint32_t>(index >> 32U), lane,
                 name_hash_},
                key_);
}

std::uint64_t CounterRng::bits(std::uint64_t index) const {
  const auto word = block(index, 0);
  return (std::uint64_t{word[0]} << 32U) | word[1];
}

double CounterRng::uniform(std::uint64_t index) const {
  const auto word = block(index, 0);
  return to_unit(word[0], word[1]);
}

double CounterRng::normal(std::uint64_t index) const {
  const auto word = block(index, 0);
  const double u = 1.0 - to_unit(word[0], word[1]);  // (0, 1]: the logarithm is finite
  const double angle = 2.0 * std::numbers::pi * to_unit(word[2], word[3]);
  return std::sqrt(-2.0 * std::log(u)) * std::cos(angle);
}

double CounterRng::truncated_normal(std::uint64_t index) const {
  // Standard deviation of a normal cut off at two: sqrt(1 - 4 phi(2) / (2 Phi(2) - 1)).
  constexpr double kDeviation = 0.87962566103423978;
  for (std::uint32_t lane = 1;; ++lane) {
    const auto word = block(index, lane);
    const double u = 1.0 - to_unit(word[0], word[1]);
    const double angle = 2.0 * std::numbers::pi * to_unit(word[2], word[3]);
    const double value = std::sqrt(-2.0 * std::log(u)) * std::cos(angle);
    if (std::abs(value) <= 2.0) return value / kDeviation;
  }
}

}  // namespace ttt
