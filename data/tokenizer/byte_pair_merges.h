#pragma once
// Byte-pair encoding of one word: the merge of lowest rank first, of equals the leftmost, until none applies.
// Source: Sennrich et al., "Neural machine translation of rare words with subword units" (2016).

#include <cstdint>
#include <string>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <vector>

namespace ttt::data {

class BytePairMerges {
 public:
  /// `ids`: token bytes -> id, with all 256 single bytes among them. `merges`: pairs of token bytes, by
  /// rank. Throws 65 with `path` for a merge of unknown tokens. `words_first`: a word that is a token is
  /// that token, whatever the merges make of it.
  BytePairMerges(const std::unordered_map<std::string, std::int32_t>& ids,
                 const std::vector<std::pair<std::string, std::string>>& merges, bool words_first,
                 const std::string& path);

  /// Memory for `append`, to be kept by a caller that has many words.
  struct Scratch {
    struct Symbol {
      std::int32_t id;
      std::int32_t previous, next;  // -1: none; of a symbol that was merged into another `id` is -1
    };
    struct Candidate {
      std::int32_t rank, left;         // merge the symbol `left` with its next
      std::int32_t left_id, right_id;  // as they were; if they changed, it is void
    };
    std::vector<Symbol> symbols;
    std::vector<Candidate> heap;
  };

  /// Appends the ids of `word`, which is not empty.
  void append(std::string_view word, Scratch& scratch, std::vector<std::int32_t>& out) const;

 private:
  struct Merge {
    std::int32_t rank, id;
  };
  struct StringHash : std::hash<std::string_view> {
    using is_transparent = void;
  };

  void merge(std::string_view word, Scratch& scratch, std::vector<std::int32_t>& out) const;
  void push(Scratch& scratch, std::int32_t left) const;

  std::int32_t byte_ids_[256] = {};
  std::unordered_map<std::uint64_t, Merge> merges_;  // (left id, right id)
  // Words whose encoding is one token: most words of most texts.
  std::unordered_map<std::string, std::int32_t, StringHash, std::equal_to<>> whole_words_;
};

}  // namespace ttt::data
