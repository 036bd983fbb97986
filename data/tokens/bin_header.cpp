// Headers of .bin token files: Megatron's (described by an .idx), llm.c's, and none at all.
// Source: Megatron-LM core/datasets/indexed_dataset.py; llm.c dev/data/data_common.py.

#include <fcntl.h>

#include <algorithm>
#include <array>
#include <filesystem>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "core/base/error.h"
#include "data/files.h"
#include "data/tokens/token_header.h"

namespace ttt::data {
namespace {

constexpr ExitCode kCorrupt = ExitCode::kCorruptInput;

template <typename T>
T read_number(const FileDescriptor& file,
              std::int64_t offset) {  // little endian, as this program's machines are
  T value{};
  file.read_at(offset, std::as_writable_bytes(std::span(&value, 1)));
  return value;
}

bool exists(const std::string& path) {
  std::error_code error;
  return std::filesystem::exists(path, error);
}

// llm.c: 256 int32 (magic, version, number of tokens, zeros), then the tokens.
struct LlmcKind {
  std::int32_t magic, version;
  int token_bytes;
};
constexpr std::array<LlmcKind, 2> kLlmcKinds = {{{20240520, 1, 2}, {20240801, 7, 4}}};
constexpr std::int64_t kLlmcHeaderBytes = 1024;

std::optional<TokenFileInfo> read_llmc_header(const FileDescriptor& file) {
  if (file.size_bytes() < kLlmcHeaderBytes) return std::nullopt;
  const auto magic = read_number<std::int32_t>(file, 0);
  for (const LlmcKind& kind : kLlmcKinds) {
    if (kind.magic != magic) continue;
    const auto version = read_number<std::int32_t>(file, 4);
    if (version != kind.version) {
      fail(kCorrupt, "{}: a token file of llm.c (magic {}) of version {}; version {} is read",
           file.path(), magic, version, kind.version);
    }
    TokenFileInfo info;
    info.path = file.path();
    info.format = "llm.c";
    info.num_tokens = read_number<std::int32_t>(file, 8);
    info.token_bytes = kind.token_bytes;
    info.data_offset = kLlmcHeaderBytes;
    if (info.num_tokens < 0 ||
        file.size_bytes() != kLlmcHeaderBytes + info.num_tokens * info.token_bytes) {
      fail(kCorrupt,
           "{}: the header tells of {} tokens of {} bytes, the file has {} bytes after it",
           file.path(), info.num_tokens, info.token_bytes, file.size_bytes() - kLlmcHeaderBytes);
    }
    return info;
  }
  return std::nullopt;
}

// Megatron's .idx: "MMIDIDX\0\0", u64 version 1, u8 type, u64 S sequences, u64 D, then i32 lengths [S],
// i64 byte positions [S], i64 document indices [D], and perhaps i8 modes [S].
constexpr std::string_view kIndexMagic("MMIDIDX\0\0", 9);
constexpr std::int64_t kIndexHeaderBytes = 34;

class MegatronIndex {
 public:
  explicit MegatronIndex(const std::string& path) : file_(path, O_RDONLY) {
    std::string magic(kIndexMagic.size(), '\0');
    if (file_.size_bytes() < kIndexHeaderBytes) reject("is too short");
    file_.read_at(0, std::as_writable_bytes(std::span(magic)));
    if (magic != kIndexMagic) reject("does not begin with MMIDIDX");
    const auto version = read_number<std::uint64_t>(file_, 9);
    if (version != 1) reject(fmt::format("is of version {}; 1 is read", version));
    const auto sequences = read_number<std::uint64_t>(file_, 18);
    const auto documents = read_number<std::uint64_t>(file_, 26);
    const auto rest = static_cast<std::uint64_t>(file_.size_bytes() - kIndexHeaderBytes);
    // Compared by division first: the products of hostile counts could overflow.
    if (sequences > rest / 12 || documents > rest / 8 ||
        (12 * sequences + 8 * documents != rest && 13 * sequences + 8 * documents != rest)) {
      reject(fmt::format(
          "tells of {} sequences and {} document indices, which is not its size of {} bytes",
          sequences, documents, file_.size_bytes()));
    }
    if (sequences == 0 || documents < 2) reject("has no documents");
    num_sequences = static_cast<std::int64_t>(sequences);
    num_documents = static_cast<std::int64_t>(documents) - 1;
    set_type(read_number<std::uint8_t>(file_, 17));
  }

