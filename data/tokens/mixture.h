#pragma once
// Which source sample n of a mixture comes from: a pure function of (weights, n), even at every n.
//
//   taken_s(n) = floor(n_s a_s + 1/2),  n_0 = n,  n_(s+1) = n_s - taken_s(n)
//   a_s = w_s / (w_s + w_(s+1) + ...), a multiple of 2^-32; 1 for the last source
//
// is how many of the first n samples come from source s: what the sources before leave is a stream of its own, of which
// s takes evenly. The s-th source, from 1, is never away from its share by more than s / 2, but for the rounding of a_s.
// Source: the counting of Beatty (1926) and Bresenham (1965), nested.

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

namespace ttt::data {

class Mixture {
 public:
  /// 64 for a weight that is not positive and finite, or under 2^-33 of those it is weighed against.
  explicit Mixture(std::span<const double> weights);

  struct Place {
    std::size_t source;
    std::int64_t position;  // the source's own number of the sample, from 0
  };
  [[nodiscard]] Place place_of(std::int64_t sample) const;
  /// How many of samples [0, samples) come from each source.
  [[nodiscard]] std::vector<std::int64_t> counts(std::int64_t samples) const;

 private:
  std::vector<std::uint64_t> shares_;  // a_s in units of 2^-32
};

}  // namespace ttt::data
