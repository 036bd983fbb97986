#pragma once
// Where the windows of a token array lie: window i has the inputs [begin(i), end(i)), and the targets after each.
//
//   stride     begin(i) = i L, end(i) = begin(i) + L; num_windows = (num_tokens - 1) / L
//   documents  a window takes whole documents, in order, while they fit in L; a longer document begins a window and is
//              cut every L, and what is left of it begins the next window, which takes documents again
//
// L is the context length. In both every token but a last few is the input of one window.
// Source: ttt-lm-jax lm_dataset.py (stride).

#include <cstdint>
#include <span>
#include <string_view>
#include <vector>

#include "data/tokens/token_file.h"

namespace ttt::data {

class WindowLayout {
 public:
  /// Fewer than context_length + 1 tokens is 64; `source` names the files in that message.
  static WindowLayout stride(std::int64_t num_tokens, std::int64_t context_length,
                             std::string_view source = "the token files");
  /// Takes 8 bytes a window. 64 for files that do not say where their documents begin (all but .h5).
  static WindowLayout documents(const TokenArray& tokens, std::int64_t context_length);

  [[nodiscard]] std::int64_t num_windows() const { return num_windows_; }
  [[nodiscard]] std::int64_t context_length() const { return context_length_; }
  [[nodiscard]] std::int64_t begin(std::int64_t window) const;
  [[nodiscard]] std::int64_t end(std::int64_t window) const;

 private:
  explicit WindowLayout(std::int64_t context_length);

  std::int64_t context_length_ = 0;
  std::int64_t num_windows_ = 0;
  std::vector<std::int64_t> begins_;  // [num_windows + 1] of documents
};

/// Reads a window of L tokens: targets are the tokens after the inputs. token_weight is 0 where the target is
/// `masked_target`, else 1 (`masked_target` < 0: none is masked). Places behind the window's end, and a target behind
/// the last token, are id 0 of weight 0.
void read_window(const TokenArray& tokens, const WindowLayout& layout, std::int64_t window,
                 std::int64_t masked_target,
                 std::span<std::int64_t> inputs,   // [L] out
                 std::span<std::int64_t> targets,  // [L] out
                 std::span<double> token_weight);  // [L] out

}  // namespace ttt::data