  [[nodiscard]] std::vector<std::int32_t> lengths(std::int64_t first, std::int64_t count) const {
    return read<std::int32_t>(kIndexHeaderBytes + 4 * first, count);
  }
  [[nodiscard]] std::vector<std::int64_t> positions(std::int64_t first, std::int64_t count) const {
    return read<std::int64_t>(kIndexHeaderBytes + 4 * num_sequences + 8 * first, count);
  }
  [[noreturn]] void reject(const std::string& what) const {
    fail(kCorrupt, "{} {}", file_.path(), what);
  }

  std::int64_t num_sequences = 0;
  std::int64_t num_documents = 0;
  int token_bytes = 0;
  bool is_signed = false;

 private:
  void set_type(int code) {
    switch (code) {
      case 8:
        token_bytes = 2;
        return;
      case 4:
        token_bytes = 4;
        is_signed = true;
        return;
      case 5:
        token_bytes = 8;
        is_signed = true;
        return;
      default:
        reject(fmt::format("has elements of type {}; uint16 (8), int32 (4) and int64 (5) are read",
                           code));
    }
  }

  template <typename T>
  [[nodiscard]] std::vector<T> read(std::int64_t offset, std::int64_t count) const {
    std::vector<T> values(static_cast<std::size_t>(count));
    file_.read_at(offset, std::as_writable_bytes(std::span(values)));
    return values;
  }

  FileDescriptor file_;
};

TokenFileInfo read_megatron_header(const FileDescriptor& file, const std::string& index_path) {
  const MegatronIndex index(index_path);
  TokenFileInfo info;
  info.path = file.path();
  info.format = "Megatron";
  info.num_documents = index.num_documents;
  info.token_bytes = index.token_bytes;
  info.is_signed = index.is_signed;
  const std::int64_t size = file.size_bytes();
  info.num_tokens = size / index.token_bytes;
  // The sequences are read as one array, so they must follow one another. The ends are looked at here;
  // verify_megatron_index looks at all, which takes minutes for hundreds of millions.
  const std::int64_t last = index.num_sequences - 1;
  const std::int64_t end = index.positions(last, 1).front();
  const std::int64_t length = index.lengths(last, 1).front();
  if (index.positions(0, 1).front() != 0 || end < 0 || end > size || length < 0 ||
      length * index.token_bytes != size - end) {
    fail(kCorrupt, "{} does not describe {}: its sequences do not end at byte {}", index_path,
         file.path(), size);
  }
  return info;
}

}  // namespace

TokenFileInfo read_raw_header(const std::string& path, int token_bytes) {
  const FileDescriptor file(path, O_RDONLY);
  const std::int64_t size = file.size_bytes();
  if (size % token_bytes != 0) {
    fail(kCorrupt, "{} has {} bytes, no multiple of {}", path, size, token_bytes);
  }
  TokenFileInfo info;
  info.path = path;
  info.format = "raw";
  info.num_tokens = size / token_bytes;
  info.token_bytes = token_bytes;
  return info;
}

TokenFileInfo read_bin_header(const std::string& path) {
  const FileDescriptor file(path, O_RDONLY);
  const std::string index = path.substr(0, path.size() - 4) + ".idx";
  if (exists(index)) return read_megatron_header(file, index);
  if (const auto info = read_llmc_header(file)) return *info;
  fail(ExitCode::kUsage,
       "{} has neither an .idx beside it (Megatron) nor the header of llm.c; if it is tokens and "
       "nothing "
       "else, say which: {}:u16 or {}:u32",
       path, path, path);
}

void verify_megatron_index(const TokenFileInfo& info) {
  const MegatronIndex index(info.path.substr(0, info.path.size() - 4) + ".idx");
  constexpr std::int64_t kBlock = 1 << 16;
  std::int64_t expected = 0;
  for (std::int64_t first = 0; first < index.num_sequences; first += kBlock) {
    const std::int64_t count = std::min(kBlock, index.num_sequences - first);
    const auto lengths = index.lengths(first, count);
    const auto positions = index.positions(first, count);
    for (std::size_t i = 0; i < lengths.size(); ++i) {
      if (positions[i] != expected || lengths[i] < 0) {
        index.reject(fmt::format("puts sequence {} at byte {} with {} tokens; byte {} was to come",
                                 first + static_cast<std::int64_t>(i), positions[i], lengths[i],
                                 expected));
      }
      expected += std::int64_t{lengths[i]} * info.token_bytes;
    }
  }
}

}  // namespace ttt::data
