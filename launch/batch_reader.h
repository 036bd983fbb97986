#pragma once
// Batches for training and evaluation: windows of token arrays by global sample number, or this rank's segment of each.
// launch/batch_sequences.h has what is run of them.

#include <cstdint>
#include <string>
#include <vector>

#include "configs/run.pb.h"
#include "core/model.h"
#include "core/sequence_exchange.h"
#include "data/tokens/mixture.h"
#include "data/tokens/token_file.h"
#include "data/tokens/window_layout.h"
#include "data/tokens/window_sampler.h"
#include "launch/batch_sequences.h"

namespace ttt::launch {

class BatchReader {
 public:
  /// Opens the files of one split, for training those of every source; 64, 65 or 66 as data/tokens says, and 65 when
  /// files have a larger vocabulary than the model, sources different ones, or prepared corpora different tokenizers.
  /// Batches hold the segment of `sequence`; whole windows without one, and with data.reset_at_bos, where any document may
  /// be this rank's.
  BatchReader(const config::RunConfig& config, data::Split split,
              const SequenceExchange* sequence = nullptr);

  /// Of all sources together.
  [[nodiscard]] std::int64_t num_windows() const;
  /// Tokens of a window, and the first one that batches hold.
  [[nodiscard]] std::int64_t context_length() const { return context_length_; }
  [[nodiscard]] std::int64_t segment_begin() const { return begin_; }

  struct Source {
    std::string name;  // "" of data.train and data.validation
    data::TokenArray tokens;
    data::WindowLayout layout;
    data::WindowSampler sampler;
  };
  [[nodiscard]] const std::vector<Source>& sources() const { return sources_; }
  /// The source of a sample, its number within the source, and its window there.
  struct Place {
    const Source& source;
    std::int64_t position, window;
  };
  [[nodiscard]] Place place_of(std::int64_t sample) const;
  /// How many of samples [0, samples) come from each source.
  [[nodiscard]] std::vector<std::int64_t> counts(std::int64_t samples) const {
    return mixture_.counts(samples);
  }

  /// Buffers for `rows` sequences.
  struct Buffers {
    Tensor ids, targets, mask, weight;  // [rows, L], L tokens of each window; mask is 0 or 1
    [[nodiscard]] TokenBatch batch() const { return {ids, targets, weight}; }
    [[nodiscard]] TokenBatch batch(const SequenceRange& range) const {
      return {range.of(ids), range.of(targets), range.of(weight)};
    }
  };
  [[nodiscard]] Buffers make_buffers(std::int64_t rows) const;
  /// Fills the rows with samples [position, position + rows); weights are those of a global batch of
  /// `global_rows` sequences, each counted over its whole window.
  void read(std::int64_t position, std::int64_t global_rows, const Buffers& buffers) const;
  /// What this rank runs of rows that were read, one after another: all of it together, or with data.reset_at_bos its
  /// share of the documents, maybe none. `ids` [B, L] lie on the host. Run each in a SequenceContext.
  [[nodiscard]] std::vector<SequenceRange> sequences(TensorView ids) const;

 private:
  std::vector<Source> sources_;
  data::Mixture mixture_;
  std::int64_t context_length_;
  std::int64_t masked_target_;
  bool resets_at_bos_;
  DocumentSharing sharing_;
  int rank_ = 0;                      // of those that share a window
  std::vector<std::int64_t> bounds_;  // their segments of a whole window; empty: there is one rank
  std::int64_t begin_, end_;          // of each window's tokens
};

/// What data.train and all sources name for training.
std::vector<std::string> training_paths(const config::DataConfig& config);

/// Held-out tokens of a run: data.validation (without a name) and each source's own. Each `config` has them as
/// data.validation.
struct HeldOut {
  std::string source;
  double weight;  // of the source
  config::RunConfig config;
};
std::vector<HeldOut> held_out_sets(const config::RunConfig& config);

}  // namespace ttt::launch
