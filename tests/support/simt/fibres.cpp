#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>

#include "tests/support/simt/scheduler.h"
#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/common_interface_defs.h>
#endif

#if !defined(__x86_64__)
#error "the fibre scheduler switches stacks with x86-64 instructions"
#endif

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

constexpr std::size_t kStackBytes = std::size_t{96} << 10;

struct Barrier {
  unsigned arrived = 0;
  unsigned expected = 0;
  std::uint64_t generation = 0;
  const char* what = nullptr;  // the operation of those who wait
};

struct Warp {
  Barrier barrier;
  unsigned lanes = 0;
  // Exchanges alternate between two buffers, so that one barrier an exchange is enough.
  alignas(64) std::byte slots[2][kLanes * kExchangeBytes];
};

struct BlockState {
  Barrier all;
  Barrier named[kMaxNamedBarriers];
  std::unique_ptr<std::byte, decltype(&std::free)> shared{nullptr, &std::free};
};

struct Fibre {
  Thread thread;
  void* stack_pointer = nullptr;
  std::unique_ptr<std::byte, decltype(&std::free)> stack{nullptr, &std::free};
  const Barrier* waits_at = nullptr;
  std::uint64_t waits_for = 0;
  BlockState* block = nullptr;
  Warp* warp = nullptr;
  bool is_done = false;
  void* sanitizer_stack = nullptr;
};

struct Scheduler {
  Launch launch;
  const std::function<void()>* body = nullptr;
  std::vector<std::unique_ptr<Fibre>> fibres;
  std::vector<std::unique_ptr<Warp>> warps;
  std::vector<BlockState> blocks;
  std::vector<std::byte*> shared;
  Barrier cluster;
  Fibre* current = nullptr;
  void* main_stack_pointer = nullptr;
  const void* main_stack = nullptr;
  std::size_t main_stack_bytes = 0;
  void* main_sanitizer_stack = nullptr;
};
Scheduler scheduler;  // kernels run one at a time

void switch_to_main() {
  Fibre* me = scheduler.current;
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_start_switch_fiber(me->is_done ? nullptr : &me->sanitizer_stack, scheduler.main_stack,
                                 scheduler.main_stack_bytes);
#endif
  ttt_simt_switch(&me->stack_pointer, scheduler.main_stack_pointer);
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(me->sanitizer_stack, &scheduler.main_stack,
                                  &scheduler.main_stack_bytes);
#endif
}

void fibre_main() {
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(nullptr, &scheduler.main_stack, &scheduler.main_stack_bytes);
#endif
  (*scheduler.body)();
  scheduler.current->is_done = true;
  switch_to_main();
  std::abort();
}

void resume(Fibre& fibre) {
  scheduler.current = &fibre;
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_start_switch_fiber(&scheduler.main_sanitizer_stack, fibre.stack.get(), kStackBytes);
#endif
  ttt_simt_switch(&scheduler.main_stack_pointer, fibre.stack_pointer);
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(scheduler.main_sanitizer_stack, nullptr, nullptr);
#endif
}

void wait(Barrier& barrier, unsigned expected, const char* what) {
  if (barrier.arrived == 0) {
    barrier.what = what;
    barrier.expected = expected;
  } else if (std::strcmp(barrier.what, what) != 0 || barrier.expected != expected) {
    std::fprintf(stderr, "simt: %s meets %s\n", what, barrier.what);
    fail_kernel("threads that should meet are at different operations");
  }
  Fibre& me = *scheduler.current;
  if (++barrier.arrived == expected) {
    barrier.arrived = 0;
    ++barrier.generation;
    return;
  }
  me.waits_at = &barrier;
  me.waits_for = barrier.generation + 1;
  switch_to_main();
}

void make_fibre(unsigned number, unsigned block, unsigned thread) {
  const Launch& launch = scheduler.launch;
  if (scheduler.fibres.size() <= number) {
    scheduler.fibres.push_back(std::make_unique<Fibre>());
    scheduler.fibres.back()->stack.reset(
        static_cast<std::byte*>(std::aligned_alloc(4096, kStackBytes)));
  }
  Fibre& fibre = *scheduler.fibres[number];
  fibre.thread = {};
  fibre.thread.thread_index = {thread % launch.block.x, thread / launch.block.x % launch.block.y,
                               thread / (launch.block.x * launch.block.y)};
  fibre.thread.lane = thread % kLanes;
  fibre.thread.cluster_rank = static_cast<int>(block);
  fibre.thread.shared = scheduler.shared[block];
  fibre.thread.cluster_shared = &scheduler.shared;
  fibre.block = &scheduler.blocks[block];
  const unsigned threads = launch.block.x * launch.block.y * launch.block.z;
  const unsigned warps_of_block = (threads + kLanes - 1) / kLanes;
  fibre.warp = scheduler.warps[block * warps_of_block + thread / kLanes].get();
  ++fibre.warp->lanes;
  fibre.waits_at = nullptr;
  fibre.is_done = false;
  fibre.sanitizer_stack = nullptr;
  // The stack as ttt_simt_switch leaves it: six registers and the address to return to, 16-byte aligned before it.
  auto** top = reinterpret_cast<void**>(fibre.stack.get() + kStackBytes - 16);
  *--top = nullptr;
  *--top = reinterpret_cast<void*>(fibre_main);
  for (int i = 0; i < 6; ++i) *--top = nullptr;
  fibre.stack_pointer = top;
}

