#pragma once
// Code that runs on a stack of its own and can be left in the middle, and what the sanitizers must be told about it.

#include <cstddef>

namespace ttt::simt {

/// To AddressSanitizer a stack, to ThreadSanitizer a thread that switching puts in no order with the others.
class Fibre {
 public:
  /// `code` starts at the first `enter` and must not return.
  explicit Fibre(void (*code)());
  ~Fibre();
  Fibre(const Fibre&) = delete;
  Fibre& operator=(const Fibre&) = delete;

  /// From the program's own stack: runs the code until it leaves.
  void enter();
  /// From the code: back to the program, until the next `enter`.
  void leave();

 private:
  static void first_entry();

  void (*code_)();
  std::byte* pages_;  // one that may not be touched, then the stack
  void* stack_pointer_ = nullptr;
  void* address_sanitizer_ = nullptr;
  void* thread_sanitizer_ = nullptr;
};

/// For ThreadSanitizer: what happened before `release(x)` happened before what follows `acquire(x)`.
void release(char* order);
void acquire(char* order);
/// Whether it is there.
bool has_thread_sanitizer();

}  // namespace ttt::simt
