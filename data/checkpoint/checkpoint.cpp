#include "data/checkpoint/checkpoint.h"

#include <fcntl.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <filesystem>
#include <map>
#include <optional>
#include <set>
#include <system_error>

#include "core/base/log.h"
#include "data/checkpoint/manifest.h"
#include "data/files.h"

namespace ttt::data {
namespace {

namespace fs = std::filesystem;

constexpr const char* kTemporarySuffix = ".tmp";
constexpr const char* kTrashPrefix = ".trash-";

fs::path checkpoints_root(const std::string& run_directory) {
  return fs::path(run_directory) / "checkpoints";
}

// "step-00000500" -> 500
std::optional<std::int64_t> step_of(const std::string& name) {
  constexpr std::string_view kPrefix = "step-";
  if (!name.starts_with(kPrefix)) return std::nullopt;
  const std::string digits = name.substr(kPrefix.size());
  if (digits.size() < 8 || digits.size() > 18 ||
      !std::ranges::all_of(digits, [](char c) { return c >= '0' && c <= '9'; })) {
    return std::nullopt;
  }
  return std::stoll(digits);
}

bool does_exist(const fs::path& path) {
  std::error_code error;
  return fs::exists(path, error);
}

std::vector<fs::path> children(const fs::path& directory) {
  std::error_code error;
  std::vector<fs::path> result;
  for (fs::directory_iterator entry(directory, error), end; !error && entry != end;
       entry.increment(error)) {
    result.push_back(entry->path());
  }
  if (error) fail_with_errno("list", directory, error.value());
  return result;
}

void make_directories(const fs::path& path) {
  std::error_code error;
  fs::create_directories(path, error);
  if (error) fail_with_errno("create", path, error.value());
}

void remove_tree(const fs::path& path) {
  std::error_code error;
  fs::remove_all(path, error);
  if (error) fail_with_errno("remove", path, error.value());
}

// What an interrupted save or removal left. Only for the owner of the run.
void remove_leftovers(const fs::path& root) {
  for (const fs::path& path : children(root)) {
    const std::string name = path.filename();
    if (name.starts_with(kTrashPrefix) || name.ends_with(kTemporarySuffix)) remove_tree(path);
  }
}

// The directory stops being a checkpoint in one rename, before its files go one by one.
void remove_checkpoint(const fs::path& path) {
  const fs::path trash = path.parent_path() / (kTrashPrefix + path.filename().string());
  remove_tree(trash);
  rename_durably(path, trash);
  remove_tree(trash);
}

void check_complete(const config::CheckpointManifest& manifest) {
  TTT_CHECK(manifest.world_size() > 0, "the manifest has world_size {}", manifest.world_size());
  TTT_CHECK(manifest.tensors_size() > 0 && manifest.has_dtype(),
            "the manifest lacks tensors: call describe_state");
  for (int rank = 0; rank < manifest.world_size(); ++rank) {
    const auto count =
        std::ranges::count(manifest.files(), shard_name(rank), &config::FileDigest::name);
    TTT_CHECK(count == 1, "the manifest lists {} {} times", shard_name(rank), count);
  }
}

// The first few differences, or nothing.
std::vector<std::string> differences(const std::vector<NamedShape>& saved,
                                     const std::vector<NamedShape>& expected) {
  std::vector<std::string> result;
  const auto find = [](const std::vector<NamedShape>& list, const std::string& name) {
    return std::ranges::find(list, name, &NamedShape::name);
  };
  for (const NamedShape& tensor : expected) {
    const auto match = find(saved, tensor.name);
    if (match == saved.end()) {
      result.push_back(
          fmt::format("{} {} is not in the checkpoint", tensor.name, tensor.shape.str()));
    } else if (match->shape != tensor.shape) {
      result.push_back(fmt::format("{} is {} in the checkpoint, {} in the model", tensor.name,
                                   match->shape.str(), tensor.shape.str()));
    }
  }
  for (const NamedShape& tensor : saved) {
    if (find(expected, tensor.name) == expected.end()) {
      result.push_back(fmt::format("{} {} is not in the model", tensor.name, tensor.shape.str()));
    }
  }
  return result;
}

void require_same_tensors(const std::string& directory, const config::CheckpointManifest& manifest,
                          const FlatState& into) {
  constexpr std::size_t kMostListed = 5;
  std::vector<std::string> found = differences(tensors_of(manifest), into.tensors);
  if (!found.empty()) {
    const std::size_t count = found.size();
    found.resize(std::min(count, kMostListed));
    fail(ExitCode::kResumeMismatch, "{} is of another model ({} differences): {}{}", directory,
         count, fmt::join(found, "; "), count > kMostListed ? "; ..." : "");
  }
  if (manifest.dtype() != name_of(into.values.dtype())) {
    fail(ExitCode::kResumeMismatch, "{} holds {}, but the run computes in {}", directory,
         manifest.dtype(), name_of(into.values.dtype()));
  }
}

void verify_file(const std::string& directory, const config::FileDigest& file) {
  const std::string path = fs::path(directory) / file.name();
  const auto num_bytes = static_cast<std::uint64_t>(file_size_bytes(path));
  if (num_bytes != file.num_bytes()) {
    fail(ExitCode::kCorruptInput, "{} has {} bytes, not the {} of the manifest", path, num_bytes,
         file.num_bytes());
  }
  const std::string digest = xxh3_128_hex_of_file(path);
  if (digest != file.xxh3_128()) {
    fail(ExitCode::kCorruptInput, "{} is damaged: its XXH3-128 is {}, not the manifest's {}", path,
         digest, file.xxh3_128());
  }
}

bool is_any_in(const std::vector<Slice>& slices, const std::vector<FlatRange>& ranges) {
  return std::ranges::any_of(slices, [&](const Slice& slice) {
    return std::ranges::any_of(ranges, [&](const FlatRange& range) {
      return std::max(range.begin, slice.flat_begin) <
             std::min(range.end, slice.flat_begin + slice.count);
    });
  });
}

}  // namespace

std::string checkpoint_directory(const std::string& run_directory, std::int64_t step) {
  TTT_CHECK(step >= 0, "step {}", step);
  return checkpoints_root(run_directory) / fmt::format("step-{:08}", step);
}

std::string begin_checkpoint(const std::string& run_directory, std::int64_t step, int rank) {
  std::string temporary = checkpoint_directory(run_directory, step) + kTemporarySuffix;
  if (rank != 0) return temporary;
  const fs::path root = checkpoints_root(run_directory);
  make_directories(root);
  remove_leftovers(root);
  make_directories(temporary);
  return temporary;
}

void abandon_checkpoint(const std::string& temporary) {
  std::error_code ignored;
  fs::remove_all(temporary, ignored);
}

config::FileDigest add_file(const std::string& directory, const std::string& source_path) {
  const fs::path source(source_path);
  const std::string target = fs::path(directory) / source.filename();
  const FileDescriptor in(source_path, O_RDONLY);
  std::string contents(static_cast<std::size_t>(in.size_bytes()), '\0');
  in.read_at(0, std::as_writable_bytes(std::span(contents)));
  write_file_atomically(target, contents);
  expect_content(target, contents);
  config::FileDigest digest;
  digest.set_name(source.filename());
  digest.set_num_bytes(contents.size());
  digest.set_xxh3_128(xxh3_128_hex(std::as_bytes(std::span(contents))));
  return digest;
}

void describe_state(const FlatState& state, config::CheckpointManifest& manifest) {
  manifest.set_dtype(name_of(state.values.dtype()));
  manifest.clear_tensors();
  for (const NamedShape& tensor : state.tensors) {
    config::TensorEntry& entry = *manifest.add_tensors();
    entry.set_name(tensor.name);
    for (const std::int64_t extent : tensor.shape.dims()) entry.add_shape(extent);
    entry.set_begin(tensor.begin);
  }
}

void commit_checkpoint(const std::string& temporary, const std::string& final_directory,
                       const config::CheckpointManifest& manifest) {
  check_complete(manifest);
  write_manifest(temporary, manifest);  // and makes every name in the directory durable
  // The directory of all checkpoints may be new; its own name is in the run's.
  const fs::path run = fs::path(final_directory).parent_path().parent_path();
  fsync_directory(run.empty() ? "." : run);
  if (!does_exist(final_directory)) return rename_durably(temporary, final_directory);
  // A directory cannot be renamed over another: exchange them, so that one is always there.
  log::warning("event=checkpoint_replaced path={}", final_directory);
  if (::renameat2(AT_FDCWD, temporary.c_str(), AT_FDCWD, final_directory.c_str(),
                  RENAME_EXCHANGE) == 0) {
    fsync_directory(fs::path(final_directory).parent_path());
    remove_tree(temporary);
    return;
  }
  // Some network file systems cannot exchange.
  if (errno != EINVAL && errno != ENOSYS) fail_with_errno("exchange", final_directory, errno);
  remove_checkpoint(final_directory);
  rename_durably(temporary, final_directory);
}

std::vector<CheckpointLocation> list_checkpoints(const std::string& run_directory) {
  std::vector<CheckpointLocation> result;
  const fs::path root = checkpoints_root(run_directory);
  if (!does_exist(root)) return result;
  for (const fs::path& path : children(root)) {
    const auto step = step_of(path.filename());
    if (step && does_exist(path / kManifestName)) result.push_back({*step, path});
  }
  std::ranges::sort(result, std::ranges::greater{}, &CheckpointLocation::step);
  return result;
}

void remove_old_checkpoints(const std::string& run_directory, std::int64_t keep_last) {
  const std::vector<CheckpointLocation> checkpoints = list_checkpoints(run_directory);
  const auto kept = static_cast<std::size_t>(std::max<std::int64_t>(keep_last, 1));
  for (std::size_t i = kept; i < checkpoints.size(); ++i) {
    remove_checkpoint(checkpoints[i].directory);
  }
}

void verify_checkpoint(const std::string& directory, const config::CheckpointManifest& manifest) {
  for (const config::FileDigest& file : manifest.files()) verify_file(directory, file);
}

void read_state(const std::string& directory, const config::CheckpointManifest& manifest,
                const FlatState& into, const std::optional<std::vector<FlatRange>>& wanted) {
  require_same_tensors(directory, manifest, into);
  const std::vector<NamedShape> saved = tensors_of(manifest);
  const auto ranges = ranges_of_shards(manifest);
  std::map<std::string, std::vector<Slice>> shards;
  std::set<std::string> left_out;
  for (std::size_t rank = 0; rank < ranges.size(); ++rank) {
    const std::string name = shard_name(static_cast<int>(rank));
    std::vector<Slice> slices = placed(slices_of(saved, ranges[rank]), into);
    if (!wanted || slices.empty() || is_any_in(slices, *wanted)) {
      shards.emplace(name, std::move(slices));
    } else {
      left_out.insert(name);
    }
  }
  for (const config::FileDigest& file : manifest.files()) {
    if (!left_out.contains(file.name())) verify_file(directory, file);
  }
  for (const auto& [name, slices] : shards) read_shard(fs::path(directory) / name, slices, into);
}

}  // namespace ttt::data
