#include <pthread.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <memory>
#include <mutex>
#include <thread>

#include "tests/support/simt/scheduler.h"

#if defined(__SANITIZE_THREAD__)
extern "C" {
void AnnotateIgnoreSyncBegin(const char* file, int line);
void AnnotateIgnoreSyncEnd(const char* file, int line);
void AnnotateIgnoreReadsBegin(const char* file, int line);
void AnnotateIgnoreReadsEnd(const char* file, int line);
void AnnotateIgnoreWritesBegin(const char* file, int line);
void AnnotateIgnoreWritesEnd(const char* file, int line);
}
#else
static void AnnotateIgnoreSyncBegin(const char*, int) {}
static void AnnotateIgnoreSyncEnd(const char*, int) {}
static void AnnotateIgnoreReadsBegin(const char*, int) {}
static void AnnotateIgnoreReadsEnd(const char*, int) {}
static void AnnotateIgnoreWritesBegin(const char*, int) {}
static void AnnotateIgnoreWritesEnd(const char*, int) {}
#endif

namespace ttt::simt {
namespace {

// ThreadSanitizer knows exactly which order a pthread barrier gives; std::barrier shares its internals between
// instances, which orders threads by accident and hides races.
class Barrier {
 public:
  explicit Barrier(unsigned count) { pthread_barrier_init(&barrier_, nullptr, count); }
  ~Barrier() { pthread_barrier_destroy(&barrier_); }
  Barrier(const Barrier&) = delete;
  Barrier& operator=(const Barrier&) = delete;
  void wait() { pthread_barrier_wait(&barrier_); }

 private:
  pthread_barrier_t barrier_;
};

struct Warp {
  explicit Warp(unsigned lanes) : barrier(lanes) {}
  Barrier barrier;
  std::byte slots[2][kLanes * kExchangeBytes];
};

struct BlockState {
  explicit BlockState(unsigned threads) : all(threads) {}
  Barrier all;
  std::mutex mutex;  // of `named`
  std::map<int, std::unique_ptr<Barrier>> named;
  std::vector<std::unique_ptr<Warp>> warps;
  std::unique_ptr<std::byte, decltype(&std::free)> shared{nullptr, &std::free};
};

struct Worker {
  Thread thread;
  BlockState* block = nullptr;
  Warp* warp = nullptr;
  unsigned turn = 0;
};

Launch active;
Barrier* cluster_all = nullptr;
thread_local Worker* worker = nullptr;

void run_cluster(const Index& first, const std::function<void()>& body) {
  const unsigned threads = active.block.x * active.block.y * active.block.z;
  Barrier all(active.cluster * threads);
  cluster_all = &all;
  std::vector<std::unique_ptr<BlockState>> blocks;
  std::vector<std::byte*> shared(active.cluster, nullptr);
  for (unsigned b = 0; b < active.cluster; ++b) {
    blocks.push_back(std::make_unique<BlockState>(threads));
    for (unsigned begin = 0; begin < threads; begin += kLanes) {
      blocks[b]->warps.push_back(std::make_unique<Warp>(std::min(kLanes, threads - begin)));
    }
    if (active.shared_bytes == 0) continue;
    blocks[b]->shared.reset(static_cast<std::byte*>(
        std::aligned_alloc(1024, (active.shared_bytes + 1023) / 1024 * 1024)));
    shared[b] = blocks[b]->shared.get();
    std::memset(shared[b], 0xff, active.shared_bytes);
  }
  std::vector<Worker> workers(active.cluster * threads);
  std::vector<std::thread> running;
  for (unsigned b = 0; b < active.cluster; ++b) {
    for (unsigned t = 0; t < threads; ++t) {
      Worker& w = workers[b * threads + t];
      w.thread.thread_index = {t % active.block.x, t / active.block.x % active.block.y,
                               t / (active.block.x * active.block.y)};
      w.thread.block_index = {first.x + b, first.y, first.z};
      w.thread.lane = t % kLanes;
      w.thread.cluster_rank = static_cast<int>(b);
      w.thread.shared = shared[b];
      w.thread.cluster_shared = &shared;
      w.block = blocks[b].get();
      w.warp = blocks[b]->warps[t / kLanes].get();
      running.emplace_back([&w, &body] {
        worker = &w;
        body();
      });
    }
  }
  for (std::thread& thread : running) thread.join();
}

}  // namespace

Thread& current() { return worker->thread; }
const Launch& current_launch() { return active; }

void run(const Launch& launch, const std::function<void()>& body) {
  active = launch;
  for (unsigned z = 0; z < launch.grid.z; ++z) {
    for (unsigned y = 0; y < launch.grid.y; ++y) {
      for (unsigned x = 0; x < launch.grid.x; x += launch.cluster) run_cluster({x, y, z}, body);
    }
  }
}

void wait_for_block() { worker->block->all.wait(); }

void wait_for_named(int id, unsigned threads) {
  Barrier* barrier = nullptr;
  // The look-up must order nothing between threads: only the barrier does.
  AnnotateIgnoreSyncBegin(__FILE__, __LINE__);
  AnnotateIgnoreReadsBegin(__FILE__, __LINE__);
  AnnotateIgnoreWritesBegin(__FILE__, __LINE__);
  {
    const std::lock_guard<std::mutex> lock(worker->block->mutex);
    auto& entry = worker->block->named[id];
    if (!entry) entry = std::make_unique<Barrier>(threads);
    barrier = entry.get();
  }
  AnnotateIgnoreWritesEnd(__FILE__, __LINE__);
  AnnotateIgnoreReadsEnd(__FILE__, __LINE__);
  AnnotateIgnoreSyncEnd(__FILE__, __LINE__);
  barrier->wait();
}

void wait_for_cluster() { cluster_all->wait(); }

void wait_for_warp(const char* /*what*/) { worker->warp->barrier.wait(); }

const std::byte* exchange(const char* /*what*/, const void* value, std::size_t bytes) {
  AnnotateIgnoreWritesBegin(__FILE__, __LINE__);
  std::byte* slots = worker->warp->slots[worker->turn++ & 1];
  std::memcpy(slots + worker->thread.lane * kExchangeBytes, value, bytes);
  AnnotateIgnoreWritesEnd(__FILE__, __LINE__);
  AnnotateIgnoreSyncBegin(__FILE__, __LINE__);
  worker->warp->barrier.wait();
  AnnotateIgnoreSyncEnd(__FILE__, __LINE__);
  return slots;
}

void fail_kernel(const char* message) {
  const Thread& t = worker->thread;
  std::fprintf(stderr, "simt: %s (block %u,%u,%u thread %u,%u,%u)\n", message, t.block_index.x,
               t.block_index.y, t.block_index.z, t.thread_index.x, t.thread_index.y,
               t.thread_index.z);
  std::abort();
}

}  // namespace ttt::simt
