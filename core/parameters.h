#pragma once
// The parameters of a model: named views into flat buffers.
//
// Layers register what they need when they are built; then the store allocates one buffer of values
// and the model is usable. Optimiser, gradient reduction, checkpoints and interchange all work on the
// flat buffers or on this list, so there is no second list to keep in step.

#include <cstdint>
#include <deque>
#include <string>
#include <vector>

#include "core/base/stream.h"
#include "core/base/tensor.h"
#include "kernels/matmul.h"

namespace ttt {

struct Initializer {
  enum class Kind { kConstant, kNormal, kTruncatedNormal };
  Kind kind = Kind::kConstant;
  double value = 0;  // the constant, or the standard deviation

  static Initializer constant(double value) { return {Kind::kConstant, value}; }
  static Initializer normal(double deviation) { return {Kind::kNormal, deviation}; }
  /// Cut off at two standard deviations; `deviation` is that after the cut.
  static Initializer truncated_normal(double deviation) {
    return {Kind::kTruncatedNormal, deviation};
  }
};

struct Parameter {
  std::string name;  // as in ttt-lm-pytorch's state_dict
  Shape shape;
  Initializer initializer;
  TensorView value;
  TensorView grad;     // empty unless gradients are bound
  TensorView rounded;  // the value in BF16; empty unless the store keeps it

  /// What products in `precision` read.
  [[nodiscard]] TensorView operand(kernels::Precision precision) const {
    return precision == kernels::Precision::kBF16 && !rounded.empty() ? rounded : value;
  }
};

class ParameterStore {
 public:
  /// Registers a parameter; the reference stays valid. Throws on a duplicate name or after allocate.
  Parameter& add(const std::string& name, const Shape& shape, Initializer initializer);
  /// Registers matrices [R, C], one behind the other, and returns them as one [n R, C], for products with all of them
  /// at once. `all` lists the matrices.
  const Parameter& add_stacked(const std::vector<std::string>& names, const Shape& shape,
                               Initializer initializer);

  /// Allocates the values (F32 or F64), in order of registration and without gaps.
  void allocate(DType dtype);
  /// Every element is a function of (seed, name, index), whatever the layout or rank.
  void initialize(std::uint64_t seed);
  /// Points every `grad` into `flat` [num_elements]; the caller zeroes it and keeps it alive.
  void bind_gradients(TensorView flat);

  /// From here on keeps the values in bf16 beside them: products in bf16 on a device read these instead of rounding
  /// weights each time. Who writes values later writes these too, as AdamW does, or calls this again.
  void keep_rounded(Stream& stream);

  [[nodiscard]] std::int64_t num_elements() const { return num_elements_; }
  [[nodiscard]] DType dtype() const { return values_.dtype(); }
  [[nodiscard]] TensorView values() const { return values_; }
  /// [num_elements] BF16, or empty.
  [[nodiscard]] TensorView rounded() const { return rounded_; }
  [[nodiscard]] const std::deque<Parameter>& all() const { return parameters_; }

 private:
  struct Stack {
    Parameter whole;
    std::int64_t begin = 0;  // of its first element
  };
  /// Points `view` of every parameter and stack to its part of `flat` [num_elements].
  void divide(TensorView flat, TensorView Parameter::*view);

  std::deque<Parameter> parameters_;
  std::deque<Stack> stacks_;
  Tensor values_;
  Tensor rounded_;
  std::int64_t num_elements_ = 0;
};

}  // namespace ttt
