#pragma once
// Cuts text into words by a regular expression, as the pre-tokenizers of Hugging Face do ("isolated"):
// every match is a word, and so is what lies between two matches.

#include <functional>
#include <memory>
#include <string>
#include <string_view>

namespace ttt::data {

class RegexSplitter {
 public:
  /// `pattern` in the syntax that PCRE2 and Oniguruma share; \s is Unicode's White_Space. 65 with `path` for
  /// one that cannot be compiled.
  RegexSplitter(const std::string& pattern, const std::string& path);
  ~RegexSplitter();
  RegexSplitter(RegexSplitter&&) noexcept;
  RegexSplitter& operator=(RegexSplitter&&) noexcept;
  RegexSplitter(const RegexSplitter&) = delete;
  RegexSplitter& operator=(const RegexSplitter&) = delete;

  /// What a thread needs to match; serves any number of splits.
  class Memory {
   public:
    Memory();
    ~Memory();
    Memory(const Memory&) = delete;
    Memory& operator=(const Memory&) = delete;

   private:
    friend class RegexSplitter;
    struct Parts;
    std::unique_ptr<Parts> parts_;
  };

  /// `text` is UTF-8. Thread safe.
  void split(std::string_view text, const Memory& memory,
             const std::function<void(std::string_view)>& on_word) const;

 private:
  struct Code;
  std::unique_ptr<Code> code_;
};

}  // namespace ttt::data
