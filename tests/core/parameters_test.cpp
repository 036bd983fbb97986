// The store of parameters: initial values, layout, contracts.

#include "core/parameters.h"

#include <gtest/gtest.h>

#include <cmath>

#include "tests/support/tensors.h"

namespace ttt {
namespace {

using test::values_of;

const Parameter& find(const ParameterStore& store, const std::string& name) {
  for (const Parameter& parameter : store.all()) {
    if (parameter.name == name) return parameter;
  }
  throw std::runtime_error("no parameter " + name);
}

TEST(ParameterStore, AStackIsItsMatricesOneBehindTheOther) {
  ParameterStore store;
  store.add("before", {3}, Initializer::constant(0));
  const Parameter& stack = store.add_stacked({"a", "b"}, {2, 5}, Initializer::normal(1));
  store.add("after", {7}, Initializer::constant(0));
  EXPECT_EQ(store.all().size(), 4U);
  store.allocate(DType::kF32);
  store.initialize(3);
  Stream stream;
  store.keep_rounded(stream);
  const Tensor gradients = Tensor::zeros({store.num_elements()}, DType::kF32);
  store.bind_gradients(gradients);
  for (const auto view : {&Parameter::value, &Parameter::grad, &Parameter::rounded}) {
    expect_shape("stack", stack.*view, {4, 5});
    EXPECT_EQ((stack.*view).slice(0, 2).raw(), (find(store, "a").*view).raw());
    EXPECT_EQ((stack.*view).slice(2, 4).raw(), (find(store, "b").*view).raw());
  }
}

TEST(ParameterStore, InitialValuesDoNotDependOnTheOthers) {
  for (const DType dtype : {DType::kF32, DType::kF64}) {
    ParameterStore one;
    one.add("a", {3, 5}, Initializer::normal(0.02));
    one.add("b", {7}, Initializer::truncated_normal(0.5));
    ParameterStore other;
    other.add("b", {7}, Initializer::truncated_normal(0.5));
    other.add("c", {11}, Initializer::normal(1));
    other.add("a", {15}, Initializer::normal(0.02));  // the same elements in another shape
    for (ParameterStore* store : {&one, &other}) {
      store->allocate(dtype);
      store->initialize(3);
    }
    for (const char* name : {"a", "b"}) {
      EXPECT_EQ(values_of(find(one, name).value), values_of(find(other, name).value)) << name;
    }
    EXPECT_NE(values_of(find(one, "b").value)[0], values_of(find(one, "b").value)[1]);
    const std::vector<double> before = values_of(one.values());
    one.initialize(4);
    EXPECT_NE(values_of(one.values()), before) << "the seed counts";
    one.initialize(3);
    EXPECT_EQ(values_of(one.values()), before);
  }
}

TEST(ParameterStore, EveryInitializerHasItsDistribution) {
  constexpr std::int64_t kCount = 200000;
  ParameterStore store;
  store.add("constant", {4}, Initializer::constant(1.5));
  store.add("normal", {kCount}, Initializer::normal(0.02));
  store.add("truncated", {kCount}, Initializer::truncated_normal(0.5));
  store.allocate(DType::kF64);
  store.initialize(0);
  EXPECT_EQ(values_of(find(store, "constant").value), std::vector<double>(4, 1.5));
  const auto expect_moments = [&](const char* name, double deviation, double kurtosis) {
    double sums[5] = {};
    for (const double value : values_of(find(store, name).value)) {
      for (int power = 1; power <= 4; ++power) sums[power] += std::pow(value / deviation, power);
    }
    // Six standard errors of the mean of x^k: sqrt(E x^2k / n).
    const double error = 6 / std::sqrt(static_cast<double>(kCount));
    EXPECT_NEAR(sums[1] / kCount, 0, error) << name;
    EXPECT_NEAR(sums[2] / kCount, 1, error * std::sqrt(3.0)) << name;
    EXPECT_NEAR(sums[3] / kCount, 0, error * std::sqrt(15.0)) << name;
    EXPECT_NEAR(sums[4] / kCount, kurtosis, error * std::sqrt(105.0)) << name;
  };
  expect_moments("normal", 0.02, 3.0);
  // Cut at a = 2 with Z = erf(sqrt 2), c = 2 a phi(a) / Z: variance 1 - c = 0.7737,
  // fourth moment 3 - c (a^2 + 3) = 1.4161, so the kurtosis is 2.3656.
  expect_moments("truncated", 0.5, 2.3656);
  for (const double value : values_of(find(store, "truncated").value)) {
    EXPECT_LE(std::abs(value), 0.5 * 2 / std::sqrt(0.7737) + 1e-4);
  }
}

TEST(ParameterStore, ValuesAndGradientsAreFlatInOrderOfRegistration) {
  constexpr std::size_t kAligned = ParameterStore::kAlignment;
  ParameterStore store;
  store.add("a", {2, 3}, Initializer::constant(1));
  store.add("b", {4}, Initializer::constant(2));
  EXPECT_EQ(store.num_elements(), ParameterStore::kAlignment + 4);
  EXPECT_EQ(store.num_parameters(), 10);
  store.allocate(DType::kF32);
  store.initialize(0);
  std::vector<double> expected(kAligned + 4, 0);
  std::fill_n(expected.begin(), 6, 1);
  std::fill_n(expected.begin() + kAligned, 4, 2);
  EXPECT_EQ(values_of(store.values()), expected);
  const Tensor gradients = Tensor::zeros({store.num_elements()}, DType::kF32);
  store.bind_gradients(gradients);
  fill(find(store, "b").grad, 3);
  std::fill_n(expected.begin(), 6, 0);
  std::fill_n(expected.begin() + kAligned, 4, 3);
  EXPECT_EQ(values_of(gradients), expected);
}

// What a product in bf16 reads, of every weight of a model with 12 heads: 12 learning rates would shift what follows.
TEST(ParameterStore, ProductsReadAlignedWeights) {
  ParameterStore store;
  store.add("learnable_ttt_lr.bias", {12, 1}, Initializer::constant(1));
  const Parameter& stacked = store.add_stacked({"gate", "up"}, {3, 5}, Initializer::constant(2));
  store.add("down", {8, 8}, Initializer::constant(3));
  store.allocate(DType::kF32);
  store.initialize(0);
  Stream stream;
  store.keep_rounded(stream);
  for (const Parameter* parameter : {&stacked, &find(store, "down")}) {
    EXPECT_EQ(reinterpret_cast<std::uintptr_t>(parameter->rounded.raw()) % 16, 0U)
        << parameter->name;
    EXPECT_EQ(parameter->begin % ParameterStore::kAlignment, 0) << parameter->name;
  }
  EXPECT_EQ(values_of(stacked.value), std::vector<double>(30, 2));
  EXPECT_EQ(find(store, "up").value.raw(), stacked.value.data<float>() + 15);
}

TEST(ParameterStore, ContractsAreChecked) {
  ParameterStore store;
  store.add("model.norm.weight", {2}, Initializer::constant(1));
  EXPECT_NE(test::error_of([&] {
              store.add("model.norm.weight", {3}, Initializer::constant(1));
            }).find("two parameters are called model.norm.weight"),
            std::string::npos);
  EXPECT_EQ(store.num_elements(), 2);
  EXPECT_NE(test::error_of([&] { store.allocate(DType::kBF16); }).find("F32 or F64, not BF16"),
            std::string::npos);
  store.allocate(DType::kF64);
  EXPECT_NE(test::error_of([&] {
              store.add("late", {3}, Initializer::constant(1));
            }).find("late is added after allocation"),
            std::string::npos);
  EXPECT_NE(test::error_of([&] { store.bind_gradients(Tensor::zeros({3}, DType::kF64)); }), "");
  EXPECT_NE(test::error_of([&] {
              store.bind_gradients(Tensor::zeros({2}, DType::kF32));
            }).find("gradients of F32 for parameters of F64"),
            std::string::npos);
}

}  // namespace
}  // namespace ttt
