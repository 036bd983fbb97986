#include "core/layers/shared_qk.h"

#include "core/sequence_exchange.h"
#include "kernels/copy.h"
#include "kernels/shared_qk.h"

namespace ttt {

SharedQk::SharedQk(ParameterStore& store, const std::string& prefix, std::int64_t channels,
                   std::int64_t window, std::int64_t head_dim)
    : q_(store, prefix + ".conv_q", channels, window),
      k_(store, prefix + ".conv_k", channels, window),
      head_dim_(head_dim) {}

void SharedQk::run(TensorView p, TensorView history,
                   const std::optional<kernels::RopeOptions>& rope, TensorView q, TensorView k,
                   TensorView final_history, Context& context) const {
  const CausalConv::Weights of_q = q_.values(p, context);
  const CausalConv::Weights of_k = k_.values(p, context);
  kernels::shared_qk_forward(heads_of(p), of_q.weight, of_q.bias, of_k.weight, of_k.bias, history,
                             heads_of(q), heads_of(k), final_history, rope, context.stream);
}

void SharedQk::forward(TensorView p, TensorView halo,
                       const std::optional<kernels::RopeOptions>& rope, TensorView q, TensorView k,
                       Context& context) const {
  run(p, halo, rope, q, k, {}, context);
}

void SharedQk::extend(TensorView p, const std::optional<kernels::RopeOptions>& rope, TensorView q,
                      TensorView k, TensorView history, Context& context) const {
  run(p, history, rope, q, k, history, context);
}

void SharedQk::backward(TensorView p, TensorView halo,
                        const std::optional<kernels::RopeOptions>& rope, TensorView d_q,
                        TensorView d_k, TensorView d_p, Context& context) const {
  // First, while d_q and d_k are what they were.
  const Tensor d_halo = halo.empty() ? Tensor() : backward_halo(halo, rope, d_q, d_k, context);
  const CausalConv::Weights d_of_q = q_.grads(p, context);
  const CausalConv::Weights d_of_k = k_.grads(p, context);
  kernels::shared_qk_backward(heads_of(p), q_.values(p, context).weight,
                              k_.values(p, context).weight, heads_of(d_q), heads_of(d_k),
                              heads_of(d_p), d_of_q.weight, d_of_q.bias, d_of_k.weight, d_of_k.bias,
                              rope, context.stream);
  q_.return_halo(d_halo, d_p, context);
}

Tensor SharedQk::backward_halo(TensorView halo, const std::optional<kernels::RopeOptions>& rope,
                               TensorView d_q, TensorView d_k, Context& context) const {
  const std::int64_t rows = halo.size(1);
  std::optional<kernels::RopeOptions> from_halo = rope;
  if (rope) {  // so that the token after the halo has position 0
    TTT_CHECK(rope->period > 0 && rope->first_position == 0,
              "a segment of positions that do not repeat from its first token on");
    from_halo->first_position = rope->period - rows % rope->period;
  }
  const HaloWindow of_q(halo, d_q, context), of_k(halo, d_k, context);
  const Tensor d_p(of_q.x.shape(), halo.dtype());
  const CausalConv::Weights d_of_q = q_.grads(halo, context);
  const CausalConv::Weights d_of_k = k_.grads(halo, context);
  const Tensor unused = kernels::zeros(d_of_q.bias.shape(), d_of_q.bias.dtype(), context.stream);
  kernels::shared_qk_backward(heads_of(of_q.x), q_.values(halo, context).weight,
                              k_.values(halo, context).weight, heads_of(of_q.d_out),
                              heads_of(of_k.d_out), heads_of(d_p), d_of_q.weight, unused,
                              d_of_k.weight, unused, from_halo, context.stream);
  return of_q.rows_of_halo(d_p, context);
}

}  // namespace ttt
