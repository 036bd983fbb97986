// Token files of other programs, read as they are.

#include <sys/resource.h>
#include <unistd.h>

#include <cstring>
#include <numeric>

#include "data/files.h"
#include "data/tokens/token_file.h"
#include "data/tokens/window_layout.h"
#include "data/tokens/window_sampler.h"
#include "tests/data/temporary_directory.h"

namespace ttt::data {
namespace {

template <typename T>
std::string bytes_of(const std::vector<T>& values) {
  std::string bytes(values.size() * sizeof(T), '\0');
  if (!values.empty()) std::memcpy(bytes.data(), values.data(), bytes.size());
  return bytes;
}

std::vector<std::int64_t> read_all(const TokenArray& tokens) {
  std::vector<std::int64_t> out(static_cast<std::size_t>(tokens.num_tokens()));
  tokens.read(0, out);
  return out;
}

std::vector<std::int64_t> read_all(const std::string& path, Split split = Split::kTrain) {
  return read_all(TokenArray::open({path}, split));
}

using Tokens = std::vector<std::int64_t>;

TEST(RawTokens, SayTheirWidthInTheName) {
  const TemporaryDirectory directory;
  const auto narrow = directory.write("a.bin", bytes_of(std::vector<std::uint16_t>{1, 65535, 2}));
  const auto wide = directory.write("b.bin", bytes_of(std::vector<std::uint32_t>{1, 128000, 2}));
  EXPECT_EQ(read_all(narrow + ":u16"), (Tokens{1, 65535, 2}));
  EXPECT_EQ(read_all(wide + ":u32"), (Tokens{1, 128000, 2}));
  expect_error(ExitCode::kUsage, {narrow + ":u16", ".idx"}, [&] { read_all(narrow); });
  expect_error(ExitCode::kCorruptInput, {narrow, "6 bytes", "multiple of 4"},
               [&] { read_all(narrow + ":u32"); });
  expect_error(ExitCode::kMissingInput, {"none.bin"},
               [&] { read_all(directory.path("none.bin:u16")); });
  expect_error(ExitCode::kUsage, {"a.tokens", ".bin:u16"},
               [&] { read_all(directory.write("a.tokens", "")); });
}

template <typename T>
std::string llmc(std::int32_t magic, std::int32_t version, std::int32_t count,
                 const std::vector<T>& tokens) {
  std::vector<std::int32_t> header(256);
  header[0] = magic;
  header[1] = version;
  header[2] = count;
  return bytes_of(header) + bytes_of(tokens);
}

TEST(LlmcTokens, BothMagicsAreRead) {
  const TemporaryDirectory directory;
  const std::vector<std::uint16_t> gpt2 = {50256, 1, 2};
  const std::vector<std::uint32_t> llama = {128000, 1, 2};
  EXPECT_EQ(read_all(directory.write("a.bin", llmc(20240520, 1, 3, gpt2))), (Tokens{50256, 1, 2}));
  EXPECT_EQ(read_all(directory.write("b.bin", llmc(20240801, 7, 3, llama))),
            (Tokens{128000, 1, 2}));
  const auto refuse = [&](const std::string& bytes, const std::string& word) {
    const auto path = directory.write("c.bin", bytes);
    expect_error(ExitCode::kCorruptInput, {path, word}, [&] { read_all(path); });
  };
  refuse(llmc(20240520, 2, 3, gpt2), "version 2");
  refuse(llmc(20240801, 1, 3, llama), "version 1");
  refuse(llmc(20240520, 1, 4, gpt2), "4 tokens of 2 bytes, the file has 6");
  refuse(llmc(20240801, 7, 3, gpt2), "3 tokens of 4 bytes");
  refuse(llmc(20240520, 1, -3, gpt2), "-3 tokens");
  expect_error(ExitCode::kUsage, {"c.bin:u16"}, [&] {
    read_all(directory.write("c.bin", llmc(20240522, 1, 3, gpt2)));  // an evaluation set
  });
}

struct Index {
  std::string magic = std::string("MMIDIDX\0\0", 9);
  std::uint64_t version = 1;
  std::uint8_t type = 8;
  std::vector<std::int32_t> lengths;
  std::vector<std::int64_t> positions;
  std::vector<std::int64_t> documents;
  std::string modes{};

