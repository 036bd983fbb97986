#pragma once
// Loss on held-out windows: overall, by position, by context length, and the inner losses of TTT layers.

#include <functional>
#include <optional>
#include <vector>

#include "dist/process_grid.h"
#include "launch/batch_reader.h"

namespace ttt::launch {

/// Visits windows 0 .. num_windows-1 of `reader` in order, on every rank, with nll and mask [T] F64 of
/// each. Groups of `micro_batch` windows go to the data ranks in turn, segments of windows to the sequence
/// ranks (context.sequence, which the reader was made with), and results are shared by sums with zeros, which
/// are exact: every rank sees the same bits whatever their number. False, on every rank, when some rank was asked to stop
/// (launch/stop_signal.h) before the last group: not all windows were visited. Collective.
[[nodiscard]] bool visit_window_losses(
    const LanguageModel& model, const BatchReader& reader, std::int64_t num_windows,
    std::int64_t micro_batch, const dist::ProcessGrid& grid, Context& context,
    const std::function<void(std::span<const double> nll, std::span<const double> mask)>& visit);

/// Mean over windows of each window's masked mean: the published loss. None when some rank was asked to stop. Collective.
std::optional<double> validation_loss(const LanguageModel& model, const BatchReader& reader,
                                      std::int64_t num_windows, std::int64_t micro_batch,
                                      const dist::ProcessGrid& grid, Context& context);

/// Sums over windows by token position.
struct PositionLosses {
  std::vector<double> nll_sum, count;  // [T]
  double row_mean_sum = 0;             // sum over windows of the masked mean
  std::int64_t num_windows = 0;

  void add(std::span<const double> nll, std::span<const double> mask);
  [[nodiscard]] double loss() const;
  /// Mean over positions [begin, end) of all windows; NaN without a counted token.
  [[nodiscard]] double mean(std::int64_t begin, std::int64_t end) const;
};

/// Inner losses of every layer by position, averaged over windows and heads.
struct InnerLosses {
  std::int64_t num_layers = 0, length = 0, num_windows = 0;
  std::vector<double> sums;  // [3, layers, T]: at W_0, before and after the token's step

  [[nodiscard]] double mean(int kind, std::int64_t layer, std::int64_t position) const;
};

/// Over the first windows, on the ranks of `sequence` together (context.sequence and the reader are theirs); each has the
/// result. Models without TTT layers give no layers. Collective.
InnerLosses inner_losses(const LanguageModel& model, const BatchReader& reader,
                         std::int64_t num_windows, dist::Communicator& sequence, Context& context);

}  // namespace ttt::launch
