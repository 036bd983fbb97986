#include <zstd.h>

#include "data/corpus/parquet_reader.h"
#include "data/corpus/reader.h"
#include "tests/data/temporary_directory.h"

namespace ttt::data {
namespace {

using testing::ElementsAre;

std::vector<Document> read_all(const std::vector<std::string>& paths,
                               const std::string& field = "text") {
  std::vector<Document> documents;
  read_documents(paths, {.text = field},
                 [&](Document&& document) { documents.push_back(document); });
  return documents;
}

std::vector<std::string> texts_of(const std::vector<Document>& documents) {
  std::vector<std::string> texts;
  for (const Document& document : documents) texts.push_back(document.text);
  return texts;
}

std::string compress(std::string_view bytes, int window_log = 0) {
  const std::unique_ptr<ZSTD_CCtx, decltype(&ZSTD_freeCCtx)> context(ZSTD_createCCtx(),
                                                                     &ZSTD_freeCCtx);
  if (window_log > 0) {
    ZSTD_CCtx_setParameter(context.get(), ZSTD_c_windowLog, window_log);
    ZSTD_CCtx_setParameter(context.get(), ZSTD_c_contentSizeFlag, 0);
    ZSTD_CCtx_setParameter(context.get(), ZSTD_c_enableLongDistanceMatching, 1);
    ZSTD_CCtx_setParameter(context.get(), ZSTD_c_compressionLevel, 1);
  }
  std::string out(ZSTD_compressBound(bytes.size()) + 64, '\0');
  // Streamed, because the one-call interface shrinks the window to the content.
  ZSTD_outBuffer output{out.data(), out.size(), 0};
  ZSTD_inBuffer input{bytes.data(), bytes.size(), 0};
  while (input.pos < input.size) {
    ZSTD_compressStream2(context.get(), &output, &input, ZSTD_e_continue);
  }
  while (ZSTD_compressStream2(context.get(), &output, &input, ZSTD_e_end) != 0) {
  }
  out.resize(output.pos);
  return out;
}

TEST(CorpusReader, TextFileIsOneDocumentAsItIs) {
  const TemporaryDirectory directory;
  const std::string text("  a\r\n\0b\n", 8);
  const auto documents = read_all({directory.write("a.txt", text)});
  ASSERT_EQ(documents.size(), 1U);
  EXPECT_EQ(documents[0].text, text);
  EXPECT_EQ(documents[0].file, directory.path("a.txt"));
  EXPECT_EQ(documents[0].line, 0);
}

TEST(CorpusReader, JsonLinesKeepEscapesEmptyTextsAndOtherMembers) {
  const TemporaryDirectory directory;
  const std::string path = directory.write(
      "a.jsonl",
      "{\"meta\": {\"text\": 1, \"x\": [null, 1.5, true]}, \"text\": \"a\\u0000\\r\\n\"}\r\n"
      "{\"text\": \"\"}\n"
      "{\"text\": \"\\ud83d\\ude00 \xe2\x82\xac\", \"id\": -3}");  // no newline at the end
  const auto documents = read_all({path});
  EXPECT_THAT(texts_of(documents),
              ElementsAre(std::string("a\0\r\n", 4), "", "\xf0\x9f\x98\x80 \xe2\x82\xac"));
  EXPECT_EQ(documents[2].line, 3);
}

TEST(CorpusReader, TheTextFieldCanBeNamed) {
  const TemporaryDirectory directory;
  const std::string path = directory.write("a.json", R"({"text": 1, "body": "b"})");
  EXPECT_THAT(texts_of(read_all({path}, "body")), ElementsAre("b"));
}

TEST(CorpusReader, TextAndSubsetMayLieDeeper) {
  const TemporaryDirectory directory;
  const auto path = directory.write(
      "a.jsonl",
      "{\"text\": \"a\", \"meta\": {\"x\": [{\"pile_set_name\": 1}], \"pile_set_name\": "
      "\"Books3\"}}\n"
      "{\"meta\": {\"redpajama_set_name\": \"C4\", \"text\": \"no\"}, \"text\": \"b\"}\n"
      "{\"text\": \"c\", \"pile_set_name\": \"no\", \"y\": [{\"meta\": {\"pile_set_name\": "
      "\"no\"}}]}\n"
      "{\"text\": \"d\", \"meta\": {\"pile_set_name\": 7}}\n");
  std::vector<std::string> subsets;
  read_documents({path}, {}, [&](Document&& document) { subsets.push_back(document.subset); });
  EXPECT_THAT(subsets, ElementsAre("Books3", "C4", "", ""));
  const auto deep = directory.write(
      "b.jsonl", "{\"x\": [[1], {\"body\": \"no\"}, [2]], \"data\": {\"body\": \"yes\"}}");
  EXPECT_THAT(texts_of(read_all({deep}, "data.body")), ElementsAre("yes"));
}

TEST(CorpusReader, WhatIsRejectedIsToldInItsPlaceAndReadingGoesOn) {
  const TemporaryDirectory directory;
  const std::string bad_json = "{\"text\": nope}";
  const auto path =
      directory.write("a.jsonl", "{\"text\": \"a\"}\n" + bad_json + "\n{\"text\": \"b\"}\n\n" +
                                     "{\"text\": \"\\udc00\"}\n{\"text\": \"c\"}");
  std::vector<std::string> seen;
  read_file_documents(
      path, {}, [&](Document&& document) { seen.push_back(document.text); },
      [&](const Rejection& rejection) {
        EXPECT_THAT(rejection.message(), testing::StartsWith(path + ":"));
        seen.push_back(fmt::format("{}@{}:{}", rejection.reason, rejection.line, rejection.offset));
      });
  EXPECT_THAT(
      seen, ElementsAre("a", "broken JSON@2:24", "b", "broken JSON@4:43", "broken JSON@5:59", "c"));
}

TEST(CorpusReader, DirectoriesAreSearchedInSortedOrder) {
  const TemporaryDirectory directory;
  for (const char* name : {"d/b.txt", "d/a/z.txt", "d/a.txt", "d/a/README.md", "d/c.jsonl"}) {
    static_cast<void>(directory.write(name, R"({"text": "json"})"));
  }
  EXPECT_THAT(
      list_corpus_files({directory.path("d/b.txt"), directory.path("d")}),
      ElementsAre(directory.path("d/b.txt"), directory.path("d/a.txt"), directory.path("d/a/z.txt"),
                  directory.path("d/b.txt"), directory.path("d/c.jsonl")));
}

TEST(CorpusReader, CompressedLinesMayCrossFramesAndBlocks) {
  const TemporaryDirectory directory;
  std::string lines;
  std::vector<std::string> texts;
  for (int i = 0; i < 2000; ++i) {
    texts.push_back(
        std::string(static_cast<std::size_t>(i % 700), static_cast<char>('a' + i % 26)));
    lines += "{\"text\": \"" + texts.back() + "\"}\n";
  }
  // One line larger than every buffer on the way, which compresses to almost nothing.
  texts.push_back(std::string(5'000'000, 'q'));
  lines += "{\"text\": \"" + texts.back() + "\"}\n";
  const std::string_view all = lines;
  const std::string frames = compress(all.substr(0, 1001)) + compress("") +
                             compress(all.substr(1001, 100'000)) + compress(all.substr(101'001));
  EXPECT_EQ(texts_of(read_all({directory.write("a.jsonl.zst", frames)})), texts);
}

TEST(CorpusReader, LongWindowsAreAccepted) {
  const TemporaryDirectory directory;
  const std::string frame = compress("{\"text\": \"a\"}\n", 28);  // zstd alone stops at 27
  EXPECT_THAT(texts_of(read_all({directory.write("a.jsonl.zst", frame)})), ElementsAre("a"));
}

// Their memory is given back to the system every so often, and what lies there is still asked for.
TEST(CorpusReader, VeryLongWindowsKeepWhatWasDecoded) {
  const TemporaryDirectory directory;
  std::string text(1 << 20, ' ');
  std::uint32_t state = 7;
  for (char& c : text)
    c = static_cast<char>('a' + ((state = state * 1664525U + 1013904223U) >> 28U));
  std::string lines = "{\"text\": \"" + text + "\"}\n";
  for (int i = 0; i < 70; ++i) lines += "{\"text\": \"" + std::string(1 << 20, 'q') + "\"}\n";
  lines += "{\"text\": \"" + text + "\"}\n";
  const auto path = directory.write("a.jsonl.zst", compress(lines, 30));
  ASSERT_LT(std::filesystem::file_size(path), text.size());  // the second is a match
  std::size_t found = 0;
  read_documents({path}, {}, [&](Document&& document) { found += document.text == text ? 1 : 0; });
  EXPECT_EQ(found, 2U);
}

TEST(CorpusReader, DamagedZstdIsCorruptInput) {
  const TemporaryDirectory directory;
  std::string frame;
  for (int i = 0; i < 5000; ++i) frame += "{\"text\": \"" + std::to_string(i * i) + "\"}\n";
  frame = compress(frame);
  const auto cut = directory.write("cut.jsonl.zst", frame.substr(0, frame.size() - 3));
  expect_error(ExitCode::kCorruptInput, {cut, "truncated"}, [&] { read_all({cut}); });
  const auto second = directory.write("second.jsonl.zst", frame + frame.substr(0, 9));
  expect_error(ExitCode::kCorruptInput, {second, "truncated"}, [&] { read_all({second}); });
  const auto empty = directory.write("empty.jsonl.zst", "");
  expect_error(ExitCode::kCorruptInput, {empty, "truncated"}, [&] { read_all({empty}); });
  const auto plain = directory.write("plain.jsonl.zst", R"({"text": "not compressed"})");
  expect_error(ExitCode::kCorruptInput, {plain, "damaged near compressed byte"},
               [&] { read_all({plain}); });
}

TEST(CorpusReader, MissingAndUnknownFiles) {
  const TemporaryDirectory directory;
  for (const std::string name : {"missing.txt", "missing.jsonl", "missing"}) {
    expect_error(ExitCode::kMissingInput, {directory.path(name)},
                 [&] { read_all({directory.path(name)}); });
  }
  static_cast<void>(directory.write("d/a.md", ""));
  expect_error(ExitCode::kMissingInput, {directory.path("d"), ".jsonl"},
               [&] { read_all({directory.path("d")}); });
  expect_error(ExitCode::kUsage, {"a.md", ".txt"}, [&] { read_all({directory.path("d/a.md")}); });
}

TEST(CorpusReader, ParquetIsReadOrTheMessageSaysHowToConvertIt) {
  const TemporaryDirectory directory;
  const auto path = directory.write("p/a.parquet",
                                    contents_of(TTT_SOURCE_DIR "/tests/data/parquet/rows.parquet"));
  if (!reads_parquet()) {
    for (const std::string& input : {path, directory.path("p")}) {
      expect_error(ExitCode::kUsage, {path, "COPY"}, [&] { read_all({input}); });
    }
    return;
  }
  const auto documents = read_all({directory.path("p")});
  EXPECT_THAT(texts_of(documents),
              ElementsAre(testing::StartsWith("a first text a first"), "",
                          std::string("na\xc3\xafve </s>\0", 12), "again and again", "a last one"));
  EXPECT_EQ(documents[4].line, 5);
  EXPECT_EQ(documents[4].subset, "A");
  EXPECT_EQ(documents[3].subset, "B");
  std::atomic<std::int64_t> bytes = 0;
  read_file_documents(
      path, {}, [](Document&&) {}, [](const Rejection&) { FAIL(); }, &bytes);
  EXPECT_EQ(bytes, std::filesystem::file_size(path));
}

TEST(CorpusReader, EmptyTextFileIsCorruptInput) {
  const TemporaryDirectory directory;
  const auto path = directory.write("a.txt", "");
  expect_error(ExitCode::kCorruptInput, {path, "empty"}, [&] { read_all({path}); });
}

struct BadLine {
  const char* line;
  const char* message;
};

class CorpusReaderBadLine : public testing::TestWithParam<BadLine> {};

TEST_P(CorpusReaderBadLine, IsCorruptInputWithFileAndLine) {
  const TemporaryDirectory directory;
  const std::string good = "{\"text\": \"good\"}\n";
  const auto path = directory.write("a.jsonl", good + GetParam().line + "\n" + good);
  expect_error(ExitCode::kCorruptInput, {path + ":2: ", GetParam().message},
               [&] { read_all({path}); });
}

INSTANTIATE_TEST_SUITE_P(
    All, CorpusReaderBadLine,
    testing::Values(BadLine{"{\"text\": \"a\"", "syntax error"}, BadLine{"", "syntax error"},
                    BadLine{"{\"text\": \"a\"} x", "syntax error"},
                    BadLine{"{\"text\": \"\\ud800\"}", "surrogate"},
                    BadLine{"{\"text\": \"a\tb\"}", "control character"},
                    BadLine{"{\"other\": \"a\"}", "no member \"text\""},
                    BadLine{"{\"o\": {\"text\": \"a\"}}", "no member \"text\""},
                    BadLine{"{\"text\": 3}", "is a number, not a string"},
                    BadLine{"{\"text\": null}", "is null, not a string"},
                    BadLine{"{\"text\": [\"a\"]}", "is an array, not a string"},
                    BadLine{"{\"text\": {}}", "is an object, not a string"},
                    BadLine{"{\"text\": \"a\", \"text\": \"b\"}", "\"text\" twice"},
                    BadLine{"[1]", "an array, not an object"},
                    BadLine{"\"text\"", "a string, not an object"},
                    BadLine{"{\"text\": \"a\xff\"}", "byte 28: 0xff is not UTF-8"}));

TEST(CorpusReader, InvalidUtf8InTextFilesNamesTheByte) {
  const TemporaryDirectory directory;
  const auto path = directory.write("a.txt", "abc\xe2\x82");
  expect_error(ExitCode::kCorruptInput, {path + ": byte 3: 0xe2 is not UTF-8"},
               [&] { read_all({path}); });
}

TEST(CorpusReader, DeepNestingIsCorruptInput) {
  const TemporaryDirectory directory;
  const auto nested = [](std::size_t depth) {
    return "{\"text\": \"a\", \"x\": " + std::string(depth - 1, '[') + std::string(depth - 1, ']') +
           "}";
  };
  EXPECT_EQ(read_all({directory.write("64.jsonl", nested(64))}).size(), 1U);
  const auto path = directory.write("65.jsonl", nested(65));
  expect_error(ExitCode::kCorruptInput, {path + ":1", "deeper than 64"}, [&] { read_all({path}); });
}

TEST(CorpusReader, LongLinesAreCorruptInput) {
  const TemporaryDirectory directory;
  const auto path = directory.write("a.jsonl", "{\"text\": \"a\"}\n");
  std::filesystem::resize_file(path, (std::uintmax_t{65} << 20));  // zeros to the end, no newline
  expect_error(ExitCode::kCorruptInput, {path + ":2", "67108864"}, [&] { read_all({path}); });
  std::ofstream(path, std::ios::app) << "\n{\"text\": \"b\"}";
  std::vector<std::string> seen;
  read_file_documents(
      path, {}, [&](Document&& document) { seen.push_back(document.text); },
      [&](const Rejection& rejection) { seen.push_back(rejection.reason); });
  EXPECT_THAT(seen, ElementsAre("a", "too long", "b"));
}

}  // namespace
}  // namespace ttt::data
