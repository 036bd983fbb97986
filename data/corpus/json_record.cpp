#include "data/corpus/json_record.h"

#include <algorithm>
#include <nlohmann/json.hpp>
#include <utility>

#include "core/base/error.h"
#include "data/files.h"

namespace ttt::data {
namespace {

constexpr std::size_t kMaxDepth = 64;

// Takes two string members and checks everything else as JSON. No tree is built: what is beside the
// text can be larger than it.
class RecordParser final : public nlohmann::json_sax<nlohmann::json> {
 public:
  RecordParser(const RecordFields& fields, JsonRecord& record) : fields_(fields), record_(record) {}

  [[nodiscard]] bool found_text() const { return found_text_; }

  bool null() override { return scalar("null"); }
  bool boolean(bool) override { return scalar("a boolean"); }
  bool number_integer(number_integer_t) override { return scalar("a number"); }
  bool number_unsigned(number_unsigned_t) override { return scalar("a number"); }
  bool number_float(number_float_t, const string_t&) override { return scalar("a number"); }
  bool binary(binary_t&) override { return scalar("binary"); }
  bool string(string_t& value) override {
    if (bases_.empty()) return reject("not an object", "a string, not an object");
    if (path_ == fields_.text) {
      record_.text = std::move(value);
      found_text_ = true;
    } else if (record_.subset.empty() &&
               std::ranges::find(fields_.subset, path_) != fields_.subset.end()) {
      record_.subset = std::move(value);
    }
    return true;
  }
  bool start_object(std::size_t) override { return open("an object", ""); }
  bool key(string_t& name) override {
    path_.resize(bases_.back());
    if (!path_.empty()) path_ += '.';
    path_ += name;
    if (path_ == fields_.text && found_text_) {
      return reject("text twice", fmt::format("member \"{}\" twice", fields_.text));
    }
    return true;
  }
  bool end_object() override { return close(); }
  bool start_array(std::size_t) override {
    if (bases_.empty()) return reject("not an object", "an array, not an object");
    return open("an array", "[]");
  }
  bool end_array() override { return close(); }
  bool parse_error(std::size_t position, const std::string&,
                   const nlohmann::detail::exception& exception) override {
    record_.at = position > 0 ? position - 1 : 0;
    // The parser's words begin with its own line and column, which are not the file's.
    std::string words = exception.what();
    if (const std::size_t at = words.find("syntax error"); at != std::string::npos) {
      words.erase(0, at);
    }
    return reject("broken JSON", std::move(words));
  }

 private:
  bool reject(std::string reason, std::string detail) {
    record_.reason = std::move(reason);
    record_.detail = std::move(detail);
    return false;
  }
  bool not_a_string(const char* what) {
    return reject("text not a string",
                  fmt::format("member \"{}\" is {}, not a string", fields_.text, what));
  }
  bool scalar(const char* what) {
    if (bases_.empty()) return reject("not an object", fmt::format("{}, not an object", what));
    return path_ != fields_.text || not_a_string(what);
  }
  // The elements of an array are below "name[]".
  bool open(const char* what, const char* step) {
    if (!bases_.empty() && path_ == fields_.text) return not_a_string(what);
    if (bases_.size() == kMaxDepth) {
      return reject("nested too deep", fmt::format("nested deeper than {}", kMaxDepth));
    }
    bases_.push_back(path_.size());
    path_ += step;
    return true;
  }
  bool close() {
    path_.resize(bases_.back());
    bases_.pop_back();
    return true;
  }

  const RecordFields& fields_;
  JsonRecord& record_;
  std::string path_;                // of the value that comes next
  std::vector<std::size_t> bases_;  // length of the path of every open object and array
  bool found_text_ = false;
};

}  // namespace

JsonRecord parse_json_record(std::string_view line, const RecordFields& fields) {
  JsonRecord record;
  if (const std::size_t at = find_invalid_utf8(line); at < line.size()) {
    record.at = at;
    record.reason = "not UTF-8";
    record.detail = fmt::format("0x{:02x} is not UTF-8", static_cast<unsigned char>(line[at]));
    return record;
  }
  RecordParser parser(fields, record);
  const bool parsed = nlohmann::json::sax_parse(line.begin(), line.end(), &parser);
  if (!parsed) {
    record.detail = "expected one JSON object a line: " + record.detail;
  } else if (!parser.found_text()) {
    record.reason = "no text";
    record.detail = fmt::format("the object has no member \"{}\"", fields.text);
  }
  return record;
}

}  // namespace ttt::data
