#pragma once
// Linear layers of one input, y_i = x W_i^T. Weights of equal shape lie one behind the other, and what they make is one
// product. The caller keeps x for backward.

#include <memory>
#include <string>
#include <vector>

#include "core/layers/linear.h"

namespace ttt {

class Projections {
 public:
  struct Output {
    std::string name;       // of the weight [channels, inputs]
    std::int64_t channels;  // 0: there is none
  };
  /// Registers the weights in this order.
  Projections(ParameterStore& store, const std::vector<Output>& outputs, std::int64_t inputs,
              Initializer initializer);

  /// Of x [B, T, inputs] a fresh [B, T, channels] for each, empty where there is none. Those of one product share its
  /// memory, which each of them keeps.
  [[nodiscard]] std::vector<Tensor> forward(TensorView x, Context& context) const;
  /// One alone, for backward: gradients come one after the other.
  [[nodiscard]] const Linear& operator[](std::size_t i) const;

 private:
  struct Stack {
    std::int64_t channels;
    std::vector<std::size_t> positions = {};  // of its n outputs
    const Parameter* weights = nullptr;       // [n channels, inputs]
  };
  std::vector<Stack> stacks_;
  std::vector<std::unique_ptr<Linear>> each_;  // null where there is none
};

}  // namespace ttt
