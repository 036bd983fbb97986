#include "data/tokens/token_file.h"

#include <fcntl.h>
#include <sys/mman.h>

#include <algorithm>
#include <cstring>
#include <filesystem>
#include <limits>
#include <optional>
#include <system_error>
#include <utility>

#include "core/base/crash_report.h"
#include "core/base/error.h"
#include "data/files.h"
#include "data/tokens/prepare.h"
#include "data/tokens/token_header.h"

namespace ttt::data {
namespace {

template <typename T>
void widen(const std::byte* from, std::span<std::int64_t> out) {
  for (std::size_t i = 0; i < out.size(); ++i) {
    T value;
    std::memcpy(&value, from + i * sizeof(T), sizeof(T));  // .npy data may be unaligned
    out[i] = static_cast<std::int64_t>(value);
  }
}

void widen(const TokenFileInfo& info, const std::byte* from, std::span<std::int64_t> out) {
  if (info.token_bytes == 2) return widen<std::uint16_t>(from, out);
  if (info.token_bytes == 8) return widen<std::int64_t>(from, out);
  if (info.is_signed) return widen<std::int32_t>(from, out);
  widen<std::uint32_t>(from, out);
}

constexpr std::string_view kRaw16 = ":u16";
constexpr std::string_view kRaw32 = ":u32";

// ttt-lm-jax keeps SPLIT.npy in a directory named after tokenizer and split, which it makes below the
// one that its users name; the tokenizer's "/" makes that two levels.
std::string find_npy(const std::string& directory, Split split) {
  namespace fs = std::filesystem;
  const std::string name = name_of(split) + ".npy";
  std::vector<std::string> found;
  try {
    for (const auto& entry : fs::recursive_directory_iterator(directory)) {
      if (entry.is_regular_file() && entry.path().filename() == name) {
        found.push_back(entry.path().string());
      }
    }
  } catch (const fs::filesystem_error& error) {
    fail_with_errno("search", error.path1().string(), error.code().value());
  }
  std::string direct = (fs::path(directory) / name).string();
  if (std::ranges::find(found, direct) != found.end()) return direct;
  if (found.empty()) {
    fail(ExitCode::kMissingInput,
         "{} has neither a manifest.textproto (`ttt prepare` writes one) nor a {} (ttt-lm-jax)",
         directory, name);
  }
  if (found.size() > 1) {
    fail(ExitCode::kUsage, "{} has {} files {}, such as {} and {}; name one", directory,
         found.size(), name, found[0], found[1]);
  }
  return found.front();
}

std::vector<TokenFileInfo> files_of_directory(const std::string& directory, Split split) {
  std::error_code error;
  if (!std::filesystem::exists(directory + "/manifest.textproto", error)) {
    return {read_npy_header(find_npy(directory, split))};
  }
  const config::CorpusManifest manifest = read_corpus_manifest(directory);
  std::vector<TokenFileInfo> files;
  std::int64_t num_tokens = 0;
  for (const std::string& shard : corpus_shards(manifest, directory, split)) {
    files.push_back(read_shard_header(shard));
    num_tokens += files.back().num_tokens;
    if (files.back().vocab_size != manifest.vocab_size()) {
      fail(ExitCode::kCorruptInput, "{} has a vocabulary of {}, its manifest tells of {}", shard,
           files.back().vocab_size, manifest.vocab_size());
    }
  }
  const std::int64_t expected =
      split == Split::kTrain ? manifest.train_tokens() : manifest.validation_tokens();
  if (num_tokens != expected) {
    fail(ExitCode::kCorruptInput, "{}: the {} shards have {} tokens, the manifest tells of {}",
         directory, name_of(split), num_tokens, expected);
  }
  if (files.empty()) {
    fail(ExitCode::kMissingInput, "{} has no {} shards{}", directory, name_of(split),
         split == Split::kTrain ? ""
                                : ": prepare it with --validation FILE, --validation-every N or a "
                                  "larger --validation-fraction, or name other data");
  }
  return files;
}

}  // namespace

std::string name_of(Split split) { return split == Split::kTrain ? "train" : "validation"; }

TokenFileInfo read_token_file_info(const std::string& path) {
  if (path.ends_with(".npy")) return read_npy_header(path);
  if (path.ends_with(".h5")) return read_shard_header(path);
  if (path.ends_with(".bin")) return read_bin_header(path);
  for (const std::string_view raw : {kRaw16, kRaw32}) {
    if (path.ends_with(raw)) {
      return read_raw_header(path.substr(0, path.size() - raw.size()), raw == kRaw16 ? 2 : 4);
    }
  }
  file_size_bytes(path);  // a missing file is told before a wrong name
  fail(ExitCode::kUsage,
       "{} is neither a .h5 shard, a .npy array, a .bin file (.bin:u16 or .bin:u32 if it has no "
       "header) "
       "nor a directory of them",
       path);
}

// The file in memory if the system can map it, else read piece by piece.
class TokenArray::Mapping {
 public:
  explicit Mapping(const TokenFileInfo& info) {
    FileDescriptor file(info.path, O_RDONLY);
    // The header was checked against the size then; a file that shrank since would kill us later.
    const std::int64_t needed = info.data_offset + info.num_tokens * info.token_bytes;
    if (file.size_bytes() < needed) {
      fail(ExitCode::kCorruptInput, "{} shrank to {} bytes while it was opened", info.path,
           file.size_bytes());
    }
    size_ = static_cast<std::size_t>(needed);
    void* const base = ::mmap(nullptr, size_, PROT_READ, MAP_PRIVATE, file.get(), 0);
    if (base == MAP_FAILED) {
      file_ = std::move(file);
      return;  // a mapping needs no descriptor, of which there may be few
    }
    base_ = static_cast<const std::byte*>(base);
    name_.emplace(base, size_, info.path);
    ::madvise(base, size_, MADV_RANDOM);  // windows are permuted; read-ahead would be wasted
  }
  ~Mapping() {
    if (base_ != nullptr) ::munmap(const_cast<std::byte*>(base_), size_);
  }
  Mapping(const Mapping&) = delete;
  Mapping& operator=(const Mapping&) = delete;

