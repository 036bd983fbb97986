#pragma once
// The safetensors file format: the only one for weights from or to elsewhere.
//
// 8 bytes: header length (little-endian); the header, a JSON object {name: {dtype, shape,
// data_offsets}}; the tensors' bytes. Nothing in a file is trusted before it is checked.
// Source: github.com/huggingface/safetensors, README.md.

#include <cstdint>
#include <map>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "core/base/tensor.h"

namespace ttt::data {

using NamedTensor = std::pair<std::string, TensorView>;

struct SafetensorsInfo {
  DType dtype = DType::kF32;  // of the tensor `read` returns: F16 is converted to F32
  Shape shape;
};

/// One file, or the union of the files of a sharded model. Only headers are kept in memory.
class SafetensorsFile {
 public:
  /// Errors: 66 when missing, 65 naming the file and the tensor when anything in it is wrong.
  static SafetensorsFile open(const std::string& path);

  [[nodiscard]] const std::map<std::string, std::string>& metadata() const { return metadata_; }
  [[nodiscard]] std::vector<std::string> names() const;  // in ascending order
  [[nodiscard]] bool has(const std::string& name) const { return entries_.contains(name); }
  /// Throws 65 when there is no such tensor.
  [[nodiscard]] SafetensorsInfo info(const std::string& name) const;
  [[nodiscard]] Tensor read(const std::string& name) const;

 private:
  friend SafetensorsFile open_model(const std::string& directory);
  struct Entry {
    std::string path;
    std::uint64_t begin = 0;  // in the file
    std::uint64_t num_bytes = 0;
    bool is_f16 = false;
    SafetensorsInfo info;
  };
  [[nodiscard]] const Entry& entry(const std::string& name) const;

  std::string path_;
  std::map<std::string, Entry> entries_;
  std::map<std::string, std::string> metadata_;
};

/// DIRECTORY/model.safetensors, or the shards that model.safetensors.index.json lists.
SafetensorsFile open_model(const std::string& directory);

/// Writes atomically (temporary file, fsync, rename). "format": "pt" is added to `metadata`, as
/// transformers demands. Data begins at a multiple of 8. Tensors are stored in the given order.
void write_safetensors(const std::string& path, std::span<const NamedTensor> tensors,
                       const std::map<std::string, std::string>& metadata = {});

}  // namespace ttt::data
