#pragma once
// The CUDA implementations of the inner loop between which kernels/cuda/ttt.cu chooses. Arguments as in kernels/ttt.h.

#include "kernels/ttt.h"

namespace ttt::kernels::cuda {

/// Whether the fused kernels serve this call: BF16 activations, head dim 64 or 96, mini-batches of 16, inner norm and
/// biases; for the MLP a hidden width of four head dims and clusters of blocks (compute capability 9.0). Any number of
/// tokens.
bool is_fused(const TttInputs& inputs, const TttOptions& options, const TttState& initial);
/// The same for a device that need not be there, by its compute capability times ten; for planning.
inline bool is_fused_on(int compute_capability, const TttInputs& inputs, const TttOptions& options,
                        const TttState& initial) {
  constexpr int kMlpNeeds = 90;
  const std::int64_t features = inputs.q.size(3);
  const bool size_fits = features == 64 || features == 96;
  const bool is_served = options.model == InnerModel::kLinear ||
                         (initial.w1.size(3) == 4 * features && compute_capability >= kMlpNeeds);
  return inputs.q.dtype() == DType::kBF16 && options.mini_batch_size == 16 && size_fits &&
         is_served && options.inner_norm && options.bias;
}

void fused_linear_forward(const TttInputs& inputs, const TttState& initial, TensorView out,
                          const TttState& final_state, TttSaved* saved, Stream& stream);
void fused_linear_backward(const TttInputs& inputs, const TttState& initial, const TttSaved& saved,
                           TensorView d_out, const TttState& d_final,
                           const TttInputGradients& gradients, const TttState& d_initial,
                           Stream& stream);

void fused_mlp_forward(const TttInputs& inputs, const TttState& initial, TensorView out,
                       const TttState& final_state, TttSaved* saved, Stream& stream);
/// How a (batch, head) pair of TTT-MLP is laid over the device: 16 warps of one block (head dim 64 alone), or a cluster
/// of four blocks. fused_mlp_forward chooses; both give the same bits.
enum class MlpShape { kOneBlock, kCluster };
void fused_mlp_forward_as(MlpShape shape, const TttInputs& inputs, const TttState& initial,
                          TensorView out, const TttState& final_state, TttSaved* saved,
                          Stream& stream);
void fused_mlp_backward(const TttInputs& inputs, const TttState& initial, const TttSaved& saved,
                        TensorView d_out, const TttState& d_final,
                        const TttInputGradients& gradients, const TttState& d_initial,
                        Stream& stream);

/// Any shape and options; F32 or BF16 activations, all arithmetic in fp32. For correctness, not for speed.
void generic_forward(const TttInputs& inputs, const TttOptions& options, const TttState& initial,
                     TensorView out, const TttState& final_state, TttSaved* saved, Stream& stream);
void generic_backward(const TttInputs& inputs, const TttOptions& options, const TttState& initial,
                      const TttSaved& saved, TensorView d_out, const TttState& d_final,
                      const TttInputGradients& gradients, const TttState& d_initial,
                      Stream& stream);

}  // namespace ttt::kernels::cuda
