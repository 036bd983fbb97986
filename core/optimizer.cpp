#include "core/optimizer.h"

#include <cmath>
#include <utility>

#include "core/base/memory.h"
#include "core/schedule.h"

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
    : Optimizer(config, total_steps, std::vector<FlatRange>{{0, num_elements}}, dtype) {}

Optimizer::Optimizer(const config::OptimizerConfig& config, std::int64_t total_steps,
                     std::vector<FlatRange> ranges, DType dtype)
    : config_(config), total_steps_(total_steps), ranges_(std::move(ranges)) {
  std::int64_t count = 0;
  for (const FlatRange& range : ranges_) count += range.size();
  m_ = moment(count, dtype);
  v_ = moment(count, dtype);
  squares_ = {{1}, DType::kF64};
  decision_ = Tensor::zeros({kernels::kDecisionSize}, DType::kF64);
}

void Optimizer::update(TensorView parameters, TensorView rounded, TensorView gradients,
                       std::int64_t step, Stream& stream) {
  kernels::sum_of_squares(gradients, squares_, stream);
  update(parameters, rounded, gradients, {squares_}, step, stream);
}

void Optimizer::update(TensorView parameters, TensorView rounded, TensorView gradients,
                       const Evidence& evidence, std::int64_t step, Stream& stream) {
  kernels::AdamWStep update;
  update.learning_rate = learning_rate(config_, total_steps_, step);
  update.beta1 = config_.beta1();
  update.beta2 = config_.beta2();
  update.epsilon = config_.epsilon();
  update.weight_decay = config_.weight_decay();
  update.clip_norm = config_.clip_norm();
  kernels::decide_update(evidence.squares, evidence.losses, decision_, evidence.limits, update,
                         stream);
  std::int64_t done = 0;
  for (const FlatRange& range : ranges_) {
    if (range.size() == 0) continue;
    const auto part = [&](const TensorView& flat) { return flat.slice(range.begin, range.end); };
    const auto moments = [&](const Tensor& all) {
      return all.view().slice(done, done + range.size());
    };
    kernels::adamw(part(parameters), part(gradients), moments(m_), moments(v_), decision_,
                   rounded.empty() ? rounded : part(rounded), update, stream);
    done += range.size();
  }
}

void Optimizer::set_num_updates(std::int64_t count) {
  decision_.data<double>()[kernels::kNumUpdates] = static_cast<double>(count);
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
