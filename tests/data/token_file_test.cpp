#include "data/tokens/token_file.h"

#include <hdf5.h>

#include <cstring>
#include <numeric>

#include "tests/data/temporary_directory.h"

namespace ttt::data {
namespace {

using Ids = std::vector<std::int32_t>;

std::string write_shard(const TemporaryDirectory& directory, const std::string& name,
                        std::int64_t vocab_size, const std::vector<Ids>& documents) {
  TokenShardWriter writer(directory.path(name), vocab_size, 1, 2);
  for (const Ids& document : documents) writer.append_document(document);
  writer.finish();
  return directory.path(name);
}

std::vector<std::int64_t> read_all(const TokenArray& tokens) {
  std::vector<std::int64_t> out(static_cast<std::size_t>(tokens.num_tokens()));
  tokens.read(0, out);
  return out;
}

template <typename T>
std::string bytes_of(const std::vector<T>& values) {
  std::string bytes(values.size() * sizeof(T), '\0');
  std::memcpy(bytes.data(), values.data(), bytes.size());
  return bytes;
}

std::string npy(int version, const std::string& descr, const std::string& order,
                const std::string& shape, const std::string& payload) {
  std::string header =
      "{'descr': '" + descr + "', 'fortran_order': " + order + ", 'shape': " + shape + ", }";
  header.append(64 - (header.size() + 11) % 64, ' ');
  header += '\n';
  std::string file = std::string("\x93NUMPY") + static_cast<char>(version) + '\0';
  file += static_cast<char>(header.size() & 0xffU);
  file += static_cast<char>(header.size() >> 8U);
  if (version > 1) file += std::string(2, '\0');
  return file + header + payload;
}

TEST(TokenShard, RoundTripsBothWidths) {
  const TemporaryDirectory directory;
  for (const std::int64_t vocab_size : {65536, 65537, 128256}) {
    const auto last = static_cast<std::int32_t>(vocab_size - 1);
    const auto path = write_shard(directory, std::to_string(vocab_size) + ".h5", vocab_size,
                                  {{1, 0, last, 2}, {1, 2}, {1, 300, 2}});
    const TokenArray tokens = TokenArray::open({path}, Split::kTrain);
    EXPECT_EQ(read_all(tokens), (std::vector<std::int64_t>{1, 0, last, 2, 1, 2, 1, 300, 2}));
    EXPECT_EQ(tokens.vocab_size(), vocab_size);
    const TokenFileInfo& info = tokens.files().front();
    EXPECT_EQ(info.token_bytes, vocab_size <= 65536 ? 2 : 4);
    EXPECT_EQ(info.num_documents, 3);
    EXPECT_EQ(info.bos_id, 1);
    EXPECT_EQ(info.eos_id, 2);
    EXPECT_EQ(read_document_offsets(path), (std::vector<std::uint64_t>{0, 4, 6, 9}));
    tokens.verify(vocab_size);
  }
}

TEST(TokenShard, LargeShardsArePageAlignedAndSpanBlocks) {
  const TemporaryDirectory directory;
  Ids document(5'000'001);  // over two write blocks of 4 MiB
  std::iota(document.begin(), document.end(), 0);
  for (std::int32_t& id : document) id %= 32'000;
  const auto path = write_shard(directory, "a.h5", 32'000, {document});
  EXPECT_EQ(read_token_file_info(path).data_offset % 4096, 0);
  const TokenArray tokens = TokenArray::open({path}, Split::kTrain);
  EXPECT_TRUE(std::ranges::equal(read_all(tokens), document));
}

TEST(TokenShard, IsAbsentUntilFinished) {
  const TemporaryDirectory directory;
  {
    TokenShardWriter writer(directory.path("a.h5"), 10, 1, 2);
    writer.append_document(Ids{1, 2});
    expect_error(ExitCode::kCorruptInput, {"a.h5", "token 10 at index 3", "[0, 10)"}, [&] {
      writer.append_document(Ids{1, 10});
    });
  }
  EXPECT_TRUE(std::filesystem::is_empty(directory.path("")));
  TokenShardWriter writer(directory.path("missing/a.h5"), 10, 1, 2);
  writer.append_document(Ids{1, 2});
  expect_error(ExitCode::kIo, {"missing/a.h5"}, [&] { writer.finish(); });
}

TEST(TokenShard, DamageIsCorruptInput) {
  const TemporaryDirectory directory;
  const auto good = contents_of(write_shard(directory, "a.h5", 300, {Ids(5000, 7)}));
  const auto cut = directory.write("cut.h5", good.substr(0, good.size() - 1));
  expect_error(ExitCode::kCorruptInput, {cut}, [&] { read_token_file_info(cut); });
  const auto other = directory.write("other.h5", "not HDF5 at all");
  expect_error(ExitCode::kCorruptInput, {other}, [&] { read_token_file_info(other); });
  expect_error(ExitCode::kMissingInput, {"missing.h5"},
               [&] { read_token_file_info(directory.path("missing.h5")); });
}

// HDF5 1.10's metadata has checksums: a damaged byte outside the tokens is either unused or told.
TEST(TokenShard, NoDamagedMetadataByteChangesWhatIsRead) {
  const TemporaryDirectory directory;
  const auto path = write_shard(directory, "a.h5", 300, {Ids(20, 7), Ids(20, 8)});
  const TokenFileInfo good = read_token_file_info(path);
  const std::string bytes = contents_of(path);
  int refused = 0;
  for (std::size_t at = 0; at < bytes.size(); at += 5) {
    std::string damaged = bytes;
    damaged[at] = static_cast<char>(damaged[at] ^ 0x10);
    const auto file = directory.write("b.h5", damaged);
    try {
      const TokenFileInfo info = read_token_file_info(file);
      EXPECT_EQ(info.num_tokens, good.num_tokens) << at;
      EXPECT_EQ(info.data_offset, good.data_offset) << at;
      EXPECT_EQ(info.vocab_size, good.vocab_size) << at;
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), ExitCode::kCorruptInput);
      ++refused;
    }
  }
  EXPECT_GT(refused, 40);
}

// A file of our layout whose tokens are stored some other way.
std::string write_hostile_shard(const TemporaryDirectory& directory, const std::string& kind) {
  const std::string path = write_shard(directory, kind + ".h5", 300, {Ids(64, 7)});
  const hid_t file = H5Fopen(path.c_str(), H5F_ACC_RDWR, H5P_DEFAULT);
  H5Ldelete(file, "tokens", H5P_DEFAULT);
  const hsize_t extent = kind == "short" ? 63 : 64;
  const hid_t space = H5Screate_simple(1, &extent, nullptr);
  const hid_t plist = H5Pcreate(H5P_DATASET_CREATE);
  if (kind == "chunked") H5Pset_chunk(plist, 1, &extent);
  if (kind == "external") H5Pset_external(plist, "/etc/passwd", 0, 128);
  if (kind == "soft") {
    H5Lcreate_soft("/document_offsets", file, "tokens", H5P_DEFAULT, H5P_DEFAULT);
  } else if (kind != "absent") {
    H5Pset_alloc_time(plist, kind == "late" ? H5D_ALLOC_TIME_LATE : H5D_ALLOC_TIME_EARLY);
    H5Dclose(H5Dcreate2(file, "tokens", kind == "wide" ? H5T_STD_U32LE : H5T_STD_U16LE, space,
                        H5P_DEFAULT, plist, H5P_DEFAULT));
  }
  H5Pclose(plist);
  H5Sclose(space);
  H5Fclose(file);
  return path;
}

TEST(TokenShard, OtherStorageIsRefused) {
  const TemporaryDirectory directory;
  const std::vector<std::pair<std::string, std::string>> cases = {
      {"chunked", "not contiguous"}, {"external", "not contiguous"},
      {"soft", "no dataset tokens"}, {"absent", "no dataset tokens"},
      {"short", "not have 64"},      {"wide", "wrong element type"},
      {"late", "do not lie inside"}};
  for (const auto& [kind, message] : cases) {
    const auto path = write_hostile_shard(directory, kind);
    expect_error(ExitCode::kCorruptInput, {path, message}, [&] { read_token_file_info(path); });
  }
}

TEST(Npy, ReadsEveryElementTypeAndVersion) {
  const TemporaryDirectory directory;
  for (const int version : {1, 2, 3}) {
    const auto expect_tokens = [&](const std::string& descr, const std::string& payload) {
      const auto path = directory.write("a.npy", npy(version, descr, "False", "(3,)", payload));
      const TokenArray tokens = TokenArray::open({path}, Split::kTrain);
      EXPECT_EQ(read_all(tokens), (std::vector<std::int64_t>{1, 513, 2})) << descr << version;
      EXPECT_EQ(tokens.vocab_size(), 0);
    };
    expect_tokens("<u2", bytes_of(std::vector<std::uint16_t>{1, 513, 2}));
    expect_tokens("<i4", bytes_of(std::vector<std::int32_t>{1, 513, 2}));
    expect_tokens("<u4", bytes_of(std::vector<std::uint32_t>{1, 513, 2}));
    expect_tokens("<i8", bytes_of(std::vector<std::int64_t>{1, 513, 2}));
  }
}

TEST(Npy, RefusesOtherArrays) {
  const TemporaryDirectory directory;
  const std::string six(6, '\0');
  const std::string good = npy(1, "<u2", "False", "(3,)", six);
  const std::vector<std::pair<std::string, std::string>> cases = {
      {npy(1, "<u2", "True", "(3,)", six), "fortran_order is True"},
      {npy(1, "<u2", "False", "(3, 1)", six), "shape is (3, 1)"},
      {npy(1, "<u2", "False", "()", six), "shape is ()"},
      {npy(1, "<u2", "False", "(-3,)", six), "shape is (-3,)"},
      {npy(1, "<u2", "False", "(99999999999999999999,)", six), "shape is"},
      {npy(1, "<f4", "False", "(3,)", six), "element type is '<f4'"},
      {npy(1, ">u2", "False", "(3,)", six), "element type is '>u2'"},
      {npy(1, "<u2", "False", "(4,)", six), "4 tokens of 2 bytes, the file has 6 bytes"},
      {npy(1, "<u2", "False", "(2,)", six), "2 tokens of 2 bytes, the file has 6 bytes"},
      {npy(1, "<i8", "False", "(2305843009213693953,)", six), "the file has 6 bytes"},
      {npy(1, "<u2", "False", "(3,)", six + "x"), "the file has 7 bytes"},
      {npy(4, "<u2", "False", "(3,)", six), ".npy version 4"},
      {good.substr(0, 60), "ends in its header"},
      {good.substr(0, 8), "too short"},
      {"NUMPY" + good, "magic"}};
  for (const auto& [bytes, message] : cases) {
    const auto path = directory.write("a.npy", bytes);
    expect_error(ExitCode::kCorruptInput, {path, message}, [&] { read_token_file_info(path); });
  }
}

TEST(TokenArray, SeesSeveralFilesAsOne) {
  const TemporaryDirectory directory;
  const auto first = write_shard(directory, "a.h5", 300, {{0, 1, 2}});
  const auto second = directory.write(
      "b.npy", npy(1, "<u2", "False", "(2,)", bytes_of(std::vector<std::uint16_t>{3, 4})));
  const auto third = write_shard(directory, "c.h5", 300, {{5}, {6, 7}});
  const TokenArray tokens = TokenArray::open({first, second, third}, Split::kTrain);
  ASSERT_EQ(tokens.num_tokens(), 8);
  EXPECT_EQ(tokens.vocab_size(), 300);
  EXPECT_THAT(tokens.describe(),
              testing::AllOf(testing::HasSubstr("3 files"), testing::HasSubstr("b.npy")));
  for (std::int64_t begin = 0; begin <= 8; ++begin) {
    for (std::int64_t count = 0; begin + count <= 8; ++count) {
      std::vector<std::int64_t> out(static_cast<std::size_t>(count));
      std::vector<std::int64_t> expected(static_cast<std::size_t>(count));
      std::iota(expected.begin(), expected.end(), begin);
      tokens.read(begin, out);
      EXPECT_EQ(out, expected);
    }
  }
  std::vector<std::int64_t> out(2);
  expect_error(ExitCode::kInternal, {"tokens [7, 7 + 2) of 8"}, [&] { tokens.read(7, out); });
  expect_error(ExitCode::kInternal, {"tokens [-1"}, [&] { tokens.read(-1, out); });
}

TEST(TokenArray, VerifyNamesTheFirstTokenBeyondTheVocabulary) {
  const TemporaryDirectory directory;
  std::vector<std::uint16_t> values(100'000, 7);
  values[70'000] = 299;
  const auto first = write_shard(directory, "a.h5", 300, {{0, 1, 2}});
  const auto second =
      directory.write("b.npy", npy(1, "<u2", "False", "(100000,)", bytes_of(values)));
  const TokenArray tokens = TokenArray::open({first, second}, Split::kTrain);
  tokens.verify(300);
  expect_error(ExitCode::kCorruptInput, {second, "token 299 at index 70000", "[0, 299)"},
               [&] { tokens.verify(299); });
  const auto negative = directory.write(
      "c.npy", npy(1, "<i4", "False", "(2,)", bytes_of(std::vector<std::int32_t>{3, -4})));
  expect_error(ExitCode::kCorruptInput, {negative, "token -4 at index 1"},
               [&] { TokenArray::open({negative}, Split::kTrain).verify(300); });
}

TEST(TokenArray, RefusesWhatIsNotATokenFile) {
  const TemporaryDirectory directory;
  const auto a = write_shard(directory, "a.h5", 300, {{0}});
  const auto b = write_shard(directory, "b.h5", 301, {{0}});
  const auto open = [](const std::vector<std::string>& paths) {
    TokenArray::open(paths, Split::kTrain);
  };
  expect_error(ExitCode::kCorruptInput, {"300", a, "301", b}, [&] { open({a, b}); });
  expect_error(ExitCode::kUsage, {"no train token files"}, [&] { open({}); });
  expect_error(ExitCode::kUsage, {"a.bin"}, [&] { open({directory.write("a.bin", "")}); });
  for (const char* name : {"x.h5", "x.npy", "x"}) {
    expect_error(ExitCode::kMissingInput, {name}, [&] { open({directory.path(name)}); });
  }
}

}  // namespace
}  // namespace ttt::data
