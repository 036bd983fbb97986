#pragma once
// Batches for training and evaluation: windows of a token array by global sample number, or this rank's segment of each.

#include <cstdint>

#include "configs/run.pb.h"
#include "core/model.h"
#include "core/sequence_exchange.h"
#include "data/tokens/token_file.h"
#include "data/tokens/window_sampler.h"

namespace ttt::launch {

class BatchReader {
 public:
  /// Opens the files of one split; 64, 65 or 66 as data/tokens says, and 65 when the files' vocabulary
  /// is larger than the model's. Batches hold the segment of `sequence`, or whole windows without one.
  BatchReader(const config::RunConfig& config, data::Split split,
              const SequenceExchange* sequence = nullptr);

  [[nodiscard]] std::int64_t num_windows() const { return sampler_.num_windows(); }
  [[nodiscard]] const data::TokenArray& tokens() const { return tokens_; }
  /// Tokens of a window, and the first one of this rank.
  [[nodiscard]] std::int64_t context_length() const { return sampler_.context_length(); }
  [[nodiscard]] std::int64_t segment_begin() const { return begin_; }

  /// Buffers for `rows` sequences.
  struct Buffers {
    Tensor ids, targets, mask, weight;  // [rows, L], L tokens of each window; mask is 0 or 1
    [[nodiscard]] TokenBatch batch() const { return {ids, targets, weight}; }
  };
  [[nodiscard]] Buffers make_buffers(std::int64_t rows) const;
  /// Fills the rows with samples [position, position + rows); weights are those of a global batch of
  /// `global_rows` sequences, each counted over its whole window.
  void read(std::int64_t position, std::int64_t global_rows, const Buffers& buffers) const;

 private:
  data::TokenArray tokens_;
  data::WindowSampler sampler_;
  std::int64_t masked_target_;
  std::int64_t begin_, end_;  // of each window's tokens
};

}  // namespace ttt::launch
