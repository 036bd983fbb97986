#include "kernels/attention.h"

#include <gmock/gmock.h>
#include <omp.h>

#include <numeric>

#include "kernels/reference/attention.h"
#include "tests/support/complex_step.h"
#include "tests/support/kernel_check.h"
#include "tests/support/tensors.h"

namespace ttt::kernels {
namespace {

using reference::AttentionSizes;
using test::error_of;
using test::expect_close;
using test::expect_gradient;
using test::random_values;
using test::tensor_of;
using test::unset;
using test::values_of;
using Complex = std::complex<double>;
using Values = std::vector<double>;

struct Result {
  Values out, lse, d_q, d_k, d_v;
};

struct Case {
  AttentionSizes n;
  double scale;
  Values q, k, v, d_out;

  explicit Case(const AttentionSizes& sizes)
      : n(sizes),
        scale(1 / std::sqrt(static_cast<double>(sizes.dim))),
        q(random_values("q", q_shape().numel())),
        k(random_values("k", k_shape().numel())),
        v(random_values("v", k_shape().numel())),
        d_out(random_values("d_out", q_shape().numel())) {}

  [[nodiscard]] Shape q_shape() const { return {n.batch, n.queries, n.heads, n.dim}; }
  [[nodiscard]] Shape k_shape() const { return {n.batch, n.keys, n.key_heads, n.dim}; }
  [[nodiscard]] Shape lse_shape() const { return {n.batch, n.heads, n.queries}; }

  [[nodiscard]] Result reference() const {
    Result r{Values(q.size()), Values(lse_shape().numel()), Values(q.size()), Values(k.size()),
             Values(k.size())};
    reference::attention_forward(q.data(), k.data(), v.data(), r.out.data(), r.lse.data(), n,
                                 scale);
    reference::attention_backward(q.data(), k.data(), v.data(), d_out.data(), r.d_q.data(),
                                  r.d_k.data(), r.d_v.data(), n, scale);
    return r;
  }

  // As a kernel sees activations of this type.
  [[nodiscard]] Case rounded(DType dtype) const {
    Case c = *this;
    for (Values* values : {&c.q, &c.k, &c.v, &c.d_out}) {
      *values = values_of(tensor_of(*values, {static_cast<std::int64_t>(values->size())}, dtype));
    }
    return c;
  }

