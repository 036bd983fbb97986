#include "kernels/embedding.h"

#include <gtest/gtest.h>

#include <algorithm>

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

// Copies, and sums in the same order and type: equal to the last bit. d_table from 1, added to twice.
template <typename T>
void Embedding::compare_with_reference() const {
  Stream stream;
  const auto id = ids.span<std::int64_t>();
  const Tensor t = tensor_of<T>(table_shape, table), d = tensor_of<T>(y_shape, d_y);
  Tensor y(y_shape, kDType<T>), d_table = tensor_of<T>(table_shape, Values(table.size(), 1.0));
  std::vector<T> y_ref(d_y.size()), d_table_ref(table.size(), T{1});
  embedding_forward(ids, t, y, stream);
  reference::embedding_forward<T>(id, t.span<T>(), y_ref, size.channels);
  EXPECT_TRUE(std::ranges::equal(y.span<T>(), y_ref));
  for (int call = 0; call < 2; ++call) {
    embedding_backward(ids, d, d_table, stream);
    reference::embedding_backward<T>(id, d.span<T>(), d_table_ref, size.channels);
  }
  EXPECT_TRUE(std::ranges::equal(d_table.span<T>(), d_table_ref));
}

TEST_P(Embedding, CpuDoubleEqualsReference) { compare_with_reference<double>(); }
TEST_P(Embedding, CpuFloatEqualsReference) { compare_with_reference<float>(); }

INSTANTIATE_TEST_SUITE_P(Sizes, Embedding,
                         ::testing::Values(Sizes{1, 1, 1}, Sizes{19, 5, 3}, Sizes{7, 3, 131}));

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
