#pragma once
// Generation with a language model: a prompt, then token after token.
//
// A step on a CUDA device is some hundred short kernels, and queueing them takes longer than running them. Where the model
// repeats them (SequenceCore::decode_period: TTT and linear attention, whose state does not grow), a step is captured
// and replayed: one graph for each place in the period. A place is captured when it comes for the second time, since
// its first step loads kernels, chooses algorithms of products and fills the reserve of memory. Never captured: attention,
// periods of more than kMaxGraphs tokens, and where the device's queue does not capture (the CPU, TTT_GRAPHS=off).

#include <memory>
#include <vector>

#include "core/base/capture.h"
#include "core/model.h"

namespace ttt {

/// kQueued: every step's kernels one by one. The bits are the same.
enum class DecodeSteps { kReplayed, kQueued };

class Decoder {
 public:
  /// Graphs of a few hundred kernels each; no published model has more than 16.
  static constexpr std::int64_t kMaxGraphs = 64;

  /// Of `batch` sequences without tokens. The model, whose parameters must stay where they are, and the context's stream
  /// must outlive it. kInternal where the context splits sequences.
  Decoder(const LanguageModel& model, std::int64_t batch, const Context& context,
          DecodeSteps steps = DecodeSteps::kReplayed);

  /// The prompt, ids [B, n] I64; before the first step. Returns the logits of all n tokens [B, n, V], or of the last one
  /// [B, 1, V], for the host to read.
  Tensor prefill(TensorView ids, bool all_logits);
  /// One more token of every sequence, ids [B, 1] I64, which the host may change afterwards. Returns logits [B, 1, V] for
  /// the host to read, in memory that the next step overwrites.
  Tensor step(TensorView ids);
  [[nodiscard]] std::int64_t num_graphs() const;

 private:
  // In the period, counted from the end of the prompt.
  struct Place {
    bool has_run = false;
    std::unique_ptr<CapturedWork> graph;
  };
  [[nodiscard]] memory::Place place_of_activations() const;
  void queue_step();
  void run(Place& place);

  const LanguageModel& model_;
  Context context_;
  std::unique_ptr<DecodeState> state_;
  Tensor ids_, logits_;      // of a step
  std::int64_t period_ = 0;  // 0: every step is queued
  std::int64_t num_steps_ = 0;
  memory::Reserve reserve_;  // outlives the graphs
  std::vector<Place> places_;
};

}  // namespace ttt
