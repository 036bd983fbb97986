#include "launch/batch_sequences.h"

#include <algorithm>
#include <numeric>

#include "configs/sequence_split.h"

namespace ttt::launch {
namespace {

std::vector<std::int64_t> bounds_of(const SequenceRange& document, const DocumentSharing& sharing) {
  return config::sequence_bounds(document.tokens(), sharing.unit, sharing.ranks);
}

constexpr int kAllRanks = -1;

struct Deal {
  std::vector<int> runners;  // the rank that runs each document, or kAllRanks
  std::int64_t most = 0;     // tokens of the busiest rank
};

// `longest_first`: the documents' numbers.
Deal deal(const std::vector<SequenceRange>& documents,
          const std::vector<std::size_t>& longest_first, const DocumentSharing& sharing,
          std::int64_t longest_whole) {
  Deal result{std::vector<int>(documents.size(), kAllRanks)};
  std::vector<std::int64_t> loads(static_cast<std::size_t>(sharing.ranks));
  for (const std::size_t i : longest_first) {
    const std::int64_t tokens = documents[i].tokens();
    if (tokens > longest_whole) {
      const std::vector<std::int64_t> bounds = bounds_of(documents[i], sharing);
      for (std::size_t r = 0; r < loads.size(); ++r) loads[r] += bounds[r + 1] - bounds[r];
    } else {
      const auto least = std::ranges::min_element(loads);
      result.runners[i] = static_cast<int>(least - loads.begin());
      *least += tokens;
    }
  }
  result.most = std::ranges::max(loads);
  return result;
}

std::vector<int> runners_of(const std::vector<SequenceRange>& documents,
                            const DocumentSharing& sharing) {
  std::int64_t total = 0;
  for (const SequenceRange& document : documents) total += document.tokens();
  std::vector<std::size_t> longest_first(documents.size());
  std::iota(longest_first.begin(), longest_first.end(), std::size_t{0});
  std::ranges::stable_sort(longest_first, [&](std::size_t a, std::size_t b) {
    return documents[a].tokens() > documents[b].tokens();
  });
  std::int64_t longest_whole = sharing.longest_whole;
  Deal best = deal(documents, longest_first, sharing, longest_whole);
  while (8 * sharing.ranks * best.most > 9 * total && longest_whole > sharing.longest_uncut) {
    longest_whole = std::max(longest_whole / 2, sharing.longest_uncut);
    Deal next = deal(documents, longest_first, sharing, longest_whole);
    if (next.most < best.most) best = std::move(next);
  }
  return best.runners;
}

}  // namespace

TensorView SequenceRange::of(TensorView view) const {
  const TensorView rows = view.slice(row_begin, row_end);
  if (tokens() == view.size(1)) return rows;
  return rows.reshape({view.size(1)}).slice(begin, end).reshape({1, tokens()});
}

std::vector<SequenceRange> documents_of(TensorView ids, std::int64_t bos) {
  const std::int64_t tokens = ids.size(1);
  std::vector<SequenceRange> documents;
  for (std::int64_t row = 0; row < ids.size(0); ++row) {
    const auto row_ids = ids.slice(row, row + 1).span<std::int64_t>();
    std::int64_t begin = 0;
    for (std::int64_t t = 1; t <= tokens; ++t) {
      if (t < tokens && row_ids[static_cast<std::size_t>(t)] != bos) continue;
      documents.push_back({row, row + 1, begin, t});
      begin = t;
    }
  }
  return documents;
}

DocumentSharing document_sharing(const config::RunConfig& config) {
  return {config.parallel().sequence_ranks(),
          std::max<std::int64_t>(1, config::sequence_unit(config)),
          config::longest_whole_document(config), config::longest_uncut_document(config)};
}

std::vector<SequenceRange> share_of_rank(const std::vector<SequenceRange>& documents,
                                         const DocumentSharing& sharing, int rank) {
  const std::vector<int> runners = runners_of(documents, sharing);
  std::vector<SequenceRange> share;
  for (std::size_t i = 0; i < documents.size(); ++i) {
    if (runners[i] != kAllRanks) continue;
    SequenceRange part = documents[i];
    part.bounds = bounds_of(documents[i], sharing);
    const auto r = static_cast<std::size_t>(rank);
    part.end = part.begin + part.bounds[r + 1];
    part.begin += part.bounds[r];
    share.push_back(std::move(part));
  }
  for (std::size_t i = 0; i < documents.size(); ++i) {
    if (runners[i] == rank) share.push_back(documents[i]);
  }
  return share;
}

SequenceContext::SequenceContext(const Context& context, const SequenceRange& range)
    : context_(context) {
  context_.sequence = nullptr;
  if (range.bounds.empty()) return;
  TTT_CHECK(context.sequence != nullptr,
            "a part of a sequence without the ranks that run the rest");
  context_.sequence = &exchange_.emplace(*context.sequence, range.bounds);
}

}  // namespace ttt::launch
