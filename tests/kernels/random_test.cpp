#include "kernels/random.h"

#include <gmock/gmock.h>
#include <omp.h>

#include "tests/support/kernel_check.h"
#include "tests/support/tensors.h"

namespace ttt::kernels {
namespace {

using test::error_of;

TEST(Random, EveryElementIsTheGeneratorsNumberOfItsIndex) {
  const CounterRng rng(7, "weights");
  Stream stream;
  const int threads = omp_get_max_threads();
  for (const int count : {1, 2, 3}) {
    omp_set_num_threads(count);
    const Tensor normal({3, 701}, DType::kF32);
    const Tensor truncated({2103}, DType::kF64);
    random_normal(rng, 0.02, normal, stream);
    random_truncated_normal(rng, 0.5, truncated, stream);
    for (std::uint64_t i = 0; i < 2103; ++i) {
      ASSERT_EQ(normal.data<float>()[i], static_cast<float>(0.02 * rng.normal(i)));
      ASSERT_EQ(truncated.data<double>()[i], 0.5 * rng.truncated_normal(i));
    }
  }
  omp_set_num_threads(threads);
}

// Drawn in double: where log and cos are not the host's, another rounding to float may come of it, 2^-23.
TEST(Random, FloatIsTheGeneratorsNumberRounded) {
  const CounterRng rng(std::uint64_t{9} << 40U | 5U, "weights");
  Stream stream = test::stream();
  const std::int64_t count = 3001;
  const Tensor normal({count}, DType::kF32), truncated({7, 31}, DType::kF32);
  random_normal(rng, 0.02, normal, stream);
  random_truncated_normal(rng, 3.0, truncated, stream);
  stream.synchronize();
  const auto expect_near = [](double actual, double expected) {
    ASSERT_NEAR(actual, expected, 1.2e-7 * std::abs(expected));
  };
  for (std::int64_t i = 0; i < count; ++i) {
    expect_near(normal.data<float>()[i], 0.02 * rng.normal(static_cast<std::uint64_t>(i)));
  }
  for (std::int64_t i = 0; i < truncated.numel(); ++i) {
    expect_near(truncated.data<float>()[i],
                3.0 * rng.truncated_normal(static_cast<std::uint64_t>(i)));
  }
}

TEST(Random, NothingIsDrawnForAnEmptyTensor) {
  Stream stream;
  random_normal(CounterRng(7, "none"), 1, Tensor({0}, DType::kF32), stream);
}

TEST(Random, IntegersAreRefused) {
  Stream stream;
  const Tensor values({2}, DType::kI64);
  EXPECT_THAT(error_of([&] { random_normal(CounterRng(7, "x"), 1, values, stream); }),
              testing::HasSubstr("I64"));
}

}  // namespace
}  // namespace ttt::kernels
