#include "kernels/random.h"

#include <gmock/gmock.h>
#include <omp.h>

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
