#include "data/corpus/byte_source.h"

#include <fcntl.h>
#include <unistd.h>
#include <zlib.h>
// NOLINTNEXTLINE(readability-identifier-naming): zstd's name
#define ZSTD_STATIC_LINKING_ONLY  // for a decoder with memory of ours; the shared library exports it
#include <zstd.h>

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <vector>

#include "core/base/error.h"
#include "data/corpus/large_blocks.h"
#include "data/files.h"

namespace ttt::data {
namespace {

constexpr std::size_t kMostInMemory = std::size_t{512} << 20;  // of a window

class FileSource final : public ByteSource {
 public:
  FileSource(const std::string& path, std::atomic<std::int64_t>* bytes_read)
      : file_(path, O_RDONLY), bytes_read_(bytes_read) {}

  std::size_t read(std::span<char> out) override {
    while (true) {
      const ssize_t count = ::read(file_.get(), out.data(), out.size());
      if (count > 0 && bytes_read_ != nullptr) *bytes_read_ += count;
      if (count >= 0) return static_cast<std::size_t>(count);
      if (errno != EINTR) fail_with_errno("read", file_.path(), errno);
    }
  }

 private:
  FileDescriptor file_;
  std::atomic<std::int64_t>* bytes_read_;
};

class ZstdSource final : public ByteSource {
 public:
  ZstdSource(const std::string& path, std::atomic<std::int64_t>* bytes_read)
      : path_(path),
        file_(path, bytes_read),
        context_(ZSTD_createDCtx_advanced({allocate, release, &blocks_})),
        block_(ZSTD_DStreamInSize()) {
    if (context_ == nullptr) fail(ExitCode::kOutOfMemory, "no memory to decompress {}", path);
    // Published corpora have windows above the library's default limit of 2^27.
    check(ZSTD_DCtx_setParameter(context_.get(), ZSTD_d_windowLogMax, 31));
  }

  std::size_t read(std::span<char> out) override {
    ZSTD_outBuffer output{out.data(), out.size(), 0};
    while (output.pos == 0) {
      // A full output may have left more behind in the decoder: ask it before the file.
      if (input_.pos == input_.size && !output_was_full_) {
        const std::size_t count = file_.read(block_);
        if (count == 0) {
          if (in_frame_) {
            fail(ExitCode::kCorruptInput,
                 "{} ends inside a zstd frame after {} compressed bytes: it is truncated", path_,
                 compressed_bytes_);
          }
          return 0;
        }
        compressed_bytes_ += count;
        input_ = {block_.data(), count, 0};
      }
      // Returns 0 exactly when a frame ended; the next call begins another frame.
      in_frame_ = check(ZSTD_decompressStream(context_.get(), &output, &input_)) != 0;
      output_was_full_ = in_frame_ && output.pos == output.size;
    }
    return output.pos;
  }

 private:
  std::size_t check(std::size_t result) {
    if (ZSTD_isError(result) != 0) {
      fail(ExitCode::kCorruptInput, "{} is damaged near compressed byte {}: {}", path_,
           compressed_bytes_ - (input_.size - input_.pos), ZSTD_getErrorName(result));
    }
    return result;
  }

  static void* allocate(void* blocks, std::size_t num_bytes) {
    void* block = nullptr;
    if (num_bytes > kMostInMemory) block = static_cast<LargeBlocks*>(blocks)->map(num_bytes);
    return block != nullptr ? block : std::malloc(num_bytes);
  }
  static void release(void* blocks, void* block) {
    if (!static_cast<LargeBlocks*>(blocks)->unmap(block)) std::free(block);
  }
  struct Free {
    void operator()(ZSTD_DCtx* context) const { ZSTD_freeDCtx(context); }
  };

  std::string path_;
  FileSource file_;
  LargeBlocks blocks_;
  std::unique_ptr<ZSTD_DCtx, Free> context_;
  std::vector<char> block_;
  ZSTD_inBuffer input_{nullptr, 0, 0};
  std::size_t compressed_bytes_ = 0;
  bool output_was_full_ = false;
  bool in_frame_ = true;  // a file of no bytes is not a zstd stream
};

// Members one after another, as `cat` and parallel compressors leave them. zlib checks each one's CRC
// and length.
class GzipSource final : public ByteSource {
 public:
  GzipSource(const std::string& path, std::atomic<std::int64_t>* bytes_read)
      : path_(path), file_(path, bytes_read), block_(1U << 17U) {
    constexpr int kGzipOnly = 15 + 16;
    if (::inflateInit2(&stream_, kGzipOnly) != Z_OK) {
      fail(ExitCode::kOutOfMemory, "no memory to decompress {}", path);
    }
  }
  ~GzipSource() override { ::inflateEnd(&stream_); }
  GzipSource(const GzipSource&) = delete;
  GzipSource& operator=(const GzipSource&) = delete;

  std::size_t read(std::span<char> out) override {
    stream_.next_out = reinterpret_cast<Bytef*>(out.data());
    stream_.avail_out = static_cast<uInt>(std::min(out.size(), std::size_t{1} << 30));
    const uInt wanted = stream_.avail_out;
    while (stream_.avail_out == wanted) {
      if (stream_.avail_in == 0 && !refill()) break;
      const int status = ::inflate(&stream_, Z_NO_FLUSH);
      in_member_ = status != Z_STREAM_END;
      if (status == Z_STREAM_END) {
        ::inflateReset(&stream_);
      } else if (status != Z_OK && status != Z_BUF_ERROR) {
        fail(ExitCode::kCorruptInput, "{} is damaged near compressed byte {}: {}", path_,
             compressed_bytes_ - stream_.avail_in,
             stream_.msg != nullptr ? stream_.msg : ::zError(status));
      }
    }
    return wanted - stream_.avail_out;
  }

 private:
  bool refill() {
    const std::size_t count = file_.read(block_);
    if (count == 0 && in_member_) {
      fail(ExitCode::kCorruptInput,
           "{} ends inside a gzip member after {} compressed bytes: it is truncated", path_,
           compressed_bytes_);
    }
    compressed_bytes_ += count;
    stream_.next_in = reinterpret_cast<Bytef*>(block_.data());
    stream_.avail_in = static_cast<uInt>(count);
    return count > 0;
  }

  std::string path_;
  FileSource file_;
  std::vector<char> block_;
  z_stream stream_{};
  std::size_t compressed_bytes_ = 0;
  bool in_member_ = true;  // a file of no bytes is not a gzip stream
};

}  // namespace

std::string_view without_compression_suffix(std::string_view path) {
  for (const std::string_view suffix : {".zst", ".gz"}) {
    if (path.ends_with(suffix)) return path.substr(0, path.size() - suffix.size());
  }
  return path;
}

std::unique_ptr<ByteSource> open_byte_source(const std::string& path,
                                             std::atomic<std::int64_t>* bytes_read) {
  if (path.ends_with(".zst")) return std::make_unique<ZstdSource>(path, bytes_read);
  if (path.ends_with(".gz") || path.ends_with(".tgz")) {
    return std::make_unique<GzipSource>(path, bytes_read);
  }
  return std::make_unique<FileSource>(path, bytes_read);
}

}  // namespace ttt::data
