#include "data/tokenizer/byte_pair_merges.h"

#include <algorithm>
#include <limits>
#include <tuple>

#include "core/base/error.h"

namespace ttt::data {
namespace {

std::uint64_t key_of(std::int32_t left, std::int32_t right) {
  return (std::uint64_t{static_cast<std::uint32_t>(left)} << 32U) |
         static_cast<std::uint32_t>(right);
}

}  // namespace

BytePairMerges::BytePairMerges(const std::unordered_map<std::string, std::int32_t>& ids,
                               const std::vector<std::pair<std::string, std::string>>& merges,
                               bool words_first, const std::string& path) {
  for (int byte = 0; byte < 256; ++byte) {
    byte_ids_[byte] = ids.at(std::string(1, static_cast<char>(byte)));
  }
  merges_.reserve(merges.size());
  for (std::size_t rank = 0; rank < merges.size(); ++rank) {
    const auto& [left, right] = merges[rank];
    const auto left_id = ids.find(left);
    const auto right_id = ids.find(right);
    const auto both = ids.find(left + right);
    if (left_id == ids.end() || right_id == ids.end() || both == ids.end()) {
      fail(ExitCode::kCorruptInput, "{}: merge {} makes or needs a token that the vocabulary lacks",
           path, rank);
    }
    merges_.try_emplace(key_of(left_id->second, right_id->second),
                        Merge{static_cast<std::int32_t>(rank), both->second});
  }
  Scratch scratch;
  std::vector<std::int32_t> encoded;
  for (const auto& [bytes, id] : ids) {
    if (bytes.empty()) continue;
    encoded.clear();
    if (!words_first) merge(bytes, scratch, encoded);
    if (words_first || (encoded.size() == 1 && encoded[0] == id)) whole_words_.emplace(bytes, id);
  }
}

void BytePairMerges::append(std::string_view word, Scratch& scratch,
                            std::vector<std::int32_t>& out) const {
  if (const auto whole = whole_words_.find(word); whole != whole_words_.end()) {
    out.push_back(whole->second);
  } else {
    merge(word, scratch, out);
  }
}

void BytePairMerges::push(Scratch& scratch, std::int32_t left) const {
  const auto& symbol = scratch.symbols[static_cast<std::size_t>(left)];
  if (symbol.next < 0) return;
  const std::int32_t right_id = scratch.symbols[static_cast<std::size_t>(symbol.next)].id;
  const auto found = merges_.find(key_of(symbol.id, right_id));
  if (found == merges_.end()) return;
  scratch.heap.push_back({found->second.rank, left, symbol.id, right_id});
  std::ranges::push_heap(scratch.heap, std::greater<>{},
                         [](const auto& c) { return std::tie(c.rank, c.left); });
}

void BytePairMerges::merge(std::string_view word, Scratch& scratch,
                           std::vector<std::int32_t>& out) const {
  TTT_CHECK(word.size() < static_cast<std::size_t>(std::numeric_limits<std::int32_t>::max()),
            "a word of {} bytes", word.size());
  auto& symbols = scratch.symbols;
  const auto count = static_cast<std::int32_t>(word.size());
  symbols.clear();
  scratch.heap.clear();
  for (std::int32_t i = 0; i < count; ++i) {
    const auto byte = static_cast<unsigned char>(word[static_cast<std::size_t>(i)]);
    symbols.push_back({byte_ids_[byte], i - 1, i + 1 < count ? i + 1 : -1});
  }
  for (std::int32_t i = 0; i + 1 < count; ++i) push(scratch, i);
  while (!scratch.heap.empty()) {
    std::ranges::pop_heap(scratch.heap, std::greater<>{},
                          [](const auto& c) { return std::tie(c.rank, c.left); });
    const auto candidate = scratch.heap.back();
    scratch.heap.pop_back();
    auto& left = symbols[static_cast<std::size_t>(candidate.left)];
    if (left.id != candidate.left_id || left.next < 0) continue;
    auto& right = symbols[static_cast<std::size_t>(left.next)];
    if (right.id != candidate.right_id) continue;
    left.id = merges_.at(key_of(left.id, right.id)).id;
    right.id = -1;
    left.next = right.next;
    if (left.next >= 0) symbols[static_cast<std::size_t>(left.next)].previous = candidate.left;
    push(scratch, candidate.left);
    if (left.previous >= 0) push(scratch, left.previous);
  }
  for (std::int32_t i = 0; i >= 0; i = symbols[static_cast<std::size_t>(i)].next) {
    out.push_back(symbols[static_cast<std::size_t>(i)].id);
  }
}

}  // namespace ttt::data
