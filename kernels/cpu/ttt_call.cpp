#include "kernels/cpu/ttt_call.h"

namespace ttt::kernels::ttt_cpu {

void check_tensor(const char* name, const TensorView& view, const Shape& shape, DType dtype) {
  expect_shape(name, view, shape);
  TTT_CHECK(view.dtype() == dtype, "{} is {}, expected {}", name, name_of(view.dtype()),
            name_of(dtype));
}

void check_state(const char* name, const Extents& e, const TttState& state, DType dtype,
                 bool may_be_empty) {
  const std::int64_t f = e.features;
  const std::int64_t d = e.width;
  const Shape shapes[] = {{e.batch, e.heads, f, d},
                          {e.batch, e.heads, 1, d},
                          {e.batch, e.heads, d, f},
                          {e.batch, e.heads, 1, f}};
  const bool wanted[] = {true, e.bias, e.mlp, e.mlp && e.bias};
  const char* const members[] = {"w1", "b1", "w2", "b2"};
  int present = 0;
  for (int i = 0; i < 4; ++i) present += member(state, i).empty() ? 0 : 1;
  if (may_be_empty && present == 0) return;
  for (int i = 0; i < 4; ++i) {
    const std::string full_name = fmt::format("{}.{}", name, members[i]);
    if (wanted[i]) {
      check_tensor(full_name.c_str(), member(state, i), shapes[i], dtype);
    } else {
      TTT_CHECK(member(state, i).empty(), "{} must be empty with these options", full_name);
    }
  }
}

Extents checked_extents(const TttInputs& inputs, const TttOptions& options,
                        const TttState& initial) {
  const Shape& shape = inputs.q.shape();
  const DType dtype = inputs.q.dtype();
  TTT_CHECK(shape.rank() == 4 && shape.numel() > 0, "q must be [B, T, H, F], not {}", shape.str());
  TTT_CHECK(dtype == DType::kF32 || dtype == DType::kF64 || dtype == DType::kBF16,
            "q must be F32 or F64, or BF16 on CUDA, not {}", name_of(dtype));
  const DType wide = wide_type(dtype);
  TTT_CHECK(options.mini_batch_size >= 1, "mini-batch size {}", options.mini_batch_size);
  Extents e;
  e.batch = shape[0];
  e.tokens = shape[1];
  e.heads = shape[2];
  e.features = shape[3];
  e.mini_batch_size = options.mini_batch_size;
  e.block_rows = std::min(e.mini_batch_size, e.tokens);
  e.mlp = options.model == InnerModel::kMlp;
  e.inner_norm = options.inner_norm;
  e.bias = options.bias;
  TTT_CHECK(initial.w1.shape().rank() == 4, "initial.w1 must be [B, H, F, width], not {}",
            initial.w1.shape().str());
  e.width = e.mlp ? initial.w1.size(3) : e.features;
  TTT_CHECK(e.width >= 1, "initial.w1 {} has no columns", initial.w1.shape().str());
  check_tensor("k", inputs.k, shape, dtype);
  check_tensor("v", inputs.v, shape, dtype);
  check_tensor("token_lr", inputs.token_lr, {e.batch, e.tokens, e.heads}, wide);
  check_tensor("token_scale", inputs.token_scale, {e.mini_batch_size}, wide);
  if (e.inner_norm) {
    check_tensor("norm_weight", inputs.norm_weight, {e.heads, e.features}, wide);
    check_tensor("norm_bias", inputs.norm_bias, {e.heads, e.features}, wide);
  }
  check_state("initial", e, initial, wide, false);
  return e;
}

}  // namespace ttt::kernels::ttt_cpu
