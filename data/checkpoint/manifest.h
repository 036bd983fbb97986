#pragma once
// The text file that makes a directory a checkpoint. Internal to data/checkpoint.

#include <string>

#include "configs/manifest.pb.h"
#include "data/checkpoint/shard.h"

namespace ttt::data {

inline constexpr const char* kManifestName = "manifest.textproto";

/// Sets the format version and writes the manifest; its last line, a comment, is a digest of the
/// lines before it. The names of all files in the directory are durable then.
void write_manifest(const std::string& directory, config::CheckpointManifest manifest);

}  // namespace ttt::data
