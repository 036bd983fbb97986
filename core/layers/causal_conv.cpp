#include "core/layers/causal_conv.h"

#include <cmath>

#include "kernels/causal_conv.h"

namespace ttt {

// LeCun normal: the fan-in of a depthwise convolution is its window.
CausalConv::CausalConv(ParameterStore& store, const std::string& prefix, std::int64_t channels,
                       std::int64_t window)
    : weight_(
          &store.add(prefix + ".weight", {channels, 1, window},
                     Initializer::truncated_normal(1.0 / std::sqrt(static_cast<double>(window))))),
      bias_(&store.add(prefix + ".bias", {channels}, Initializer::constant(0))) {}

void CausalConv::forward(TensorView x, TensorView y, Context& context) const {
  kernels::causal_conv_forward(x, weight_->value, bias_->value, {}, y, {}, context.stream);
}

void CausalConv::extend(TensorView x, TensorView y, TensorView history, Context& context) const {
  kernels::causal_conv_forward(x, weight_->value, bias_->value, history, y, history,
                               context.stream);
}

void CausalConv::backward(TensorView x, TensorView d_y, TensorView d_x, Context& context) const {
  kernels::causal_conv_backward(x, weight_->value, d_y, d_x, weight_->grad, bias_->grad,
                                context.stream);
}

}  // namespace ttt
