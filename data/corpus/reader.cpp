#include "data/corpus/reader.h"

#include <algorithm>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <string_view>
#include <system_error>
#include <utility>

#include "core/base/error.h"
#include "data/corpus/byte_source.h"
#include "data/files.h"

namespace ttt::data {
namespace {

namespace fs = std::filesystem;

constexpr std::int64_t kMaxLineBytes = std::int64_t{64} << 20;
constexpr int kMaxDepth = 64;

bool is_text(std::string_view path) { return path.ends_with(".txt"); }
bool is_zstd(std::string_view path) { return path.ends_with(".zst"); }
bool is_corpus_file(std::string_view path) {
  const auto suffixes = {".txt", ".jsonl", ".json", ".jsonl.zst", ".json.zst"};
  return std::any_of(suffixes.begin(), suffixes.end(),
                     [&](const char* suffix) { return path.ends_with(suffix); });
}

// Takes the string member `field` of the outermost object and checks everything else as JSON. No
// tree is built: `meta` members can be larger than the text.
class TextFieldParser final : public nlohmann::json_sax<nlohmann::json> {
 public:
  explicit TextFieldParser(const std::string& field) : field_(field) {}

  [[nodiscard]] bool found() const { return found_; }
  std::string take_text() { return std::move(text_); }
  [[nodiscard]] const std::string& error() const { return error_; }

  bool null() override { return scalar("null"); }
  bool boolean(bool) override { return scalar("a boolean"); }
  bool number_integer(number_integer_t) override { return scalar("a number"); }
  bool number_unsigned(number_unsigned_t) override { return scalar("a number"); }
  bool number_float(number_float_t, const string_t&) override { return scalar("a number"); }
  bool binary(binary_t&) override { return scalar("binary"); }
  bool string(string_t& value) override {
    if (depth_ == 0) return reject("a string, not an object");
    if (at_field_) {
      text_ = std::move(value);
      found_ = true;
      at_field_ = false;
    }
    return true;
  }
  bool start_object(std::size_t) override { return open("an object"); }
  bool key(string_t& name) override {
    at_field_ = depth_ == 1 && name == field_;
    if (at_field_ && found_) return reject(fmt::format("member \"{}\" twice", field_));
    return true;
  }
  bool end_object() override { return close(); }
  bool start_array(std::size_t) override {
    if (depth_ == 0) return reject("an array, not an object");
    return open("an array");
  }
  bool end_array() override { return close(); }
  bool parse_error(std::size_t, const std::string&,
                   const nlohmann::detail::exception& exception) override {
    return reject(exception.what());
  }

 private:
  bool reject(std::string error) {
    error_ = std::move(error);
    return false;
  }
  bool scalar(const char* what) {
    if (depth_ == 0) return reject(fmt::format("{}, not an object", what));
    if (at_field_) return reject(fmt::format("member \"{}\" is {}, not a string", field_, what));
    return true;
  }
  bool open(const char* what) {
    if (at_field_) return reject(fmt::format("member \"{}\" is {}, not a string", field_, what));
    if (++depth_ > kMaxDepth) return reject(fmt::format("nested deeper than {}", kMaxDepth));
    return true;
  }
  bool close() {
    --depth_;
    return true;
  }

  const std::string& field_;
  std::string text_;
  std::string error_;
  bool found_ = false;
  bool at_field_ = false;
  int depth_ = 0;
};

void expect_utf8(std::string_view text, const std::string& file, std::int64_t line,
                 std::int64_t offset) {
  const std::size_t at = find_invalid_utf8(text);
  if (at == text.size()) return;
  const std::int64_t byte = offset + static_cast<std::int64_t>(at);
  const std::string where = line > 0 ? fmt::format("{}:{}", file, line) : file;
  fail(ExitCode::kCorruptInput, "{}: byte {} (0x{:02x}) is not UTF-8", where, byte,
       static_cast<unsigned char>(text[at]));
}

std::string parse_line(std::string_view json, const std::string& field, const std::string& file,
                       std::int64_t line) {
  TextFieldParser parser(field);
  const bool parsed = nlohmann::json::sax_parse(json.begin(), json.end(), &parser);
  if (!parsed) {
    fail(ExitCode::kCorruptInput, "{}:{}: expected one JSON object a line: {}", file, line,
         parser.error());
  }
  if (!parser.found()) {
    fail(ExitCode::kCorruptInput, "{}:{}: the object has no member \"{}\"", file, line, field);
  }
  return parser.take_text();
}

// Cuts a byte stream into lines, whatever their length up to the limit.
class LineReader {
 public:
  explicit LineReader(const std::string& path)
      : path_(path), source_(open_byte_source(path, is_zstd(path))), block_(1U << 17U) {}

