#include "core/layers/projections.h"

#include "core/sequence_exchange.h"

namespace ttt {

Projections::Projections(ParameterStore& store, const std::vector<Output>& outputs,
                         std::int64_t inputs, Initializer initializer)
    : each_(outputs.size()) {
  for (std::size_t i = 0; i < outputs.size(); ++i) {
    const std::int64_t channels = outputs[i].channels;
    if (channels == 0) continue;
    if (stacks_.empty() || stacks_.back().channels != channels) stacks_.push_back({channels});
    stacks_.back().positions.push_back(i);
  }
  for (Stack& stack : stacks_) {
    std::vector<std::string> names;
    for (const std::size_t i : stack.positions) names.push_back(outputs[i].name);
    const std::size_t first = store.all().size();
    stack.weights = &store.add_stacked(names, {stack.channels, inputs}, initializer);
    for (std::size_t n = 0; n < names.size(); ++n) {
      each_[stack.positions[n]] = std::make_unique<Linear>(store.all()[first + n]);
    }
  }
}

std::vector<Tensor> Projections::forward(TensorView x, Context& context) const {
  std::vector<Tensor> outputs(each_.size());
  // What is handed on to other ranks must not stay in memory with what is kept.
  if (uses(context, SequenceForm::kHeadExchange)) {
    for (std::size_t i = 0; i < each_.size(); ++i) {
      if (each_[i]) outputs[i] = each_[i]->forward(x, context);
    }
    return outputs;
  }
  const std::int64_t rows = x.size(0) * x.size(1);
  for (const Stack& stack : stacks_) {
    const auto count = static_cast<std::int64_t>(stack.positions.size());
    const Tensor y({count, x.size(0), x.size(1), stack.channels}, x.dtype());
    kernels::linear_forward(
        x.reshape({rows, x.size(2)}),
        stack.weights->operand(context.precision).reshape({count, stack.channels, x.size(2)}), {},
        y.view().reshape({count, rows, stack.channels}), context.precision, context.stream);
    for (std::int64_t n = 0; n < count; ++n) {
      outputs[stack.positions[static_cast<std::size_t>(n)]] = y.at(n);
    }
  }
  return outputs;
}

const Linear& Projections::operator[](std::size_t i) const {
  TTT_CHECK(each_.at(i) != nullptr, "projection {} of those that are not there", i);
  return *each_[i];
}

}  // namespace ttt
