#pragma once
// A part of a flat buffer.

#include <cstdint>

namespace ttt {

/// Elements [begin, end).
struct FlatRange {
  std::int64_t begin = 0;
  std::int64_t end = 0;

  [[nodiscard]] std::int64_t size() const { return end - begin; }
  bool operator==(const FlatRange&) const = default;
};

}  // namespace ttt
