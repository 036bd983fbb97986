#pragma once
// Errors: one exception type that carries the process exit code, and the contract check.

#include <fmt/format.h>

#include <stdexcept>
#include <string>
#include <utility>

namespace ttt {

/// Exit codes of the `ttt` program (docs/reliability.md lists them for users).
enum class ExitCode : int {
  kOk = 0,
  kUsage = 64,           // command line or configuration
  kCorruptInput = 65,    // shard, tokenizer, jsonl, safetensors or checkpoint is damaged
  kMissingInput = 66,    // a named input does not exist
  kInternal = 70,        // a contract of our own code was broken
  kLocked = 73,          // output is owned by another run
  kIo = 74,              // read, write or fsync failed
  kPeerLost = 75,        // another rank died or hangs
  kPermission = 77,      // a file or directory may not be touched
  kResumeMismatch = 78,  // checkpoint of another configuration
  kStoppedEarly = 80,    // stopped on request, checkpoint committed
  kNumerical = 81,       // non-finite loss or gradient
  kReplicasDiffer = 82,  // ranks that should hold the same parameters do not
  kOutOfMemory = 83,     // the message says what uses how much
};

/// The only exception type the project throws. Only `main` catches it.
class Error : public std::runtime_error {
 public:
  Error(ExitCode code, const std::string& message) : std::runtime_error(message), code_(code) {}
  [[nodiscard]] ExitCode code() const { return code_; }

 private:
  ExitCode code_;
};

/// Throws Error: what is wrong, where, and what would be right.
template <typename... Args>
[[noreturn]] void fail(ExitCode code, fmt::format_string<Args...> format, Args&&... args) {
  throw Error(code, fmt::format(format, std::forward<Args>(args)...));
}

[[noreturn]] void check_failed(const char* condition, const char* file, int line,
                               const std::string& message);

}  // namespace ttt

/// TTT_CHECK(condition, "format {}", values...): a contract between functions. Throws kInternal.
#define TTT_CHECK(condition, ...)                                                      \
  do {                                                                                 \
    if (!(condition)) {                                                                \
      ::ttt::check_failed(#condition, __FILE__, __LINE__, ::fmt::format(__VA_ARGS__)); \
    }                                                                                  \
  } while (false)
