#pragma once
// The numbers of a shard on their way to the disk and back. Internal to data/checkpoint.

#include <span>
#include <string>

#include "data/checkpoint/shard_format.h"

namespace ttt::data {

/// Writes every piece to its place in an existing file, past the page cache, and makes the file durable. Errors: those of
/// fail_with_errno.
void write_numbers(const std::string& path, std::span<const Place> places);

/// Reads the whole file from the disk, compares it with the pieces, which are in the order of the file, and returns the
/// XXH3-128 of what was read. Errors: 65 naming a tensor that is not what was written.
std::string read_back(const std::string& path, std::span<const Place> places);

}  // namespace ttt::data
