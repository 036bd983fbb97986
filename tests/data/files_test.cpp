#include "data/files.h"

#include <fcntl.h>

#include <numeric>

#include "data/direct_file.h"
#include "tests/data/temporary_directory.h"

namespace ttt::data {
namespace {

TEST(Files, AtomicWriteReplacesAndLeavesNoTemporary) {
  const TemporaryDirectory directory;
  const std::string path = directory.write("a", "old");
  write_file_atomically(path, "new");
  EXPECT_EQ(read_text_file(path, 3), "new");
  const std::filesystem::directory_iterator entries(directory.path(""));
  EXPECT_EQ(std::distance(begin(entries), end(entries)), 1);
}

TEST(Files, ErrorsCarryTheirCode) {
  const TemporaryDirectory directory;
  const std::string path = directory.write("a", "12345");
  expect_error(ExitCode::kCorruptInput, {path, "5 bytes", "at most 4"},
               [&] { read_text_file(path, 4); });
  expect_error(ExitCode::kMissingInput, {"missing"},
               [&] { read_text_file(directory.path("missing"), 4); });
  expect_error(ExitCode::kMissingInput, {"missing"},
               [&] { write_file_atomically(directory.path("missing/a"), ""); });
  std::array<std::byte, 6> bytes{};
  const FileDescriptor file(path, O_RDONLY);
  expect_error(ExitCode::kCorruptInput, {path, "ends at byte 5"}, [&] { file.read_at(0, bytes); });
}

TEST(Files, DigestOfAFileEqualsDigestOfItsBytes) {
  const TemporaryDirectory directory;
  // Known answer of the empty input, from the xxHash specification's test vectors.
  EXPECT_EQ(xxh3_128_hex_of_file(directory.write("empty", "")), "99aa06d3014798d86001c324468d497f");
  const std::string bytes(3'000'001, 'x');  // over two read blocks
  EXPECT_EQ(xxh3_128_hex_of_file(directory.write("x", bytes)),
            xxh3_128_hex(std::as_bytes(std::span(bytes))));
}

// In a directory on a disk and in one in memory, which may have no O_DIRECT.
class DirectFiles : public testing::TestWithParam<std::filesystem::path> {};

TEST_P(DirectFiles, PiecesOfAnySizeReachTheirPlace) {
  const TemporaryDirectory directory(GetParam());
  std::vector<std::byte> expected(9'000'001);
  const std::string path = directory.write("a", std::string(expected.size(), '\0'));
  std::vector<std::byte> pattern(expected.size());
  for (std::size_t i = 0; i < pattern.size(); ++i) pattern[i] = std::byte(i * i % 251 + 1);
  DirectFile writer(path, DirectFile::Use::kWrite);
  DirectFile reader(path, DirectFile::Use::kRead);
  // Offset and size: within a block, over its ends, whole blocks, many of them with a head and a tail, the end of the file.
  const std::pair<std::size_t, std::size_t> pieces[] = {
      {5, 7}, {4090, 12}, {8192, 4096}, {12'289, 4'300'000}, {8'999'000, 1001}, {8192, 0}};
  for (const auto& [offset, count] : pieces) {
    // From memory that is aligned and from memory that is not.
    writer.write_at(std::int64_t(offset), std::span(pattern).subspan(offset, count));
    std::copy_n(pattern.begin() + std::ptrdiff_t(offset), count,
                expected.begin() + std::ptrdiff_t(offset));
    std::vector<std::byte> found(count + 2);
    reader.read_at(std::int64_t(offset), std::span(found).subspan(1, count));
    EXPECT_TRUE(
        std::equal(found.begin() + 1, found.end() - 1, expected.begin() + std::ptrdiff_t(offset)));
  }
  writer.sync();
  std::vector<std::byte> all(expected.size());
  reader.read_at(0, all);
  EXPECT_TRUE(all == expected);
  expect_error(ExitCode::kCorruptInput, {path, "ends at byte 9000001"},
               [&] { reader.read_at(4096, all); });
}

INSTANTIATE_TEST_SUITE_P(, DirectFiles,
                         testing::Values(std::filesystem::temp_directory_path(), "/dev/shm"),
                         [](const auto& kind) { return kind.index == 0 ? "Disk" : "Memory"; });

TEST(Files, Utf8IsCheckedAsInRfc3629) {
  const auto bad_at = [](std::string_view text) { return find_invalid_utf8(text); };
  for (const std::string_view good :
       {"", "a", "\xc2\x80", "\xdf\xbf", "\xe0\xa0\x80", "\xed\x9f\xbf", "\xee\x80\x80",
        "\xef\xbf\xbf", "\xf0\x90\x80\x80", "\xf4\x8f\xbf\xbf"}) {
    EXPECT_EQ(bad_at(good), good.size()) << good;
  }
  for (const std::string_view bad :
       {"a\x80", "a\xc0\x80", "a\xc1\xbf", "a\xe0\x9f\xbf", "a\xed\xa0\x80", "a\xf0\x8f\xbf\xbf",
        "a\xf4\x90\x80\x80", "a\xf5\x80\x80\x80", "a\xff", "a\xc3", "a\xe2\x82", "a\xf0\x9f\x98",
        "a\xe2\x28\xa1", "a\xe2\x82\x28"}) {
    EXPECT_EQ(bad_at(bad), 1U) << bad;
  }
}

}  // namespace
}  // namespace ttt::data
