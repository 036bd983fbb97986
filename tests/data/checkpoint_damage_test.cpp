// Whatever happens to a committed checkpoint's files is found before a value is used.

#include <gtest/gtest.h>
#include <hdf5.h>

#include <filesystem>
#include <random>
#include <utility>

#include "data/checkpoint/checkpoint.h"
#include "data/checkpoint/manifest.h"
#include "data/files.h"
#include "tests/data/checkpoint_fixture.h"
#include "tests/data/temporary_directory.h"
#include "tests/support/damage.h"

namespace ttt::data {
namespace {

namespace fs = std::filesystem;

class DamagedCheckpoint : public ::testing::Test {
 protected:
  void SetUp() override {
    state_.fill_with_numbers();
    directory_ = save(run_.str(), state_, 9, 2);
  }
  [[nodiscard]] std::string file(const std::string& name) const { return directory_ + "/" + name; }
  void expect(ExitCode code, const std::string& part) const {
    expect_error(code, part, [&] { load(directory_, State()); });
  }
  // Replaces text in the manifest and makes its digest right again.
  void edit_manifest(const std::string& from, const std::string& to) const {
    std::string text = contents_of(file("manifest.textproto"));
    text.resize(text.rfind("# xxh3_128 "));
    const std::size_t at = text.find(from);
    ASSERT_NE(at, std::string::npos);
    text.replace(at, from.size(), to);
    text += "# xxh3_128 " + xxh3_128_hex(std::as_bytes(std::span(text))) + "\n";
    write_bytes(file("manifest.textproto"), text);
  }

