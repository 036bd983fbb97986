#pragma once
// Somebody's order of windows: entry n is the window of sample n.

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "data/tokens/token_file.h"

namespace ttt::data {

class OrderFile {
 public:
  /// `path`: a .npy array (read in place), or text: whole numbers between white space, at most 1 GiB.
  /// 65 with file and position for what is no window of [0, num_windows), and for a window that comes more often
  /// than num_samples / num_windows, rounded up: an order of whole epochs repeats none within one.
  OrderFile(const std::string& path, std::int64_t num_windows);

  [[nodiscard]] std::int64_t num_samples() const { return num_samples_; }
  /// `sample` in [0, num_samples()).
  [[nodiscard]] std::int64_t window_at(std::int64_t sample) const;

 private:
  void read(std::int64_t begin, std::span<std::int64_t> out) const;
  void check(std::int64_t num_windows) const;

  std::string path_;
  std::optional<TokenArray> array_;  // of .npy
  std::vector<std::int64_t> text_;
  std::int64_t num_samples_ = 0;
};

}  // namespace ttt::data
