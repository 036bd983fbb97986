#pragma once
// What a mailbox of an emulated kernel holds: kernels/cuda/simt.h has the
// rules, tests/support/simt/scheduler.h the waiting.

#include <cstddef>
#include <cstring>
#include <vector>

#include "tests/support/simt/fibre.h"
#include "tests/support/simt/scheduler.h"

namespace ttt::simt {

class Mail {
 public:
  Mail() {
    for (std::vector<Message>& messages : messages_) messages.reserve(kMaxMessages);
  }
  /// Both return whether the phase is now complete.
  bool expect(std::size_t bytes) {
    if (is_expected_) fail_kernel("a mailbox's phase is given two sizes");
    is_expected_ = true;
    expected_ = bytes;
    return completes();
  }
  bool add(unsigned parity, void* to, const void* value, std::size_t bytes) {
    Message message{to, bytes, {}};
    if (bytes > sizeof(message.value)) fail_kernel("a message has at most 8 bytes");
    for (std::size_t i = 0; i < bytes; ++i) {
      message.value[i] = static_cast<const volatile std::byte*>(value)[i];
    }
    std::vector<Message>& messages = messages_[parity];
    if (messages.size() % 2 == 0 && !has_thread_sanitizer()) message.lay_down();
    if (messages.size() == kMaxMessages) fail_kernel("a mailbox's phase has too many messages");
    messages.push_back(message);
    arrived_ += bytes;
    return completes();
  }
  /// A complete phase's messages into their places; false when another thread
  /// has done that.
  bool lay_down(unsigned parity) {
    std::vector<Message>& messages = messages_[parity];
    if (messages.empty()) return false;
    for (const Message& message : messages) message.lay_down();
    messages.clear();
    return true;
  }

 private:
  struct Message {
    void* to;
    std::size_t bytes;
    std::byte value[8];
    // ThreadSanitizer is to see what is written and not what is read, here or where a vector grows.
    void lay_down() const {
      std::byte copy[sizeof(value)];
      const volatile std::byte* from = value;
      for (std::size_t i = 0; i < bytes; ++i) copy[i] = from[i];
      std::memcpy(to, copy, bytes);
    }
  };
  static constexpr std::size_t kMaxMessages = 4096;

  bool completes() {
    if (!is_expected_ || arrived_ < expected_) return false;
    if (arrived_ > expected_) fail_kernel("a mailbox gets more bytes than it expects");
    is_expected_ = false;
    arrived_ = 0;
    return true;
  }

  std::size_t arrived_ = 0, expected_ = 0;
  bool is_expected_ = false;
  std::vector<Message> messages_[2];  // of a phase and the next
};

}  // namespace ttt::simt
