#include "launch/token_choice.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <vector>

#include "core/base/error.h"

namespace ttt::launch {

void check_token_choice(const TokenChoice& choice) {
  if (!(choice.temperature >= 0)) {
    fail(ExitCode::kUsage, "--temperature {}: must be 0 (most likely token) or more",
         choice.temperature);
  }
  if (choice.top_k < 0) {
    fail(ExitCode::kUsage, "--top-k {}: must be 0 (all tokens) or more", choice.top_k);
  }
  if (!(choice.top_p > 0 && choice.top_p <= 1)) {
    fail(ExitCode::kUsage, "--top-p {}: must be in (0, 1]", choice.top_p);
  }
}

std::int64_t choose_token(std::span<const double> logits, const TokenChoice& choice,
                          const CounterRng& rng, std::uint64_t index) {
  for (const double logit : logits) {
    if (std::isnan(logit)) fail(ExitCode::kNumerical, "a logit is not a number");
  }
  std::vector<std::int64_t> order(logits.size());
  std::iota(order.begin(), order.end(), 0);
  const auto logit = [&](std::int64_t id) { return logits[static_cast<std::size_t>(id)]; };
  std::ranges::stable_sort(order, [&](auto a, auto b) { return logit(a) > logit(b); });
  if (choice.temperature == 0) return order.front();

  if (choice.top_k > 0 && choice.top_k < std::ssize(order)) {
    order.resize(static_cast<std::size_t>(choice.top_k));
  }
  std::vector<double> probability;
  double total = 0;
  for (const std::int64_t id : order) {
    probability.push_back(std::exp((logit(id) - logit(order.front())) / choice.temperature));
    total += probability.back();
  }
  double kept = 0;
  std::size_t count = 0;
  while (count < order.size() && (count == 0 || kept < choice.top_p * total)) {
    kept += probability[count++];
  }
  double point = rng.uniform(index) * kept;
  for (std::size_t i = 0; i + 1 < count; ++i) {
    point -= probability[i];
    if (point < 0) return order[i];
  }
  return order[count - 1];
}

}  // namespace ttt::launch
