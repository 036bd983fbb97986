#pragma once
// Memory for what a decoder must have whole: zstd's window, of up to 2 GiB (`zstd --ultra --long=31`), a page of Parquet.

#include <condition_variable>
#include <cstddef>
#include <mutex>
#include <stop_token>
#include <thread>
#include <vector>

namespace ttt::data {

/// Blocks in unlinked files of the directory for temporary files ($TMPDIR, else /var/tmp), which the system can write out.
/// Twenty times a second a thread gives their pages back to it, so that only those in use count as the program's memory.
/// Virtual, because the Parquet module, which calls it, is not linked with the program's code.
class LargeBlocks {
 public:
  LargeBlocks() = default;
  LargeBlocks(const LargeBlocks&) = delete;
  LargeBlocks& operator=(const LargeBlocks&) = delete;
  virtual ~LargeBlocks();

  /// Zeros, from a page's boundary; null, which is logged, without room in the directory.
  virtual void* map(std::size_t num_bytes);
  /// False if `begin` is no such block.
  virtual bool unmap(void* begin);

 private:
  struct Block {
    void* begin;
    std::size_t num_bytes;
  };

  void give_back_until(const std::stop_token& stop);

  std::mutex mutex_;
  std::condition_variable_any stopped_;
  std::vector<Block> blocks_;
  std::jthread thread_;  // from the first block on
};

}  // namespace ttt::data
