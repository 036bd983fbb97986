#include "core/optimizer.h"

#include <cmath>

#include "core/base/memory.h"
#include "core/schedule.h"
#include "kernels/adamw.h"

namespace ttt {
namespace {

constexpr memory::Purpose kMoments{"moments"};

Tensor moment(std::int64_t num_elements, DType dtype) {
  const memory::Scope scope(kMoments);
  return Tensor::zeros({num_elements}, dtype);
}

}  // namespace

Optimizer::Optimizer(const config::OptimizerConfig& config, std::int64_t total_steps,
                     std::int64_t num_elements, DType dtype)
    : config_(config),
      total_steps_(total_steps),
      m_(moment(num_elements, dtype)),
      v_(moment(num_elements, dtype)),
      squares_({1}, DType::kF64) {}

void Optimizer::update(TensorView parameters, TensorView rounded, TensorView gradients,
                       std::int64_t step, Stream& stream) {
  kernels::sum_of_squares(gradients, squares_, stream);
  kernels::AdamWStep update;
  update.learning_rate = learning_rate(config_, total_steps_, step);
  update.beta1 = config_.beta1();
  update.beta2 = config_.beta2();
  update.epsilon = config_.epsilon();
  update.weight_decay = config_.weight_decay();
  update.clip_norm = config_.clip_norm();
  update.step = step + 1;
  kernels::adamw(parameters, gradients, m_, v_, squares_, rounded, update, stream);
}

double gradient_norm(double squares, std::int64_t step) {
  const double norm = std::sqrt(squares);
  if (!std::isfinite(norm)) {
    fail(ExitCode::kNumerical,
         "gradient norm is {} at step {}: the parameters were not changed; lower "
         "optimizer.learning_rate or resume from the last checkpoint with other data",
         norm, step);
  }
  return norm;
}

}  // namespace ttt
