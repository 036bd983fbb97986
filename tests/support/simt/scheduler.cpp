#include "tests/support/simt/scheduler.h"

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <memory>
#include <string>

#include "tests/support/simt/fibre.h"
#include "tests/support/simt/mail.h"

namespace ttt::simt {
namespace {

struct Operation {
  const char* name = nullptr;
  Site site;
};

struct Barrier {
  unsigned arrived = 0;
  unsigned expected = 0;
  std::uint64_t generation = 0;
  Operation operation;  // of the first that waits
  // What ThreadSanitizer sees who arrives release and who leaves acquire. One for every other generation: a thread that
  // leaves late must not be ordered after what others did before the next barrier.
  char order[2] = {};
};

struct Warp {
  Barrier barrier;
  Operation operation;   // that its lanes are coming to
  unsigned arrived = 0;  // lanes that have come to it
  // Exchanges alternate between two buffers, so that one barrier an exchange is enough.
  alignas(64) std::byte slots[2][kLanes * kExchangeBytes];
};

struct Mailbox {
  Mail mail;
  Barrier phases;  // complete ones are its generation
};

struct BlockState {
  Barrier all;
  Barrier named[kMaxNamedBarriers];
  std::unique_ptr<std::byte, decltype(&std::free)> shared{nullptr, &std::free};
  unsigned live_threads = 0;
};

void run_threads();

// Runs one thread after another: thread t of every block of a launch, and of the launches that follow.
struct Runner {
  Thread thread;
  Fibre fibre{run_threads};
  const Barrier* waits_at = nullptr;
  std::uint64_t waits_for = 0;  // the generation
  BlockState* block = nullptr;
  Warp* warp = nullptr;
  bool is_done = false;
};

struct Scheduler {
  Launch launch;
  const std::function<void()>* body = nullptr;
  std::vector<std::unique_ptr<Runner>> runners;
  std::vector<std::unique_ptr<Warp>> warps;
  std::vector<std::unique_ptr<BlockState>> blocks;
  std::vector<std::byte*> shared;
  Barrier cluster;
  std::map<const void*, Mailbox> mailboxes;
  // Order, for ThreadSanitizer, the threads between what comes before and after them.
  char begins = 0, ends = 0;
  Runner* current = nullptr;
};
Scheduler scheduler;  // kernels run one at a time

unsigned threads_of_block() {
  const Index& block = scheduler.launch.block;
  return block.x * block.y * block.z;
}

void run_threads() {
  for (;;) {
    acquire(&scheduler.begins);
    (*scheduler.body)();
    release(&scheduler.ends);
    Runner& me = *scheduler.current;
    me.is_done = true;
    me.fibre.leave();
  }
}

bool is_same(const Operation& a, const Operation& b) {
  return std::strcmp(a.name, b.name) == 0 && a.site.line() == b.site.line() &&
         a.site.column() == b.site.column();
}

void print(const char* before, const Operation& operation) {
  const char* file = operation.site.file_name();
  const char* slash = std::strrchr(file, '/');
  std::fprintf(stderr, "%s%s (%s:%u)", before, operation.name, slash != nullptr ? slash + 1 : file,
               static_cast<unsigned>(operation.site.line()));
}

[[noreturn]] void fail_to_meet(const Operation& mine, const Operation& theirs, const char* rule) {
  print("simt: ", mine);
  print(" meets ", theirs);
  std::fputc('\n', stderr);
  fail_kernel(rule);
}

// Every operation in here is one of the whole warp, so the lanes come to each of them together.
void come_with_warp(const Operation& operation) {
  Warp& warp = *scheduler.current->warp;
  if (warp.arrived == 0) {
    warp.operation = operation;
  } else if (!is_same(operation, warp.operation)) {
    fail_to_meet(operation, warp.operation, "lanes of a warp are at different operations");
  }
  warp.arrived = (warp.arrived + 1) % scheduler.current->thread.num_lanes;
}

void wait(Barrier& barrier, unsigned expected, const Operation& operation, bool orders_memory) {
  come_with_warp(operation);
  if (barrier.arrived == 0) {
    barrier.operation = operation;
    barrier.expected = expected;
  } else if (barrier.expected != expected) {
    fail_to_meet(operation, barrier.operation, "a barrier with two numbers of threads");
  }
  Runner& me = *scheduler.current;
  char* order = &barrier.order[barrier.generation % 2];
  if (orders_memory) release(order);
  if (++barrier.arrived == expected) {
    barrier.arrived = 0;
    ++barrier.generation;
  } else {
    me.waits_at = &barrier;
    me.waits_for = barrier.generation + 1;
    me.fibre.leave();
  }
  if (orders_memory) acquire(order);
}

Mailbox& mailbox_at(const void* box) {
  const auto found = scheduler.mailboxes.find(box);
  if (found == scheduler.mailboxes.end()) fail_kernel("the mailbox has not been opened");
  return found->second;
}

void prepare_thread(Runner& runner, const Index& block_index, unsigned block, unsigned thread) {
  const Index& size = scheduler.launch.block;
  const unsigned warps_of_block = (threads_of_block() + kLanes - 1) / kLanes;
  const unsigned warp = thread / kLanes;
  Thread& t = runner.thread;
  t.thread_index = {thread % size.x, thread / size.x % size.y, thread / (size.x * size.y)};
  t.block_index = block_index;
  t.lane = thread % kLanes;
  t.num_lanes = std::min(kLanes, threads_of_block() - warp * kLanes);
  t.cluster_rank = static_cast<int>(block);
  t.shared = scheduler.shared[block];
  t.cluster_shared = &scheduler.shared;
  t.copies.assign(1, {});
  runner.block = scheduler.blocks[block].get();
  runner.warp = scheduler.warps[block * warps_of_block + warp].get();
  runner.waits_at = nullptr;
  runner.is_done = false;
}

// The threads and shared memory of the cluster whose first block is `first`.
void prepare_cluster(const Index& first) {
  const Launch& launch = scheduler.launch;
  const unsigned threads = threads_of_block();
  const unsigned warps = launch.cluster * ((threads + kLanes - 1) / kLanes);
  scheduler.cluster = {};
  scheduler.mailboxes.clear();
  scheduler.shared.assign(launch.cluster, nullptr);
  scheduler.blocks.clear();
  scheduler.warps.clear();
  while (scheduler.warps.size() < warps) scheduler.warps.push_back(std::make_unique<Warp>());
  while (scheduler.runners.size() < launch.cluster * threads) {
    scheduler.runners.push_back(std::make_unique<Runner>());
  }
  for (unsigned block = 0; block < launch.cluster; ++block) {
    scheduler.blocks.push_back(std::make_unique<BlockState>());
    scheduler.blocks[block]->live_threads = threads;
    // Exactly its bytes, so that AddressSanitizer sees what is beyond them; full of NaN, as nothing may be relied on.
    if (launch.shared_bytes > 0) {
      void* bytes = nullptr;
      if (posix_memalign(&bytes, 1024, launch.shared_bytes) != 0) {
        fail_kernel("no memory for a block's shared memory");
      }
      std::memset(bytes, 0xff, launch.shared_bytes);
      scheduler.shared[block] = static_cast<std::byte*>(bytes);
      scheduler.blocks[block]->shared.reset(scheduler.shared[block]);
    }
    for (unsigned thread = 0; thread < threads; ++thread) {
      prepare_thread(*scheduler.runners[block * threads + thread],
                     {first.x + block, first.y, first.z}, block, thread);
    }
  }
}

[[noreturn]] void fail_in_deadlock(unsigned count) {
  std::vector<std::pair<Operation, unsigned>> waiting;  // at it, this many threads
  for (unsigned i = count; i-- > 0;) {
    const Runner& runner = *scheduler.runners[i];
    if (runner.is_done) continue;
    scheduler.current = scheduler.runners[i].get();
    const Operation& operation = runner.waits_at->operation;
    const auto known = std::find_if(waiting.begin(), waiting.end(), [&](const auto& entry) {
      return is_same(entry.first, operation);
    });
    if (known == waiting.end()) {
      waiting.emplace_back(operation, 1);
    } else {
      ++known->second;
    }
  }
  unsigned ended = count;
  for (const auto& [operation, threads] : waiting) {
    std::fprintf(stderr, "simt: %u threads wait", threads);
    print(" at ", operation);
    std::fputc('\n', stderr);
    ended -= threads;
  }
  std::fprintf(stderr, "simt: %u threads have ended\n", ended);
  fail_kernel("deadlock: threads wait for others that will not come");
}

// All threads of the cluster whose first block is `first`, until every one has ended.
void run_cluster(const Index& first) {
  prepare_cluster(first);
  release(&scheduler.begins);
  const unsigned count = scheduler.launch.cluster * threads_of_block();
  for (unsigned live = count; live > 0;) {
    bool any_ran = false;
    for (unsigned i = 0; i < count; ++i) {
      Runner& runner = *scheduler.runners[i];
      if (runner.is_done) continue;
      if (runner.waits_at != nullptr && runner.waits_at->generation < runner.waits_for) continue;
      runner.waits_at = nullptr;
      any_ran = true;
      scheduler.current = &runner;
      runner.fibre.enter();
      if (!runner.is_done) continue;
      --live;
      if (--runner.block->live_threads == 0) {
        scheduler.shared[static_cast<std::size_t>(runner.thread.cluster_rank)] = nullptr;
      }
    }
    if (!any_ran) fail_in_deadlock(count);
  }
  acquire(&scheduler.ends);
}

void check_launch() {
  constexpr unsigned kMaxThreads = 1024, kMaxAlongZ = 64;
  constexpr unsigned kMaxBlocksAlongYZ = 65535;
  constexpr unsigned kMaxCluster = 8;
  const auto& [grid, block, shared_bytes, cluster] = scheduler.launch;
  const std::uint64_t threads = std::uint64_t{block.x} * block.y * block.z;
  if (threads == 0 || threads > kMaxThreads || block.z > kMaxAlongZ) {
    fail_kernel("a block has 1 to 1024 threads, at most 64 along z");
  }
  if (grid.y > kMaxBlocksAlongYZ || grid.z > kMaxBlocksAlongYZ) {
    fail_kernel("a grid has at most 65535 blocks along y and z");
  }
  if (cluster == 0 || cluster > kMaxCluster || grid.x % cluster != 0) {
    fail_kernel("a cluster has 1 to 8 blocks and divides the grid along x");
  }
  const kernels::cuda::BlockLimits& limits = device_limits();
  if (cluster > 1 && !limits.has_clusters) fail_kernel("the device has no clusters");
  if (shared_bytes > static_cast<std::size_t>(limits.shared_bytes)) {
    const std::string most = std::to_string(limits.shared_bytes / 1024);
    fail_kernel(("a block has at most " + most + " KiB of shared memory").c_str());
  }
}

}  // namespace

kernels::cuda::BlockLimits& device_limits() {
  static kernels::cuda::BlockLimits limits = kernels::cuda::block_limits_of(90);
  return limits;
}

Thread& current() { return scheduler.current->thread; }
const Launch& current_launch() { return scheduler.launch; }

void run(const Launch& launch, const std::function<void()>& body) {
  scheduler.launch = launch;
  scheduler.body = &body;
  check_launch();
  for (unsigned z = launch.grid.z; z-- > 0;) {
    for (unsigned y = launch.grid.y; y-- > 0;) {
      for (unsigned x = launch.grid.x; x > 0; x -= launch.cluster) {
        run_cluster({x - launch.cluster, y, z});
      }
    }
  }
  scheduler.current = nullptr;
}

void wait_for_block(Site site) {
  const Operation operation{"__syncthreads", site};
  Barrier& all = scheduler.current->block->all;
  if (all.arrived > 0 && !is_same(operation, all.operation)) {
    fail_to_meet(operation, all.operation, "threads of a block are at different barriers");
  }
  wait(all, threads_of_block(), operation, true);
}

void wait_for_named(int id, unsigned threads, Site site) {
  if (id < 1 || id >= kMaxNamedBarriers) fail_kernel("named barriers have ids 1 to 15");
  if (threads == 0 || threads % kLanes != 0 || threads > threads_of_block()) {
    fail_kernel("a named barrier is of whole warps of the block");
  }
  wait(scheduler.current->block->named[id], threads, {"named_barrier", site}, true);
}

void wait_for_cluster(Site site) {
  wait(scheduler.cluster, scheduler.launch.cluster * threads_of_block(), {"cluster_barrier", site},
       true);
}

void wait_for_warp(Site site) {
  const Runner& me = *scheduler.current;
  wait(me.warp->barrier, me.thread.num_lanes, {"__syncwarp", site}, true);
}

void open_mailbox(void* box) {
  if (!scheduler.mailboxes.try_emplace(box).second) fail_kernel("a mailbox is opened twice");
}

void expect_bytes(void* box, std::size_t bytes) {
  Mailbox& mailbox = mailbox_at(box);
  if (mailbox.mail.expect(bytes)) ++mailbox.phases.generation;
}

void send(void* box, void* to, const void* value, std::size_t bytes) {
  Mailbox& mailbox = mailbox_at(box);
  std::uint64_t& phases = mailbox.phases.generation;
  if (mailbox.mail.add(phases % 2, to, value, bytes)) ++phases;
}

void wait_for_mail(void* box, unsigned parity, Site site) {
  const Operation operation{"wait_for_mail", site};
  Runner& me = *scheduler.current;
  wait(me.warp->barrier, me.thread.num_lanes, operation, false);
  Mailbox& mailbox = mailbox_at(box);
  if (mailbox.phases.generation % 2 == parity) {
    mailbox.phases.operation = operation;
    me.waits_at = &mailbox.phases;
    me.waits_for = mailbox.phases.generation + 1;
    me.fibre.leave();
  }
  char* order = &mailbox.phases.order[parity];
  const bool is_first = mailbox.mail.lay_down(parity);
  is_first ? release(order) : acquire(order);
}

const std::byte* exchange(const char* what, const void* value, std::size_t bytes, Site site) {
  const Runner& me = *scheduler.current;
  // All lanes of an exchange see the same generation: the next begins only when this one is complete.
  std::byte* slots = me.warp->slots[me.warp->barrier.generation % 2];
  // Not memcpy: ThreadSanitizer would see it, and the readers are in no order with it.
  std::byte* to = slots + me.thread.lane * kExchangeBytes;
  const auto* from = static_cast<const volatile std::byte*>(value);
  for (std::size_t i = 0; i < bytes; ++i) to[i] = from[i];
  wait(me.warp->barrier, me.thread.num_lanes, {what, site}, false);
  return slots;
}

void fail_kernel(const char* message) {
  std::fprintf(stderr, "simt: %s", message);
  if (scheduler.current != nullptr) {
    const Index& block = scheduler.current->thread.block_index;
    const Index& thread = scheduler.current->thread.thread_index;
    std::fprintf(stderr, " (block %u,%u,%u thread %u,%u,%u)", block.x, block.y, block.z, thread.x,
                 thread.y, thread.z);
  }
  std::fputc('\n', stderr);
  std::abort();
}

}  // namespace ttt::simt