  void read(const TokenFileInfo& info, std::int64_t begin, std::span<std::int64_t> out) const {
    const std::int64_t offset = info.data_offset + begin * info.token_bytes;
    if (base_ != nullptr) return widen(info, base_ + offset, out);
    std::vector<std::byte> bytes(out.size() * static_cast<std::size_t>(info.token_bytes));
    file_->read_at(offset, bytes);
    widen(info, bytes.data(), out);
  }

 private:
  std::optional<FileDescriptor> file_;  // if it is not mapped
  const std::byte* base_ = nullptr;
  std::size_t size_ = 0;
  std::optional<crash::MappedFile> name_;  // whom to blame when the file shrinks
};

TokenArray::TokenArray() = default;
TokenArray::TokenArray(TokenArray&&) noexcept = default;
TokenArray& TokenArray::operator=(TokenArray&&) noexcept = default;
TokenArray::~TokenArray() = default;

TokenArray TokenArray::open(const std::vector<std::string>& paths, Split split) {
  if (paths.empty()) fail(ExitCode::kUsage, "no {} token files are named", name_of(split));
  TokenArray array;
  for (const std::string& path : paths) {
    std::error_code error;  // what cannot be told is reported when it is opened
    if (std::filesystem::is_directory(path, error)) {
      const auto files = files_of_directory(path, split);
      array.files_.insert(array.files_.end(), files.begin(), files.end());
    } else {
      array.files_.push_back(read_token_file_info(path));
    }
  }
  array.begins_.push_back(0);
  const TokenFileInfo* first = nullptr;  // the first that names its vocabulary
  for (const TokenFileInfo& file : array.files_) {
    if (file.vocab_size != 0 && first == nullptr) first = &file;
    if (file.vocab_size != 0 && file.vocab_size != first->vocab_size) {
      fail(ExitCode::kCorruptInput, "vocabularies differ: {} in {}, {} in {}", first->vocab_size,
           first->path, file.vocab_size, file.path);
    }
    array.begins_.push_back(array.begins_.back() + file.num_tokens);
    array.mappings_.push_back(std::make_unique<Mapping>(file));
  }
  return array;
}

std::int64_t TokenArray::num_tokens() const { return begins_.back(); }

std::int64_t TokenArray::vocab_size() const {
  for (const TokenFileInfo& file : files_) {
    if (file.vocab_size != 0) return file.vocab_size;
  }
  return 0;
}

const std::vector<TokenFileInfo>& TokenArray::files() const { return files_; }

std::string TokenArray::describe() const {
  constexpr std::size_t kMaxNames = 4;
  std::string names;
  for (std::size_t i = 0; i < std::min(files_.size(), kMaxNames); ++i) {
    names += (i > 0 ? ", " : "") + files_[i].path;
  }
  if (files_.size() > kMaxNames) names += ", ...";
  return fmt::format("{} {} ({})", files_.size(), files_.size() == 1 ? "file" : "files", names);
}

void TokenArray::read_file(std::size_t file, std::int64_t begin, std::int64_t vocab_size,
                           std::span<std::int64_t> out) const {
  mappings_[file]->read(files_[file], begin, out);
  const auto bad = std::find_if(
      out.begin(), out.end(), [&](std::int64_t token) { return token < 0 || token >= vocab_size; });
  if (bad != out.end()) {
    fail(ExitCode::kCorruptInput, "{}: token {} at index {} is outside the vocabulary [0, {})",
         files_[file].path, *bad, begin + (bad - out.begin()), vocab_size);
  }
}

void TokenArray::read(std::int64_t begin, std::span<std::int64_t> out) const {
  const auto count = static_cast<std::int64_t>(out.size());
  TTT_CHECK(begin >= 0 && begin <= num_tokens() && count <= num_tokens() - begin,
            "tokens [{}, {} + {}) of {}", begin, begin, count, num_tokens());
  const std::int64_t vocab_size =
      required_vocabulary_ > 0 ? required_vocabulary_ : std::numeric_limits<std::int64_t>::max();
  const auto next = std::upper_bound(begins_.begin(), begins_.end(), begin);
  auto file = static_cast<std::size_t>(next - begins_.begin()) - 1;
  while (!out.empty()) {
    const std::int64_t available = begins_[file + 1] - begin;
    const auto take = std::min(out.size(), static_cast<std::size_t>(available));
    if (take > 0) read_file(file, begin - begins_[file], vocab_size, out.first(take));
    out = out.subspan(take);
    begin += static_cast<std::int64_t>(take);
    ++file;
  }
}

void TokenArray::require_vocabulary(std::int64_t vocab_size) {
  constexpr std::int64_t kReadAtOnce = std::int64_t{1} << 26;  // a fraction of a second
  required_vocabulary_ = vocab_size;
  if (num_tokens() <= kReadAtOnce) verify(vocab_size);
}

void TokenArray::verify(std::int64_t vocab_size) const {
  constexpr std::int64_t kChunk = 1 << 16;
  std::vector<std::int64_t> chunk(kChunk);
  for (std::size_t file = 0; file < files_.size(); ++file) {
    if (files_[file].format == "Megatron") verify_megatron_index(files_[file]);
    for (std::int64_t begin = 0; begin < files_[file].num_tokens; begin += kChunk) {
      const std::int64_t count = std::min(kChunk, files_[file].num_tokens - begin);
      read_file(file, begin, vocab_size, std::span(chunk).first(static_cast<std::size_t>(count)));
    }
  }
}

}  // namespace ttt::data
