#pragma once
// The threads of an emulated CUDA kernel, and where they wait for each other. Every thread is a fibre of one OS thread,
// so a run is fast and always the same. Lanes of a warp at different operations, and threads that wait for others that
// will not come, end the program with a message.
//
// In a program built with ThreadSanitizer every fibre is a thread to it, and a missing barrier is a data race: only what
// orders memory on the device (barriers, not shuffles or mma) orders it there.
//
// Blocks run one after the other, the last first, so that a kernel whose blocks wrongly rely on the results of earlier
// ones fails; the blocks of a cluster run together.

#include <cstddef>
#include <cstdint>
#include <functional>
#include <source_location>
#include <vector>

#include "kernels/cuda/block_limits.h"

namespace ttt::simt {

constexpr unsigned kLanes = 32;
constexpr int kMaxNamedBarriers = 16;

/// A line of a kernel.
using Site = std::source_location;

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
  unsigned num_lanes = 0;  // of its warp: fewer than 32 where the block's size is no multiple
  int cluster_rank = 0;
  std::byte* shared = nullptr;  // of its block
  // Of its cluster's blocks; null of one that has ended.
  const std::vector<std::byte*>* cluster_shared = nullptr;
  std::vector<std::vector<PendingCopy>> copies;  // groups, oldest first; the last is not committed
};

struct Launch {
  Index grid{1, 1, 1}, block{1, 1, 1};
  std::size_t shared_bytes = 0;
  unsigned cluster = 1;
};

Thread& current();
const Launch& current_launch();

/// Of the emulated device: those of compute capability 9.0, unless a test says otherwise.
kernels::cuda::BlockLimits& device_limits();

/// Runs `body` for every thread of the grid; returns when all have ended. Ends the program on a launch that the device
/// would not accept.
void run(const Launch& launch, const std::function<void()>& body);

// Every lane of a warp must come to the same of these, at the same line; so must every warp for __syncthreads.
void wait_for_block(Site site = Site::current());
void wait_for_named(int id, unsigned threads, Site site = Site::current());
void wait_for_cluster(Site site = Site::current());
void wait_for_warp(Site site = Site::current());

// Mailboxes (kernels/cuda/simt.h), known by their addresses. Half of what is sent lies in its place at once, half when the
// first thread has waited for it, so that a missing wait and a place that is still in use both give wrong data. To
// ThreadSanitizer all of it is written then, by that thread, and after nothing that its sender did.
void open_mailbox(void* box);
void expect_bytes(void* box, std::size_t bytes);
void send(void* box, void* to, const void* value, std::size_t bytes);
void wait_for_mail(void* box, unsigned parity, Site site = Site::current());

constexpr std::size_t kExchangeBytes = 64;
/// Every lane of the warp brings `bytes` bytes; returns those of lane l at l * kExchangeBytes, valid until the lane's
/// next exchange. Orders no memory.
const std::byte* exchange(const char* what, const void* value, std::size_t bytes,
                          Site site = Site::current());

/// Prints the message with block and thread, and aborts.
[[noreturn]] void fail_kernel(const char* message);

}  // namespace ttt::simt
