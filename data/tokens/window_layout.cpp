#include "data/tokens/window_layout.h"

#include <algorithm>

#include "core/base/error.h"

namespace ttt::data {

WindowLayout::WindowLayout(std::int64_t context_length) : context_length_(context_length) {
  if (context_length < 1) {
    fail(ExitCode::kUsage, "a context length of {}; at least 1 is needed", context_length);
  }
}

WindowLayout WindowLayout::stride(std::int64_t num_tokens, std::int64_t context_length,
                                  std::string_view source) {
  WindowLayout layout(context_length);
  layout.num_windows_ = num_tokens < 1 ? 0 : (num_tokens - 1) / context_length;
  if (layout.num_windows_ < 1) {
    fail(ExitCode::kUsage,
         "{} tokens in {} are fewer than one window: context_length {} needs {} tokens", num_tokens,
         source, context_length, context_length + 1);
  }
  return layout;
}

WindowLayout WindowLayout::documents(const TokenArray& tokens, std::int64_t context_length) {
  WindowLayout layout(context_length);
  std::int64_t window = 0;      // where the open window begins
  std::int64_t file_begin = 0;  // of the file's tokens in the array
  layout.begins_.push_back(window);
  for (const TokenFileInfo& file : tokens.files()) {
    if (!file.path.ends_with(".h5")) {
      fail(ExitCode::kUsage,
           "{} does not say where its documents begin, which data.windows = DOCUMENTS needs; the "
           ".h5 shards of `ttt prepare` do",
           file.path);
    }
    const auto offsets = read_document_offsets(file.path);
    for (std::size_t i = 0; i + 1 < offsets.size(); ++i) {
      const std::int64_t begin = file_begin + static_cast<std::int64_t>(offsets[i]);
      const std::int64_t end = file_begin + static_cast<std::int64_t>(offsets[i + 1]);
      if (end - window <= context_length) continue;
      if (begin > window) layout.begins_.push_back(window = begin);
      while (end - window > context_length) layout.begins_.push_back(window += context_length);
    }
    file_begin += file.num_tokens;
  }
  layout.begins_.push_back(tokens.num_tokens());
  layout.num_windows_ = std::ssize(layout.begins_) - 1;
  return layout;
}

std::int64_t WindowLayout::begin(std::int64_t window) const {
  TTT_CHECK(window >= 0 && window < num_windows_, "window {} of {}", window, num_windows_);
  return begins_.empty() ? window * context_length_ : begins_[static_cast<std::size_t>(window)];
}

std::int64_t WindowLayout::end(std::int64_t window) const {
  if (begins_.empty()) return begin(window) + context_length_;
  TTT_CHECK(window >= 0 && window < num_windows_, "window {} of {}", window, num_windows_);
  return begins_[static_cast<std::size_t>(window) + 1];
}

void read_window(const TokenArray& tokens, const WindowLayout& layout, std::int64_t window,
                 std::int64_t masked_target, std::span<std::int64_t> inputs,
                 std::span<std::int64_t> targets, std::span<double> token_weight) {
  const std::size_t length = inputs.size();
  TTT_CHECK(static_cast<std::int64_t>(length) == layout.context_length() &&
                targets.size() == length && token_weight.size() == length,
            "inputs {}, targets {} and token_weight {} for windows of {}", length, targets.size(),
            token_weight.size(), layout.context_length());
  const std::int64_t begin = layout.begin(window);
  const std::int64_t count = layout.end(window) - begin;
  const std::int64_t num_targets = std::min(count, tokens.num_tokens() - 1 - begin);
  std::vector<std::int64_t> row(length + 1);  // zero behind the window
  tokens.read(begin,
              std::span(row).first(static_cast<std::size_t>(std::max(count, num_targets + 1))));
  for (std::size_t t = 0; t < length; ++t) {
    const auto place = static_cast<std::int64_t>(t);
    const bool is_target = place < num_targets;
    inputs[t] = place < count ? row[t] : 0;
    targets[t] = is_target ? row[t + 1] : 0;
    const bool counts = is_target && !(masked_target >= 0 && targets[t] == masked_target);
    token_weight[t] = counts ? 1.0 : 0.0;
  }
}

}  // namespace ttt::data
