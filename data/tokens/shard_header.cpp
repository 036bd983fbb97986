// Reading the HDF5 side of a token shard. Only the names of the layout are opened, and whatever
// could lead outside the file or run a filter is refused: shards may come from anywhere.

#include <fcntl.h>

#include <array>

#include "data/files.h"
#include "data/tokens/hdf5_handle.h"
#include "data/tokens/token_header.h"

namespace ttt::data {
namespace {

constexpr ExitCode kCorrupt = ExitCode::kCorruptInput;

class ShardFile {
 public:
  explicit ShardFile(const std::string& path)
      : path_(path), size_bytes_(file_size_bytes(path)), file_(open(path)) {}

  std::int64_t integer(const char* name) const {
    const Hdf5Handle attribute = open_attribute(name);
    std::int64_t value = 0;
    TTT_HDF5(H5Aread(attribute.get(), H5T_NATIVE_INT64, &value), kCorrupt, path_);
    return value;
  }

  void expect_format() const {
    const Hdf5Handle attribute = open_attribute("format");
    const Hdf5Handle type(TTT_HDF5(H5Aget_type(attribute.get()), kCorrupt, path_));
    std::array<char, 64> text{};
    const bool is_text = H5Tget_class(type.get()) == H5T_STRING &&
                         H5Tis_variable_str(type.get()) == 0 && H5Tget_size(type.get()) < 64;
    if (is_text) TTT_HDF5(H5Aread(attribute.get(), type.get(), text.data()), kCorrupt, path_);
    if (std::string(text.data()) != kShardFormat) {
      fail(kCorrupt, "{} is not a token shard: its format is \"{}\"", path_, text.data());
    }
  }

  // Checks that dataset `name` is `count` plain elements of `type` in this file.
  Hdf5Handle open_dataset(const char* name, hid_t type, std::int64_t count) const {
    H5L_info_t link{};
    if (H5Lget_info(file_.get(), name, &link, H5P_DEFAULT) < 0 || link.type != H5L_TYPE_HARD) {
      fail(kCorrupt, "{} has no dataset {}", path_, name);
    }
    Hdf5Handle dataset(TTT_HDF5(H5Dopen2(file_.get(), name, H5P_DEFAULT), kCorrupt, path_));
    const Hdf5Handle plist(TTT_HDF5(H5Dget_create_plist(dataset.get()), kCorrupt, path_));
    if (H5Pget_layout(plist.get()) != H5D_CONTIGUOUS || H5Pget_external_count(plist.get()) != 0) {
      fail(kCorrupt, "{}: dataset {} is not contiguous", path_, name);
    }
    const Hdf5Handle stored(TTT_HDF5(H5Dget_type(dataset.get()), kCorrupt, path_));
    if (H5Tequal(stored.get(), type) <= 0) {
      fail(kCorrupt, "{}: dataset {} has the wrong element type", path_, name);
    }
    const Hdf5Handle space(TTT_HDF5(H5Dget_space(dataset.get()), kCorrupt, path_));
    hsize_t extent = 0;
    if (H5Sget_simple_extent_ndims(space.get()) != 1 ||
        H5Sget_simple_extent_dims(space.get(), &extent, nullptr) != 1 ||
        extent != static_cast<hsize_t>(count)) {
      fail(kCorrupt, "{}: dataset {} does not have {} elements", path_, name, count);
    }
    return dataset;
  }

  [[nodiscard]] std::int64_t data_offset(const Hdf5Handle& dataset, std::int64_t bytes) const {
    const haddr_t offset = H5Dget_offset(dataset.get());
    const auto size = static_cast<haddr_t>(size_bytes_);
    if (offset == HADDR_UNDEF || offset > size || static_cast<haddr_t>(bytes) > size - offset) {
      fail(kCorrupt, "{}: the tokens do not lie inside the file's {} bytes", path_, size_bytes_);
    }
    return static_cast<std::int64_t>(offset);
  }

 private:
  static hid_t open(const std::string& path) {
    const FileDescriptor readable(path,
                                  O_RDONLY);  // says what HDF5 does not: missing, or not allowed
    return TTT_HDF5(H5Fopen(path.c_str(), H5F_ACC_RDONLY, H5P_DEFAULT), kCorrupt, path);
  }

