#include "kernels/linear_attention.h"

#include <gmock/gmock.h>
#include <omp.h>

#include "kernels/reference/linear_attention.h"
#include "tests/support/complex_step.h"
#include "tests/support/kernel_check.h"
#include "tests/support/tensors.h"

namespace ttt::kernels {
namespace {

using reference::LinearAttentionSizes;
using test::error_of;
using test::expect_close;
using test::expect_gradient;
using test::random_values;
using test::tensor_of;
using test::unset;
using test::values_of;
using Complex = std::complex<double>;
using Values = std::vector<double>;

constexpr LinearAttentionOptions kPlain{FeatureMap::kIdentity, false};
constexpr LinearAttentionOptions kElu{FeatureMap::kEluPlusOne, false};
constexpr LinearAttentionOptions kEluNormalized{FeatureMap::kEluPlusOne, true};

struct Result {
  Values out, d_q, d_k, d_v, kv, k_sum;
};

struct Case {
  LinearAttentionSizes n;
  LinearAttentionOptions options;
  Values q, k, v, d_out;

  Case(const LinearAttentionSizes& sizes, const LinearAttentionOptions& opts)
      : n(sizes),
        options(opts),
        q(random_values("q", shape().numel())),
        k(random_values("k", shape().numel())),
        v(random_values("v", shape().numel())),
        d_out(random_values("d_out", shape().numel())) {}

  [[nodiscard]] Shape shape() const { return {n.batch, n.tokens, n.heads, n.dim}; }

  [[nodiscard]] Result reference() const {
    Result r{Values(q.size()), Values(q.size()), Values(q.size()), Values(q.size()), {}, {}};
    reference::linear_attention_forward(q.data(), k.data(), v.data(), r.out.data(), n, options);
    reference::linear_attention_backward(q.data(), k.data(), v.data(), d_out.data(), r.d_q.data(),
                                         r.d_k.data(), r.d_v.data(), n, options);
    return r;
  }

  // As a kernel sees activations of this type.
  [[nodiscard]] Case rounded(DType dtype) const {
    Case c = *this;
    for (Values* values : {&c.q, &c.k, &c.v, &c.d_out}) {
      *values = values_of(tensor_of(*values, shape(), dtype));
    }
    return c;
  }

