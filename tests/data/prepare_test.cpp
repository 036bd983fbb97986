
#include "data/files.h"
#include "data/tokenizer/tokenizer.h"
#include "tests/data/prepare_fixture.h"

namespace ttt::data {
namespace {

// 997 documents of lengths from 0 to 2000 bytes, in .jsonl.
std::string write_corpus(const TemporaryDirectory& directory, const std::string& name = "a.jsonl") {
  std::string lines;
  for (std::size_t i = 0; i < 997; ++i) {
    std::string text;
    for (std::size_t word = 0; word < i % 400; ++word) text += "w" + std::to_string(i * word) + " ";
    lines += "{\"text\": \"" + text + "\"}\n";
  }
  return directory.write(name, lines);
}

TEST(Prepare, DocumentsBecomeBosIdsEosInOrder) {
  const TemporaryDirectory directory;
  const auto input =
      directory.write("a.jsonl", "{\"text\": \"A\"}\n{\"text\": \"\"}\n{\"text\": \"BC\"}\n");
  auto options = options_for(input, directory.path("out"));
  options.validation_every = 3;
  const auto manifest = prepare_corpus(options);
  EXPECT_EQ(tokens_of(directory.path("out"), Split::kTrain),
            (std::vector<std::int64_t>{1, 68, 2, 1, 2}));
  EXPECT_EQ(tokens_of(directory.path("out"), Split::kValidation),
            (std::vector<std::int64_t>{1, 69, 70, 2}));
  EXPECT_EQ(manifest.train_tokens(), 5);
  EXPECT_EQ(manifest.train_documents(), 2);
  EXPECT_EQ(manifest.validation_tokens(), 4);
  EXPECT_EQ(manifest.validation_documents(), 1);
  EXPECT_EQ(manifest.vocab_size(), 259);
  EXPECT_EQ(manifest.tokenizer(), "");
  EXPECT_THAT(names_in(directory.path("out")),
              testing::ElementsAre("manifest.textproto", "plan.xxh3", "prepare.json",
                                   "train-00000.h5", "validation-00000.h5"));
  EXPECT_EQ(read_corpus_manifest(directory.path("out")).SerializeAsString(),
            manifest.SerializeAsString());
  verify_corpus(directory.path("out"));
}

TEST(Prepare, TokensAreThoseOfTheTokenizerAndShardsHoldWholeDocuments) {
  const TemporaryDirectory directory;
  const auto input = write_corpus(directory);
  const std::string model = directory.path("bpe.model");
  train_sentencepiece({300, {contents_of(input)}}, model);
  auto options = options_for(input, directory.path("out"));
  options.tokenizer = model;
  options.validation_fraction = 0;
  options.shard_tokens = 100'000;
  const auto manifest = prepare_corpus(options);
  EXPECT_EQ(contents_of(directory.path("out/tokenizer.model")), contents_of(model));
  const auto tokenizer = open_tokenizer(corpus_tokenizer_path(manifest, directory.path("out")));
  const auto shards = corpus_shards(manifest, directory.path("out"), Split::kTrain);
  ASSERT_GT(shards.size(), 2U);
  std::int64_t documents = 0;
  for (const std::string& shard : shards) {
    const auto offsets = read_document_offsets(shard);
    const TokenArray tokens = TokenArray::open({shard}, Split::kTrain);
    EXPECT_LE(tokens.num_tokens(), 100'000);
    for (std::size_t i = 0; i + 1 < offsets.size(); ++i, ++documents) {
      std::vector<std::int64_t> ids(offsets[i + 1] - offsets[i]);
      tokens.read(static_cast<std::int64_t>(offsets[i]), ids);
      EXPECT_EQ(ids.front(), 1);
      EXPECT_EQ(ids.back(), 2);
      const std::vector<std::int32_t> narrow(ids.begin(), ids.end());
      const std::string text = tokenizer->decode(narrow);
      EXPECT_EQ(std::count(text.begin(), text.end(), ' '), documents % 400);
    }
  }
  EXPECT_EQ(documents, 997);
}

TEST(Prepare, ValidationInputsAreTheValidationSplit) {
  const TemporaryDirectory directory;
  auto options = options_for(directory.write("a.txt", "A"), directory.path("out"));
  options.validation_inputs = {directory.write("b.txt", "B")};
  options.validation_fraction = 0.9;
  prepare_corpus(options);
  EXPECT_EQ(tokens_of(directory.path("out"), Split::kTrain), (std::vector<std::int64_t>{1, 68, 2}));
  EXPECT_EQ(tokens_of(directory.path("out"), Split::kValidation),
            (std::vector<std::int64_t>{1, 69, 2}));
}

TEST(Prepare, TheSplitIsAFractionThatDependsOnlyOnSeedAndText) {
  PrepareOptions options;
  options.validation_fraction = 0.05;
  PrepareOptions other = options;
  other.seed = 1;
  int count = 0;
  int differ = 0;
  for (std::int64_t number = 0; number < 20'000; ++number) {
    const std::string text = std::to_string(number);
    const bool drawn = is_validation_document(options, number, text);
    EXPECT_EQ(drawn, is_validation_document(options, 0, text));
    count += drawn ? 1 : 0;
    differ += drawn != is_validation_document(other, number, text);
  }
  EXPECT_NEAR(count, 1000, 160);  // five standard deviations
  EXPECT_GT(differ, 1000);
}

TEST(Prepare, ErrorsLeaveNothing) {
  const TemporaryDirectory directory;
  const auto bad = directory.write("in/bad.jsonl", "{\"text\": \"a\"}\n{\"text\": 1}\n");
  expect_error(ExitCode::kCorruptInput, {bad + ":2"},
               [&] { prepare_corpus(options_for(bad, directory.path("out"))); });
  const auto expect_usage = [&](const std::string& message, auto change) {
    auto options = options_for(directory.write("in/a.txt", "A"), directory.path("out"));
    change(options);
    expect_error(ExitCode::kUsage, {message}, [&] { prepare_corpus(options); });
  };
  expect_usage("no input", [](auto& options) { options.inputs = {}; });
  expect_usage("no output", [](auto& options) { options.output_directory = ""; });
  expect_usage("validation_fraction is 1", [](auto& options) { options.validation_fraction = 1; });
  expect_usage("validation_every is 1", [](auto& options) { options.validation_every = 1; });
  expect_usage("exclude each other", [](auto& options) {
    options.validation_every = 2;
    options.validation_inputs = options.inputs;
  });
  expect_usage("shard_tokens is 0", [](auto& options) { options.shard_tokens = 0; });
  expect_usage("num_threads is 0", [](auto& options) { options.num_threads = 0; });
  expect_usage("train_vocab_size is -1", [](auto& options) { options.train_vocab_size = -1; });
  expect_usage("to be trained", [](auto& options) {
    options.train_vocab_size = 300;
    options.tokenizer = "x.model";
  });
  expect_usage("sample is 2", [](auto& options) { options.filter.sample = 2; });
  expect_usage("subset A has the share -1", [](auto& options) {
    options.filter.subset_shares = {{"A", -1}};
  });
  expect_usage("part_bytes is 0", [](auto& options) { options.part_bytes = 0; });
  expect_usage("documents of -1 to 0", [](auto& options) { options.filter.min_bytes = -1; });
  expect_usage("none of the 1 documents",
               [](auto& options) { options.validation_fraction = 0.9999; });
  auto options = options_for(directory.path("in/a.txt"), directory.path("out"));
  options.tokenizer = directory.path("missing.model");
  expect_error(ExitCode::kMissingInput, {"missing.model"}, [&] { prepare_corpus(options); });
  EXPECT_THAT(names_in(directory.path("")), testing::ElementsAre("in"));
}

// The reader is far ahead of a writer that fails: all threads must end, and the first error wins.
TEST(Prepare, AnErrorOfTheConsumerStopsTheReader) {
  const TemporaryDirectory directory;
  const auto input = write_corpus(directory);
  auto options = options_for(input, directory.path("out"));
  options.num_threads = 2;
  expect_error(ExitCode::kIo, {"full"}, [&] {
    prepare_corpus(options, [](const PrepareProgress& progress) {
      if (progress.documents == 3) fail(ExitCode::kIo, "disk full");
    });
  });
  EXPECT_FALSE(std::filesystem::exists(directory.path("out")));
}

TEST(Prepare, RefusesADirectoryThatIsNotEmpty) {
  const TemporaryDirectory directory;
  const auto input = directory.write("a.txt", "A");
  static_cast<void>(directory.write("out/x", ""));
  expect_error(ExitCode::kLocked, {"out", "not an empty directory"},
               [&] { prepare_corpus(options_for(input, directory.path("out"))); });
  std::filesystem::remove(directory.path("out/x"));
  prepare_corpus(options_for(input, directory.path("out") + "/"));
  EXPECT_THAT(names_in(directory.path("")), testing::ElementsAre("a.txt", "out"));
}

TEST(Prepare, TheSameCommandFindsThatItIsDone) {
  const TemporaryDirectory directory;
  const auto input = directory.write("a.txt", "a text");
  PrepareOptions options = options_for(input, directory.path("out"));
  const config::CorpusManifest manifest = prepare_corpus(options);
  static_cast<void>(directory.write("out.partial/part-00000-00000.json", ""));  // killed just then
  const auto expect_no_work = [](const PrepareProgress&) { ADD_FAILURE() << "prepared again"; };
  EXPECT_EQ(prepare_corpus(options, expect_no_work).SerializeAsString(),
            manifest.SerializeAsString());
  EXPECT_THAT(names_in(directory.path("")), testing::ElementsAre("a.txt", "out"));

  options.seed = 1;
  expect_error(ExitCode::kLocked, {"out exists", "other options"},
               [&] { prepare_corpus(options, expect_no_work); });
  options.seed = 0;
  static_cast<void>(directory.write("a.txt", "another text"));
  expect_error(ExitCode::kLocked, {"out exists", "other inputs"},
               [&] { prepare_corpus(options, expect_no_work); });
}

TEST(PreparedCorpus, DisagreementWithTheManifestIsCorruptInput) {
  const TemporaryDirectory directory;
  const std::string out = directory.path("out");
  auto options = options_for(write_corpus(directory), out);
  options.validation_fraction = 0;
  prepare_corpus(options);
  const std::string manifest = contents_of(out + "/manifest.textproto");
  const std::string shard = contents_of(out + "/train-00000.h5");
  const auto open = [&] { TokenArray::open({out}, Split::kTrain); };
  const auto expect_bad_manifest = [&](const std::string& from, const std::string& to,
                                       const std::string& message) {
    std::string changed = manifest;
    ASSERT_NE(changed.find(from), std::string::npos) << from;
    changed.replace(changed.find(from), from.size(), to);
    static_cast<void>(directory.write("out/manifest.textproto", changed));
    expect_error(ExitCode::kCorruptInput, {message}, open);
  };
  expect_error(ExitCode::kMissingInput, {"no validation shards"},
               [&] { TokenArray::open({out}, Split::kValidation); });
  expect_bad_manifest("vocab_size: 259", "vocab_size: 260", "tells of 260");
  expect_bad_manifest("format_version: 1", "format_version: 9", "format version 9");
  expect_bad_manifest("train_tokens: ", "train_tokens: 9", "tells of 9");
  expect_bad_manifest("num_bytes: ", "num_bytes: 9", "tells of 9");
  expect_bad_manifest("train-00000.h5", "../out/train-00000.h5", "not a file name");
  expect_bad_manifest("vocab_size", "vocabulary", "manifest.textproto:2:");
  static_cast<void>(directory.write("out/manifest.textproto", manifest));

  std::string damaged = shard;
  const auto offset = read_token_file_info(out + "/train-00000.h5").data_offset;
  damaged[static_cast<std::size_t>(offset) + 100] ^= 1;
  static_cast<void>(directory.write("out/train-00000.h5", damaged));
  open();  // sizes agree; only reading everything can tell
  expect_error(ExitCode::kCorruptInput, {"train-00000.h5", "digest"}, [&] { verify_corpus(out); });
  static_cast<void>(directory.write("out/train-00000.h5", shard + "x"));
  expect_error(ExitCode::kCorruptInput, {"train-00000.h5", "tells of"}, open);
  std::filesystem::remove(out + "/train-00000.h5");
  expect_error(ExitCode::kMissingInput, {"train-00000.h5"}, open);
  std::filesystem::remove(out + "/manifest.textproto");
  expect_error(ExitCode::kMissingInput, {"manifest.textproto"}, open);
}

}  // namespace
}  // namespace ttt::data
