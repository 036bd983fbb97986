#include "data/tokens/order_file.h"

#include <algorithm>
#include <charconv>
#include <limits>

#include "core/base/error.h"
#include "data/files.h"

namespace ttt::data {
namespace {

constexpr std::int64_t kMaxTextBytes = std::int64_t{1} << 30;
constexpr std::int64_t kChunk = 1 << 16;

bool is_space(char c) { return c == ' ' || c == '\n' || c == '\r' || c == '\t'; }

std::vector<std::int64_t> parse_numbers(const std::string& path) {
  const std::string text = read_text_file(path, kMaxTextBytes);
  std::vector<std::int64_t> numbers;
  std::int64_t line = 1;
  const char* const end = text.data() + text.size();
  for (const char* at = text.data(); at != end;) {
    if (is_space(*at)) {
      line += *at++ == '\n' ? 1 : 0;
      continue;
    }
    const char* const word_end = std::find_if(at, end, is_space);
    std::int64_t number = 0;
    const auto [rest, error] = std::from_chars(at, word_end, number);
    if (error != std::errc() || rest != word_end) {
      constexpr std::ptrdiff_t kShown = 20;
      fail(ExitCode::kCorruptInput, "{}:{}: \"{}\" is no whole number; an order lists windows",
           path, line, std::string(at, at + std::min(kShown, word_end - at)));
    }
    numbers.push_back(number);
    at = word_end;
  }
  return numbers;
}

}  // namespace

OrderFile::OrderFile(const std::string& path, std::int64_t num_windows) : path_(path) {
  if (path.ends_with(".npy")) {
    array_ = TokenArray::open({path}, Split::kTrain);
    num_samples_ = array_->num_tokens();
  } else {
    text_ = parse_numbers(path);
    num_samples_ = std::ssize(text_);
  }
  if (num_samples_ == 0) fail(ExitCode::kCorruptInput, "{}: the order has no samples", path);
  check(num_windows);
}

void OrderFile::read(std::int64_t begin, std::span<std::int64_t> out) const {
  if (array_) return array_->read(begin, out);
  std::copy_n(text_.begin() + begin, out.size(), out.begin());
}

std::int64_t OrderFile::window_at(std::int64_t sample) const {
  TTT_CHECK(sample >= 0 && sample < num_samples_, "sample {} of {}: {} has {}", sample,
            num_samples_, path_, num_samples_);
  std::int64_t window = 0;
  read(sample, {&window, 1});
  return window;
}

void OrderFile::check(std::int64_t num_windows) const {
  constexpr std::int64_t kMaxEpochs = std::numeric_limits<std::uint8_t>::max();
  const std::int64_t epochs = (num_samples_ + num_windows - 1) / num_windows;
  if (epochs > kMaxEpochs) {
    fail(ExitCode::kCorruptInput, "{}: {} samples are over {} epochs of {} windows", path_,
         num_samples_, kMaxEpochs, num_windows);
  }
  std::vector<std::uint8_t> times(static_cast<std::size_t>(num_windows));
  std::vector<std::int64_t> chunk(kChunk);
  for (std::int64_t begin = 0; begin < num_samples_; begin += kChunk) {
    const auto count = static_cast<std::size_t>(std::min(kChunk, num_samples_ - begin));
    read(begin, std::span(chunk).first(count));
    for (std::size_t i = 0; i < count; ++i) {
      const std::int64_t window = chunk[i];
      const std::int64_t position = begin + static_cast<std::int64_t>(i);
      if (window < 0 || window >= num_windows) {
        fail(ExitCode::kCorruptInput,
             "{}: position {}: window {} does not exist; the tokens have {} windows, from 0", path_,
             position, window, num_windows);
      }
      if (++times[static_cast<std::size_t>(window)] > epochs) {
        fail(ExitCode::kCorruptInput,
             "{}: position {}: window {} comes for the {}. time; {} samples of {} windows leave "
             "room "
             "for {}",
             path_, position, window, epochs + 1, num_samples_, num_windows, epochs);
      }
    }
  }
}

}  // namespace ttt::data