  TemporaryDirectory run_;
  State state_;
  std::string directory_;
};

TEST_F(DamagedCheckpoint, NoDamageGoesUnnoticed) {
  const State back;
  std::mt19937_64 random(1);
  const std::vector<std::string> names = {"rank-00000.h5", "rank-00001.h5", "manifest.textproto"};
  for (int trial = 0; trial < 2400; ++trial) {
    const std::string path = file(names[static_cast<std::size_t>(trial) % names.size()]);
    const std::string original = contents_of(path);
    // A flipped bit is the hardest to see; every third trial is one.
    std::string bytes = original;
    if (trial % 9 < 3) {
      char& byte = bytes[random() % bytes.size()];
      byte = static_cast<char>(byte ^ (1 << random() % 8));
    } else {
      bytes = damaged(original, random);
    }
    if (bytes == original) continue;
    fs::remove(path);  // ext4 flushes a file that is truncated and written again
    write_bytes(path, bytes);
    expect_error(ExitCode::kCorruptInput, path, [&] { load(directory_, back); });
    fs::remove(path);
    write_bytes(path, original);
  }
  load(directory_, back);
}

TEST_F(DamagedCheckpoint, ZeroWordTurnedToOnesIsFound) {  // Fletcher-32 cannot tell these apart
  const std::string path = file("rank-00000.h5");
  std::string bytes = contents_of(path);
  const std::size_t at = bytes.find(std::string(2, '\0'), 5000);
  bytes[at] = bytes[at + 1] = '\xff';
  write_bytes(path, bytes);
  expect(ExitCode::kCorruptInput, "rank-00000.h5 is damaged");
}

TEST_F(DamagedCheckpoint, TruncatedAndExtendedFilesAreFound) {
  const std::string bytes = contents_of(file("rank-00001.h5"));
  write_bytes(file("rank-00001.h5"), bytes.substr(0, bytes.size() - 1));
  expect(ExitCode::kCorruptInput, "rank-00001.h5 has");
  write_bytes(file("rank-00001.h5"), bytes + "x");
  expect(ExitCode::kCorruptInput, "rank-00001.h5 has");
  write_bytes(file("rank-00001.h5"), "");
  expect(ExitCode::kCorruptInput, "rank-00001.h5 has 0 bytes");
}

TEST_F(DamagedCheckpoint, SwappedAndMissingShardsAreFound) {
  fs::rename(file("rank-00000.h5"), file("other"));
  expect(ExitCode::kMissingInput, "rank-00000.h5");
  fs::rename(file("rank-00001.h5"), file("rank-00000.h5"));
  fs::rename(file("other"), file("rank-00001.h5"));
  expect(ExitCode::kCorruptInput, "rank-00000.h5");
}

TEST_F(DamagedCheckpoint, SwappedShardsWithMatchingDigestsAreFound) {
  // A manifest that vouches for the wrong file: the slices themselves do not fit.
  auto manifest = read_manifest(directory_);
  auto& first = *manifest.mutable_files(0);
  auto& second = *manifest.mutable_files(1);
  first.mutable_name()->swap(*second.mutable_name());
  first.mutable_range()->Swap(second.mutable_range());
  write_manifest(directory_, manifest);
  fs::rename(file("rank-00000.h5"), file("other"));
  fs::rename(file("rank-00001.h5"), file("rank-00000.h5"));
  fs::rename(file("other"), file("rank-00001.h5"));
  expect(ExitCode::kCorruptInput, "rank-00000.h5: values");
}

TEST_F(DamagedCheckpoint, MissingManifestIsNoCheckpoint) {
  fs::remove(file("manifest.textproto"));
  expect(ExitCode::kMissingInput, "is not a checkpoint");
  EXPECT_TRUE(list_checkpoints(run_.str()).empty());
  expect_error(ExitCode::kMissingInput, "nowhere", [&] { read_manifest(run_ / "nowhere"); });
}

TEST_F(DamagedCheckpoint, ManifestThatIsWrongIsRefused) {
  const std::string good = contents_of(file("manifest.textproto"));
  const auto expect_after = [&](const std::string& from, const std::string& to,
                                const std::string& part) {
    write_bytes(file("manifest.textproto"), good);
    edit_manifest(from, to);
    expect(ExitCode::kCorruptInput, part);
  };
  expect_after("format_version: 4", "format_version: 5\nnew_field: 3", "use a newer one");
  expect_after("format_version: 4\n", "", "no format version");
  expect_after("step: 9", "stepp: 9", "stepp");
  expect_after("step: 9", "step: 9\nstep: 10", "step");
  expect_after("world_size: 2", "world_size: 3", "rank-00002.h5 is not listed");
  expect_after("world_size: 2", "world_size: -2", "world_size");
  expect_after("\"rank-00001.h5\"", "\"../rank-00001.h5\"", "not the name of a file");
  expect_after("\"rank-00001.h5\"", "\"rank-00000.h5\"", "listed twice");
  expect_after("dtype: \"F32\"", "dtype: \"F16\"", "F16");
  expect_after("shape: 2000", "shape: -1", "impossible");
  expect_after("begin: 744", "begin: 740",
               "at element 740, before the end of the one before it, 741");
  expect_after("shape: 2000\n  begin: 784", "shape: 2000\n  begin: 9223372036854775000",
               "impossible");
  expect_after("shape: 2000", "shape: 4000000000000 shape: 4000000000000", "impossible");
  write_bytes(file("manifest.textproto"), "");
  expect(ExitCode::kCorruptInput, "digest line");
}

TEST_F(DamagedCheckpoint, AnotherModelIsAMismatch) {
  const auto manifest = read_manifest(directory_);
  const auto expect_mismatch = [&](const State& other, const std::string& part) {
    expect_error(ExitCode::kResumeMismatch, part,
                 [&] { read_state(directory_, manifest, other.flat()); });
  };
  expect_mismatch(State(DType::kF32, 38),
                  "model.embed_tokens.weight is [19, 37] in the checkpoint, [19, 38]");
  expect_mismatch(State(DType::kF64), "holds F32");
  State renamed;
  renamed.tensors[2].name = "W9";
  expect_mismatch(renamed, "W9 [2, 3, 5] is not in the checkpoint");
  expect_mismatch(renamed, "seq_modeling_block.W1 [2, 3, 5] is not in the model");
}

// Files with a right digest that use what HDF5 offers an attacker.
class ForeignShard : public ::testing::Test {
 protected:
  // A one-tensor checkpoint; `build` makes "values/a" (the rest is as write_shard does it).
  template <typename Build>
  void expect(const std::string& part, Build build) {
    const TemporaryDirectory run;
    State state;
    state.tensors = {{"a", Shape{4}}};
    for (Tensor* tensor : {&state.values, &state.m, &state.v}) {
      *tensor = Tensor::zeros(Shape{4}, DType::kF32);
    }
    const std::string temporary = begin_checkpoint(run.str(), 0, 0);
    auto manifest = manifest_of(state, 0, 1);
    *manifest.add_files() = write_even_shard(temporary, 0, 1, state);
    const std::string path = temporary + "/rank-00000.h5";
    const hid_t file = H5Fopen(path.c_str(), H5F_ACC_RDWR, H5P_DEFAULT);
    ASSERT_GE(H5Ldelete(file, "values/a", H5P_DEFAULT), 0);
    build(file);
    ASSERT_GE(H5Fclose(file), 0);
    auto& digest = *manifest.mutable_files(0);
    digest.set_num_bytes(fs::file_size(path));
    digest.set_xxh3_128(xxh3_128_hex_of_file(path));
    const std::string directory = checkpoint_directory(run.str(), 0);
    commit_checkpoint(temporary, directory, manifest);
    expect_error(ExitCode::kCorruptInput, part, [&] { load(directory, state); });
  }
  static void make_dataset(hid_t file, hsize_t count, hid_t type, hid_t create) {
    const hid_t space = H5Screate_simple(1, &count, nullptr);
    H5Dclose(H5Dcreate2(file, "values/a", type, space, H5P_DEFAULT, create, H5P_DEFAULT));
    H5Sclose(space);
  }
};

TEST_F(ForeignShard, OnlyPlainDatasetsAreRead) {
  expect("values holds another number", [](hid_t) {});
  expect("values/a is missing", [](hid_t file) {
    H5Lcreate_hard(file, "m/a", file, "values/b", H5P_DEFAULT, H5P_DEFAULT);
  });
  expect("not a hard link",
         [](hid_t file) { H5Lcreate_soft("/m/a", file, "values/a", H5P_DEFAULT, H5P_DEFAULT); });
  expect("not a hard link", [](hid_t file) {
    H5Lcreate_external("/etc/passwd", "/a", file, "values/a", H5P_DEFAULT, H5P_DEFAULT);
  });
  expect("stored in another file", [](hid_t file) {
    const hid_t create = H5Pcreate(H5P_DATASET_CREATE);
    H5Pset_external(create, "/etc/passwd", 0, 16);
    make_dataset(file, 4, H5T_IEEE_F32LE, create);
  });
  expect("not contiguous", [](hid_t file) {
    const hid_t create = H5Pcreate(H5P_DATASET_CREATE);
    const hsize_t chunk = 4;
    H5Pset_chunk(create, 1, &chunk);
    H5Pset_deflate(create, 9);
    make_dataset(file, 4, H5T_IEEE_F32LE, create);
  });
  expect("another element type",
         [](hid_t file) { make_dataset(file, 4, H5T_IEEE_F64LE, H5P_DEFAULT); });
  expect("another length",
         [](hid_t file) { make_dataset(file, 1U << 30U, H5T_IEEE_F32LE, H5P_DEFAULT); });
  expect("another size",  // storage never allocated would read as fill values
         [](hid_t file) { make_dataset(file, 4, H5T_IEEE_F32LE, H5P_DEFAULT); });
  expect("global_shape is missing", [](hid_t file) {
    const hid_t create = H5Pcreate(H5P_DATASET_CREATE);
    H5Pset_alloc_time(create, H5D_ALLOC_TIME_EARLY);
    make_dataset(file, 4, H5T_IEEE_F32LE, create);
  });
  expect("values holds another number", [](hid_t file) {
    H5Lcreate_hard(file, "m/a", file, "values/a", H5P_DEFAULT, H5P_DEFAULT);
    H5Lcreate_hard(file, "m/a", file, "values/b", H5P_DEFAULT, H5P_DEFAULT);
  });
  unsigned kinds_of_plugins = 1;  // that a file may name and HDF5 would load
  H5PLget_loading_state(&kinds_of_plugins);
  EXPECT_EQ(kinds_of_plugins, 0U);
}

}  // namespace
}  // namespace ttt::data
