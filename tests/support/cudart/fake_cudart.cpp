#include "tests/support/cudart/fake_cudart.h"

#include <cstdlib>
#include <cstring>
#include <map>
#include <utility>
#include <vector>

namespace {

struct Block {
  std::int64_t bytes;
  std::int64_t* taken;
};

std::map<void*, Block>& blocks() {
  static std::map<void*, Block> all;
  return all;
}

cudaError_t ended(cudaError_t status) {
  if (status != cudaSuccess) ttt::test::fake_device().last_error = status;
  return status;
}

cudaError_t allocate(void** block, std::size_t bytes, std::int64_t& taken) {
  const cudaError_t status = ttt::test::fake_device().allocation;
  if (status != cudaSuccess) return ended(status);
  *block = std::malloc(bytes);
  taken += static_cast<std::int64_t>(bytes);
  blocks()[*block] = {static_cast<std::int64_t>(bytes), &taken};
  return cudaSuccess;
}

cudaError_t release(void* block) {
  const auto found = blocks().find(block);
  if (found == blocks().end()) return ended(cudaErrorInvalidValue);
  *found->second.taken -= found->second.bytes;
  blocks().erase(found);
  std::free(block);
  return cudaSuccess;
}

// What cudaMemset has queued, in order: done when somebody waits.
std::vector<std::pair<void*, std::size_t>>& unclear() {
  static std::vector<std::pair<void*, std::size_t>> all;
  return all;
}

cudaError_t make(auto** handle) {
  static int anything = 0;
  *handle = reinterpret_cast<std::remove_reference_t<decltype(*handle)>>(&anything);
  return cudaSuccess;
}

}  // namespace

namespace ttt::test {

FakeDevice& fake_device() {
  static FakeDevice device;
  return device;
}

}  // namespace ttt::test

using ttt::test::fake_device;

extern "C" {

cudaError_t cudaGetLastError() { return std::exchange(fake_device().last_error, cudaSuccess); }
cudaError_t cudaDriverGetVersion(int* version) {
  *version = CUDART_VERSION;
  return cudaSuccess;
}
cudaError_t cudaGetDeviceCount(int* count) {
  *count = 1;
  return cudaSuccess;
}
cudaError_t cudaGetDevice(int* device) {
  *device = 0;
  return cudaSuccess;
}
cudaError_t cudaSetDevice(int /*device*/) { return cudaSuccess; }
cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int /*device*/) {
  if (attribute != cudaDevAttrConcurrentManagedAccess) return ended(cudaErrorInvalidValue);
  *value = fake_device().has_concurrent_managed_access ? 1 : 0;
  return cudaSuccess;
}

cudaError_t cudaMemGetInfo(size_t* free, size_t* total) {
  *free = *total = static_cast<size_t>(fake_device().free_bytes);
  return cudaSuccess;
}
cudaError_t cudaMalloc(void** block, size_t bytes) {
  return allocate(block, bytes, fake_device().device_bytes);
}
cudaError_t cudaMallocManaged(void** block, size_t bytes, unsigned /*flags*/) {
  return allocate(block, bytes, fake_device().managed_bytes);
}
cudaError_t cudaMallocHost(void** block, size_t bytes) {
  return allocate(block, bytes, fake_device().pinned_bytes);
}
cudaError_t cudaMemAdvise(const void* /*block*/, size_t /*bytes*/, cudaMemoryAdvise /*advice*/,
                          cudaMemLocation /*location*/) {
  return cudaSuccess;
}
cudaError_t cudaMemset(void* block, int value, size_t bytes) {
  if (value != 0) return ended(cudaErrorInvalidValue);
  unclear().emplace_back(block, bytes);
  fake_device().cleared_bytes += static_cast<std::int64_t>(bytes);
  return cudaSuccess;
}
cudaError_t cudaFree(void* block) { return release(block); }
cudaError_t cudaFreeHost(void* block) { return release(block); }

cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned /*flags*/) {
  return make(stream);
}
cudaError_t cudaStreamDestroy(cudaStream_t /*stream*/) { return cudaSuccess; }
// Queues of cudaStreamNonBlocking do not wait for the default one.
cudaError_t cudaStreamSynchronize(cudaStream_t stream) {
  if (stream == nullptr) {
    for (const auto& [block, bytes] : std::exchange(unclear(), {})) std::memset(block, 0, bytes);
  }
  return ended(fake_device().work);
}
cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned /*flags*/) { return make(event); }
cudaError_t cudaEventRecord(cudaEvent_t /*event*/, cudaStream_t /*stream*/) { return cudaSuccess; }
cudaError_t cudaEventSynchronize(cudaEvent_t /*event*/) { return ended(fake_device().work); }
cudaError_t cudaEventDestroy(cudaEvent_t /*event*/) { return cudaSuccess; }
}
