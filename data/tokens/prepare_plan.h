#pragma once
// The work of `ttt prepare` in parts: runs of whole files, a function of the options and the files' sizes
// alone, so that any number of ranks, and a run that goes on after another, cuts it alike.

#include <cstdint>
#include <string>
#include <vector>

#include "data/tokens/prepare.h"

namespace ttt::data {

struct PreparePart {
  std::vector<std::string> files;
  std::int64_t num_bytes = 0;  // of the files, compressed as they are
  bool is_validation = false;  // held out whole
};

struct PreparePlan {
  /// Parts of held-out inputs come first: of equal documents the first is kept (`remove_duplicates`).
  std::vector<PreparePart> parts;
  /// Everything the output depends on, as text: equal for equal outputs. Files count by path, size and time.
  std::string fingerprint;
};

/// 66 and 64 as list_corpus_files.
PreparePlan plan_preparation(const PrepareOptions& options);

/// A finished output directory holds the digest of its plan, and so tells whose output it is.
void write_plan_digest(const PreparePlan& plan, const std::string& output);
bool holds_plan_digest(const std::string& output);
bool is_output_of(const PreparePlan& plan, const std::string& output);

/// Visits the items of a part in order, with `rejected` or a document; numbers are counted through its files.
/// The first rejection is an error (65) unless `skip_rejected`.
void read_part(const PreparePart& part, const PrepareOptions& options,
               const std::function<void(CorpusItem&&)>& push,
               std::atomic<std::int64_t>* bytes_read = nullptr);

/// Sets left_out and is_validation from options and text; duplicates are not its business.
void judge_item(const PreparePart& part, const PrepareOptions& options, CorpusItem& item);

}  // namespace ttt::data