  [[nodiscard]] std::string bytes() const {
    return magic + bytes_of(std::vector{version}) + static_cast<char>(type) +
           bytes_of(std::vector<std::uint64_t>{lengths.size(), documents.size()}) +
           bytes_of(lengths) + bytes_of(positions) + bytes_of(documents) + modes;
  }
};

TEST(MegatronTokens, AreReadInEveryWidth) {
  const TemporaryDirectory directory;
  const Tokens expected = {7, 8, 9, 1, 2};
  Index index{.lengths = {3, 0, 2}, .positions = {0, 6, 6}, .documents = {0, 1, 2, 3}};
  const auto expect_tokens = [&](int type, int width, const std::string& bytes) {
    index.type = static_cast<std::uint8_t>(type);
    index.positions = {0, 3 * width, 3 * width};
    directory.write_over("a.idx", index.bytes());
    const TokenArray tokens = TokenArray::open({directory.write("a.bin", bytes)}, Split::kTrain);
    EXPECT_EQ(read_all(tokens), expected);
    EXPECT_EQ(tokens.files()[0].num_documents, 3);
    tokens.verify(10);
  };
  expect_tokens(8, 2, bytes_of(std::vector<std::uint16_t>{7, 8, 9, 1, 2}));
  expect_tokens(4, 4, bytes_of(std::vector<std::int32_t>{7, 8, 9, 1, 2}));
  expect_tokens(5, 8, bytes_of(std::vector<std::int64_t>{7, 8, 9, 1, 2}));
  index.modes = std::string(3, '\0');  // multimodal files have them
  expect_tokens(5, 8, bytes_of(std::vector<std::int64_t>{7, 8, 9, 1, 2}));
}

TEST(MegatronTokens, AnIndexThatDoesNotFitIsCorruptInput) {
  const TemporaryDirectory directory;
  const Index good{.lengths = {3, 2}, .positions = {0, 6}, .documents = {0, 1, 2}};
  const auto bin = directory.write("a.bin", bytes_of(std::vector<std::uint16_t>{7, 8, 9, 1, 2}));
  const auto refuse = [&](const std::string& bytes, const std::string& word) {
    directory.write_over("a.idx", bytes);
    expect_error(ExitCode::kCorruptInput, {"a.idx", word}, [&] { read_all(bin); });
  };
  const auto changed = [&](auto change) {
    Index index = good;
    change(index);
    return index.bytes();
  };
  directory.write_over("a.idx", good.bytes());
  EXPECT_EQ(read_all(bin), (Tokens{7, 8, 9, 1, 2}));
  refuse(good.bytes().substr(0, 20), "too short");
  refuse(good.bytes() + "x", "not its size");
  refuse(changed([](Index& index) { index.magic[0] = 'X'; }), "MMIDIDX");
  refuse(changed([](Index& index) { index.version = 2; }), "version 2");
  refuse(changed([](Index& index) { index.type = 6; }), "type 6");
  refuse(changed([](Index& index) { index.positions = {2, 6}; }), "do not end at byte 10");
  refuse(changed([](Index& index) { index.positions = {0, 8}; }), "do not end at byte 10");
  refuse(changed([](Index& index) { index.positions = {0, -6}; }), "do not end at byte 10");
  refuse(changed([](Index& index) { index.lengths = {3, 3}; }), "do not end at byte 10");
  refuse(changed([](Index& index) { index.documents = {0}; }), "no documents");
  std::string huge = good.bytes();
  huge.replace(18, 8, bytes_of(std::vector{std::uint64_t{1} << 62}));  // 12 * 2^62 overflows
  refuse(huge, "not its size");
  // Ends agree, the middle does not: only reading the whole index can tell.
  directory.write_over(
      "a.idx", Index{.lengths = {2, 2, 2}, .positions = {0, 2, 6}, .documents = {0, 3}}.bytes());
  const TokenArray tokens = TokenArray::open({bin}, Split::kTrain);
  expect_error(ExitCode::kCorruptInput, {"a.idx", "sequence 1 at byte 2", "byte 4"},
               [&] { tokens.verify(10); });
}

std::string npy_header(const std::string& descr, std::int64_t count) {
  std::string header =
      fmt::format("{{'descr': '{}', 'fortran_order': False, 'shape': ({},), }}", descr, count);
  header.resize(117, ' ');
  return std::string("\x93NUMPY\x01\0\x76\0", 10) + header + "\n";
}

// The folders that ttt-lm-jax makes: the tokenizer's name has a slash in it.
TEST(JaxFolder, SplitsAreFoundBelowTheNamedDirectory) {
  const TemporaryDirectory directory;
  const std::string cache =
      "books/tokenizer_name-meta-llama/Llama-2-7b-hf-val_ratio-0.0005-val_split_seed-2357-add_eos-"
      "True-detokenize-False/";
  const auto array = [&](const std::string& name, const std::vector<std::uint16_t>& tokens) {
    directory.write_over(
        name, npy_header("<u2", static_cast<std::int64_t>(tokens.size())) + bytes_of(tokens));
  };
  array(cache + "train.npy", {1, 5, 2});
  array(cache + "validation.npy", {1, 6, 2});
  array(cache + "test.npy", {1, 7, 2});
  for (const std::string& path : {std::string("books"), cache}) {
    EXPECT_EQ(read_all(directory.path(path)), (Tokens{1, 5, 2}));
    EXPECT_EQ(read_all(directory.path(path), Split::kValidation), (Tokens{1, 6, 2}));
  }
  array("books/other/train.npy", {1, 8, 2});
  expect_error(ExitCode::kUsage, {"2 files train.npy"}, [&] { read_all(directory.path("books")); });
  array("books/train.npy", {1, 9, 2});
  EXPECT_EQ(read_all(directory.path("books")), (Tokens{1, 9, 2}));
  directory.write_over("none/x", "");
  expect_error(ExitCode::kMissingInput, {"none", "manifest.textproto", "train.npy"},
               [&] { read_all(directory.path("none")); });
}

TEST(TokenArray, ARequiredVocabularyHoldsForEveryRead) {
  const TemporaryDirectory directory;
  const auto path = directory.write("a.bin", bytes_of(std::vector<std::int16_t>{1, 2, 300, 4}));
  TokenArray small = TokenArray::open({path + ":u16"}, Split::kTrain);
  small.require_vocabulary(301);
  expect_error(ExitCode::kCorruptInput, {"token 300 at index 2", "[0, 300)"},
               [&] { small.require_vocabulary(300); });
  // Too large to be read through at once: 70M tokens of which nearly all are holes.
  const std::int64_t count = 70'000'000;
  std::filesystem::resize_file(path, static_cast<std::uintmax_t>(count) * 2);
  TokenArray large = TokenArray::open({path + ":u16"}, Split::kTrain);
  large.require_vocabulary(300);
  Tokens out(2);
  large.read(count - 2, out);
  large.read(0, out);
  expect_error(ExitCode::kCorruptInput, {"token 300 at index 2"}, [&] { large.read(1, out); });
}

// Pages of virtual memory and of resident memory, of this process.
std::pair<std::int64_t, std::int64_t> pages() {
  std::int64_t total = 0;
  std::int64_t resident = 0;
  std::ifstream("/proc/self/statm") >> total >> resident;
  return {total, resident};
}

// 10 GB of which only the header and the end are on disk.
class SparseArray : public testing::Test {
 protected:
  static constexpr std::int64_t kTokens = 5'000'000'000;