// All threads of the cluster whose first block is `first`, until every one has ended.
void run_cluster(const Index& first) {
  const Launch& launch = scheduler.launch;
  const unsigned threads = launch.block.x * launch.block.y * launch.block.z;
  const unsigned warps_of_block = (threads + kLanes - 1) / kLanes;
  scheduler.blocks.clear();
  scheduler.blocks.resize(launch.cluster);
  scheduler.shared.assign(launch.cluster, nullptr);
  scheduler.cluster = {};
  scheduler.warps.clear();
  for (unsigned i = 0; i < launch.cluster * warps_of_block; ++i) {
    scheduler.warps.push_back(std::make_unique<Warp>());
  }
  for (unsigned block = 0; block < launch.cluster; ++block) {
    // Exactly its bytes, so that AddressSanitizer sees what is beyond them; full of NaN, as nothing may be relied on.
    if (launch.shared_bytes > 0) {
      scheduler.blocks[block].shared.reset(
          static_cast<std::byte*>(std::aligned_alloc(1024, launch.shared_bytes)));
      scheduler.shared[block] = scheduler.blocks[block].shared.get();
      std::memset(scheduler.shared[block], 0xff, launch.shared_bytes);
    }
    for (unsigned thread = 0; thread < threads; ++thread) {
      const unsigned number = block * threads + thread;
      make_fibre(number, block, thread);
      scheduler.fibres[number]->thread.block_index = {first.x + block, first.y, first.z};
    }
  }
  const unsigned count = launch.cluster * threads;
  for (unsigned live = count; live > 0;) {
    bool any_ran = false;
    for (unsigned i = 0; i < count; ++i) {
      Fibre& fibre = *scheduler.fibres[i];
      if (fibre.is_done) continue;
      if (fibre.waits_at != nullptr && fibre.waits_at->generation < fibre.waits_for) continue;
      fibre.waits_at = nullptr;
      any_ran = true;
      resume(fibre);
      if (fibre.is_done) --live;
    }
    if (!any_ran) {
      for (unsigned i = 0; i < count; ++i) {
        const Fibre& fibre = *scheduler.fibres[i];
        if (fibre.is_done) continue;
        std::fprintf(stderr, "simt: thread %u waits at %s with %u of %u\n", i, fibre.waits_at->what,
                     fibre.waits_at->arrived, fibre.waits_at->expected);
        break;
      }
      fail_kernel("deadlock: some threads wait at a barrier that the others will not reach");
    }
  }
}

}  // namespace

Thread& current() { return scheduler.current->thread; }
const Launch& current_launch() { return scheduler.launch; }

void run(const Launch& launch, const std::function<void()>& body) {
  scheduler.launch = launch;
  scheduler.body = &body;
  for (unsigned z = 0; z < launch.grid.z; ++z) {
    for (unsigned y = 0; y < launch.grid.y; ++y) {
      for (unsigned x = 0; x < launch.grid.x; x += launch.cluster) run_cluster({x, y, z});
    }
  }
  scheduler.current = nullptr;
}

void wait_for_block() {
  const Index& block = scheduler.launch.block;
  wait(scheduler.current->block->all, block.x * block.y * block.z, "__syncthreads");
}

void wait_for_named(int id, unsigned threads) {
  if (id < 1 || id >= kMaxNamedBarriers) fail_kernel("named barriers have ids 1 to 15");
  wait(scheduler.current->block->named[id], threads, "named_barrier");
}

void wait_for_cluster() {
  const Index& block = scheduler.launch.block;
  wait(scheduler.cluster, scheduler.launch.cluster * block.x * block.y * block.z,
       "cluster_barrier");
}

void wait_for_warp(const char* what) {
  wait(scheduler.current->warp->barrier, scheduler.current->warp->lanes, what);
}

const std::byte* exchange(const char* what, const void* value, std::size_t bytes) {
  Fibre& me = *scheduler.current;
  Warp& warp = *me.warp;
  // All lanes of an exchange see the same generation: the next begins only when this one is complete.
  std::byte* slots = warp.slots[warp.barrier.generation & 1];
  std::memcpy(slots + me.thread.lane * kExchangeBytes, value, bytes);
  wait_for_warp(what);
  return slots;
}

void fail_kernel(const char* message) {
  if (scheduler.current != nullptr) {
    const Thread& t = scheduler.current->thread;
    std::fprintf(stderr, "simt: %s (block %u,%u,%u thread %u,%u,%u)\n", message, t.block_index.x,
                 t.block_index.y, t.block_index.z, t.thread_index.x, t.thread_index.y,
                 t.thread_index.z);
  }
  std::abort();
}

}  // namespace ttt::simt
