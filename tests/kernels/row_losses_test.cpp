#include "kernels/row_losses.h"

#include <gtest/gtest.h>

#include "kernels/reference/row_losses.h"
#include "tests/support/kernel_check.h"

namespace ttt::kernels {
namespace {

using test::random_values;
using test::tensor_of;
using Values = std::vector<double>;

TEST(RowLosses, ByHand) {
  Stream stream;
  const Tensor losses({2}, DType::kF64);
  row_losses(tensor_of<double>({2, 3}, {0.5, 0, 2, 1, 1, 1}),
             tensor_of<double>({2, 3}, {4, 9, 1, 1, 2, 3}), losses, stream);
  EXPECT_EQ(test::values_of<double>(losses), (Values{4, 6}));
}

// A few thousand roundings of 1e-16 in another order.
TEST(RowLosses, FloatDevicesMatchTheReference) {
  Stream stream = test::stream();
  for (const std::int64_t rows : {1, 3}) {
    for (const std::int64_t tokens : {1, 31, 256, 2050}) {
      const Values weight = random_values("weight", rows * tokens);
      const Values nll = random_values("nll", rows * tokens);
      const Tensor losses({rows}, DType::kF64);
      Values expected(static_cast<std::size_t>(rows));
      row_losses(tensor_of<double>({rows, tokens}, weight), tensor_of<double>({rows, tokens}, nll),
                 losses, stream);
      stream.synchronize();
      reference::row_losses<double>(weight, nll, expected);
      test::expect_close("losses", losses.span<double>(), expected, 1e-13);
    }
  }
}

TEST(RowLossesErrors, Shapes) {
  Stream stream;
  const Tensor a({2, 3}, DType::kF64), b({3}, DType::kF64);
  test::expect_error(ExitCode::kInternal, "losses has shape [3], expected [2]",
                     [&] { row_losses(a, a, b, stream); });
  test::expect_error(ExitCode::kInternal, "token_weight has shape [3], expected [2, 3]",
                     [&] { row_losses(b, a, b, stream); });
}

}  // namespace
}  // namespace ttt::kernels
