// The header of a .npy file: magic, version, length, then a Python dictionary literal.
// Source: NumPy enhancement proposal 1, format versions 1.0 to 3.0.

#include <fcntl.h>

#include <array>
#include <charconv>
#include <optional>
#include <string>
#include <string_view>

#include "core/base/error.h"
#include "data/files.h"
#include "data/tokens/token_header.h"

namespace ttt::data {
namespace {

constexpr std::size_t kMaxHeaderBytes = 1U << 16U;

[[noreturn]] void reject(const std::string& path, const std::string& reason) {
  fail(ExitCode::kCorruptInput,
       "{}: {}; a 1-D array of uint16, int32, uint32 or int64 in C order is expected", path,
       reason);
}

// The text of the value after 'key': up to the comma or brace that ends it.
std::string_view value_of(std::string_view header, std::string_view key, const std::string& path) {
  const std::string quoted = fmt::format("'{}':", key);
  const auto at = header.find(quoted);
  if (at == std::string_view::npos) reject(path, fmt::format("the header has no '{}'", key));
  std::string_view rest = header.substr(at + quoted.size());
  while (rest.starts_with(' ')) rest.remove_prefix(1);
  const bool is_tuple = rest.starts_with('(');
  const auto end = rest.find_first_of(is_tuple ? ")" : ",}");
  if (end == std::string_view::npos) reject(path, "the header is damaged");
  rest = rest.substr(0, end + (is_tuple ? 1 : 0));
  while (rest.ends_with(' ')) rest.remove_suffix(1);
  return rest;
}

// "(123,)" is one dimension; numpy writes longs of old versions as "(123L,)".
std::optional<std::int64_t> parse_one_dimension(std::string_view shape) {
  if (!shape.starts_with('(')) return std::nullopt;
  std::int64_t count = 0;
  const char* const end = shape.data() + shape.size();
  const auto [next, error] = std::from_chars(shape.data() + 1, end, count);
  if (error != std::errc() || count < 0) return std::nullopt;
  const std::string_view rest(next, static_cast<std::size_t>(end - next));
  return rest == ",)" || rest == "L,)" ? std::optional(count) : std::nullopt;
}

struct Element {
  std::string_view descr;
  int bytes;
  bool is_signed;
};
constexpr std::array<Element, 4> kElements = {
    {{"'<u2'", 2, false}, {"'<i4'", 4, true}, {"'<u4'", 4, false}, {"'<i8'", 8, true}}};

struct HeaderText {
  std::string text;
  std::int64_t data_offset;
};

HeaderText read_header_text(const FileDescriptor& file) {
  const std::string& path = file.path();
  std::array<unsigned char, 12> start{};
  const auto bytes = std::as_writable_bytes(std::span(start));
  if (file.size_bytes() < 12) reject(path, "the file is too short for a .npy header");
  file.read_at(0, bytes);
  constexpr std::array<unsigned char, 6> kMagic = {0x93, 'N', 'U', 'M', 'P', 'Y'};
  if (!std::equal(kMagic.begin(), kMagic.end(), start.begin())) {
    reject(path, "the file does not begin with the .npy magic");
  }
  const int version = start[6];
  if (version < 1 || version > 3) reject(path, fmt::format(".npy version {}", version));
  std::size_t length = start[8] + (std::size_t{start[9]} << 8U);
  if (version > 1) length += (std::size_t{start[10]} << 16U) + (std::size_t{start[11]} << 24U);
  const std::int64_t begin = version == 1 ? 10 : 12;
  if (length > kMaxHeaderBytes) reject(path, fmt::format("a header of {} bytes", length));
  HeaderText header{std::string(length, '\0'), begin + static_cast<std::int64_t>(length)};
  if (header.data_offset > file.size_bytes()) reject(path, "the file ends in its header");
  file.read_at(begin, std::as_writable_bytes(std::span(header.text)));
  return header;
}

}  // namespace

TokenFileInfo read_npy_header(const std::string& path) {
  const FileDescriptor file(path, O_RDONLY);
  const HeaderText header = read_header_text(file);
  TokenFileInfo info;
  info.path = path;
  info.format = "npy";
  info.data_offset = header.data_offset;
  const std::string_view order = value_of(header.text, "fortran_order", path);
  if (order != "False") reject(path, fmt::format("fortran_order is {}", order));
  const std::string_view shape = value_of(header.text, "shape", path);
  const auto count = parse_one_dimension(shape);
  if (!count) reject(path, fmt::format("the shape is {}", shape));
  info.num_tokens = *count;
  const std::string_view descr = value_of(header.text, "descr", path);
  const Element* element = nullptr;
  for (const Element& row : kElements) {
    if (row.descr == descr) element = &row;
  }
  if (element == nullptr) reject(path, fmt::format("the element type is {}", descr));
  info.token_bytes = element->bytes;
  info.is_signed = element->is_signed;
  // Compared by division: the product of a hostile shape could overflow.
  const std::int64_t payload = file.size_bytes() - info.data_offset;
  if (payload % element->bytes != 0 || payload / element->bytes != info.num_tokens) {
    reject(path, fmt::format("the header tells of {} tokens of {} bytes, the file has {} bytes "
                             "after it",
                             info.num_tokens, element->bytes, payload));
  }
  return info;
}

}  // namespace ttt::data
