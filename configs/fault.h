#pragma once
// Where in a text is what its parser complains about. Internal to configs.

#include <cstddef>
#include <string>

namespace ttt::config {

/// What to leave out so that the rest can be read.
struct Fault {
  int line = 0;  // from 0
  std::size_t begin = 0, end = 0;
};

/// The assignment `name: value` at fault, or the whole line where the fault is something else. `line` and `column` are
/// the parser's; of a `value` that is not empty they are those of the token after it, which may be lines below.
Fault find_fault(const std::string& text, int line, int column, const std::string& value);

}  // namespace ttt::config
