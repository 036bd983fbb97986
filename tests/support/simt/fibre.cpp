#include "tests/support/simt/fibre.h"

#include <sys/mman.h>

#include <cstdio>
#include <cstdlib>

#if !defined(__x86_64__)
#error "fibres switch stacks with x86-64 instructions"
#endif

// What the sanitizers' <sanitizer/common_interface_defs.h> and <sanitizer/tsan_interface.h> declare: null unless the
// program is built with the one concerned.
extern "C" {
#define TTT_WEAK __attribute__((weak))
TTT_WEAK void __sanitizer_start_switch_fiber(void** fake_stack_save, const void* bottom,
                                             std::size_t size);
TTT_WEAK void __sanitizer_finish_switch_fiber(void* fake_stack_save, const void** bottom_old,
                                              std::size_t* size_old);
TTT_WEAK void* __tsan_get_current_fiber();
TTT_WEAK void* __tsan_create_fiber(unsigned flags);
TTT_WEAK void __tsan_destroy_fiber(void* fiber);
TTT_WEAK void __tsan_switch_to_fiber(void* fiber, unsigned flags);
TTT_WEAK void __tsan_acquire(void* address);
TTT_WEAK void __tsan_release(void* address);
#undef TTT_WEAK
}

// Saves the callee's registers and stack pointer, loads the other's. swapcontext would make two system calls.
extern "C" void ttt_simt_switch(void** save_stack, void* load_stack);
asm(R"(.text
.type ttt_simt_switch,@function
ttt_simt_switch:
  pushq %rbp; pushq %rbx; pushq %r12; pushq %r13; pushq %r14; pushq %r15
  movq %rsp,(%rdi)
  movq %rsi,%rsp
  popq %r15; popq %r14; popq %r13; popq %r12; popq %rbx; popq %rbp
  ret
.size ttt_simt_switch,.-ttt_simt_switch
)");

namespace ttt::simt {
namespace {

constexpr unsigned kNoSync = 1;  // switching orders nothing
constexpr std::size_t kPageBytes = 4096;
constexpr std::size_t kStackBytes = std::size_t{256} << 10U;  // sanitizers make frames large

// The side that enters fibres.
struct Program {
  void* stack_pointer = nullptr;
  const void* stack = nullptr;
  std::size_t stack_bytes = 0;
  void* address_sanitizer = nullptr;
  void* thread_sanitizer = nullptr;
};
Program program;
Fibre* entered = nullptr;

}  // namespace

Fibre::Fibre(void (*code)())
    : code_(code),
      pages_(static_cast<std::byte*>(mmap(nullptr, kPageBytes + kStackBytes, PROT_READ | PROT_WRITE,
                                          MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0))) {
  if (pages_ == MAP_FAILED || mprotect(pages_, kPageBytes, PROT_NONE) != 0) {
    std::perror("simt: no memory for a thread's stack");
    std::abort();
  }
  if (__tsan_create_fiber != nullptr) thread_sanitizer_ = __tsan_create_fiber(0);
  // The stack as ttt_simt_switch leaves it: six registers and the address to return to. A function begins with its
  // stack 8 bytes off a multiple of 16.
  auto** top = reinterpret_cast<void**>(pages_ + kPageBytes + kStackBytes - 16);
  *--top = nullptr;
  *--top = reinterpret_cast<void*>(first_entry);
  for (int i = 0; i < 6; ++i) *--top = nullptr;
  stack_pointer_ = top;
}

Fibre::~Fibre() {
  if (__tsan_destroy_fiber != nullptr) __tsan_destroy_fiber(thread_sanitizer_);
  munmap(pages_, kPageBytes + kStackBytes);
}

void Fibre::first_entry() {
  if (__sanitizer_finish_switch_fiber != nullptr) {
    __sanitizer_finish_switch_fiber(nullptr, &program.stack, &program.stack_bytes);
  }
  entered->code_();
  std::abort();
}

void Fibre::enter() {
  entered = this;
  if (__sanitizer_start_switch_fiber != nullptr) {
    __sanitizer_start_switch_fiber(&program.address_sanitizer, pages_ + kPageBytes, kStackBytes);
  }
  if (__tsan_switch_to_fiber != nullptr) {
    program.thread_sanitizer = __tsan_get_current_fiber();
    __tsan_switch_to_fiber(thread_sanitizer_, kNoSync);
  }
  ttt_simt_switch(&program.stack_pointer, stack_pointer_);
  if (__sanitizer_finish_switch_fiber != nullptr) {
    __sanitizer_finish_switch_fiber(program.address_sanitizer, nullptr, nullptr);
  }
}

void Fibre::leave() {
  if (__sanitizer_start_switch_fiber != nullptr) {
    __sanitizer_start_switch_fiber(&address_sanitizer_, program.stack, program.stack_bytes);
  }
  if (__tsan_switch_to_fiber != nullptr) {
    __tsan_switch_to_fiber(program.thread_sanitizer, kNoSync);
  }
  ttt_simt_switch(&stack_pointer_, program.stack_pointer);
  if (__sanitizer_finish_switch_fiber != nullptr) {
    __sanitizer_finish_switch_fiber(address_sanitizer_, &program.stack, &program.stack_bytes);
  }
}

void release(char* order) {
  if (__tsan_release != nullptr) __tsan_release(order);
}
void acquire(char* order) {
  if (__tsan_acquire != nullptr) __tsan_acquire(order);
}

bool has_thread_sanitizer() { return __tsan_release != nullptr; }

}  // namespace ttt::simt
