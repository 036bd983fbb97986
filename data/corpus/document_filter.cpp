#include "data/corpus/document_filter.h"

#include <xxhash.h>

#include "core/base/error.h"
#include "core/base/rng.h"

namespace ttt::data {

double uniform_of_text(std::uint64_t seed, std::string_view purpose, std::string_view text) {
  return CounterRng(seed, purpose).uniform(XXH3_64bits(text.data(), text.size()));
}

std::string DocumentFilter::reason_to_leave_out(const Document& document) const {
  const auto num_bytes = static_cast<std::int64_t>(document.text.size());
  if (num_bytes < min_bytes) return fmt::format("shorter than {} bytes", min_bytes);
  if (max_bytes > 0 && num_bytes > max_bytes) return fmt::format("longer than {} bytes", max_bytes);
  double share = sample;
  if (!subset_shares.empty()) {
    auto found = subset_shares.find(document.subset);
    if (found == subset_shares.end()) found = subset_shares.find("*");
    if (found == subset_shares.end() || found->second == 0) return "of another subset";
    share *= found->second;
  }
  if (share < 1 && uniform_of_text(seed, "sample", document.text) >= share) return "not drawn";
  return "";
}

}  // namespace ttt::data
