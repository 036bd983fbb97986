#include <unistd.h>

#include <cstring>
#include <utility>

#include "core/base/error.h"
#include "data/files.h"
#include "data/tokens/hdf5_handle.h"
#include "data/tokens/token_header.h"

namespace ttt::data {
namespace {

constexpr ExitCode kIo = ExitCode::kIo;
constexpr std::size_t kBlockBytes = std::size_t{4} << 20;

void write_attribute(hid_t file, const char* name, std::int64_t value, const std::string& path) {
  const Hdf5Handle space(TTT_HDF5(H5Screate(H5S_SCALAR), kIo, path));
  Hdf5Handle attribute(TTT_HDF5(
      H5Acreate2(file, name, H5T_STD_I64LE, space.get(), H5P_DEFAULT, H5P_DEFAULT), kIo, path));
  TTT_HDF5(H5Awrite(attribute.get(), H5T_NATIVE_INT64, &value), kIo, path);
  TTT_HDF5(attribute.close(), kIo, path);
}

void write_format(hid_t file, const std::string& path) {
  const Hdf5Handle space(TTT_HDF5(H5Screate(H5S_SCALAR), kIo, path));
  const Hdf5Handle type(TTT_HDF5(H5Tcopy(H5T_C_S1), kIo, path));
  TTT_HDF5(H5Tset_size(type.get(), std::strlen(kShardFormat)), kIo, path);
  TTT_HDF5(H5Tset_strpad(type.get(), H5T_STR_NULLPAD), kIo, path);
  Hdf5Handle attribute(TTT_HDF5(
      H5Acreate2(file, "format", type.get(), space.get(), H5P_DEFAULT, H5P_DEFAULT), kIo, path));
  TTT_HDF5(H5Awrite(attribute.get(), type.get(), kShardFormat), kIo, path);
  TTT_HDF5(attribute.close(), kIo, path);
}

// Contiguous and allocated at once, so that the tokens have one place in the file to map.
Hdf5Handle create_dataset(hid_t file, const char* name, hid_t type, std::size_t count,
                          const std::string& path) {
  const hsize_t extent = count;
  const Hdf5Handle space(TTT_HDF5(H5Screate_simple(1, &extent, nullptr), kIo, path));
  const Hdf5Handle plist(TTT_HDF5(H5Pcreate(H5P_DATASET_CREATE), kIo, path));
  TTT_HDF5(H5Pset_layout(plist.get(), H5D_CONTIGUOUS), kIo, path);
  TTT_HDF5(H5Pset_alloc_time(plist.get(), H5D_ALLOC_TIME_EARLY), kIo, path);
  TTT_HDF5(H5Pset_fill_time(plist.get(), H5D_FILL_TIME_NEVER), kIo, path);
  // The same tokens must give the same bytes whenever they are written.
  TTT_HDF5(H5Pset_obj_track_times(plist.get(), false), kIo, path);
  return Hdf5Handle(TTT_HDF5(
      H5Dcreate2(file, name, type, space.get(), H5P_DEFAULT, plist.get(), H5P_DEFAULT), kIo, path));
}

Hdf5Handle create_file(const std::string& path) {
  const Hdf5Handle access(TTT_HDF5(H5Pcreate(H5P_FILE_ACCESS), kIo, path));
  TTT_HDF5(H5Pset_alignment(access.get(), 4096, 4096), kIo, path);
  // Version 1.10's superblock and object headers carry checksums.
  TTT_HDF5(H5Pset_libver_bounds(access.get(), H5F_LIBVER_V110, H5F_LIBVER_V110), kIo, path);
  const Hdf5Handle creation(TTT_HDF5(H5Pcreate(H5P_FILE_CREATE), kIo, path));
  TTT_HDF5(H5Pset_obj_track_times(creation.get(), false), kIo, path);
  return Hdf5Handle(
      TTT_HDF5(H5Fcreate(path.c_str(), H5F_ACC_TRUNC, creation.get(), access.get()), kIo, path));
}

}  // namespace

TokenShardWriter::TokenShardWriter(std::string path, std::int64_t vocab_size, std::int64_t bos_id,
                                   std::int64_t eos_id)
    : path_(std::move(path)),
      vocab_size_(vocab_size),
      bos_id_(bos_id),
      eos_id_(eos_id),
      token_bytes_(vocab_size <= 65536 ? 2 : 4),
      document_offsets_{0} {
  TTT_CHECK(vocab_size >= 1 && vocab_size <= kMaxVocabSize, "vocabulary of {}", vocab_size);
}

TokenShardWriter::~TokenShardWriter() = default;

void TokenShardWriter::append_document(std::span<const std::int32_t> ids) {
  append_document({ids, {}});
}

void TokenShardWriter::append_document(
    std::initializer_list<std::span<const std::int32_t>> pieces) {
  const std::int64_t begin = num_tokens_;
  for (const auto& piece : pieces) {
    for (const std::int32_t id : piece) append_token(id);
  }
  TTT_CHECK(num_tokens_ > begin, "a document without tokens");
  document_offsets_.push_back(static_cast<std::uint64_t>(num_tokens_));
}

void TokenShardWriter::append_token(std::int32_t id) {
  if (id < 0 || id >= vocab_size_) {
    fail(ExitCode::kCorruptInput, "{}: token {} at index {} is outside the vocabulary [0, {})",
         path_, id, num_tokens_, vocab_size_);
  }
  if (blocks_.empty() || blocks_.back().size() == kBlockBytes) {
    blocks_.emplace_back();
    blocks_.back().reserve(kBlockBytes);
  }
  for (std::int64_t byte = 0; byte < token_bytes_; ++byte) {  // little endian
    blocks_.back().push_back(
        static_cast<std::byte>((static_cast<std::uint32_t>(id) >> (8 * byte)) & 0xffU));
  }
  ++num_tokens_;
}

std::int64_t TokenShardWriter::num_tokens() const { return num_tokens_; }

std::int64_t TokenShardWriter::num_documents() const {
  return static_cast<std::int64_t>(document_offsets_.size()) - 1;
}

void TokenShardWriter::finish() {
  TTT_CHECK(num_tokens_ > 0, "{}: a shard without tokens", path_);
  prepare_hdf5_library();
  const std::string temporary = fmt::format("{}.tmp-{}", path_, ::getpid());
  try {
    Hdf5Handle file = create_file(temporary);
    const hid_t type = token_bytes_ == 2 ? H5T_STD_U16LE : H5T_STD_U32LE;
    Hdf5Handle tokens = create_dataset(file.get(), "tokens", type,
                                       static_cast<std::size_t>(num_tokens_), temporary);
    const Hdf5Handle space(TTT_HDF5(H5Dget_space(tokens.get()), kIo, temporary));
    hsize_t begin = 0;
    for (const auto& block : blocks_) {
      const hsize_t count = block.size() / static_cast<std::size_t>(token_bytes_);
      const Hdf5Handle memory(TTT_HDF5(H5Screate_simple(1, &count, nullptr), kIo, temporary));
      TTT_HDF5(H5Sselect_hyperslab(space.get(), H5S_SELECT_SET, &begin, nullptr, &count, nullptr),
               kIo, temporary);
      TTT_HDF5(H5Dwrite(tokens.get(), type, memory.get(), space.get(), H5P_DEFAULT, block.data()),
               kIo, temporary);
      begin += count;
    }
    Hdf5Handle offsets = create_dataset(file.get(), "document_offsets", H5T_STD_U64LE,
                                        document_offsets_.size(), temporary);
    TTT_HDF5(H5Dwrite(offsets.get(), H5T_NATIVE_UINT64, H5S_ALL, H5S_ALL, H5P_DEFAULT,
                      document_offsets_.data()),
             kIo, temporary);
    write_format(file.get(), temporary);
    write_attribute(file.get(), "format_version", kShardFormatVersion, temporary);
    write_attribute(file.get(), "vocab_size", vocab_size_, temporary);
    write_attribute(file.get(), "bos_id", bos_id_, temporary);
    write_attribute(file.get(), "eos_id", eos_id_, temporary);
    write_attribute(file.get(), "num_tokens", num_tokens_, temporary);
    write_attribute(file.get(), "num_documents", num_documents(), temporary);
    TTT_HDF5(offsets.close(), kIo, temporary);
    TTT_HDF5(tokens.close(), kIo, temporary);
    TTT_HDF5(file.close(), kIo, temporary);
    fsync_file(temporary);
    rename_durably(temporary, path_);
  } catch (...) {
    ::unlink(temporary.c_str());
    throw;
  }
}

}  // namespace ttt::data
