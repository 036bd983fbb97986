#include "data/corpus/line_reader.h"

#include <algorithm>
#include <string_view>
#include <utility>

namespace ttt::data {

LineReader::LineReader(std::unique_ptr<ByteSource> source, std::size_t max_line_bytes)
    : source_(std::move(source)), max_line_bytes_(max_line_bytes), block_(1U << 17U) {}

bool LineReader::next(std::string& line) {
  line.clear();
  is_too_long_ = false;
  offset_ = next_offset_;
  ++number_;
  while (true) {
    if (begin_ == end_) {
      begin_ = 0;
      end_ = source_->read(block_);
      if (end_ == 0) return next_offset_ > offset_;
    }
    const std::string_view rest(block_.data() + begin_, end_ - begin_);
    const std::size_t newline = rest.find('\n');
    const bool whole = newline != std::string_view::npos;
    const std::size_t count = whole ? newline : rest.size();
    const std::size_t room = max_line_bytes_ - line.size();
    is_too_long_ |= count > room;
    line += rest.substr(0, std::min(count, room));
    begin_ += count + (whole ? 1 : 0);
    next_offset_ += static_cast<std::int64_t>(count) + (whole ? 1 : 0);
    if (whole) return true;
  }
}

}  // namespace ttt::data
