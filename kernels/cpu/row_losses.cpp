#include "kernels/row_losses.h"

#include "kernels/device_ops.h"
#include "kernels/reference/row_losses.h"

namespace ttt::kernels {

void row_losses(TensorView token_weight, TensorView nll, TensorView losses, Stream& stream) {
  TTT_CHECK(nll.shape().rank() == 2, "nll {} must be a matrix", nll.shape().str());
  expect_shape("token_weight", token_weight, nll.shape());
  expect_shape("losses", losses, {nll.size(0)});
  if (const DeviceOps* ops = device_ops(stream)) {
    return ops->row_losses(token_weight, nll, losses, stream);
  }
  reference::row_losses<double>(token_weight.span<double>(), nll.span<double>(),
                                losses.span<double>());
}

}  // namespace ttt::kernels