  [[nodiscard]] Result run(DType dtype) const {
    Stream stream = test::stream();
    const DType state = dtype == DType::kBF16 ? DType::kF32 : dtype;
    const Tensor tq = tensor_of(q, shape(), dtype);
    const Tensor tk = tensor_of(k, shape(), dtype);
    const Tensor tv = tensor_of(v, shape(), dtype);
    const Tensor out = unset(shape(), dtype);
    const Tensor d_q = unset(shape(), dtype);
    const Tensor d_k = unset(shape(), dtype);
    const Tensor d_v = unset(shape(), dtype);
    const Tensor kv = unset({n.batch, n.heads, n.dim, n.dim}, state);
    const Tensor k_sum = unset({n.batch, n.heads, n.dim}, state);
    linear_attention_forward(tq, tk, tv, out, {}, {kv, k_sum}, options, stream);
    linear_attention_backward(tq, tk, tv, {}, tensor_of(d_out, shape(), dtype), {}, d_q, d_k, d_v,
                              {}, options, stream);
    stream.synchronize();
    return {values_of(out), values_of(d_q), values_of(d_k),
            values_of(d_v), values_of(kv),  values_of(k_sum)};
  }
};

void expect_result(const Result& actual, const Result& expected, double tolerance) {
  expect_close("out", actual.out, expected.out, tolerance);
  expect_close("d_q", actual.d_q, expected.d_q, tolerance);
  expect_close("d_k", actual.d_k, expected.d_k, tolerance);
  expect_close("d_v", actual.d_v, expected.d_v, tolerance);
}

class LinearAttention
    : public testing::TestWithParam<std::tuple<LinearAttentionSizes, LinearAttentionOptions>> {
 protected:
  [[nodiscard]] static Case subject() { return {std::get<0>(GetParam()), std::get<1>(GetParam())}; }
};

TEST_P(LinearAttention, DoubleEqualsQuadraticReference) {
  const Case c = subject();
  expect_result(c.run(DType::kF64), c.reference(), 1e-12);
}

TEST_P(LinearAttention, FloatEqualsQuadraticReference) {
  const Case c = subject();
  // Rounding of sums over up to 257 tokens and F channels; the largest entry, which sets the scale, has few of them
  // cancelled.
  expect_result(c.run(DType::kF32), c.reference(), 1e-5);
}

#ifdef TTT_TEST_CUDA
TEST_P(LinearAttention, BFloat16EqualsQuadraticReference) {
  const Case c = subject().rounded(DType::kBF16);
  // Arithmetic in fp32; the results are rounded once.
  expect_result(c.run(DType::kBF16), c.reference(), 4e-3);
}
#endif

TEST_P(LinearAttention, BitsDoNotDependOnTheNumberOfThreads) {
  const Case c = subject();
  const int threads = omp_get_max_threads();
  omp_set_num_threads(1);
  const Result one = c.run(DType::kF32);
  for (const int count : {2, 3}) {
    omp_set_num_threads(count);
    const Result many = c.run(DType::kF32);
    EXPECT_EQ(one.out, many.out);
    EXPECT_EQ(one.d_q, many.d_q);
    EXPECT_EQ(one.d_k, many.d_k);
    EXPECT_EQ(one.d_v, many.d_v);
  }
  omp_set_num_threads(threads);
}

std::string name_of_case(
    const testing::TestParamInfo<std::tuple<LinearAttentionSizes, LinearAttentionOptions>>& param) {
  const LinearAttentionSizes& n = std::get<0>(param.param);
  const LinearAttentionOptions& options = std::get<1>(param.param);
  return fmt::format("B{}T{}H{}F{}{}{}", n.batch, n.tokens, n.heads, n.dim,
                     options.feature_map == FeatureMap::kIdentity ? "Identity" : "Elu",
                     options.normalize ? "Normalized" : "");
}

INSTANTIATE_TEST_SUITE_P(Sizes, LinearAttention,
                         testing::Combine(testing::Values(LinearAttentionSizes{1, 1, 1, 1},
                                                          LinearAttentionSizes{2, 7, 3, 5},
                                                          LinearAttentionSizes{1, 64, 2, 16},
                                                          LinearAttentionSizes{2, 65, 2, 9},
                                                          LinearAttentionSizes{1, 257, 2, 8},
                                                          LinearAttentionSizes{1, 70, 1, 64},
                                                          LinearAttentionSizes{1, 35, 1, 130},
                                                          LinearAttentionSizes{1, 18, 1, 180}),
                                          testing::Values(kPlain, kElu, kEluNormalized)),
                         name_of_case);

class LinearAttentionReference : public testing::TestWithParam<LinearAttentionOptions> {};

TEST_P(LinearAttentionReference, GradientsMatchComplexStep) {
  const Case c({2, 4, 2, 3}, GetParam());
  const Result r = c.reference();
  const std::vector<Complex> q(c.q.begin(), c.q.end());
  const std::vector<Complex> k(c.k.begin(), c.k.end());
  const std::vector<Complex> v(c.v.begin(), c.v.end());
  const auto loss = [&](const auto& q_point, const auto& k_point, const auto& v_point) {
    std::vector<Complex> out(c.q.size());
    reference::linear_attention_forward(q_point.data(), k_point.data(), v_point.data(), out.data(),
                                        c.n, c.options);
    Complex sum{};
    for (std::size_t i = 0; i < out.size(); ++i) sum += out[i] * c.d_out[i];
    return sum;
  };
  expect_gradient("d_q", r.d_q, c.q, [&](const auto& point) { return loss(point, k, v); });
  expect_gradient("d_k", r.d_k, c.k, [&](const auto& point) { return loss(q, point, v); });
  expect_gradient("d_v", r.d_v, c.v, [&](const auto& point) { return loss(q, k, point); });
}

INSTANTIATE_TEST_SUITE_P(Options, LinearAttentionReference,
                         testing::Values(kPlain, kElu, kEluNormalized));

// A piece longer than a chunk, an odd one, and single tokens, each from the state that the one before left; then
// backward from the last piece to the first, each with the gradient of the state that it left.
void expect_split_equals_one_call(DType dtype, const LinearAttentionOptions& options,
                                  double tolerance) {
  const std::vector<std::int64_t> bounds{0, 70, 93, 94, 95};
  const std::int64_t tokens = bounds.back();
  const Case whole = Case({1, tokens, 2, 4}, options).rounded(dtype);
  const Result expected = whole.run(dtype);
  const Result reference = whole.reference();
  Stream stream = test::stream();
  const Shape shape{tokens, 2, 4};
  const DType wide = dtype == DType::kBF16 ? DType::kF32 : dtype;
  const Tensor q = tensor_of(whole.q, shape, dtype);
  const Tensor k = tensor_of(whole.k, shape, dtype);
  const Tensor v = tensor_of(whole.v, shape, dtype);
  const Tensor d_out = tensor_of(whole.d_out, shape, dtype);
  const Tensor out = unset(shape, dtype);
  const Tensor d_q = unset(shape, dtype);
  const Tensor d_k = unset(shape, dtype);
  const Tensor d_v = unset(shape, dtype);
  const auto piece = [&](const Tensor& tensor, std::size_t i) {
    return tensor.view()
        .slice(bounds[i], bounds[i + 1])
        .reshape({1, bounds[i + 1] - bounds[i], 2, 4});
  };
  struct State {
    Tensor kv, k_sum;
    explicit State(DType type)
        : kv(Tensor::zeros({1, 2, 4, 4}, type)), k_sum(Tensor::zeros({1, 2, 4}, type)) {}
    [[nodiscard]] LinearAttentionState views() const { return {kv, k_sum}; }
  };
  std::vector<State> states;
  states.emplace_back(wide);
  for (std::size_t i = 0; i + 1 < bounds.size(); ++i) {
    states.emplace_back(wide);
    linear_attention_forward(piece(q, i), piece(k, i), piece(v, i), piece(out, i),
                             states[i].views(), states[i + 1].views(), options, stream);
  }
  const State d_state(wide);  // updated in place
  for (std::size_t i = bounds.size() - 1; i-- > 0;) {
    linear_attention_backward(piece(q, i), piece(k, i), piece(v, i), states[i].views(),
                              piece(d_out, i), d_state.views(), piece(d_q, i), piece(d_k, i),
                              piece(d_v, i), d_state.views(), options, stream);
  }
  stream.synchronize();
  expect_close("kv", values_of(states.back().kv), expected.kv, tolerance);
  expect_close("k_sum", values_of(states.back().k_sum), expected.k_sum, tolerance);
  expect_result({values_of(out), values_of(d_q), values_of(d_k), values_of(d_v), {}, {}}, reference,
                tolerance);
}

void expect_split_equals_one_call(DType dtype, double tolerance) {
  for (const LinearAttentionOptions& options : {kPlain, kElu, kEluNormalized}) {
    expect_split_equals_one_call(dtype, options, tolerance);
  }
}

TEST(LinearAttentionState, CarriedOverASplitEqualsOneCall) {
  expect_split_equals_one_call(DType::kF64, 1e-12);
}

// Sums of 95 terms in another order.
TEST(LinearAttentionState, FloatCarriedOverASplitEqualsOneCall) {
  expect_split_equals_one_call(DType::kF32, 1e-5);
}

#ifdef TTT_TEST_CUDA
// The state is fp32; only the output is rounded.
TEST(LinearAttentionState, BFloat16CarriedOverASplitEqualsOneCall) {
  expect_split_equals_one_call(DType::kBF16, 4e-3);
}

TEST(CudaLinearAttention, HeadDimBeyondSharedMemoryIsNamed) {
  EXPECT_THAT(error_of([] {
                return Case({1, 2, 1, 300}, kPlain).run(DType::kF32);
              }),
              testing::HasSubstr("linear attention with head dim 300 keeps"));
}
#endif

void expect_sum_over_tokens(DType dtype, double tolerance) {
  const Case c({1, 70, 1, 2}, kPlain);
  Values kv(4);
  Values k_sum(2);
  for (std::size_t t = 0; t < 70; ++t) {
    for (std::size_t i = 0; i < 2; ++i) {
      k_sum[i] += c.k[t * 2 + i];
      for (std::size_t j = 0; j < 2; ++j) kv[i * 2 + j] += c.k[t * 2 + i] * c.v[t * 2 + j];
    }
  }
  const Result r = c.run(dtype);
  expect_close("kv", r.kv, kv, tolerance);
  expect_close("k_sum", r.k_sum, k_sum, tolerance);
}

TEST(LinearAttentionState, IsTheSumOverTokens) { expect_sum_over_tokens(DType::kF64, 1e-13); }
TEST(LinearAttentionState, FloatIsTheSumOverTokens) { expect_sum_over_tokens(DType::kF32, 1e-6); }

TEST(LinearAttentionTheory, NormalizerMakesAnAverage) {
  Case c({1, 130, 1, 4}, kEluNormalized);
  std::ranges::fill(c.v, 3.0);
  EXPECT_THAT(c.run(DType::kF64).out, testing::Each(testing::DoubleNear(3.0, 1e-12)));
}

TEST(LinearAttentionContract, WrongStateShapeIsNamed) {
  Stream stream;
  const Tensor x = Tensor::zeros({1, 2, 2, 4}, DType::kF32);
  const Tensor out({1, 2, 2, 4}, DType::kF32);
  const Tensor kv({1, 2, 4, 3}, DType::kF32);
  EXPECT_THAT(error_of([&] {
                linear_attention_forward(x, x, x, out, {}, {kv, {}}, kPlain, stream);
              }),
              testing::HasSubstr("final_state.kv has shape [1, 2, 4, 3], expected [1, 2, 4, 4]"));
}

}  // namespace
}  // namespace ttt::kernels
