#include "data/corpus/byte_source.h"

#include <fcntl.h>
#include <unistd.h>
#include <zstd.h>

#include <cerrno>
#include <vector>

#include "core/base/error.h"
#include "data/files.h"

namespace ttt::data {
namespace {

class FileSource final : public ByteSource {
 public:
  explicit FileSource(const std::string& path) : file_(path, O_RDONLY) {}

  std::size_t read(std::span<char> out) override {
    while (true) {
      const ssize_t count = ::read(file_.get(), out.data(), out.size());
      if (count >= 0) return static_cast<std::size_t>(count);
      if (errno != EINTR) fail_with_errno("read", file_.path(), errno);
    }
  }

 private:
  FileDescriptor file_;
};

class ZstdSource final : public ByteSource {
 public:
  explicit ZstdSource(const std::string& path)
      : path_(path), file_(path), context_(ZSTD_createDCtx()), block_(ZSTD_DStreamInSize()) {
    if (context_ == nullptr) fail(ExitCode::kOutOfMemory, "no memory to decompress {}", path);
    // The Pile's shards use windows above the library's default limit of 2^27.
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

  struct Free {
    void operator()(ZSTD_DCtx* context) const { ZSTD_freeDCtx(context); }
  };

  std::string path_;
  FileSource file_;
  std::unique_ptr<ZSTD_DCtx, Free> context_;
  std::vector<char> block_;
  ZSTD_inBuffer input_{nullptr, 0, 0};
  std::size_t compressed_bytes_ = 0;
  bool output_was_full_ = false;
  bool in_frame_ = true;  // a file of no bytes is not a zstd stream
};

}  // namespace

std::unique_ptr<ByteSource> open_byte_source(const std::string& path, bool zstd) {
  if (zstd) return std::make_unique<ZstdSource>(path);
  return std::make_unique<FileSource>(path);
}

}  // namespace ttt::data
