#include "core/layers/pre_conv.h"

#include "kernels/copy.h"
#include "kernels/norm_conv.h"

namespace ttt {

PreConv::PreConv(ParameterStore& store, const std::string& prefix, std::int64_t channels,
                 std::int64_t window, double epsilon)
    : norm_weight_(&store.add(prefix + ".norm.weight", {channels}, Initializer::constant(1))),
      conv_(store, prefix + ".conv", channels, window),
      epsilon_(epsilon) {}

void PreConv::forward(TensorView h, TensorView halo, TensorView y, Context& context) const {
  const CausalConv::Weights conv = conv_.values(h, context);
  kernels::norm_conv_forward(h, norm_weight_->value, conv.weight, conv.bias, halo, y, {}, epsilon_,
                             context.stream);
}

void PreConv::extend(TensorView h, TensorView y, TensorView history, Context& context) const {
  const CausalConv::Weights conv = conv_.values(h, context);
  kernels::norm_conv_forward(h, norm_weight_->value, conv.weight, conv.bias, history, y, history,
                             epsilon_, context.stream);
}

void PreConv::backward(TensorView h, TensorView halo, TensorView d_y, TensorView d_h,
                       Context& context) const {
  run_backward(h, d_y, d_h, conv_.grads(h, context).bias, context);
  conv_.return_halo(halo.empty() ? Tensor() : backward_halo(halo, d_y, context), d_h, context);
}

void PreConv::run_backward(TensorView h, TensorView d_y, TensorView d_h, TensorView d_bias,
                           Context& context) const {
  kernels::norm_conv_backward(h, norm_weight_->value, conv_.values(h, context).weight, d_y, d_h,
                              norm_weight_->grad, conv_.grads(h, context).weight, d_bias, epsilon_,
                              context.stream);
}

// The norm's backward is linear in the gradient of its output, so the halo's part is a sum of its own: rows of the halo
// as this rank norms them, gradients of zero past their own branch.
Tensor PreConv::backward_halo(TensorView halo, TensorView d_y, Context& context) const {
  const HaloWindow window(halo, d_y, context);
  const Tensor d_h(window.x.shape(), halo.dtype());
  const TensorView bias = conv_.grads(halo, context).bias;
  const Tensor unused = kernels::zeros(bias.shape(), bias.dtype(), context.stream);
  run_backward(window.x, window.d_out, d_h, unused, context);
  return window.rows_of_halo(d_h, context);
}

}  // namespace ttt
