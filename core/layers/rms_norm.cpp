#include "core/layers/rms_norm.h"

#include "kernels/norm.h"

namespace ttt {

RmsNorm::RmsNorm(ParameterStore& store, const std::string& name, std::int64_t channels,
                 double epsilon)
    : weight_(&store.add(name, {channels}, Initializer::constant(1))),
      channels_(channels),
      epsilon_(epsilon) {}

void RmsNorm::forward(TensorView x, TensorView y, TensorView rstd, Context& context) const {
  const Shape rows{x.numel() / channels_, channels_};
  kernels::rms_norm_forward(x.reshape(rows), weight_->value, y.reshape(rows), rstd, epsilon_,
                            context.stream);
}

void RmsNorm::backward(TensorView x, TensorView rstd, TensorView d_y, TensorView d_beside,
                       TensorView d_x, Context& context) const {
  const Shape rows{x.numel() / channels_, channels_};
  kernels::rms_norm_backward(x.reshape(rows), weight_->value, rstd, d_y.reshape(rows),
                             d_beside.empty() ? d_beside : d_beside.reshape(rows),
                             d_x.reshape(rows), weight_->grad, context.stream);
}

}  // namespace ttt
