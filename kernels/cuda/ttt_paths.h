#pragma once
// The CUDA implementations of the inner loop between which kernels/cuda/ttt.cu chooses. Arguments as in kernels/ttt.h.

#include "kernels/cuda/block_limits.h"
#include "kernels/ttt.h"

namespace ttt::kernels::cuda {

/// Dynamic shared memory of a block of the fused backward, which takes more than the forward: one rule for both, so that
/// evaluation takes the path of training.
constexpr std::int64_t fused_shared_bytes(InnerModel model, std::int64_t features) {
  if (model == InnerModel::kLinear) return features == 64 ? 88128 : 152400;
  return features == 64 ? 114880 : 200640;
}

/// What a call lacks that the fused kernels need; null where they serve it. Any number of tokens will do.
inline const char* why_generic(const BlockLimits& limits, const TttInputs& inputs,
                               const TttOptions& options, const TttState& initial) {
  const bool is_mlp = options.model == InnerModel::kMlp;
  const std::int64_t features = inputs.q.size(3);
  if (inputs.q.dtype() != DType::kBF16) return "activations in bf16";
  if (features != 64 && features != 96) return "a head dim of 64 or 96";
  if (options.mini_batch_size != 16) return "mini-batches of 16";
  if (!options.inner_norm || !options.bias) return "inner norm and biases";
  if (is_mlp && initial.w1.size(3) != 4 * features) return "a hidden width of four head dims";
  if (is_mlp && !limits.has_clusters) return "clusters of blocks (compute capability 9.0)";
  if (limits.shared_bytes < fused_shared_bytes(options.model, features)) {
    return "more shared memory than the device gives a block";
  }
  return nullptr;
}

/// Whether the fused kernels serve this call on the current device.
bool is_fused(const TttInputs& inputs, const TttOptions& options, const TttState& initial);

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

/// Whether the fused decode steps serve this call: F32 or BF16 activations, head dim 64 or 96, inner norm and biases; for
/// the MLP a hidden width of four head dims and clusters of blocks. Any size of mini-batch.
inline bool is_step_fused(const BlockLimits& limits, const TttInputs& inputs,
                          const TttOptions& options, const TttState& state) {
  const std::int64_t features = inputs.q.size(3);
  const bool is_served = options.model == InnerModel::kLinear ||
                         (state.w1.size(3) == 4 * features && limits.has_clusters);
  return is_served && (features == 64 || features == 96) && options.inner_norm && options.bias;
}
void fused_linear_step(const TttInputs& inputs, const TttOptions& options, std::int64_t place,
                       const TttState& state, const TttState& sums, TensorView out, Stream& stream);
void fused_mlp_step(const TttInputs& inputs, const TttOptions& options, std::int64_t place,
                    const TttState& state, const TttState& sums, TensorView out, Stream& stream);

/// Any shape and options; F32 or BF16 activations, all arithmetic in fp32. For correctness, not for speed.
void generic_forward(const TttInputs& inputs, const TttOptions& options, const TttState& initial,
                     TensorView out, const TttState& final_state, TttSaved* saved, Stream& stream);
void generic_backward(const TttInputs& inputs, const TttOptions& options, const TttState& initial,
                      const TttSaved& saved, TensorView d_out, const TttState& d_final,
                      const TttInputGradients& gradients, const TttState& d_initial,
                      Stream& stream);
void generic_step(const TttInputs& inputs, const TttOptions& options, std::int64_t place,
                  const TttState& state, const TttState& sums, TensorView out, Stream& stream);

}  // namespace ttt::kernels::cuda
