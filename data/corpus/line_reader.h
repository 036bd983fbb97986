#pragma once
// Cuts a byte stream into lines of any length up to a limit.

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "data/corpus/byte_source.h"

namespace ttt::data {

class LineReader {
 public:
  LineReader(std::unique_ptr<ByteSource> source, std::size_t max_line_bytes);

  /// False at the end. A last line need not end in a newline. Of a line over the limit `line` has only the beginning.
  bool next(std::string& line);
  [[nodiscard]] bool is_too_long() const { return is_too_long_; }
  /// Of the line, from 1.
  [[nodiscard]] std::int64_t number() const { return number_; }
  /// Of the line, in decompressed bytes.
  [[nodiscard]] std::int64_t offset() const { return offset_; }

 private:
  std::unique_ptr<ByteSource> source_;
  std::size_t max_line_bytes_;
  std::vector<char> block_;
  std::size_t begin_ = 0;
  std::size_t end_ = 0;
  std::int64_t number_ = 0;
  std::int64_t offset_ = 0;
  std::int64_t next_offset_ = 0;
  bool is_too_long_ = false;
};

}  // namespace ttt::data