  SparseArray() {
    path_ = directory_.write("train.npy", npy_header("<u2", kTokens));
    std::filesystem::resize_file(path_, 128 + 2 * kTokens);
    std::fstream file(path_, std::ios::in | std::ios::out | std::ios::binary);
    file.seekp(128 + 2 * (kTokens - 3));
    file << bytes_of(std::vector<std::uint16_t>{11, 12, 13});
  }
  // 64-bit offsets all the way: the last tokens lie beyond 2^32 bytes and 2^32 tokens.
  void expect_last_tokens() const {
    const TokenArray tokens = TokenArray::open({path_}, Split::kTrain);
    Tokens last(3);
    tokens.read(kTokens - 3, last);
    EXPECT_EQ(last, (Tokens{11, 12, 13}));
  }

  TemporaryDirectory directory_;
  std::string path_;
};

TEST_F(SparseArray, RandomWindowsUseNoMemoryThatGrowsWithTheSet) {
  expect_last_tokens();
  const std::int64_t before = pages().second;
  const TokenArray tokens = TokenArray::open({path_}, Split::kTrain);
  const WindowLayout layout = WindowLayout::stride(tokens.num_tokens(), 2048);
  const WindowSampler sampler(layout.num_windows(), Order::kPermuted, 3);
  Tokens inputs(2048);
  Tokens targets(2048);
  std::vector<double> weight(2048);
  for (std::int64_t i = 0; i < 500; ++i) {
    read_window(tokens, layout, sampler.window_at(i), 1, inputs, targets, weight);
  }
  // 500 windows of 4 KB touch at most three pages each; the system may map up to 16 around a fault.
  EXPECT_LT(pages().second - before, 500 * 3 * 16);
}

TEST_F(SparseArray, IsReadPieceByPieceWhereItCannotBeMapped) {
  rlimit old{};
  ASSERT_EQ(::getrlimit(RLIMIT_AS, &old), 0);
  rlimit low = old;
  low.rlim_cur = static_cast<rlim_t>(pages().first * ::sysconf(_SC_PAGESIZE)) + (rlim_t{1} << 30);
  ASSERT_EQ(::setrlimit(RLIMIT_AS, &low), 0);  // 1 GiB more, and 10 GB are asked for
  expect_last_tokens();
  ASSERT_EQ(::setrlimit(RLIMIT_AS, &old), 0);
}

}  // namespace
}  // namespace ttt::data
