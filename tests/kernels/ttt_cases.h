#pragma once
// Inputs of the TTT kernel tests: sizes, options and random tensors of sensible scale.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "kernels/reference/ttt.h"
#include "tests/support/complex_step.h"

namespace ttt::test {

using kernels::InnerModel;
using kernels::TttOptions;
using kernels::reference::TttOutputs;
using kernels::reference::TttSizes;
using kernels::reference::TttTensors;
using kernels::reference::TttWeights;

struct TttCase {
  std::string name;
  TttSizes sizes;
  TttOptions options;
};

inline std::vector<double> scaled_values(const std::string& name, std::int64_t count, double scale,
                                         double offset = 0) {
  std::vector<double> values = random_values(name, count);
  for (double& value : values) value = offset + scale * value;
  return values;
}

inline TttWeights<double> make_weights(const TttCase& c, const std::string& name, double scale) {
  const std::int64_t pairs = c.sizes.batch * c.sizes.heads;
  const std::int64_t features = c.sizes.features;
  const bool mlp = c.options.model == InnerModel::kMlp;
  const std::int64_t width = mlp ? c.sizes.hidden : features;
  const auto unit = [](std::int64_t n) { return 1 / std::sqrt(static_cast<double>(n)); };
  TttWeights<double> weights;
  weights.w1 = scaled_values(name + ".w1", pairs * features * width, scale * unit(features));
  if (c.options.bias) weights.b1 = scaled_values(name + ".b1", pairs * width, 0.3 * scale);
  if (mlp) {
    weights.w2 = scaled_values(name + ".w2", pairs * width * features, scale * unit(width));
    if (c.options.bias) weights.b2 = scaled_values(name + ".b2", pairs * features, 0.3 * scale);
  }
  return weights;
}

inline TttTensors<double> make_tensors(const TttCase& c) {
  const std::int64_t tokens = c.sizes.batch * c.sizes.tokens * c.sizes.heads;
  const std::int64_t features = c.sizes.features;
  TttTensors<double> x;
  x.q = scaled_values("q", tokens * features, 1);
  x.k = scaled_values("k", tokens * features, 0.7);
  x.v = scaled_values("v", tokens * features, 1);
  x.token_lr = random_values("token_lr", tokens);
  for (double& value : x.token_lr) {
    value = 1 / (1 + std::exp(-value)) / static_cast<double>(features);
  }
  x.token_scale = scaled_values("token_scale", c.options.mini_batch_size, 0.05);
  for (std::size_t i = 0; i < x.token_scale.size(); ++i) {
    x.token_scale[i] = std::abs(x.token_scale[i] + 1 / static_cast<double>(i + 1));
  }
  if (c.options.inner_norm) {
    x.norm_weight = scaled_values("norm_weight", c.sizes.heads * features, 0.3, 1);
    x.norm_bias = scaled_values("norm_bias", c.sizes.heads * features, 0.3);
  }
  x.initial = make_weights(c, "initial", 1);
  return x;
}

/// Weights of the random linear loss sum(out * d_out) + sum(final * d_final).
struct TttLoss {
  std::vector<double> d_out;
  TttWeights<double> d_final;
};

inline TttLoss make_loss(const TttCase& c) {
  const auto count = c.sizes.batch * c.sizes.tokens * c.sizes.heads * c.sizes.features;
  return {random_values("d_out", count), make_weights(c, "d_final", 1)};
}

template <typename T>
T dot(const std::vector<T>& a, const std::vector<double>& b) {
  T sum{};
  for (std::size_t i = 0; i < b.size(); ++i) sum += a[i] * b[i];
  return sum;
}

template <typename T>
T loss_value(const TttOutputs<T>& outputs, const TttLoss& loss) {
  return dot(outputs.out, loss.d_out) + dot(outputs.final_state.w1, loss.d_final.w1) +
         dot(outputs.final_state.b1, loss.d_final.b1) +
         dot(outputs.final_state.w2, loss.d_final.w2) +
         dot(outputs.final_state.b2, loss.d_final.b2);
}

/// Every vector of `x` with its name.
template <typename T>
std::vector<std::pair<std::string, std::vector<T>*>> members(TttTensors<T>& x) {
  return {{"q", &x.q},
          {"k", &x.k},
          {"v", &x.v},
          {"token_lr", &x.token_lr},
          {"token_scale", &x.token_scale},
          {"norm_weight", &x.norm_weight},
          {"norm_bias", &x.norm_bias},
          {"w1", &x.initial.w1},
          {"b1", &x.initial.b1},
          {"w2", &x.initial.w2},
          {"b2", &x.initial.b2}};
}

template <typename T>
std::vector<std::pair<std::string, std::vector<T>*>> members(TttOutputs<T>& x) {
  return {{"out", &x.out},
          {"final w1", &x.final_state.w1},
          {"final b1", &x.final_state.b1},
          {"final w2", &x.final_state.w2},
          {"final b2", &x.final_state.b2}};
}

/// Compares all members of two TttTensors or TttOutputs.
template <template <typename> typename Set, typename Actual, typename Expected>
void expect_all_close(Set<Actual> actual, Set<Expected> expected, double tolerance) {
  const auto actual_members = members(actual);
  const auto expected_members = members(expected);
  for (std::size_t i = 0; i < expected_members.size(); ++i) {
    expect_close(expected_members[i].first, *actual_members[i].second, *expected_members[i].second,
                 tolerance);
  }
}

inline TttCase make_case(InnerModel model, std::int64_t tokens, std::int64_t mini_batch_size,
                         std::int64_t features, std::int64_t hidden) {
  TttCase c;
  c.options.model = model;
  c.options.mini_batch_size = mini_batch_size;
  c.sizes = {1, tokens, 2, features, hidden};
  c.name = std::string(model == InnerModel::kMlp ? "Mlp" : "Linear") + "T" +
           std::to_string(tokens) + "K" + std::to_string(mini_batch_size) + "F" +
           std::to_string(features) + "D" + std::to_string(hidden);
  return c;
}

}  // namespace ttt::test
