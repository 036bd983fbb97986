#include "kernels/cuda/ops.h"
#include "kernels/cuda/reduce.h"
#include "kernels/row_losses.h"

namespace ttt::kernels::cuda {
namespace {

constexpr int kThreads = 256;

// A block a sequence.
__global__ void __launch_bounds__(kThreads)
    row_losses_kernel(const double* __restrict__ token_weight, const double* __restrict__ nll,
                      double* __restrict__ losses, std::int64_t tokens) {
  const std::int64_t begin = blockIdx.x * tokens;
  double sum = 0;
  for (std::int64_t t = begin + threadIdx.x; t < begin + tokens; t += kThreads) {
    sum = fma(token_weight[t], nll[t], sum);
  }
  sum = block_sum(sum);
  if (threadIdx.x == 0) losses[blockIdx.x] = sum;
}

}  // namespace

void row_losses(TensorView token_weight, TensorView nll, TensorView losses, Stream& stream) {
  launch(row_losses_kernel, {dim3(static_cast<unsigned>(nll.size(0))), dim3(kThreads)}, stream,
         token_weight.data<double>(), nll.data<double>(), losses.data<double>(), nll.size(1));
}

}  // namespace ttt::kernels::cuda