  Hdf5Handle open_attribute(const char* name) const {
    if (H5Aexists(file_.get(), name) <= 0) {
      fail(kCorrupt, "{} is not a token shard: it has no attribute {}", path_, name);
    }
    Hdf5Handle attribute(TTT_HDF5(H5Aopen(file_.get(), name, H5P_DEFAULT), kCorrupt, path_));
    const Hdf5Handle space(TTT_HDF5(H5Aget_space(attribute.get()), kCorrupt, path_));
    if (H5Sget_simple_extent_npoints(space.get()) != 1) {
      fail(kCorrupt, "{}: attribute {} is not one value", path_, name);
    }
    return attribute;
  }

  const std::string& path_;
  std::int64_t size_bytes_;
  Hdf5Handle file_;
};

TokenFileInfo read_info(const ShardFile& file, const std::string& path) {
  file.expect_format();
  const std::int64_t version = file.integer("format_version");
  if (version != kShardFormatVersion) {
    fail(kCorrupt, "{}: format version {}, this program reads {}", path, version,
         kShardFormatVersion);
  }
  TokenFileInfo info;
  info.path = path;
  info.format = "HDF5 shard";
  info.num_tokens = file.integer("num_tokens");
  info.num_documents = file.integer("num_documents");
  info.vocab_size = file.integer("vocab_size");
  info.bos_id = file.integer("bos_id");
  info.eos_id = file.integer("eos_id");
  constexpr std::int64_t kMaxCount = std::int64_t{1} << 60;  // times four does not overflow
  const auto is_id = [&](std::int64_t id) { return id >= -1 && id < info.vocab_size; };
  if (info.num_tokens < 1 || info.num_tokens > kMaxCount || info.num_documents < 1 ||
      info.num_documents > info.num_tokens || info.vocab_size < 1 ||
      info.vocab_size > kMaxVocabSize || !is_id(info.bos_id) || !is_id(info.eos_id)) {
    fail(kCorrupt,
         "{}: impossible attributes: num_tokens {}, num_documents {}, vocab_size {}, bos_id {}, "
         "eos_id {}",
         path, info.num_tokens, info.num_documents, info.vocab_size, info.bos_id, info.eos_id);
  }
  info.token_bytes = info.vocab_size <= 65536 ? 2 : 4;
  return info;
}

}  // namespace

TokenFileInfo read_shard_header(const std::string& path) {
  prepare_hdf5_library();
  const ShardFile file(path);
  TokenFileInfo info = read_info(file, path);
  const hid_t type = info.token_bytes == 2 ? H5T_STD_U16LE : H5T_STD_U32LE;
  const Hdf5Handle tokens = file.open_dataset("tokens", type, info.num_tokens);
  info.data_offset = file.data_offset(tokens, info.num_tokens * info.token_bytes);
  return info;
}

std::vector<std::uint64_t> read_document_offsets(const std::string& shard_path) {
  prepare_hdf5_library();
  const ShardFile file(shard_path);
  const TokenFileInfo info = read_info(file, shard_path);
  const Hdf5Handle dataset =
      file.open_dataset("document_offsets", H5T_STD_U64LE, info.num_documents + 1);
  (void)file.data_offset(dataset, (info.num_documents + 1) * 8);  // before memory is asked for
  std::vector<std::uint64_t> offsets(static_cast<std::size_t>(info.num_documents) + 1);
  TTT_HDF5(H5Dread(dataset.get(), H5T_NATIVE_UINT64, H5S_ALL, H5S_ALL, H5P_DEFAULT, offsets.data()),
           kCorrupt, shard_path);
  bool ascending =
      offsets.front() == 0 && offsets.back() == static_cast<std::uint64_t>(info.num_tokens);
  for (std::size_t i = 1; i < offsets.size(); ++i) ascending &= offsets[i - 1] < offsets[i];
  if (!ascending) {
    fail(kCorrupt, "{}: document_offsets do not rise from 0 to {}", shard_path, info.num_tokens);
  }
  return offsets;
}

}  // namespace ttt::data
