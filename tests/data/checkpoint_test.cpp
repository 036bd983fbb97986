#include "data/checkpoint/checkpoint.h"

#include <gtest/gtest.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <csignal>

#include "data/checkpoint/manifest.h"
#include "tests/data/checkpoint_fixture.h"
#include "tests/data/temporary_directory.h"

namespace ttt::data {
namespace {

namespace fs = std::filesystem;

TEST(Checkpoint, AnyWorldSizeReadsBackTheSameBits) {
  for (const DType dtype : {DType::kF32, DType::kF64}) {
    State state(dtype);
    state.fill_with_numbers();
    for (const int world_size : {1, 2, 4, 7}) {
      const TemporaryDirectory run;
      const std::string directory = save(run.str(), state, 12, world_size);
      EXPECT_EQ(directory, run / "checkpoints/step-00000012");
      const State back(dtype);
      load(directory, back);
      EXPECT_TRUE(equal_bits(back.values, state.values)) << world_size;
      EXPECT_TRUE(equal_bits(back.m, state.m)) << world_size;
      EXPECT_TRUE(equal_bits(back.v, state.v)) << world_size;
    }
  }
}

// As ZeRO has it: ranges apart from each other, a rank without any, and moments that only their owner holds.
TEST(Checkpoint, RangesMayLieAnywhereAndMomentsWithTheirOwners) {
  State state;
  state.fill_with_numbers();
  const std::int64_t n = state.values.numel();
  const std::vector<std::vector<FlatRange>> owned = {
      {{300, 703}, {750, n}}, {{9, 9}}, {{0, 300}, {703, 750}}};
  const auto part = [](const Tensor& whole, const std::vector<FlatRange>& ranges) {
    std::int64_t count = 0;
    for (const FlatRange& range : ranges) count += range.size();
    const Tensor held({count}, whole.dtype());
    std::int64_t done = 0;
    for (const FlatRange& range : ranges) {
      copy(whole.view().slice(range.begin, range.end),
           held.view().slice(done, done + range.size()));
      done += range.size();
    }
    return held;
  };
  const TemporaryDirectory run;
  const std::string temporary = begin_checkpoint(run.str(), 4, 0);
  auto manifest = manifest_of(state, 4, 3);
  for (int rank = 0; rank < 3; ++rank) {
    const auto& mine = owned[static_cast<std::size_t>(rank)];
    const Tensor m = part(state.m, mine);
    const Tensor v = part(state.v, mine);
    *manifest.add_files() =
        write_shard(temporary, rank, mine, {state.tensors, state.values, m, v, mine});
  }
  const std::string directory = checkpoint_directory(run.str(), 4);
  commit_checkpoint(temporary, directory, manifest);
  const State whole;
  load(directory, whole);
  EXPECT_TRUE(equal_bits(whole.values, state.values));
  EXPECT_TRUE(equal_bits(whole.m, state.m));
  EXPECT_TRUE(equal_bits(whole.v, state.v));
  // Another layout of moments reads its own.
  const std::vector<FlatRange> mine = {{5, 290}, {310, 720}, {n - 3, n}};
  const Tensor values = Tensor::zeros({n}, DType::kF32);
  const Tensor m = part(values, mine);
  const Tensor v = part(values, mine);
  read_state(directory, read_manifest(directory), {state.tensors, values, m, v, mine});
  EXPECT_TRUE(equal_bits(values, state.values));
  EXPECT_TRUE(equal_bits(m, part(state.m, mine)));
  EXPECT_TRUE(equal_bits(v, part(state.v, mine)));

  manifest.mutable_files(2)->set_range(1, 299);
  write_manifest(directory, manifest);
  expect_error(ExitCode::kCorruptInput, "elements [300, 703) after element 299",
               [&] { load(directory, whole); });
  manifest.mutable_files(2)->set_range(1, 300);
  manifest.mutable_files(0)->set_range(3, n - 1);
  write_manifest(directory, manifest);
  expect_error(ExitCode::kCorruptInput, "end at element", [&] { load(directory, whole); });
}

// Without begins in the manifest, a tensor begins where the one before it ends; without ranges, ranks share evenly.
TEST(Checkpoint, FormatVersionOneIsRead) {
  State state(DType::kF32, 37, 1);
  state.fill_with_numbers();
  const TemporaryDirectory run;
  const std::string directory = save(run.str(), state, 12, 3);
  auto manifest = read_manifest(directory);
  for (auto& file : *manifest.mutable_files()) file.clear_range();
  for (auto& tensor : *manifest.mutable_tensors()) tensor.clear_begin();
  manifest.set_format_version(1);
  for (const auto& ranges : ranges_of_shards(manifest)) EXPECT_EQ(ranges.size(), 1U);
  const State back(DType::kF32, 37, 1);
  read_state(directory, manifest, back.flat());
  EXPECT_TRUE(equal_bits(back.m, state.m));
}

TEST(Checkpoint, TensorsAreFoundByNameWhateverTheirOrderAndGaps) {
  State saved(DType::kF32, 37, 4);
  saved.fill_with_numbers();
  const TemporaryDirectory run;
  const std::string directory = save(run.str(), saved, 12, 3);
  State back(DType::kF32, 37, 16);
  // Back to front: the last tensor first.
  std::ranges::reverse(back.tensors);
  std::int64_t end = 0;
  for (NamedShape& tensor : back.tensors) {
    tensor.begin = (end + 15) / 16 * 16;
    end = tensor.end();
  }
  for (Tensor* buffer : {&back.values, &back.m, &back.v}) {
    *buffer = Tensor::zeros({end}, DType::kF32);
  }
  load(directory, back);
  for (const NamedShape& tensor : back.tensors) {
    const auto from = std::ranges::find(saved.tensors, tensor.name, &NamedShape::name);
    EXPECT_TRUE(equal_bits(back.values.view().slice(tensor.begin, tensor.end()),
                           saved.values.view().slice(from->begin, from->end())));
    EXPECT_TRUE(equal_bits(back.v.view().slice(tensor.begin, tensor.end()),
                           saved.v.view().slice(from->begin, from->end())));
  }
}

TEST(Checkpoint, MoreRanksThanElementsStillRoundTrips) {
  State state;
  state.tensors = {{"a", Shape{3}}};
  state.values = Tensor::zeros(Shape{3}, DType::kF32);
  state.m = Tensor::zeros(Shape{3}, DType::kF32);
  state.v = Tensor::zeros(Shape{3}, DType::kF32);
  state.fill_with_numbers();
  const TemporaryDirectory run;
  const std::string directory = save(run.str(), state, 0, 5);
  State back = state;
  back.values = Tensor::zeros(Shape{3}, DType::kF32);
  load(directory, back);
  EXPECT_TRUE(equal_bits(back.values, state.values));
}

TEST(Checkpoint, ValuesAloneCanBeRead) {
  State state;
  state.fill_with_numbers();
  const TemporaryDirectory run;
  const std::string directory = save(run.str(), state, 1, 2);
  const State back;
  read_state(directory, read_manifest(directory), {state.tensors, back.values, {}, {}});
  EXPECT_TRUE(equal_bits(back.values, state.values));
  EXPECT_EQ(back.m.data<float>()[0], 0.0F);
}

TEST(Checkpoint, ShardsThatHoldNothingWantedAreNeitherVerifiedNorRead) {
  State state;
  state.fill_with_numbers();
  const TemporaryDirectory run;
  const std::string directory = save(run.str(), state, 1, 3);
  const auto manifest = read_manifest(directory);
  const auto ranges = ranges_of_shards(manifest);
  const State whole;
  for (std::size_t lost = 0; lost < ranges.size(); ++lost) {
    const std::string path = directory + "/" + shard_name(static_cast<int>(lost));
    std::filesystem::rename(path, path + ".lost");
    for (std::size_t rank = 0; rank < ranges.size(); ++rank) {
      const State mine;
      const auto read = [&] { read_state(directory, manifest, mine.flat(), ranges[rank]); };
      if (rank == lost) {
        expect_error(ExitCode::kMissingInput, shard_name(static_cast<int>(lost)), read);
        continue;
      }
      read();
      for (const FlatRange& range : ranges[rank]) {
        EXPECT_TRUE(equal_bits(mine.values.view().slice(range.begin, range.end),
                               state.values.view().slice(range.begin, range.end)));
        EXPECT_TRUE(equal_bits(mine.v.view().slice(range.begin, range.end),
                               state.v.view().slice(range.begin, range.end)));
      }
    }
    expect_error(ExitCode::kMissingInput, shard_name(static_cast<int>(lost)),
                 [&] { read_state(directory, manifest, whole.flat()); });
    // A rank that has nothing to update reads nothing.
    const std::vector<FlatRange> nothing = {{7, 7}};
    EXPECT_NO_THROW(read_state(directory, manifest, whole.flat(), nothing));
    std::filesystem::rename(path + ".lost", path);
  }
}

TEST(Checkpoint, EqualStatesGiveEqualFiles) {
  State state;
  state.fill_with_numbers();
  const TemporaryDirectory run;
  const std::string first = save(run.str(), state, 1, 2);
  const std::string second = save(run.str(), state, 2, 2);
  EXPECT_EQ(contents_of(first + "/rank-00001.h5"), contents_of(second + "/rank-00001.h5"));
}

TEST(Checkpoint, ManifestKeepsItsFieldsAndTokenizer) {
  State state;
  const TemporaryDirectory run;
  write_bytes(run / "tok.model", "pieces");
  const std::string temporary = begin_checkpoint(run.str(), 3, 0);
  auto manifest = manifest_of(state, 3, 1);
  manifest.set_tokenizer("tok.model");
  manifest.set_next_window(77);
  *manifest.add_files() = write_even_shard(temporary, 0, 1, state);
  *manifest.add_files() = add_file(temporary, run / "tok.model");
  const std::string directory = checkpoint_directory(run.str(), 3);
  commit_checkpoint(temporary, directory, manifest);
  const auto back = read_manifest(directory);
  EXPECT_EQ(back.next_window(), 77);
  EXPECT_EQ(back.config().name(), "test");
  EXPECT_EQ(back.format_version(), kCheckpointFormatVersion);
  EXPECT_EQ(contents_of(directory + "/tok.model"), "pieces");
  write_bytes(directory + "/tok.model", "piecez");
  expect_error(ExitCode::kCorruptInput, "tok.model", [&] { verify_checkpoint(directory, back); });
}

TEST(Checkpoint, KilledBeforeCommitLeavesNone) {
  State state;
  const TemporaryDirectory run;
  save(run.str(), state, 1, 1);
  const pid_t child = ::fork();
  if (child == 0) {
    write_even_shard(begin_checkpoint(run.str(), 2, 0), 0, 1, state);
    ::raise(SIGKILL);
  }
  int status = 0;
  ASSERT_EQ(::waitpid(child, &status, 0), child);
  ASSERT_TRUE(WIFSIGNALED(status));
  EXPECT_TRUE(fs::exists(run / "checkpoints/step-00000002.tmp/rank-00000.h5"));
  ASSERT_EQ(list_checkpoints(run.str()).size(), 1U);
  EXPECT_EQ(list_checkpoints(run.str())[0].step, 1);

  const std::string temporary = begin_checkpoint(run.str(), 3, 0);
  EXPECT_TRUE(fs::is_empty(temporary));
  EXPECT_FALSE(fs::exists(run / "checkpoints/step-00000002.tmp"));
}

TEST(Checkpoint, ListIsNewestFirstAndOldOnesAreRemoved) {
  State state;
  const TemporaryDirectory run;
  EXPECT_TRUE(list_checkpoints(run.str()).empty());
  for (const std::int64_t step : {5, 100, 20}) save(run.str(), state, step, 1);
  fs::create_directories(run / "checkpoints/step-00000200");  // no manifest: no checkpoint
  fs::create_directories(run / "checkpoints/notes");
  const auto all = list_checkpoints(run.str());
  ASSERT_EQ(all.size(), 3U);
  EXPECT_EQ(all[0].step, 100);
  EXPECT_EQ(all[2].step, 5);
  remove_old_checkpoints(run.str(), 2);
  ASSERT_EQ(list_checkpoints(run.str()).size(), 2U);
  EXPECT_FALSE(fs::exists(run / "checkpoints/step-00000005"));
  remove_old_checkpoints(run.str(), 0);
  ASSERT_EQ(list_checkpoints(run.str()).size(), 1U);
  EXPECT_EQ(list_checkpoints(run.str())[0].step, 100);
}

TEST(Checkpoint, CommittingAStepAgainReplacesIt) {
  State state;
  const TemporaryDirectory run;
  save(run.str(), state, 4, 2);
  state.fill_with_numbers();
  const std::string directory = save(run.str(), state, 4, 1);
  const State back;
  load(directory, back);
  EXPECT_TRUE(equal_bits(back.values, state.values));
  EXPECT_FALSE(fs::exists(directory + "/rank-00001.h5"));
  EXPECT_FALSE(fs::exists(directory + ".tmp"));
}

TEST(Checkpoint, FullDiskIsAnErrorAndTheProcessGoesOn) {
  const TemporaryDirectory run;
  const pid_t child = ::fork();
  if (child == 0) {
    // A limit on the file size stands in for the full disk: write(2) fails in the middle.
    ::signal(SIGXFSZ, SIG_IGN);
    const State state;
    const std::string temporary = begin_checkpoint(run.str(), 1, 0);
    rlimit limit{};
    ::getrlimit(RLIMIT_FSIZE, &limit);
    const rlim_t unlimited = limit.rlim_cur;
    limit.rlim_cur = 10000;
    ::setrlimit(RLIMIT_FSIZE, &limit);
    bool failed = false;
    try {
      write_even_shard(temporary, 0, 1, state);
    } catch (const Error& error) {
      failed = error.code() == ExitCode::kIo;
    }
    limit.rlim_cur = unlimited;
    ::setrlimit(RLIMIT_FSIZE, &limit);
    const bool removed = !fs::exists(temporary + "/rank-00000.h5");
    save(run.str(), state, 2, 2);
    ::exit(failed && removed ? 0 : 1);  // exit, not _exit: HDF5's exit handler must not crash
  }
  int status = 0;
  ASSERT_EQ(::waitpid(child, &status, 0), child);
  EXPECT_TRUE(WIFEXITED(status) && WEXITSTATUS(status) == 0) << status;
  load(checkpoint_directory(run.str(), 2), State());
}

TEST(Checkpoint, IncompleteManifestIsNotCommitted) {
  const State state;
  const TemporaryDirectory run;
  const std::string temporary = begin_checkpoint(run.str(), 1, 0);
  auto manifest = manifest_of(state, 1, 2);
  *manifest.add_files() = write_even_shard(temporary, 0, 2, state);
  expect_error(ExitCode::kInternal, "rank-00001.h5",
               [&] { commit_checkpoint(temporary, checkpoint_directory(run.str(), 1), manifest); });
  EXPECT_TRUE(list_checkpoints(run.str()).empty());
}

TEST(RunLock, SecondProcessIsToldWhoOwnsTheDirectory) {
  const TemporaryDirectory run;
  int ready[2];
  int done[2];
  ASSERT_EQ(::pipe(ready), 0);
  ASSERT_EQ(::pipe(done), 0);
  const pid_t child = ::fork();
  if (child == 0) {
    const RunLock lock(run / "run");
    char byte = 'x';
    if (::write(ready[1], &byte, 1) != 1) ::_exit(1);
    (void)!::read(done[0], &byte, 1);
    ::raise(SIGKILL);
  }
  char byte = 0;
  ASSERT_EQ(::read(ready[0], &byte, 1), 1);
  expect_error(ExitCode::kLocked, "pid=" + std::to_string(child),
               [&] { const RunLock lock(run / "run"); });
  ASSERT_EQ(::write(done[1], &byte, 1), 1);
  int status = 0;
  ASSERT_EQ(::waitpid(child, &status, 0), child);
  { const RunLock lock(run / "run"); }  // the kernel dropped the lock of the killed owner
  const RunLock again(run / "run");
  for (const int descriptor : {ready[0], ready[1], done[0], done[1]}) ::close(descriptor);
}

}  // namespace
}  // namespace ttt::data
