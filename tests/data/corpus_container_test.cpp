// Archives and gzip streams as corpora are published in.

#include <zlib.h>

#include <fstream>

#include "data/corpus/reader.h"
#include "tests/data/temporary_directory.h"

namespace ttt::data {
namespace {

using testing::ElementsAre;

std::string gzip(std::string_view bytes) {
  z_stream stream{};
  deflateInit2(&stream, 6, Z_DEFLATED, 15 + 16, 8, Z_DEFAULT_STRATEGY);
  std::string out(deflateBound(&stream, bytes.size()) + 64, '\0');
  stream.next_in = reinterpret_cast<Bytef*>(const_cast<char*>(bytes.data()));
  stream.avail_in = static_cast<uInt>(bytes.size());
  stream.next_out = reinterpret_cast<Bytef*>(out.data());
  stream.avail_out = static_cast<uInt>(out.size());
  deflate(&stream, Z_FINISH);
  out.resize(stream.total_out);
  deflateEnd(&stream);
  return out;
}

// One ustar member; `type` as in the header: '0' file, '1' hard link, '2' link, '3' device, '5' directory.
std::string tar_member(const std::string& name, const std::string& contents, char type = '0',
                       const std::string& target = "") {
  std::string header(512, '\0');
  const auto put = [&](std::size_t at, const std::string& text) {
    header.replace(at, text.size(), text);
  };
  put(0, name);
  put(100, "0000644");
  put(108, "0000000");
  put(116, "0000000");
  put(124, fmt::format("{:011o}", contents.size()));
  put(136, "00000000000");
  put(148, "        ");
  header[156] = type;
  put(157, target);
  put(257, std::string("ustar\0"
                       "00",
                       8));
  unsigned sum = 0;
  for (const char c : header) sum += static_cast<unsigned char>(c);
  put(148, fmt::format("{:06o}", sum) + '\0');
  return header + contents + std::string((512 - contents.size() % 512) % 512, '\0');
}

const std::string kTarEnd(1024, '\0');

struct Seen {
  std::vector<std::string> texts;
  std::vector<std::string> names;
  std::vector<std::string> rejections;
};

Seen read_file(const std::string& path) {
  Seen seen;
  read_file_documents(
      path, {},
      [&](Document&& document) {
        seen.texts.push_back(document.text);
        seen.names.push_back(document.file.substr(path.size()));
      },
      [&](const Rejection& rejection) {
        seen.rejections.push_back(rejection.message().substr(path.size()));
      });
  return seen;
}

TEST(Gzip, MembersFollowOneAnotherAndLinesCrossThem) {
  const TemporaryDirectory directory;
  std::string lines;
  std::vector<std::string> texts;
  for (std::size_t i = 0; i < 3000; ++i) {
    texts.push_back(std::string(i % 900, static_cast<char>('a' + i % 26)));
    lines += "{\"text\": \"" + texts.back() + "\"}\n";
  }
  const std::string bytes = gzip(lines.substr(0, 777)) + gzip("") + gzip(lines.substr(777));
  EXPECT_EQ(read_file(directory.write("a.jsonl.gz", bytes)).texts, texts);
  EXPECT_THAT(read_file(directory.write("b.txt.gz", gzip("one\r\n"))).texts,
              ElementsAre("one\r\n"));
}

TEST(Gzip, DamageIsCorruptInput) {
  const TemporaryDirectory directory;
  std::string lines;
  for (int i = 0; i < 5000; ++i) lines += "{\"text\": \"" + std::to_string(i * i) + "\"}\n";
  const std::string good = gzip(lines);
  const auto refuse = [&](const std::string& bytes, const std::string& word) {
    const auto path = directory.write("a.jsonl.gz", bytes);
    expect_error(ExitCode::kCorruptInput, {path, word}, [&] { read_file(path); });
  };
  refuse(good.substr(0, good.size() - 3), "truncated");
  refuse(good + good.substr(0, 12), "truncated");
  refuse("", "truncated");
  refuse(lines, "damaged near compressed byte");
  std::string other_crc = good;
  other_crc[good.size() - 8] ^= 1;
  refuse(other_crc, "damaged near compressed byte");
}

TEST(Tar, TextMembersAreDocumentsInTheirOrder) {
  const TemporaryDirectory directory;
  const std::string book(1'500'001, 'b');
  const std::string tar =
      tar_member("books3/", "", '5') + tar_member("books3/z.epub.txt", "z\0\r\n</s>") +
      tar_member("books3/readme.md", "no book") + tar_member("books3/a.epub.txt", book) + kTarEnd;
  for (const char* name : {"a.tar", "b.tar.gz", "c.tgz"}) {
    const bool zipped = !std::string(name).ends_with(".tar");
    const Seen seen = read_file(directory.write(name, zipped ? gzip(tar) : tar));
    EXPECT_THAT(seen.texts, ElementsAre("z\0\r\n</s>", book)) << name;
    EXPECT_THAT(seen.names, ElementsAre(":books3/z.epub.txt", ":books3/a.epub.txt"));
    EXPECT_TRUE(seen.rejections.empty());
  }
}

TEST(Tar, LinksDevicesAndNamesThatLeadElsewhereTouchNothing) {
  const TemporaryDirectory directory;
  const std::string outside = directory.write("outside.txt", "secret");
  const std::string tar = tar_member("link.txt", "", '2', outside) +
                          tar_member("hard.txt", "", '1', outside) +
                          tar_member("../outside.txt", "new") + tar_member(outside, "new") +
                          tar_member("device.txt", "", '3') + tar_member("empty.txt", "") +
                          tar_member("bad.txt", "a\xff") + kTarEnd;
  const auto path = directory.write("in/a.tar", tar);
  const Seen seen = read_file(path);
  EXPECT_THAT(seen.texts,
              ElementsAre("new", "new"));  // members' own text, whatever they are called
  EXPECT_THAT(
      seen.rejections,
      ElementsAre(":link.txt: byte 0: it is a symbolic link",
                  ":hard.txt: byte 0: it is a hard link", ":device.txt: byte 0: it is a device",
                  ":empty.txt: byte 0: it is empty", ":bad.txt: byte 1: 0xff is not UTF-8"));
  EXPECT_EQ(contents_of(outside), "secret");
  std::size_t files = 0;
  for (const auto& entry : std::filesystem::recursive_directory_iterator(directory.str())) {
    files += entry.is_regular_file() ? 1 : 0;
  }
  EXPECT_EQ(files, 2U);
}

TEST(Tar, DamageIsCorruptInput) {
  const TemporaryDirectory directory;
  const std::string tar = tar_member("a.txt", std::string(5000, 'a')) + kTarEnd;
  const auto refuse = [&](const std::string& name, const std::string& bytes,
                          const std::string& word) {
    const auto path = directory.write(name, bytes);
    expect_error(ExitCode::kCorruptInput, {path, word}, [&] { read_file(path); });
  };
  refuse("noise.tar", std::string(4096, 'x'), "tar archive");
  refuse("cut.tar", tar.substr(0, 3000), "tar archive");
  std::string damaged = tar;
  damaged[0] ^= 1;
  refuse("header.tar", damaged, "tar archive");
  refuse("cut.tar.gz", gzip(tar).substr(0, 40), "truncated");
  std::string other_crc = gzip(tar);
  other_crc[other_crc.size() - 8] ^= 1;  // told only after the archive's end
  refuse("crc.tar.gz", other_crc, "damaged near compressed byte");
}

// A size that the header only claims asks for no memory and reads nothing.
TEST(Tar, HugeMembersAreRejectedUnread) {
  const TemporaryDirectory directory;
  std::string member = tar_member("huge.txt", "");
  member.replace(124, 11, "17777777777");
  member.replace(148, 8, "        ");
  unsigned sum = 0;
  for (const char c : member.substr(0, 512)) sum += static_cast<unsigned char>(c);
  member.replace(148, 7, fmt::format("{:06o}", sum) + '\0');
  const auto path = directory.write("a.tar", member);
  std::vector<std::string> rejections;
  const auto read = [&] {
    read_file_documents(
        path, {}, [](Document&&) { FAIL(); },
        [&](const Rejection& rejection) { rejections.push_back(rejection.reason); });
  };
  expect_error(ExitCode::kCorruptInput, {path}, read);  // the rest of the archive is not there
  EXPECT_THAT(rejections, ElementsAre("too long"));
}

}  // namespace
}  // namespace ttt::data
