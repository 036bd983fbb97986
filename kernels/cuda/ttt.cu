#include "core/base/log.h"
#include "kernels/cuda/dispatch.h"
#include "kernels/cuda/ops.h"
#include "kernels/cuda/ttt_paths.h"
#include "kernels/ttt.h"

namespace ttt::kernels::cuda {
namespace {

// Once a program, and only where the fused kernels were to be expected.
void tell_generic_path(const TttInputs& inputs, const TttOptions& options) {
  static bool is_told = false;
  if (is_told || inputs.q.dtype() != DType::kBF16) return;
  is_told = true;
  log::warning(
      "ttt_kernel=generic head_dim={} mini_batch={}: the fused kernels serve head dims 64 and 96, "
      "TTT-MLP from compute capability 9.0 on, with mini-batches of 16, inner norm and biases. "
      "This one is much slower",
      inputs.q.size(3), options.mini_batch_size);
}

}  // namespace

bool is_fused(const TttInputs& inputs, const TttOptions& options, const TttState& initial) {
  return is_fused_on(compute_capability(), inputs, options, initial);
}

void ttt_forward(const TttInputs& inputs, const TttOptions& options, const TttState& initial,
                 TensorView out, const TttState& final_state, TttSaved* saved, Stream& stream) {
  if (!is_fused(inputs, options, initial)) {
    tell_generic_path(inputs, options);
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

}  // namespace ttt::kernels::cuda
