#include "kernels/head_cross_entropy.h"

#include <algorithm>
#include <cmath>

#include "kernels/cpu/bf16_gemm.h"
#include "kernels/cpu/blas.h"
#include "kernels/cpu/dispatch.h"
#include "kernels/cpu/vector_math.h"
#include "kernels/device_ops.h"

namespace ttt::kernels {
namespace {

void check_targets(const std::int64_t* targets, const double* weight, std::int64_t tokens,
                   std::int64_t vocab) {
  for (std::int64_t n = 0; n < tokens; ++n) {
    if (weight[n] != 0 && (targets[n] < 0 || targets[n] >= vocab)) {
      fail(ExitCode::kCorruptInput,
           "target {} at position {} is outside the vocabulary of {} entries", targets[n], n,
           vocab);
    }
  }
}

struct RowLoss {
  double logsumexp;
  double inverse_sum;  // 1 / sum_j exp(z_j - max)
};

// Also replaces z by exp(z - max) when `kKeep`.
template <bool kKeep, typename T>
RowLoss row_loss(T* z, std::int64_t vocab) {
  T largest = z[0];
#pragma omp simd reduction(max : largest)
  for (std::int64_t j = 0; j < vocab; ++j) largest = std::max(largest, z[j]);
  T sum{};
#pragma omp simd reduction(+ : sum)
  for (std::int64_t j = 0; j < vocab; ++j) {
    const T e = exponential(z[j] - largest);
    if constexpr (kKeep) z[j] = e;
    sum += e;
  }
  return {static_cast<double>(largest) + std::log(static_cast<double>(sum)),
          1.0 / static_cast<double>(sum)};
}

// The softmax part for the logits z [rows, vocab] of tokens [first, first + rows): nll, and z becomes d_z when `kKeep`.
template <bool kKeep, typename T>
void finish_rows(T* z, const std::int64_t* targets, const double* weight, double* nll,
                 std::int64_t rows, std::int64_t vocab) {
  constexpr std::int64_t kElementsPerBlock = std::int64_t{1} << 14;
  const cpu::Partition blocks(rows, std::max<std::int64_t>(kElementsPerBlock / vocab, 1));
  cpu::for_each_block(blocks.count(), [&](std::int64_t block) {
    const std::int64_t end = blocks.begin(block) + blocks.size(block);
    for (std::int64_t n = blocks.begin(block); n < end; ++n) {
      T* row = z + n * vocab;
      const bool has_target = targets[n] >= 0 && targets[n] < vocab;
      const double target_logit = has_target ? static_cast<double>(row[targets[n]]) : 0;
      const RowLoss loss = row_loss<kKeep>(row, vocab);
      nll[n] = has_target ? loss.logsumexp - target_logit : 0;
      if constexpr (kKeep) {
        if (weight[n] == 0) {
          std::fill(row, row + vocab, T{});  // not 0 * softmax, which is NaN for infinite logits
          continue;
        }
        const T scale = static_cast<T>(weight[n] * loss.inverse_sum);
        for (std::int64_t j = 0; j < vocab; ++j) row[j] *= scale;
        row[targets[n]] -= static_cast<T>(weight[n]);
      }
    }
  });
}

struct Arguments {
  TensorView x, w, targets, token_weight, nll, d_x, d_w;
  Precision precision = Precision::kNative;  // of the products
  bool rounds_d_z = false;                   // to bf16, in place
};

template <typename T>
void run_chunks(const Arguments& args, Stream& stream) {
  const std::int64_t tokens = args.x.size(0);
  const std::int64_t vocab = args.w.size(0);
  const std::int64_t chunk_rows = head_chunk_rows(Device::kCpu, tokens, vocab, sizeof(T));
  const bool wants_gradient = !args.d_x.empty() || !args.d_w.empty();
  const Tensor logits({chunk_rows, vocab}, kDType<T>);
  for (std::int64_t begin = 0; begin < tokens; begin += chunk_rows) {
    const std::int64_t end = std::min(tokens, begin + chunk_rows);
    const TensorView x = args.x.slice(begin, end);
    const TensorView z = logits.view().slice(0, end - begin);
    linear_forward(x, args.w, {}, z, args.precision, stream);
    const auto finish = wants_gradient ? finish_rows<true, T> : finish_rows<false, T>;
    finish(z.data<T>(), args.targets.data<std::int64_t>() + begin,
           args.token_weight.data<double>() + begin, args.nll.data<double>() + begin, end - begin,
           vocab);
    if (args.rounds_d_z && wants_gradient) cpu::round_to_bf16(z);
    if (!args.d_x.empty()) {
      linear_backward_input(z, args.w, args.d_x.slice(begin, end), Accumulate::kNo, args.precision,
                            stream);
    }
    if (!args.d_w.empty()) linear_backward_weight(z, x, args.d_w, args.precision, stream);
  }
}

}  // namespace

void head_cross_entropy(TensorView x, TensorView w, TensorView targets, TensorView token_weight,
                        TensorView nll, TensorView d_x, TensorView d_w, Precision precision,
                        Stream& stream) {
  TTT_CHECK(x.shape().rank() == 2 && w.shape().rank() == 2, "x {} and w {} must be matrices",
            x.shape().str(), w.shape().str());
  const std::int64_t tokens = x.size(0);
  const std::int64_t vocab = w.size(0);
  TTT_CHECK(vocab > 0, "the vocabulary is empty");
  expect_shape("w", w, {vocab, x.size(1)});
  expect_shape("targets", targets, {tokens});
  expect_shape("token_weight", token_weight, {tokens});
  expect_shape("nll", nll, {tokens});
  if (!d_x.empty()) expect_shape("d_x", d_x, x.shape());
  if (!d_w.empty()) expect_shape("d_w", d_w, w.shape());
  if (const DeviceOps* ops = device_ops(stream)) {
    return ops->head_cross_entropy(x, w, targets, token_weight, nll, d_x, d_w, precision, stream);
  }
  TTT_CHECK(w.dtype() == x.dtype(), "x is {} and w is {}", name_of(x.dtype()), name_of(w.dtype()));
  check_targets(targets.data<std::int64_t>(), token_weight.data<double>(), tokens, vocab);
  if (tokens == 0) return;

  Arguments args{x, w, targets, token_weight, nll, d_x, d_w, precision, false};
  if (precision == Precision::kNative) {
    visit_real(x.dtype(), [&](auto scalar) { run_chunks<decltype(scalar)>(args, stream); });
    return;
  }
  // x and w are rounded once, not once a chunk. Without bf16 instructions all operands become rounded fp32 values, of
  // which the native product is the same.
  const bool is_native = !cpu::prefers_bf16_gemm();
  const Tensor x_rounded = is_native ? cpu::to_bf16_values(x) : cpu::to_bf16(x);
  const Tensor w_rounded = is_native ? cpu::to_bf16_values(w) : cpu::to_bf16(w);
  args.x = x_rounded;
  args.w = w_rounded;
  args.rounds_d_z = is_native;
  if (is_native) args.precision = Precision::kNative;
  run_chunks<float>(args, stream);
}

}  // namespace ttt::kernels
