#pragma once
// Choosing the next token from logits.

#include <cstdint>
#include <span>

#include "core/base/rng.h"

namespace ttt::launch {

struct TokenChoice {
  double temperature = 1.0;  // 0: the most likely token
  std::int64_t top_k = 0;    // keep the k most likely; 0: all
  double top_p = 1.0;        // then keep the fewest that together have this probability
};

/// Throws kUsage unless temperature >= 0, top_k >= 0 and 0 < top_p <= 1.
void check_token_choice(const TokenChoice& choice);

/// The token, a pure function of (logits, rng, index). Ties go to the smaller id. kNumerical when a
/// logit is not a number.
std::int64_t choose_token(std::span<const double> logits, const TokenChoice& choice,
                          const CounterRng& rng, std::uint64_t index);

}  // namespace ttt::launch
