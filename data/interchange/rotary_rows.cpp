#include "data/interchange/rotary_rows.h"

namespace ttt::data {
namespace {

Tensor reorder_rows(const TensorView& weight, std::int64_t num_heads, bool to_halves) {
  TTT_CHECK(weight.shape().rank() == 2 && weight.size(0) % (2 * num_heads) == 0,
            "{} is not [{} heads of even width, C]", weight.shape().str(), num_heads);
  const std::int64_t width = weight.size(0) / num_heads;
  Tensor result(weight.shape(), weight.dtype());
  for (std::int64_t row = 0; row < weight.size(0); ++row) {
    const std::int64_t head_begin = row / width * width;
    const std::int64_t place = row % width;  // among interleaved pairs
    const std::int64_t half_place = place / 2 + (place % 2) * (width / 2);
    const std::int64_t from = to_halves ? row : head_begin + half_place;
    const std::int64_t to = to_halves ? head_begin + half_place : row;
    copy(weight.slice(from, from + 1), result.view().slice(to, to + 1));
  }
  return result;
}

}  // namespace

std::int64_t interleaved_heads(const config::ModelConfig& model, const std::string& native_name) {
  if (model.mixer() != config::ATTENTION ||
      model.attention().rope_pairing() != config::AttentionConfig::INTERLEAVED) {
    return 0;
  }
  const std::int64_t kv_heads = model.attention().num_kv_heads();
  if (native_name.ends_with(".q_proj.weight")) return model.num_heads();
  if (native_name.ends_with(".k_proj.weight")) return kv_heads > 0 ? kv_heads : model.num_heads();
  return 0;
}

Tensor halves_from_interleaved(const TensorView& weight, std::int64_t num_heads) {
  return reorder_rows(weight, num_heads, true);
}

Tensor interleaved_from_halves(const TensorView& weight, std::int64_t num_heads) {
  return reorder_rows(weight, num_heads, false);
}

}  // namespace ttt::data
