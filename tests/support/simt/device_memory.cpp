#include "tests/support/simt/device_memory.h"

#include <sys/mman.h>

#include "core/base/error.h"

namespace ttt::simt {
namespace {

// One reservation, so that all of it opens and closes with one call. Blocks are never given back: the pool keeps them.
constexpr std::int64_t kReserved = std::int64_t{1} << 32;
constexpr std::int64_t kPage = 4096;  // the unit of mprotect

struct Arena {
  std::byte* base = nullptr;
  std::int64_t used = 0;
  int num_open = 0;
};
Arena arena;

void protect(int protection) {
  if (arena.used == 0) return;
  TTT_CHECK(mprotect(arena.base, static_cast<std::size_t>(arena.used), protection) == 0,
            "mprotect of {} bytes", arena.used);
}

}  // namespace

std::byte* allocate_device(std::int64_t bytes) {
  if (arena.base == nullptr) {
    void* const base = mmap(nullptr, static_cast<std::size_t>(kReserved), PROT_NONE,
                            MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (base == MAP_FAILED) return nullptr;
    arena.base = static_cast<std::byte*>(base);
  }
  const std::int64_t begin = arena.used;
  if (bytes > kReserved - begin - kPage) return nullptr;
  arena.used += (bytes + kPage - 1) / kPage * kPage;
  if (arena.num_open > 0) protect(PROT_READ | PROT_WRITE);
  return arena.base + begin;
}

void release_device(std::byte* /*block*/) {}

DeviceAccess::DeviceAccess() {
  if (arena.num_open++ == 0) protect(PROT_READ | PROT_WRITE);
}

DeviceAccess::~DeviceAccess() {
  if (--arena.num_open == 0) protect(PROT_NONE);
}

}  // namespace ttt::simt