  // Gradients only where there are as many queries as keys.
  [[nodiscard]] Result run(DType dtype) const {
    Stream stream = test::stream();
    const Tensor tq = tensor_of(q, q_shape(), dtype);
    const Tensor tk = tensor_of(k, k_shape(), dtype);
    const Tensor tv = tensor_of(v, k_shape(), dtype);
    const Tensor out = unset(q_shape(), dtype);
    const std::int64_t count = lse_shape().numel();
    const Tensor memory = unset({count + 64}, dtype == DType::kBF16 ? DType::kF32 : dtype);
    const TensorView lse = memory.view().slice(0, count).reshape(lse_shape());
    const Tensor d_q = unset(q_shape(), dtype);
    const Tensor d_k = unset(k_shape(), dtype);
    const Tensor d_v = unset(k_shape(), dtype);
    attention_forward(tq, tk, tv, out, lse, scale, stream);
    if (n.queries == n.keys) {
      attention_backward(tq, tk, tv, out, lse, tensor_of(d_out, q_shape(), dtype), d_q, d_k, d_v,
                         scale, stream);
    }
    stream.synchronize();
    EXPECT_THAT(values_of(memory.view().slice(count, count + 64)), testing::Each(testing::IsNan()));
    return {values_of(out), values_of(lse), values_of(d_q), values_of(d_k), values_of(d_v)};
  }
};

void expect_result(const Result& actual, const Result& expected, const AttentionSizes& n,
                   double tolerance, double gradient_tolerance, double lse_tolerance) {
  expect_close("out", actual.out, expected.out, tolerance);
  expect_close("lse", actual.lse, expected.lse, lse_tolerance);
  if (n.queries != n.keys) return;
  expect_close("d_q", actual.d_q, expected.d_q, gradient_tolerance);
  expect_close("d_k", actual.d_k, expected.d_k, gradient_tolerance);
  expect_close("d_v", actual.d_v, expected.d_v, gradient_tolerance);
}
void expect_result(const Result& actual, const Result& expected, const AttentionSizes& n,
                   double tolerance) {
  expect_result(actual, expected, n, tolerance, tolerance, tolerance);
}

class Attention : public testing::TestWithParam<AttentionSizes> {};

TEST_P(Attention, DoubleEqualsReference) {
  const Case c(GetParam());
  expect_result(c.run(DType::kF64), c.reference(), c.n, 1e-12);
}

TEST_P(Attention, FloatEqualsReference) {
  const Case c(GetParam());
  // Scores of a few units with the rounding of fp32, exponentiated; gradients add the cancellation in d_p - delta.
  expect_result(c.run(DType::kF32), c.reference(), c.n, 5e-6);
}

TEST_P(Attention, BitsDoNotDependOnTheNumberOfThreads) {
  const Case c(GetParam());
  const int threads = omp_get_max_threads();
  omp_set_num_threads(1);
  const Result one = c.run(DType::kF32);
  for (const int count : {2, 3}) {
    omp_set_num_threads(count);
    const Result many = c.run(DType::kF32);
    EXPECT_EQ(one.out, many.out);
    EXPECT_EQ(one.lse, many.lse);
    if (c.n.queries != c.n.keys) continue;  // gradients are NaN, which is equal to nothing
    EXPECT_EQ(one.d_q, many.d_q);
    EXPECT_EQ(one.d_k, many.d_k);
    EXPECT_EQ(one.d_v, many.d_v);
  }
  omp_set_num_threads(threads);
}

std::string name_of_sizes(const testing::TestParamInfo<AttentionSizes>& test_info) {
  const AttentionSizes& n = test_info.param;
  return fmt::format("B{}T{}S{}H{}G{}F{}", n.batch, n.queries, n.keys, n.heads, n.key_heads, n.dim);
}

INSTANTIATE_TEST_SUITE_P(
    Sizes, Attention,
    testing::Values(AttentionSizes{1, 1, 1, 1, 1, 1}, AttentionSizes{2, 7, 7, 3, 1, 5},
                    AttentionSizes{1, 64, 64, 6, 2, 16}, AttentionSizes{2, 65, 65, 2, 2, 9},
                    AttentionSizes{1, 257, 257, 4, 4, 8}, AttentionSizes{1, 257, 257, 4, 1, 3},
                    AttentionSizes{2, 1, 65, 6, 3, 16}, AttentionSizes{1, 7, 257, 2, 1, 8},
                    AttentionSizes{1, 130, 300, 2, 2, 4}, AttentionSizes{1, 33, 33, 2, 1, 129},
                    AttentionSizes{1, 17, 17, 1, 1, 416}),
    name_of_sizes);

#ifdef TTT_TEST_CUDA
class AttentionBFloat16 : public testing::TestWithParam<AttentionSizes> {};

TEST_P(AttentionBFloat16, EqualsReference) {
  const Case c = Case(GetParam()).rounded(DType::kBF16);
  // Scores, softmax and sums are fp32, so that lse keeps its accuracy. The output is rounded once, 2^-9 of its size,
  // and on tensor cores so are the probabilities; gradients see the rounded output in delta, and d_scores rounded.
  expect_result(c.run(DType::kBF16), c.reference(), c.n, 6e-3, 1e-2, 5e-6);
}

// Head dims with tensor cores and without; 7 and 130 queries begin where a tile's mask and last key do.
INSTANTIATE_TEST_SUITE_P(
    Sizes, AttentionBFloat16,
    testing::Values(AttentionSizes{1, 1, 1, 1, 1, 64}, AttentionSizes{2, 7, 7, 3, 1, 5},
                    AttentionSizes{1, 65, 65, 2, 1, 40}, AttentionSizes{1, 64, 64, 2, 2, 96},
                    AttentionSizes{2, 131, 131, 2, 2, 96}, AttentionSizes{1, 130, 130, 2, 1, 128},
                    AttentionSizes{1, 257, 257, 4, 2, 64}, AttentionSizes{1, 385, 385, 1, 1, 64},
                    AttentionSizes{1, 193, 193, 3, 1, 128}, AttentionSizes{2, 1, 65, 6, 3, 64},
                    AttentionSizes{1, 7, 261, 2, 1, 128}, AttentionSizes{1, 130, 291, 2, 2, 64},
                    AttentionSizes{1, 20, 70, 1, 1, 24}),
    name_of_sizes);

TEST(CudaAttention, RunsAreBitwiseEqual) {
  for (const DType dtype : {DType::kF32, DType::kBF16}) {
    const Case c({2, 131, 131, 4, 2, 64});
    const Result one = c.run(dtype), two = c.run(dtype);
    EXPECT_EQ(one.out, two.out);
    EXPECT_EQ(one.lse, two.lse);
    EXPECT_EQ(one.d_q, two.d_q);
    EXPECT_EQ(one.d_k, two.d_k);
    EXPECT_EQ(one.d_v, two.d_v);
  }
}

TEST(CudaAttention, AnyScaleIsServed) {
  for (const double scale : {-0.2, 0.0, 1e-3}) {
    Case c({1, 66, 66, 1, 1, 64});
    c.scale = scale;
    c = c.rounded(DType::kBF16);
    expect_result(c.run(DType::kF32), c.reference(), c.n, 5e-6);
    expect_result(c.run(DType::kBF16), c.reference(), c.n, 6e-3, 1e-2, 5e-6);
  }
}

TEST(CudaAttention, LargeBFloat16ScoresDoNotOverflow) {
  Case c = Case({1, 200, 200, 1, 1, 64}).rounded(DType::kBF16);
  for (double& value : c.q) value *= 1024;
  // Scores reach some 3000; their rounding in fp32 is an error of the probabilities where two keys nearly tie.
  expect_close("out", c.run(DType::kBF16).out, c.reference().out, 6e-3);
}

// Tensors that begin at any element: the kernels with copies of 16 bytes do not serve them.
TEST(CudaAttention, UnalignedBFloat16) {
  const Case c = Case({1, 20, 20, 2, 1, 64}).rounded(DType::kBF16);
  Stream stream = test::stream();
  const Tensor memory = unset({20 * 64 * 16 + 8}, DType::kBF16);
  std::int64_t used = 1;
  const auto place = [&](const Shape& shape, const Values& values) {
    const TensorView view = memory.view().slice(used, used + shape.numel()).reshape(shape);
    used += shape.numel();
    if (!values.empty()) copy(tensor_of(values, shape, DType::kBF16), view);
    return view;
  };
  const TensorView q = place(c.q_shape(), c.q), k = place(c.k_shape(), c.k),
                   v = place(c.k_shape(), c.v), d_out = place(c.q_shape(), c.d_out),
                   out = place(c.q_shape(), {}), d_q = place(c.q_shape(), {}),
                   d_k = place(c.k_shape(), {}), d_v = place(c.k_shape(), {});
  const Tensor lse = unset(c.lse_shape(), DType::kF32);
  attention_forward(q, k, v, out, lse, c.scale, stream);
  attention_backward(q, k, v, out, lse, d_out, d_q, d_k, d_v, c.scale, stream);
  stream.synchronize();
  expect_result({values_of(out), values_of(lse), values_of(d_q), values_of(d_k), values_of(d_v)},
                c.reference(), c.n, 6e-3, 1e-2, 5e-6);
}

TEST(CudaAttention, WithoutLse) {
  const Case c = Case({1, 70, 70, 1, 1, 64}).rounded(DType::kBF16);
  for (const DType dtype : {DType::kF32, DType::kBF16}) {
    Stream stream = test::stream();
    const Tensor out = unset(c.q_shape(), dtype);
    attention_forward(tensor_of(c.q, c.q_shape(), dtype), tensor_of(c.k, c.k_shape(), dtype),
                      tensor_of(c.v, c.k_shape(), dtype), out, {}, c.scale, stream);
    stream.synchronize();
    expect_close("out", values_of(out), c.reference().out, 6e-3);
  }
}

TEST(CudaAttention, HeadDimBeyondSharedMemoryIsNamed) {
  const std::string error = error_of([] { return Case({1, 2, 2, 1, 1, 2000}).run(DType::kF32); });
  EXPECT_THAT(error, testing::HasSubstr("attention with head dim 2000 needs"));
}
#endif

TEST(AttentionReference, GradientsMatchComplexStep) {
  const Case c({2, 4, 4, 4, 2, 3});
  const Result r = c.reference();
  const std::vector<Complex> q(c.q.begin(), c.q.end());
  const std::vector<Complex> k(c.k.begin(), c.k.end());
  const std::vector<Complex> v(c.v.begin(), c.v.end());
  const auto loss = [&](const auto& q_point, const auto& k_point, const auto& v_point) {
    std::vector<Complex> out(c.q.size());
    std::vector<Complex> lse(r.lse.size());
    reference::attention_forward(q_point.data(), k_point.data(), v_point.data(), out.data(),
                                 lse.data(), c.n, c.scale);
    Complex sum{};
    for (std::size_t i = 0; i < out.size(); ++i) sum += out[i] * c.d_out[i];
    return sum;
  };
  expect_gradient("d_q", r.d_q, c.q, [&](const auto& point) { return loss(point, k, v); });
  expect_gradient("d_k", r.d_k, c.k, [&](const auto& point) { return loss(q, point, v); });
  expect_gradient("d_v", r.d_v, c.v, [&](const auto& point) { return loss(q, k, point); });
}

// arXiv:2407.04620, theorem 2: the learner f(q) = sum_s kappa(q, k_s) v_s / sum_s kappa(q, k_s) that keeps all past
// (k, v) pairs, with the kernel kappa(q, k) = exp(scale q . k).
TEST(AttentionTheory, EqualsTheNadarayaWatsonLearner) {
  const Case c({1, 9, 9, 1, 1, 4});
  Values expected;
  for (std::size_t t = 0; t < 9; ++t) {
    Values numerator(4);
    double denominator = 0;
    for (std::size_t s = 0; s <= t; ++s) {
      double dot = 0;
      for (std::size_t f = 0; f < 4; ++f) dot += c.q[t * 4 + f] * c.k[s * 4 + f];
      const double kappa = std::exp(c.scale * dot);
      denominator += kappa;
      for (std::size_t f = 0; f < 4; ++f) numerator[f] += kappa * c.v[s * 4 + f];
    }
    for (const double value : numerator) expected.push_back(value / denominator);
  }
  expect_close("out", c.run(DType::kF64).out, expected, 1e-13);
}

TEST(AttentionTheory, OneTokenGivesItsValue) {
  const Case c({3, 1, 1, 2, 2, 5});
  EXPECT_EQ(c.run(DType::kF32).out, values_of(tensor_of(c.v, c.k_shape(), DType::kF32)));
}

TEST(AttentionTheory, AddingAConstantToEveryKeyChangesNothing) {
  Case c({1, 65, 65, 1, 1, 4});
  const Values before = c.run(DType::kF64).out;
  for (std::size_t i = 0; i < c.k.size(); ++i) c.k[i] += 3.0 + static_cast<double>(i % 4);
  expect_close("out", c.run(DType::kF64).out, before, 1e-12);
}

TEST(AttentionDecode, PrefillAndStepsEqualTheFullForward) {
  const Case full({1, 140, 140, 2, 1, 8});
  const Values expected = full.run(DType::kF64).out;
  const auto first = [](const Values& values, std::int64_t begin, std::int64_t end) {
    return Values(values.begin() + begin, values.begin() + end);
  };
  const auto piece = [&](std::int64_t begin, std::int64_t end) {
    Case c({1, end - begin, end, 2, 1, 8});
    c.q = first(full.q, begin * 16, end * 16);
    c.k = first(full.k, 0, end * 8);
    c.v = first(full.v, 0, end * 8);
    return c.run(DType::kF64).out;
  };
  Values actual = piece(0, 126);
  for (std::int64_t t = 126; t < 140; ++t) {
    const Values row = piece(t, t + 1);
    actual.insert(actual.end(), row.begin(), row.end());
  }
  expect_close("out", actual, expected, 1e-13);
}

TEST(AttentionNumerics, LargeScoresDoNotOverflow) {
  Case c({1, 200, 200, 1, 1, 4});
  for (double& value : c.q) value *= 1e3;
  // A rounding of the scores, which reach some 5000, is an error of the probabilities where two keys nearly tie.
  expect_close("out", c.run(DType::kF32).out, c.reference().out, 2e-3);
}

// Golden lines of the transformer specification: fp64, one head of 4, positions 0..4, base 1e4.
Values golden(int seed, std::size_t count) {
  Values values(count);
  for (std::size_t i = 0; i < count; ++i) {
    values[i] = 0.5 * std::sin(1.7 * static_cast<double>(i) + 0.61 * seed + 0.3);
  }
  return values;
}

Values rotated(Values x, bool is_interleaved, double direction) {
  for (std::size_t t = 0; t < 5; ++t) {
    for (std::size_t j = 0; j < 2; ++j) {
      const double angle =
          direction * static_cast<double>(t) * std::pow(1e4, -2.0 * static_cast<double>(j) / 4.0);
      double& a = x[t * 4 + (is_interleaved ? 2 * j : j)];
      double& b = x[t * 4 + (is_interleaved ? 2 * j + 1 : j + 2)];
      const double turned = a * std::cos(angle) - b * std::sin(angle);
      b = a * std::sin(angle) + b * std::cos(angle);
      a = turned;
    }
  }
  return x;
}

double sum_of(const Values& values) { return std::accumulate(values.begin(), values.end(), 0.0); }
double size_of(const Values& values) {
  double sum = 0;
  for (const double value : values) sum += std::abs(value);
  return sum;
}

void expect_golden(bool is_interleaved, const Values& line) {
  Case c({1, 5, 5, 1, 1, 4});
  c.scale = 0.5;
  c.q = rotated(golden(71, 20), is_interleaved, 1);
  c.k = rotated(golden(72, 20), is_interleaved, 1);
  c.v = golden(73, 20);
  c.d_out = golden(74, 20);
  const Result r = c.run(DType::kF64);
  double loss = 0;
  for (std::size_t i = 0; i < 20; ++i) loss += r.out[i] * c.d_out[i];
  const Values actual{sum_of(r.out),
                      size_of(r.out),
                      loss,
                      size_of(rotated(r.d_q, is_interleaved, -1)),
                      size_of(rotated(r.d_k, is_interleaved, -1)),
                      size_of(r.d_v)};
  for (std::size_t i = 0; i < line.size(); ++i) EXPECT_NEAR(actual[i], line[i], 1e-9) << i;
}

TEST(AttentionGolden, RotateHalf) {
  expect_golden(false,
                {0.486538444, 5.610524112, 1.161429822, 0.388897612, 0.348453303, 5.784005967});
}

TEST(AttentionGolden, Interleaved) {
  expect_golden(true,
                {0.487114218, 5.604017032, 1.139316034, 0.233221354, 0.379630312, 5.760129440});
}

TEST(AttentionContract, WrongShapesAreNamed) {
  EXPECT_THAT(error_of([] {
                return Case({1, 3, 2, 1, 1, 4}).run(DType::kF32);
              }),
              testing::HasSubstr("3 queries against 2 keys"));
  EXPECT_THAT(error_of([] {
                return Case({1, 3, 3, 3, 2, 4}).run(DType::kF32);
              }),
              testing::HasSubstr("2 key heads do not divide 3 heads"));
  EXPECT_THAT(error_of([] {
                return Case({1, 3, 3, 1, 1, 4}).run(DType::kBF16);
              }),
              testing::HasSubstr("F32 or F64 needed, not BF16"));
}

}  // namespace
}  // namespace ttt::kernels
