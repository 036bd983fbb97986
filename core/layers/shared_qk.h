#pragma once
// Queries and keys of one shared projection: a causal convolution each, then RoPE (kernels/shared_qk.h). Of split
// sequences it sees what CausalConv sees.

#include <optional>

#include "core/layers/causal_conv.h"
#include "kernels/rope.h"

namespace ttt {

class SharedQk {
 public:
  /// Registers `prefix`.conv_q and `prefix`.conv_k, weight [C, 1, W] and bias [C] each.
  SharedQk(ParameterStore& store, const std::string& prefix, std::int64_t channels,
           std::int64_t window, std::int64_t head_dim);

  /// The rows before p [B, T, C] that another rank holds, for forward and backward (CausalConv::halo).
  [[nodiscard]] Tensor halo(TensorView p, Context& context) const { return q_.halo(p, context); }
  /// q, k: [B, T, C] out; `rope` may be absent.
  void forward(TensorView p, TensorView halo, const std::optional<kernels::RopeOptions>& rope,
               TensorView q, TensorView k, Context& context) const;
  /// Continues from `history` [B, W-1, C] (in-out).
  void extend(TensorView p, const std::optional<kernels::RopeOptions>& rope, TensorView q,
              TensorView k, TensorView history, Context& context) const;
  /// Overwrites d_p and adds to the grads; d_q and d_k may be overwritten.
  void backward(TensorView p, TensorView halo, const std::optional<kernels::RopeOptions>& rope,
                TensorView d_q, TensorView d_k, TensorView d_p, Context& context) const;
  /// The shape of `history`.
  [[nodiscard]] Shape history_shape(std::int64_t batch) const { return q_.history_shape(batch); }

 private:
  void run(TensorView p, TensorView history, const std::optional<kernels::RopeOptions>& rope,
           TensorView q, TensorView k, TensorView final_history, Context& context) const;
  Tensor backward_halo(TensorView halo, const std::optional<kernels::RopeOptions>& rope,
                       TensorView d_q, TensorView d_k, Context& context) const;
  [[nodiscard]] TensorView heads_of(TensorView x) const {
    return x.reshape({x.size(0), x.size(1), x.size(2) / head_dim_, head_dim_});
  }

  CausalConv q_, k_;
  std::int64_t head_dim_;
};

}  // namespace ttt
