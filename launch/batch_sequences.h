#pragma once
// What of a batch a rank runs, and with whom: whole rows, the rank's segment of them, or with data.reset_at_bos every
// document by itself, so that none sees another.
//
// Where several ranks hold windows together, each of their documents is run by one of them, which then exchanges nothing,
// or by all, as a sequence of its own length. docs/parallelism.md, "Documents".

#include <cstdint>
#include <optional>
#include <vector>

#include "configs/run.pb.h"
#include "core/sequence_exchange.h"

namespace ttt::launch {

/// Whole rows, or a part of one row, of a [B, T] tensor.
struct SequenceRange {
  std::int64_t row_begin, row_end;
  std::int64_t begin, end;  // of tokens; all of them if there are several rows
  /// Where the ranks of the group cut the sequence that this is a part of; empty: it is whole here.
  std::vector<std::int64_t> bounds = {};

  [[nodiscard]] std::int64_t tokens() const { return end - begin; }
  [[nodiscard]] TensorView of(TensorView view) const;  // [rows, tokens], a view
};

/// The documents of every row of `ids` [B, T], which lie on the host: one begins at the row's begin and at each `bos`.
std::vector<SequenceRange> documents_of(TensorView ids, std::int64_t bos);

/// How the ranks that hold windows together share documents.
struct DocumentSharing {
  std::int64_t ranks = 1;
  // configs/sequence_split.h, in tokens.
  std::int64_t unit = 1;
  std::int64_t longest_whole = 0;
  std::int64_t longest_uncut = 0;
};
DocumentSharing document_sharing(const config::RunConfig& config);

/// What rank `rank` runs of a micro-batch's documents, in its order. First its parts of those that are cut, which all ranks
/// run together in the order of `documents`; then its own, which are dealt, the longest first, each to the rank with the
/// fewest tokens so far, the lowest of several. Cut are those longer than `longest_whole`, which bounds a rank's
/// memory, or than a half, a quarter, ... of it: the first at which no rank has an eighth more than its share of the
/// micro-batch, else the one at which the busiest rank has least.
std::vector<SequenceRange> share_of_rank(const std::vector<SequenceRange>& documents,
                                         const DocumentSharing& sharing, int rank);

/// `context` for one of a batch's sequences: it exchanges with the ranks that run the rest of it, if there are any.
/// The exchange of `context` must outlive it.
class SequenceContext {
 public:
  SequenceContext(const Context& context, const SequenceRange& range);
  SequenceContext(const SequenceContext&) = delete;
  SequenceContext& operator=(const SequenceContext&) = delete;
  ~SequenceContext() = default;

  [[nodiscard]] Context& get() { return context_; }

 private:
  Context context_;
  std::optional<ResplitExchange> exchange_;
};

}  // namespace ttt::launch