  /// False at the end of the file. A last line need not end in a newline.
  bool next(std::string& line) {
    line.clear();
    offset_ = next_offset_;
    ++number_;
    while (true) {
      if (begin_ == end_) {
        begin_ = 0;
        end_ = source_->read(block_);
        if (end_ == 0) return !line.empty();
      }
      const std::string_view rest(block_.data() + begin_, end_ - begin_);
      const std::size_t newline = rest.find('\n');
      const std::size_t count = std::min(newline, rest.size());
      line += rest.substr(0, count);
      if (static_cast<std::int64_t>(line.size()) > kMaxLineBytes) {
        fail(ExitCode::kCorruptInput, "{}:{}: the line has more than {} bytes", path_, number_,
             kMaxLineBytes);
      }
      const bool whole = newline != std::string_view::npos;
      begin_ += count + (whole ? 1 : 0);
      next_offset_ += static_cast<std::int64_t>(count) + (whole ? 1 : 0);
      if (whole) return true;
    }
  }
  [[nodiscard]] std::int64_t number() const { return number_; }
  [[nodiscard]] std::int64_t offset() const { return offset_; }  // of the line, decompressed bytes

 private:
  const std::string& path_;
  std::unique_ptr<ByteSource> source_;
  std::vector<char> block_;
  std::size_t begin_ = 0;
  std::size_t end_ = 0;
  std::int64_t number_ = 0;
  std::int64_t offset_ = 0;
  std::int64_t next_offset_ = 0;
};

void read_json_lines(const std::string& file, const std::string& field,
                     const std::function<void(Document&&)>& visit) {
  LineReader lines(file);
  std::string line;
  while (lines.next(line)) {
    expect_utf8(line, file, lines.number(), lines.offset());
    visit(Document{parse_line(line, field, file, lines.number()), file, lines.number()});
  }
}

void append_directory(const std::string& path, std::vector<std::string>& files) {
  std::vector<std::string> found;
  try {
    for (const auto& entry : fs::recursive_directory_iterator(path)) {
      if (entry.is_regular_file() && is_corpus_file(entry.path().native())) {
        found.push_back(entry.path().string());
      }
    }
  } catch (const fs::filesystem_error& error) {
    fail_with_errno("search", error.path1().string(), error.code().value());
  }
  if (found.empty()) {
    fail(ExitCode::kMissingInput, "{} has no .txt, .jsonl, .json, .jsonl.zst or .json.zst file",
         path);
  }
  std::sort(found.begin(), found.end());
  files.insert(files.end(), found.begin(), found.end());
}

}  // namespace

std::vector<std::string> list_corpus_files(const std::vector<std::string>& paths) {
  std::vector<std::string> files;
  for (const std::string& path : paths) {
    std::error_code error;
    const fs::file_status status = fs::status(path, error);
    if (!fs::exists(status)) fail_with_errno("open", path, error.value());
    if (fs::is_directory(status)) {
      append_directory(path, files);
    } else if (is_corpus_file(path)) {
      files.push_back(path);
    } else {
      fail(ExitCode::kUsage, "{} is not a .txt, .jsonl, .json, .jsonl.zst or .json.zst file", path);
    }
  }
  return files;
}

void read_documents(const std::vector<std::string>& paths, const std::string& text_field,
                    const std::function<void(Document&&)>& visit) {
  for (const std::string& file : list_corpus_files(paths)) {
    if (!is_text(file)) {
      read_json_lines(file, text_field, visit);
      continue;
    }
    std::string text = read_text_file(file, kMaxLineBytes);
    if (text.empty()) fail(ExitCode::kCorruptInput, "{} is empty", file);
    expect_utf8(text, file, 0, 0);
    visit(Document{std::move(text), file, 0});
  }
}

}  // namespace ttt::data
