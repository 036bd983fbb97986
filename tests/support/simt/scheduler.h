#pragma once
// The threads of an emulated CUDA kernel, and where they wait for each other. Two implementations, one of which a
// program links:
//   fibres.cpp   every thread a fibre of one OS thread: fast and deterministic; a warp whose lanes are at different
//                operations, or threads that wait at different barriers, end the program with a message
//   threads.cpp  every thread an OS thread: under ThreadSanitizer a missing barrier is a data race. Only what orders
//                memory on the device (barriers, not shuffles or mma) orders it here
// Blocks run one after the other; those of a cluster run together.

#include <cstddef>
#include <cstdint>
#include <functional>
#include <vector>

namespace ttt::simt {

constexpr unsigned kLanes = 32;
constexpr int kMaxNamedBarriers = 16;

struct Index {
  unsigned x = 0, y = 0, z = 0;
};

/// An asynchronous copy that has been asked for and not yet been waited for.
struct PendingCopy {
  void* to;
  const void* from;
  std::size_t bytes;
};

/// What a kernel's code sees of the thread that runs it.
struct Thread {
  Index thread_index, block_index;
  unsigned lane = 0;
  int cluster_rank = 0;
  std::byte* shared = nullptr;                              // of its block
  const std::vector<std::byte*>* cluster_shared = nullptr;  // of every block of its cluster
  std::vector<std::vector<PendingCopy>> copies{std::vector<PendingCopy>{}};  // groups, oldest first
};
struct Launch {
  Index grid{1, 1, 1}, block{1, 1, 1};
  std::size_t shared_bytes = 0;
  unsigned cluster = 1;
};

Thread& current();
const Launch& current_launch();

/// Runs `body` for every thread of the grid; returns when all have ended.
void run(const Launch& launch, const std::function<void()>& body);

// `what` names the operation: lanes or threads that meet must be at the same one.
void wait_for_block();
void wait_for_named(int id, unsigned threads);
void wait_for_cluster();
void wait_for_warp(const char* what);

constexpr std::size_t kExchangeBytes = 64;
/// Every lane of the warp brings `bytes` bytes; returns those of lane l at l * kExchangeBytes, valid until the lane's
/// next exchange. Orders no memory.
const std::byte* exchange(const char* what, const void* value, std::size_t bytes);

/// Prints the message with block and thread, and aborts.
[[noreturn]] void fail_kernel(const char* message);

}  // namespace ttt::simt
