#pragma once
// A small training state and the save that all ranks do, one after the other.

#include <gtest/gtest.h>

#include <cstring>
#include <utility>

#include "data/checkpoint/checkpoint.h"
#include "data/checkpoint/shard.h"
#include "tests/data/temporary_directory.h"

namespace ttt::data {

// A whole state in memory; sizes are chosen so that slices cut through tensors. Tensors begin at multiples of `alignment`.
struct State {
  explicit State(DType dtype = DType::kF32, std::int64_t width = 37, std::int64_t alignment = 8) {
    tensors = {{"model.embed_tokens.weight", Shape{19, width}},
               {"model.layers.0.seq_norm.weight", Shape{width}},
               {"model.layers.0.seq_modeling_block.W1", Shape{2, 3, 5}},
               {"scalar", Shape{}},
               {"nothing", Shape{0, 4}},
               {"model.norm.weight", Shape{2000}}};
    std::int64_t n = 0;
    for (NamedShape& tensor : tensors) {
      tensor.begin = (n + alignment - 1) / alignment * alignment;
      n = tensor.end();
    }
    values = Tensor::zeros(Shape{n}, dtype);
    m = Tensor::zeros(Shape{n}, dtype);
    v = Tensor::zeros(Shape{n}, dtype);
  }
  // Gaps stay zero.
  void fill_with_numbers() {
    for (const auto& [buffer, scale] : {std::pair(&values, 1.0), {&m, -0.5}, {&v, 1e-6}}) {
      for (const NamedShape& tensor : tensors) {
        for (std::int64_t i = tensor.begin; i < tensor.end(); ++i) {
          const double value = scale * static_cast<double>(i + 1);
          if (buffer->dtype() == DType::kF32) {
            buffer->data<float>()[i] = static_cast<float>(value);
          } else {
            buffer->data<double>()[i] = value;
          }
        }
      }
    }
  }
  [[nodiscard]] FlatState flat() const { return {tensors, values, m, v}; }

  std::vector<NamedShape> tensors;
  Tensor values, m, v;
};

/// The shard of one rank of several that share evenly.
inline config::FileDigest write_even_shard(const std::string& directory, int rank, int world_size,
                                           const State& state) {
  return write_shard(directory, rank, {even_range(state.values.numel(), rank, world_size)},
                     state.flat());
}

inline bool equal_bits(const TensorView& a, const TensorView& b) {
  return a.num_bytes() == b.num_bytes() &&
         std::memcmp(a.raw(), b.raw(), static_cast<std::size_t>(a.num_bytes())) == 0;
}

inline config::CheckpointManifest manifest_of(const State& state, std::int64_t step,
                                              int world_size) {
  config::CheckpointManifest manifest;
  manifest.set_step(step);
  manifest.set_world_size(world_size);
  manifest.mutable_config()->set_name("test");
  describe_state(state.flat(), manifest);
  return manifest;
}

// What all ranks do, one after the other. Returns the checkpoint's directory.
inline std::string save(const std::string& run, const State& state, std::int64_t step,
                        int world_size) {
  const std::string temporary = begin_checkpoint(run, step, 0);
  auto manifest = manifest_of(state, step, world_size);
  for (int rank = 0; rank < world_size; ++rank) {
    EXPECT_EQ(begin_checkpoint(run, step, 1), temporary);
    *manifest.add_files() = write_even_shard(temporary, rank, world_size, state);
  }
  const std::string final_directory = checkpoint_directory(run, step);
  commit_checkpoint(temporary, final_directory, manifest);
  return final_directory;
}

inline void load(const std::string& directory, const State& into) {
  read_state(directory, read_manifest(directory), into.flat());
}

}  // namespace ttt::data
