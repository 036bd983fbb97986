#include <set>
#include <string_view>

#include "core/base/log.h"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/ops.h"
#include "kernels/cuda/ttt_paths.h"
#include "kernels/ttt.h"

namespace ttt::kernels::cuda {
namespace {

// Each reason once a program, and only where the fused kernels were to be expected.
void tell_generic_path(const BlockLimits& limits, const TttInputs& inputs,
                       const TttOptions& options, const char* missing) {
  static std::set<std::string_view> told;
  if (inputs.q.dtype() != DType::kBF16 || !told.insert(missing).second) return;
  log::warning(
      "ttt_kernel=generic model={} head_dim={} mini_batch={} block_shared_kib={} clusters={}: much "
      "slower than the fused kernels, which need {}",
      options.model == InnerModel::kLinear ? "linear" : "mlp", inputs.q.size(3),
      options.mini_batch_size, limits.shared_bytes / 1024, limits.has_clusters ? "yes" : "no",
      missing);
}

}  // namespace

bool is_fused(const TttInputs& inputs, const TttOptions& options, const TttState& initial) {
  return why_generic(block_limits(), inputs, options, initial) == nullptr;
}

void ttt_forward(const TttInputs& inputs, const TttOptions& options, const TttState& initial,
                 TensorView out, const TttState& final_state, TttSaved* saved, Stream& stream) {
  const BlockLimits limits = block_limits();
  if (const char* const missing = why_generic(limits, inputs, options, initial)) {
    tell_generic_path(limits, inputs, options, missing);
    return generic_forward(inputs, options, initial, out, final_state, saved, stream);
  }
  if (options.model == InnerModel::kLinear) {
    return fused_linear_forward(inputs, initial, out, final_state, saved, stream);
  }
  return fused_mlp_forward(inputs, initial, out, final_state, saved, stream);
}

void ttt_backward(const TttInputs& inputs, const TttOptions& options, const TttState& initial,
                  const TttSaved& saved, TensorView d_out, const TttState& d_final,
                  const TttInputGradients& gradients, const TttState& d_initial, Stream& stream) {
  if (!is_fused(inputs, options, initial)) {
    return generic_backward(inputs, options, initial, saved, d_out, d_final, gradients, d_initial,
                            stream);
  }
  if (options.model == InnerModel::kLinear) {
    return fused_linear_backward(inputs, initial, saved, d_out, d_final, gradients, d_initial,
                                 stream);
  }
  return fused_mlp_backward(inputs, initial, saved, d_out, d_final, gradients, d_initial, stream);
}

void ttt_step(const TttInputs& inputs, const TttOptions& options, std::int64_t place,
              const TttState& state, const TttState& sums, TensorView out, Stream& stream) {
  if (!is_step_fused(block_limits(), inputs, options, state)) {
    return generic_step(inputs, options, place, state, sums, out, stream);
  }
  if (options.model == InnerModel::kLinear) {
    return fused_linear_step(inputs, options, place, state, sums, out, stream);
  }
  return fused_mlp_step(inputs, options, place, state, sums, out, stream);
}

}  // namespace ttt::kernels::cuda
