#include "core/layers/linear.h"

namespace ttt {

Linear::Linear(ParameterStore& store, const std::string& name, std::int64_t outputs,
               std::int64_t inputs, Initializer initializer)
    : weight_(&store.add(name, {outputs, inputs}, initializer)),
      outputs_(outputs),
      inputs_(inputs) {}

Linear::Linear(const Parameter& weight)
    : weight_(&weight),
      outputs_(weight.shape[0]),
      inputs_(weight.shape.numel() / weight.shape[0]) {}

TensorView Linear::weight(const Context& context) const {
  return weight_->operand(context.precision).reshape({outputs_, inputs_});
}

void Linear::forward(TensorView x, TensorView residual, TensorView y, Context& context) const {
  const std::int64_t rows = x.numel() / inputs_;
  const Shape y_shape{rows, outputs_};
  kernels::linear_forward(x.reshape({rows, inputs_}), weight(context),
                          residual.empty() ? residual : residual.reshape(y_shape),
                          y.reshape(y_shape), context.precision, context.stream);
}

Tensor Linear::forward(TensorView x, Context& context) const {
  Tensor y({x.size(0), x.size(1), outputs_}, x.dtype());
  forward(x, {}, y, context);
  return y;
}

void Linear::backward(TensorView x, TensorView d_y, TensorView d_x, kernels::Accumulate accumulate,
                      Context& context) const {
  backward_weight(x, d_y, context);
  backward_input(d_y, d_x, accumulate, context);
}

void Linear::backward_input(TensorView d_y, TensorView d_x, kernels::Accumulate accumulate,
                            Context& context) const {
  const std::int64_t rows = d_x.numel() / inputs_;
  kernels::linear_backward_input(d_y.reshape({rows, outputs_}), weight(context),
                                 d_x.reshape({rows, inputs_}), accumulate, context.precision,
                                 context.stream);
}

void Linear::backward_weight(TensorView x, TensorView d_y, Context& context) const {
  const std::int64_t rows = x.numel() / inputs_;
  kernels::linear_backward_weight(d_y.reshape({rows, outputs_}), x.reshape({rows, inputs_}),
                                  weight_->grad.reshape({outputs_, inputs_}), context.precision,
                                  context.stream);
}

}  // namespace ttt
