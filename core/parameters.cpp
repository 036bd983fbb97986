#include "core/parameters.h"

#include "core/base/memory.h"
#include "core/base/rng.h"
#include "kernels/copy.h"
#include "kernels/random.h"

namespace ttt {
namespace {

constexpr memory::Purpose kParameters{"parameters"};

void draw(const Parameter& parameter, std::uint64_t seed, Stream& stream) {
  const CounterRng rng(seed, parameter.name);
  const double value = parameter.initializer.value;
  switch (parameter.initializer.kind) {
    case Initializer::Kind::kConstant:
      fill(parameter.value, value);
      break;
    case Initializer::Kind::kNormal:
      kernels::random_normal(rng, value, parameter.value, stream);
      break;
    case Initializer::Kind::kTruncatedNormal:
      kernels::random_truncated_normal(rng, value, parameter.value, stream);
      break;
  }
}

}  // namespace

std::int64_t ParameterStore::aligned_end() const {
  return (num_elements_ + kAlignment - 1) / kAlignment * kAlignment;
}

Parameter& ParameterStore::add_at(std::int64_t begin, const std::string& name, const Shape& shape,
                                  Initializer initializer) {
  TTT_CHECK(values_.empty(), "parameter {} is added after allocation", name);
  for (const Parameter& other : parameters_) {
    TTT_CHECK(other.name != name, "two parameters are called {}", name);
  }
  num_elements_ = begin + shape.numel();
  return parameters_.emplace_back(Parameter{name, shape, initializer, begin, {}, {}, {}});
}

Parameter& ParameterStore::add(const std::string& name, const Shape& shape,
                               Initializer initializer) {
  return add_at(aligned_end(), name, shape, initializer);
}

const Parameter& ParameterStore::add_stacked(const std::vector<std::string>& names,
                                             const Shape& shape, Initializer initializer) {
  TTT_CHECK(!names.empty() && shape.rank() == 2, "{} matrices of shape {}", names.size(),
            shape.str());
  const std::int64_t begin = aligned_end();
  std::int64_t end = begin;
  for (const std::string& name : names) {
    add_at(end, name, shape, initializer);
    end = num_elements_;
  }
  const Shape whole{static_cast<std::int64_t>(names.size()) * shape[0], shape[1]};
  return stacks_.emplace_back(Parameter{names.front(), whole, initializer, begin, {}, {}, {}});
}

std::int64_t ParameterStore::num_parameters() const {
  std::int64_t count = 0;
  for (const Parameter& parameter : parameters_) count += parameter.shape.numel();
  return count;
}

void ParameterStore::divide(TensorView flat, TensorView Parameter::*view) {
  for (std::deque<Parameter>* list : {&parameters_, &stacks_}) {
    for (Parameter& parameter : *list) {
      const std::int64_t end = parameter.begin + parameter.shape.numel();
      parameter.*view = flat.slice(parameter.begin, end).reshape(parameter.shape);
    }
  }
}

void ParameterStore::allocate(DType dtype) {
  TTT_CHECK(dtype == DType::kF32 || dtype == DType::kF64, "parameters are F32 or F64, not {}",
            name_of(dtype));
  const memory::Scope scope(kParameters);
  values_ = Tensor::zeros({num_elements_}, dtype);
  divide(values_, &Parameter::value);
}

void ParameterStore::initialize(std::uint64_t seed) {
  Stream stream;
  for (const Parameter& parameter : parameters_) draw(parameter, seed, stream);
}

void ParameterStore::keep_rounded(Stream& stream) {
  if (rounded_.empty()) {
    const memory::Scope scope(kParameters, memory::Place::kDevice);
    rounded_ = Tensor({num_elements_}, DType::kBF16);
  }
  kernels::copy(values_, rounded_, stream);
  divide(rounded_, &Parameter::rounded);
}

void ParameterStore::bind_gradients(TensorView flat) {
  expect_shape("gradients", flat, {num_elements_});
  TTT_CHECK(flat.dtype() == dtype(), "gradients of {} for parameters of {}", name_of(flat.dtype()),
            name_of(dtype()));
  divide(flat, &Parameter::grad);
}

}  // namespace ttt
