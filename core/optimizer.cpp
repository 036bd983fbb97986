#include "core/optimizer.h"

#include <cmath>

#include "core/schedule.h"
#include "kernels/adamw.h"

namespace ttt {

Optimizer::Optimizer(const config::OptimizerConfig& config, std::int64_t total_steps,
                     std::int64_t num_elements, DType dtype)
    : config_(config),
      total_steps_(total_steps),
      m_(Tensor::zeros({num_elements}, dtype)),
      v_(Tensor::zeros({num_elements}, dtype)) {}

double Optimizer::update(TensorView parameters, TensorView gradients, std::int64_t step,
                         Stream& stream) {
  const double norm = std::sqrt(kernels::sum_of_squares(gradients, stream));
  if (!std::isfinite(norm)) {
    fail(ExitCode::kNumerical,
         "gradient norm is {} at step {}: the parameters were not changed; lower "
         "optimizer.learning_rate or resume from the last checkpoint with other data",
         norm, step);
  }
  kernels::AdamWStep update;
  update.learning_rate = learning_rate(config_, total_steps_, step);
  update.beta1 = config_.beta1();
  update.beta2 = config_.beta2();
  update.epsilon = config_.epsilon();
  update.weight_decay = config_.weight_decay();
  const bool clip = config_.clip_norm() > 0 && norm >= config_.clip_norm();
  update.grad_scale = clip ? config_.clip_norm() / norm : 1.0;
  update.step = step + 1;
  kernels::adamw(parameters, gradients, m_, v_, update, stream);
  return norm;
}

}  // namespace ttt
