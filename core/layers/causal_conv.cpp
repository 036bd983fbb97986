#include "core/layers/causal_conv.h"

#include <algorithm>
#include <cmath>

#include "core/sequence_exchange.h"
#include "core/token_range.h"
#include "kernels/causal_conv.h"
#include "kernels/copy.h"

namespace ttt {

// LeCun normal: the fan-in of a depthwise convolution is its window.
CausalConv::CausalConv(ParameterStore& store, const std::string& prefix, std::int64_t channels,
                       std::int64_t window)
    : weight_(
          &store.add(prefix + ".weight", {channels, 1, window},
                     Initializer::truncated_normal(1.0 / std::sqrt(static_cast<double>(window))))),
      bias_(&store.add(prefix + ".bias", {channels}, Initializer::constant(0))) {}

CausalConv::Weights CausalConv::values(TensorView x, Context& context) const {
  if (x.size(2) == weight_->shape[0]) return {weight_->value, bias_->value};
  return {own_heads(weight_->value, context), own_heads(bias_->value, context)};
}

CausalConv::Weights CausalConv::grads(TensorView x, Context& context) const {
  if (x.size(2) == weight_->shape[0]) return {weight_->grad, bias_->grad};
  return {own_heads(weight_->grad, context), own_heads(bias_->grad, context)};
}

Tensor CausalConv::halo(TensorView x, Context& context) const {
  if (x.size(2) != weight_->shape[0]) return {};  // whole sequences
  return exchange_halo(x, weight_->shape[2] - 1, context);
}

void CausalConv::forward(TensorView x, TensorView halo, TensorView residual, TensorView y,
                         Context& context) const {
  const Weights w = values(x, context);
  kernels::causal_conv_forward(x, w.weight, w.bias, halo, residual, y, {}, context.stream);
}

void CausalConv::extend(TensorView x, TensorView residual, TensorView y, TensorView history,
                        Context& context) const {
  kernels::causal_conv_forward(x, weight_->value, bias_->value, history, residual, y, history,
                               context.stream);
}

void CausalConv::backward(TensorView x, TensorView halo, TensorView d_y, TensorView d_beside,
                          TensorView d_x, Context& context) const {
  const Weights w = values(x, context);
  const Weights d_w = grads(x, context);
  kernels::causal_conv_backward(x, w.weight, d_y, d_beside, d_x, d_w.weight, d_w.bias,
                                context.stream);
  return_halo(halo.empty() ? Tensor() : backward_halo(halo, d_y, context), d_x, context);
}

void CausalConv::return_halo(TensorView d_halo, TensorView d_x, Context& context) const {
  if (d_x.size(2) != weight_->shape[0]) return;  // whole sequences
  ttt::return_halo(d_halo, weight_->shape[2] - 1, d_x, context);
}

Tensor CausalConv::backward_halo(TensorView halo, TensorView d_y, Context& context) const {
  const HaloWindow window(halo, d_y, context);
  const Tensor d_x(window.x.shape(), halo.dtype());
  const Tensor unused = kernels::zeros(bias_->shape, bias_->grad.dtype(), context.stream);
  kernels::causal_conv_backward(window.x, weight_->value, window.d_out, {}, d_x, weight_->grad,
                                unused, context.stream);
  return window.rows_of_halo(d_x, context);
}

HaloWindow::HaloWindow(TensorView halo, TensorView d_y, Context& context) : rows_(halo.size(1)) {
  const std::int64_t reached = std::min(rows_, d_y.size(1));
  const Shape shape{halo.size(0), rows_ + reached, halo.size(2)};
  x = kernels::zeros(shape, halo.dtype(), context.stream);
  d_out = kernels::zeros(shape, halo.dtype(), context.stream);
  put_token_range(halo, x, 0, context.stream);
  put_token_range(token_range(d_y, 0, reached, context.stream), d_out, rows_, context.stream);
}

Tensor HaloWindow::rows_of_halo(TensorView d_x, Context& context) const {
  return token_range(d_x, 0, rows_, context.stream);
}

}  // namespace ttt
