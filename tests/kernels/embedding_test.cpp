#include "kernels/embedding.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>

#include "kernels/reference/embedding.h"
#include "tests/support/complex_step.h"
#include "tests/support/kernel_check.h"

namespace ttt::kernels {
namespace {

using test::Complex;
using test::random_values;
using test::tensor_of;
using test::values_of;
using Values = std::vector<double>;

struct Sizes {
  std::int64_t tokens, vocabulary, channels;
};

Tensor random_ids(std::int64_t tokens, std::int64_t vocabulary) {
  const CounterRng rng(3, "ids");
  Tensor ids({tokens}, DType::kI64);
  for (std::int64_t n = 0; n < tokens; ++n) {
    ids.data<std::int64_t>()[n] = static_cast<std::int64_t>(rng.bits(n) % vocabulary);
  }
  return ids;
}

class Embedding : public ::testing::TestWithParam<Sizes> {
 protected:
  template <typename T>
  void compare_with_reference() const;

  Sizes size = GetParam();
  Shape table_shape{size.vocabulary, size.channels};
  Shape y_shape{size.tokens, size.channels};
  Tensor ids = random_ids(size.tokens, size.vocabulary);  // repeats: fewer words than tokens
  Values table = random_values("table", table_shape.numel());
  Values d_y = random_values("d_y", y_shape.numel());
};

TEST_P(Embedding, ReferenceBackwardMatchesComplexStep) {
  Values d_table(table.size(), 0.0);
  const auto id = ids.span<std::int64_t>();
  reference::embedding_backward<double>(id, d_y, d_table, size.channels);
  test::expect_gradient("d_table", d_table, table, [&](const std::vector<Complex>& in) {
    std::vector<Complex> y(d_y.size());
    reference::embedding_forward<Complex>(id, in, y, size.channels);
    return test::weighted_sum(d_y, y);
  });
}

// Copies, and sums in the same order and type: equal to the last bit, of BF16 the copy's one rounding included. d_table
// from 1, added to twice.
template <typename T>
void Embedding::compare_with_reference() const {
  using Parameter = test::ParameterOf<T>;
  Stream stream = test::stream();
  const auto id = ids.span<std::int64_t>();
  const Tensor t = tensor_of<Parameter>(table_shape, table), d = tensor_of<T>(y_shape, d_y);
  Tensor y(y_shape, kDType<T>);
  Tensor d_table = tensor_of<Parameter>(table_shape, Values(table.size(), 1.0));
  std::vector<Parameter> y_ref(d_y.size()), d_table_ref(table.size(), Parameter{1});
  embedding_forward(ids, t, y, stream);
  stream.synchronize();
  reference::embedding_forward<Parameter>(id, t.span<Parameter>(), y_ref, size.channels);
  const Tensor expected = tensor_of<T>(y_shape, Values(y_ref.begin(), y_ref.end()));
  EXPECT_EQ(values_of<T>(y), values_of<T>(expected));
  const Tensor d_read = to_dtype(d, kDType<Parameter>);
  for (int call = 0; call < 2; ++call) {
    embedding_backward(ids, d, d_table, stream);
    reference::embedding_backward<Parameter>(id, d_read.span<Parameter>(), d_table_ref,
                                             size.channels);
  }
  stream.synchronize();
  EXPECT_TRUE(std::ranges::equal(d_table.span<Parameter>(), d_table_ref));
}

TEST_P(Embedding, DoubleEqualsReference) { compare_with_reference<double>(); }
TEST_P(Embedding, FloatEqualsReference) { compare_with_reference<float>(); }
#ifdef TTT_TEST_CUDA
TEST_P(Embedding, BFloat16EqualsReference) { compare_with_reference<BFloat16>(); }
#endif

// Rows with and without packets of 16 bytes; 1601 tokens are four chunks on CUDA, 3000 words three pieces of its sum.
INSTANTIATE_TEST_SUITE_P(Sizes, Embedding,
                         ::testing::Values(Sizes{1, 1, 1}, Sizes{19, 5, 3}, Sizes{7, 3, 131},
                                           Sizes{33, 2, 8}, Sizes{70, 9, 1044}, Sizes{40, 7, 2080},
                                           Sizes{1601, 37, 12}, Sizes{700, 3000, 2},
                                           Sizes{600, 1, 4}));

#ifdef TTT_TEST_CUDA
TEST(CudaEmbedding, AnIdOutsideTheVocabularyGivesNanAndNoGradient) {
  for (const std::int64_t channels : {3, 8}) {
    Stream stream = test::stream();
    const Shape shape{4, channels};
    Tensor ids({4}, DType::kI64);
    std::ranges::copy(std::vector<std::int64_t>{1, 2, -1, std::int64_t{1} << 33U},
                      ids.data<std::int64_t>());
    const Tensor table = tensor_of<float>({2, channels}, Values(2 * channels, 5.0));
    const Tensor d_y = tensor_of<float>(shape, Values(4 * channels, 1.0));
    const Tensor y(shape, DType::kF32), d_table = Tensor::zeros({2, channels}, DType::kF32);
    embedding_forward(ids, table, y, stream);
    embedding_backward(ids, d_y, d_table, stream);
    stream.synchronize();
    for (std::int64_t i = 0; i < 4 * channels; ++i) {
      EXPECT_EQ(std::isnan(y.data<float>()[i]), i >= channels) << i;
    }
    for (std::int64_t i = 0; i < 2 * channels; ++i) {
      EXPECT_EQ(d_table.data<float>()[i], i < channels ? 0.0F : 1.0F) << i;
    }
  }
}

// Views of any element: no access may assume 16-byte boundaries.
TEST(CudaEmbedding, RowsMayBeginAnywhere) {
  Stream stream = test::stream();
  const Shape table_shape{5, 8}, y_shape{11, 8};
  const Tensor ids = random_ids(11, 5);
  const Tensor flat_table = tensor_of<float>({41}, random_values("table", 41));
  const TensorView table = flat_table.view().slice(1, 41).reshape(table_shape);
  const Tensor flat_y({89}, DType::kBF16), y(y_shape, DType::kBF16);
  const TensorView shifted_y = flat_y.view().slice(1, 89).reshape(y_shape);
  const Tensor d_table = Tensor::zeros(table_shape, DType::kF32);
  const Tensor flat_d_table = Tensor::zeros({41}, DType::kF32);
  embedding_forward(ids, to_dtype(table, DType::kF32), y, stream);
  embedding_forward(ids, table, shifted_y, stream);
  embedding_backward(ids, y, d_table, stream);
  embedding_backward(ids, shifted_y, flat_d_table.view().slice(1, 41).reshape(table_shape), stream);
  stream.synchronize();
  EXPECT_TRUE(std::ranges::equal(d_table.span<float>(), flat_d_table.span<float>().subspan(1)));
  EXPECT_EQ(flat_d_table.data<float>()[0], 0.0F);
}
#endif

TEST(EmbeddingThreads, BitsDoNotDependOnTheirNumber) {
  test::expect_same_bits_for_any_thread_count([] {
    Stream stream;
    const Tensor ids = random_ids(903, 11);
    Tensor y = tensor_of<float>({903, 203}, random_values("y", 903 * 203));
    Tensor d_table = Tensor::zeros({11, 203}, DType::kF32);
    embedding_backward(ids, y, d_table, stream);
    embedding_forward(ids, d_table, y, stream);
    return std::vector<Tensor>{y, d_table};
  });
}

TEST(EmbeddingErrors, AnIdOutsideTheVocabularyIsCorruptInput) {
  Stream stream;
  Tensor ids({3}, DType::kI64), table = Tensor::zeros({5, 2}, DType::kF32), y({3, 2}, DType::kF32);
  for (const std::int64_t bad : {std::int64_t{5}, std::int64_t{-1}}) {
    std::ranges::copy(std::vector<std::int64_t>{4, 0, bad}, ids.data<std::int64_t>());
    const auto text =
        fmt::format("token id {} at position 2 is outside the vocabulary [0, 5)", bad);
    test::expect_error(ExitCode::kCorruptInput, text,
                       [&] { embedding_forward(ids, table, y, stream); });
    test::expect_error(ExitCode::kCorruptInput, text,
                       [&] { embedding_backward(ids, y, table, stream); });
  }
  test::expect_error(ExitCode::kInternal, "y has shape [5, 2], expected [3, 2]",
                     [&] { embedding_forward(ids, table, table, stream); });
}

}  // namespace
}  // namespace ttt::kernels
