#include "core/base/rng.h"

#include <cmath>

#include "core/base/error.h"

namespace ttt {
namespace {

double box_muller(const PhiloxBlock& word) {
  const PolarDraw draw = polar_draw(word);
  return std::sqrt(-2.0 * std::log(draw.u)) * std::cos(draw.angle);
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

CounterRng::CounterRng(std::uint64_t seed, std::string_view name) {
  const std::uint64_t name_bits = hash_name(name);
  key_ = {static_cast<std::uint32_t>(seed ^ (name_bits >> 32U)),
          static_cast<std::uint32_t>(seed >> 32U)};
  name_hash_ = static_cast<std::uint32_t>(name_bits);
}

std::uint64_t CounterRng::bits(std::uint64_t index) const {
  const auto word = block(index, 0);
  return (std::uint64_t{word[0]} << 32U) | word[1];
}

double CounterRng::uniform(std::uint64_t index) const {
  const auto word = block(index, 0);
  return to_unit(word[0], word[1]);
}

double CounterRng::normal(std::uint64_t index) const { return box_muller(block(index, 0)); }

double CounterRng::truncated_normal(std::uint64_t index) const {
  for (std::uint32_t lane = 1;; ++lane) {
    const double value = box_muller(block(index, lane));
    if (std::abs(value) <= 2.0) return value / kTruncatedDeviation;
  }
}

}  // namespace ttt
