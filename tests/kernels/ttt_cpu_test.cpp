// The CPU TTT kernels against the reference, and what must hold bit by bit.

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <omp.h>

#include "kernels/ttt.h"
#include "tests/kernels/ttt_call.h"
#include "tests/kernels/ttt_cases.h"

namespace ttt::test {
namespace {

namespace ref = kernels::reference;

class TttCpu : public testing::TestWithParam<TttCase> {};

TEST_P(TttCpu, DoubleEqualsReference) {
  const TttCase& c = GetParam();
  const TttTensors<double> x = make_tensors(c);
  const TttLoss loss = make_loss(c);
  expect_all_close(call_forward<double>(c, x), ref::ttt_forward(c.sizes, c.options, x), 1e-12);
  expect_all_close(call_backward<double>(c, x, loss),
                   ref::ttt_backward(c.sizes, c.options, x, loss.d_out, loss.d_final), 1e-12);
}

// Sums of up to a few hundred terms of order one in fp32 (6e-8 a rounding) leave about 1e-6; the backward's chain over
// mini-batches and the division by the standard deviation cost another digit.
TEST_P(TttCpu, FloatIsCloseToReference) {
  const TttCase& c = GetParam();
  const TttTensors<double> x = make_tensors(c);
  const TttLoss loss = make_loss(c);
  expect_all_close(call_forward<float>(c, x), ref::ttt_forward(c.sizes, c.options, x), 1e-5);
  expect_all_close(call_backward<float>(c, x, loss),
                   ref::ttt_backward(c.sizes, c.options, x, loss.d_out, loss.d_final), 1e-4);
}

std::vector<TttCase> cases() {
  std::vector<TttCase> result;
  for (const InnerModel model : {InnerModel::kLinear, InnerModel::kMlp}) {
    for (const std::int64_t features : {1, 3, 8, 24, 32, 64, 96}) {
      result.push_back(make_case(model, 37, 16, features, 2 * features + 3));
    }
    for (const std::int64_t tokens : {1, 15, 16, 17}) {
      result.push_back(make_case(model, tokens, 16, 20, 40));
    }
    result.push_back(make_case(model, 13, 1, 5, 7));
    result.push_back(make_case(model, 40, 64, 5, 19));
    result.push_back(make_case(model, 70, 33, 18, 17));
    TttCase groups = make_case(model, 151, 4, 6, 9);  // 38 mini-batches: several groups
    groups.sizes.batch = 2;
    groups.sizes.heads = 3;
    groups.name += "Groups";
    result.push_back(groups);
    for (const bool inner_norm : {false, true}) {
      TttCase plain = make_case(model, 23, 8, 9, 11);
      plain.options.inner_norm = inner_norm;
      plain.options.bias = !inner_norm;
      plain.name += inner_norm ? "NoBias" : "NoNorm";
      result.push_back(plain);
    }
  }
  return result;
}

INSTANTIATE_TEST_SUITE_P(Cases, TttCpu, testing::ValuesIn(cases()),
                         [](const auto& tested) { return tested.param.name; });

template <template <typename> typename Set, typename T>
void expect_same_bits(Set<T> a, Set<T> b) {
  const auto first = members(a);
  const auto second = members(b);
  for (std::size_t i = 0; i < first.size(); ++i) {
    EXPECT_EQ(*first[i].second, *second[i].second) << first[i].first;
  }
}

TttCase parallel_case(InnerModel model) {
  TttCase c = make_case(model, 70, 8, 12, 20);
  c.sizes.batch = 3;
  return c;
}

TEST(TttCpuBits, DoNotDependOnTheThreadCount) {
  const int before = omp_get_max_threads();
  for (const InnerModel model : {InnerModel::kLinear, InnerModel::kMlp}) {
    const TttCase c = parallel_case(model);
    const TttTensors<double> x = make_tensors(c);
    const TttLoss loss = make_loss(c);
    omp_set_num_threads(1);
    const TttOutputs<float> y = call_forward<float>(c, x);
    const TttTensors<float> d = call_backward<float>(c, x, loss);
    for (const int threads : {1, 2, 3}) {
      omp_set_num_threads(threads);
      expect_same_bits(y, call_forward<float>(c, x));
      expect_same_bits(d, call_backward<float>(c, x, loss));
    }
  }
  omp_set_num_threads(before);
}

TEST(TttCpuBits, SequencesOfABatchDoNotInteract) {
  for (const InnerModel model : {InnerModel::kLinear, InnerModel::kMlp}) {
    const TttCase c = parallel_case(model);
    TttTensors<double> x = make_tensors(c);
    const std::vector<float> before = call_forward<float>(c, x).out;
    const auto sequence = static_cast<std::ptrdiff_t>(before.size() / 3);
    for (auto* changed : {&x.q, &x.k, &x.v}) {
      for (std::ptrdiff_t i = sequence; i < 2 * sequence; ++i) (*changed)[i] += 1;
    }
    const std::vector<float> after = call_forward<float>(c, x).out;
    EXPECT_TRUE(std::equal(before.begin(), before.begin() + sequence, after.begin()));
    EXPECT_TRUE(
        std::equal(before.begin() + 2 * sequence, before.end(), after.begin() + 2 * sequence));
    EXPECT_NE(before[sequence], after[sequence]);
  }
}

TEST(TttCpuBits, LaterTokensDoNotChangeEarlierOutputs) {
  for (const InnerModel model : {InnerModel::kLinear, InnerModel::kMlp}) {
    const TttCase c = make_case(model, 21, 8, 12, 20);
    TttTensors<double> x = make_tensors(c);
    const std::vector<float> before = call_forward<float>(c, x).out;
    const std::ptrdiff_t first = 13 * 2 * 12;
    for (auto* changed : {&x.q, &x.k, &x.v}) {
      for (auto i = first; i < 21 * 2 * 12; ++i) (*changed)[i] += 1;
    }
    const std::vector<float> after = call_forward<float>(c, x).out;
    EXPECT_TRUE(std::equal(before.begin(), before.begin() + first, after.begin()));
  }
}

/// Tokens [begin, end) of a case of one sequence.
TttTensors<double> tokens_of(const TttCase& c, const TttTensors<double>& x, std::int64_t begin,
                             std::int64_t end) {
  TttTensors<double> part = x;
  const std::int64_t row = c.sizes.heads * c.sizes.features;
  const auto cut = [&](std::vector<double>& values, std::int64_t width) {
    values = {values.begin() + begin * width, values.begin() + end * width};
  };
  for (auto* values : {&part.q, &part.k, &part.v}) cut(*values, row);
  cut(part.token_lr, c.sizes.heads);
  return part;
}

template <typename T>
void append(std::vector<T>& to, const std::vector<T>& from) {
  to.insert(to.end(), from.begin(), from.end());
}

TEST(TttCpuLaws, SequenceSplitAtAMiniBatchBoundaryIsOnePass) {
  for (const InnerModel model : {InnerModel::kLinear, InnerModel::kMlp}) {
    const TttCase whole = make_case(model, 29, 4, 6, 9);
    const TttTensors<double> x = make_tensors(whole);
    const TttLoss loss = make_loss(whole);
    const std::int64_t middle = 12;
    TttCase head = whole;
    head.sizes.tokens = middle;
    TttCase tail = whole;
    tail.sizes.tokens = 29 - middle;

    const TttTensors<double> head_x = tokens_of(whole, x, 0, middle);
    TttTensors<double> tail_x = tokens_of(whole, x, middle, 29);
    TttOutputs<double> joined = call_forward<double>(head, head_x);
    tail_x.initial = joined.final_state;
    const TttOutputs<double> tail_y = call_forward<double>(tail, tail_x);
    append(joined.out, tail_y.out);
    joined.final_state = tail_y.final_state;
    expect_all_close(joined, call_forward<double>(whole, x), 1e-13);

    const std::int64_t cut = middle * whole.sizes.heads * whole.sizes.features;
    const TttLoss tail_loss = {{loss.d_out.begin() + cut, loss.d_out.end()}, loss.d_final};
    const TttTensors<double> tail_d = call_backward<double>(tail, tail_x, tail_loss);
    const TttLoss head_loss = {{loss.d_out.begin(), loss.d_out.begin() + cut}, tail_d.initial};
    TttTensors<double> d = call_backward<double>(head, head_x, head_loss);
    append(d.q, tail_d.q);
    append(d.k, tail_d.k);
    append(d.v, tail_d.v);
    append(d.token_lr, tail_d.token_lr);
    for (auto [to, from] : {std::pair{&d.token_scale, &tail_d.token_scale},
                            std::pair{&d.norm_weight, &tail_d.norm_weight},
                            std::pair{&d.norm_bias, &tail_d.norm_bias}}) {
      for (std::size_t i = 0; i < to->size(); ++i) (*to)[i] += (*from)[i];
    }
    expect_all_close(d, call_backward<double>(whole, x, loss), 1e-12);
  }
}

TEST(TttCpuLaws, EmptyFinalGradientIsZero) {
  for (const InnerModel model : {InnerModel::kLinear, InnerModel::kMlp}) {
    const TttCase c = make_case(model, 11, 4, 6, 9);
    const TttTensors<double> x = make_tensors(c);
    TttLoss loss = make_loss(c);
    loss.d_final = zeros_like(loss.d_final);
    const TttTensors<double> zero = call_backward<double>(c, x, loss);
    loss.d_final = {};
    expect_same_bits(zero, call_backward<double>(c, x, loss));
  }
}

TEST(TttCpuLaws, CheckpointsStaySmall) {
  const TttCase c = make_case(InnerModel::kLinear, 256, 2, 4, 0);
  kernels::TttSaved saved;
  call_forward<float>(c, make_tensors(c), &saved);
  EXPECT_GT(saved.checkpoints.size(2), 1);
  EXPECT_LE(saved.checkpoints.size(2), 6);  // 128 mini-batches in groups of 2 sqrt(128)
}

}  // namespace
}  // namespace ttt::test
