#include "data/tokenizer/regex_splitter.h"

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

#include <array>
#include <utility>

#include "core/base/error.h"

namespace ttt::data {
namespace {

template <auto kFree>
struct Free {
  template <typename T>
  void operator()(T* pointer) const {
    kFree(pointer);
  }
};
using Pattern = std::unique_ptr<pcre2_code, Free<&pcre2_code_free>>;
using MatchData = std::unique_ptr<pcre2_match_data, Free<&pcre2_match_data_free>>;
using MatchContext = std::unique_ptr<pcre2_match_context, Free<&pcre2_match_context_free>>;
using JitStack = std::unique_ptr<pcre2_jit_stack, Free<&pcre2_jit_stack_free>>;

std::string message_of(int error) {
  std::array<unsigned char, 256> text{};
  pcre2_get_error_message(error, text.data(), text.size());
  return reinterpret_cast<const char*>(text.data());
}

// PCRE2 counts U+180E among \s, Unicode since 6.3 does not.
std::string with_unicode_spaces(const std::string& pattern, const std::string& path) {
  constexpr const char* kSpaces =
      R"(\t-\r \x{85}\x{a0}\x{1680}\x{2000}-\x{200a}\x{2028}\x{2029}\x{202f}\x{205f}\x{3000})";
  std::string out;
  bool in_class = false;
  for (std::size_t i = 0; i < pattern.size(); ++i) {
    if (pattern[i] == '\\' && i + 1 < pattern.size()) {
      const char escaped = pattern[++i];
      if (escaped == 's') {
        out += in_class ? kSpaces : fmt::format("[{}]", kSpaces);
      } else if (escaped == 'S' && in_class) {
        fail(ExitCode::kCorruptInput, "{}: \\S inside [...] is not read: {}", path, pattern);
      } else if (escaped == 'S') {
        out += fmt::format("[^{}]", kSpaces);
      } else {
        out += {'\\', escaped};
      }
      continue;
    }
    if (pattern[i] == '[') in_class = true;
    if (pattern[i] == ']') in_class = false;
    out += pattern[i];
  }
  return out;
}

}  // namespace

struct RegexSplitter::Memory::Parts {
  MatchData data{pcre2_match_data_create(1, nullptr)};  // the whole match, no groups
  MatchContext context{pcre2_match_context_create(nullptr)};
  JitStack stack{pcre2_jit_stack_create(1U << 15U, 1U << 23U, nullptr)};
};

RegexSplitter::Memory::Memory() : parts_(std::make_unique<Parts>()) {
  if (!parts_->data || !parts_->context || !parts_->stack) {
    fail(ExitCode::kOutOfMemory, "no memory to split text");
  }
  pcre2_jit_stack_assign(parts_->context.get(), nullptr, parts_->stack.get());
}
RegexSplitter::Memory::~Memory() = default;

struct RegexSplitter::Code {
  std::string path;
  Pattern pattern;
};

RegexSplitter::RegexSplitter(const std::string& pattern, const std::string& path)
    : code_(std::make_unique<Code>()) {
  const std::string text = with_unicode_spaces(pattern, path);
  int error = 0;
  PCRE2_SIZE at = 0;
  code_->path = path;
  code_->pattern.reset(pcre2_compile(reinterpret_cast<PCRE2_SPTR>(text.data()), text.size(),
                                     PCRE2_UTF | PCRE2_UCP, &error, &at, nullptr));
  if (!code_->pattern) {
    fail(ExitCode::kCorruptInput, "{}: the pattern \"{}\" cannot be compiled: {}", path, pattern,
         message_of(error));
  }
  pcre2_jit_compile(code_->pattern.get(), PCRE2_JIT_COMPLETE);  // without it: slower, the same
}

RegexSplitter::~RegexSplitter() = default;
RegexSplitter::RegexSplitter(RegexSplitter&&) noexcept = default;
RegexSplitter& RegexSplitter::operator=(RegexSplitter&&) noexcept = default;

void RegexSplitter::split(std::string_view text, const Memory& memory,
                          const std::function<void(std::string_view)>& on_word) const {
  pcre2_match_data* const data = memory.parts_->data.get();
  std::size_t begin = 0;  // of what has not been passed on
  std::size_t from = 0;
  while (from < text.size()) {
    const int count =
        pcre2_match(code_->pattern.get(), reinterpret_cast<PCRE2_SPTR>(text.data()), text.size(),
                    from, PCRE2_NO_UTF_CHECK, data, memory.parts_->context.get());
    if (count == PCRE2_ERROR_NOMATCH) break;
    if (count < 0) {
      fail(ExitCode::kCorruptInput, "{}: text cannot be split at byte {}: {}", code_->path, from,
           message_of(count));
    }
    const PCRE2_SIZE* const ends = pcre2_get_ovector_pointer(data);
    if (ends[1] == ends[0]) {
      fail(ExitCode::kCorruptInput, "{}: the pattern matches nothing at all", code_->path);
    }
    if (ends[0] > begin) on_word(text.substr(begin, ends[0] - begin));
    on_word(text.substr(ends[0], ends[1] - ends[0]));
    begin = from = ends[1];
  }
  if (begin < text.size()) on_word(text.substr(begin));
}

}  // namespace ttt::data
