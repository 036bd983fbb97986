#include "configs/sequence_split.h"

#include <algorithm>

namespace ttt::config {

ParallelConfig::SequenceExchange resolve_sequence_exchange(const RunConfig& config) {
  const auto exchange = config.parallel().sequence_exchange();
  if (exchange != ParallelConfig::AUTO) return exchange;
  return config.model().mixer() == ATTENTION ? ParallelConfig::HEAD_EXCHANGE
                                             : ParallelConfig::STATE_PASSING;
}

std::int64_t sequence_unit(const RunConfig& config) {
  const Mixer mixer = config.model().mixer();
  const bool passes_ttt_state = (mixer == TTT_LINEAR || mixer == TTT_MLP) &&
                                resolve_sequence_exchange(config) == ParallelConfig::STATE_PASSING;
  return passes_ttt_state ? config.model().ttt().mini_batch_size() : 1;
}

std::vector<std::int64_t> sequence_bounds(std::int64_t length, std::int64_t unit,
                                          std::int64_t parts) {
  const std::int64_t units = (length + unit - 1) / unit;
  std::vector<std::int64_t> bounds;
  for (std::int64_t part = 0; part <= parts; ++part) {
    bounds.push_back(std::min(length, units * part / parts * unit));
  }
  return bounds;
}

std::int64_t convolution_halo(const ModelConfig& model) {
  return model.share_qk() || model.pre_conv() ? model.conv_kernel() - 1 : 0;
}

std::int64_t longest_uncut_document(const RunConfig& config) {
  const std::int64_t unit = std::max<std::int64_t>(1, sequence_unit(config));
  const std::int64_t units_a_part =
      std::max<std::int64_t>(1, (convolution_halo(config.model()) + unit - 1) / unit);
  return (config.parallel().sequence_ranks() * units_a_part - 1) * unit;
}

std::int64_t longest_whole_document(const RunConfig& config) {
  const std::int64_t ranks = config.parallel().sequence_ranks();
  const std::int64_t share = (config.data().context_length() + ranks - 1) / ranks;
  return std::max(share, longest_uncut_document(config));
}

}  // namespace ttt::config
