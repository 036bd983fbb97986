#pragma once
// Training checkpoints: a directory of one HDF5 file a rank and a manifest that makes it valid.
//
//   RUN/checkpoints/step-00000500/rank-00000.h5 ... manifest.textproto
//
// Protocol of a save (the collectives are the caller's, launch/checkpoint_saver.h): every rank computes the same
// temporary name with begin_checkpoint (rank 0 creates it; barrier), every rank writes its shard and sends
// the digest to rank 0, which alone calls commit_checkpoint. The rename in there is the commit
// point: a run killed before it leaves no checkpoint. docs/formats.md describes the files.

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "configs/manifest.pb.h"
#include "core/base/flat_range.h"
#include "core/base/tensor.h"
#include "data/checkpoint/run_lock.h"  // IWYU pragma: export

namespace ttt::data {

inline constexpr std::uint32_t kCheckpointFormatVersion = 4;

struct NamedShape {
  std::string name;  // as in ttt-lm-pytorch's state_dict
  Shape shape;
  std::int64_t begin = 0;  // of its first element in the flat buffers

  [[nodiscard]] std::int64_t end() const { return begin + shape.numel(); }
};

/// All parameters, flattened, in the order of `tensors` with gaps between them, and AdamW's moments.
/// Views on the caller's buffers, all F32 or all F64. For reading, `m` and `v` may be empty: only
/// the values are read then.
struct FlatState {
  std::vector<NamedShape> tensors;
  TensorView values;  // [n], or the elements of `held`
  TensorView m;       // [n], or the elements of `moments`
  TensorView v;
  std::vector<FlatRange> moments =
      {};  // what m and v hold, one range after the other; none: everything
  std::vector<FlatRange> held = {};  // the same of values
};

// ---- Writing -------------------------------------------------------------------------------

/// RUN/checkpoints/step-00000500: where a checkpoint is once committed.
std::string checkpoint_directory(const std::string& run_directory, std::int64_t step);

/// The temporary directory of a save, the same on every rank. Rank 0 creates it (its name is durable with the
/// commit) and removes what an interrupted save left; the others only compute the name and must not write before a barrier.
std::string begin_checkpoint(const std::string& run_directory, std::int64_t step, int rank);

/// Writes rank-RRRRR.h5 with these ranges of the flat buffers, reads it back, compares, and fsyncs it. Over all ranks
/// the ranges must cover [0, n) once; no tensor may meet two ranges of a rank. Returns its digest for the manifest.
/// Errors: 74.
config::FileDigest write_shard(const std::string& directory, int rank,
                               const std::vector<FlatRange>& ranges, const FlatState& state);

/// Removes what a failed save wrote, as far as that goes; the next save removes the rest. On one rank.
void abandon_checkpoint(const std::string& temporary);

/// Copies a file (the tokenizer) into the temporary directory under its own name, fsyncs it and
/// returns its digest for the manifest.
config::FileDigest add_file(const std::string& directory, const std::string& source_path);

/// Sets the manifest's `tensors` and `dtype` from the state.
void describe_state(const FlatState& state, config::CheckpointManifest& manifest);

/// Rank 0 only. Writes the manifest (`files` holds every rank's digest; format_version is set
/// here), fsyncs, renames `temporary` to `final_directory` and fsyncs the parent. A checkpoint of
/// the same name (one that did not verify on resume) is replaced. Errors: 74.
void commit_checkpoint(const std::string& temporary, const std::string& final_directory,
                       const config::CheckpointManifest& manifest);

/// Removes all but the newest `keep_last` (at least 1) committed checkpoints. Rank 0 only.
void remove_old_checkpoints(const std::string& run_directory, std::int64_t keep_last);

// ---- Reading -------------------------------------------------------------------------------

struct CheckpointLocation {
  std::int64_t step = 0;
  std::string directory;
};

/// The committed checkpoints (by the presence of a manifest; not verified), newest first.
std::vector<CheckpointLocation> list_checkpoints(const std::string& run_directory);

/// The expected list of a reader that takes the checkpoint as it is (export, inspection).
std::vector<NamedShape> tensors_of(const config::CheckpointManifest& manifest);

/// Errors: 66 when there is no manifest, 65 when it is damaged or of a future format version.
config::CheckpointManifest read_manifest(const std::string& directory);

/// Checks size and digest of every file the manifest lists. Errors: 66 or 65 naming the file.
void verify_checkpoint(const std::string& directory, const config::CheckpointManifest& manifest);

/// Verifies the checkpoint and fills the caller's buffers, whatever the ranges it was saved in and wherever its
/// tensors lay. `into.tensors` is what the model expects. With `wanted`, ranges of `into`'s flat buffers, it leaves
/// out shards that hold none of their elements: neither verified nor read. So ranks that share the elements out read
/// and verify everything once, and each gets what it wants, of the rest this or that. Errors: 78 naming the first
/// tensors that differ (or the dtype), 65 / 66 as in verify_checkpoint.
void read_state(const std::string& directory, const config::CheckpointManifest& manifest,
                const FlatState& into,
                const std::optional<std::vector<FlatRange>>& wanted = std::nullopt);

}  // namespace ttt::data
