#include "data/tokenizer/tokenizer.h"

#include <sentencepiece_processor.h>
#include <sentencepiece_trainer.h>

#include "tests/data/temporary_directory.h"

namespace ttt::data {
namespace {

// Enough different words for a few hundred merges, the same every time.
std::vector<std::string> training_texts() {
  std::vector<std::string> texts;
  const std::vector<std::string> syllables = {"ka", "to", "mi", "ren", "so", "lu", "be", "dor"};
  std::uint32_t state = 1;
  for (int text = 0; text < 40; ++text) {
    std::string words;
    for (int word = 0; word < 100; ++word) {
      for (int part = 0; part < 3; ++part) {
        state = state * 1664525U + 1013904223U;
        words += syllables[(state >> 20U) % (part == 0 ? 8 : 3)];
      }
      words += word % 10 == 9 ? "\n" : word % 17 == 0 ? "  " : " ";
    }
    texts.push_back(words);
  }
  return texts;
}

const std::vector<std::string>& samples() {
  static const std::vector<std::string> texts = {"",
                                                 "a",
                                                 " ",
                                                 " katomi  rensolu",
                                                 "katomi rensolu.\r\n\tbedor\n\n",
                                                 "unseen: \xf0\x9f\x98\x80 \xc3\xa9\xe4\xb8\xad",
                                                 "<s> </s> <unk> <0x41>",
                                                 std::string("nul \0 inside", 12)};
  return texts;
}

class SentencePiece : public testing::Test {
 protected:
  static void SetUpTestSuite() {
    directory_ = std::make_unique<TemporaryDirectory>();
    train_sentencepiece({350, training_texts()}, model());
  }
  static void TearDownTestSuite() { directory_.reset(); }
  static std::string model() { return directory_->path("tokenizer.model"); }
  static std::unique_ptr<TemporaryDirectory> directory_;
};
std::unique_ptr<TemporaryDirectory> SentencePiece::directory_;

TEST(ByteTokenizer, EveryByteHasItsIdAndComesBack) {
  for (const char* name : {"", "bytes"}) {
    const auto tokenizer = open_tokenizer(name);
    EXPECT_EQ(tokenizer->vocab_size(), 259);
    EXPECT_EQ(tokenizer->bos_id(), 1);
    EXPECT_EQ(tokenizer->eos_id(), 2);
    EXPECT_EQ(tokenizer->encode(std::string_view("\0A\xff", 3)),
              (std::vector<std::int32_t>{3, 68, 258}));
    for (const std::string& text : samples()) {
      EXPECT_EQ(tokenizer->decode(tokenizer->encode(text)), text);
    }
    EXPECT_EQ(tokenizer->decode(std::vector<std::int32_t>{0, 1, 68, 2}), "A");
    expect_error(ExitCode::kCorruptInput, {"token 259", "[0, 259)"},
                 [&] { static_cast<void>(tokenizer->id_to_bytes(259)); });
  }
}

TEST_F(SentencePiece, HasTheLayoutOfALlamaVocabulary) {
  const auto tokenizer = open_tokenizer(model());
  EXPECT_EQ(tokenizer->vocab_size(), 350);
  EXPECT_EQ(tokenizer->bos_id(), 1);
  EXPECT_EQ(tokenizer->eos_id(), 2);
  EXPECT_TRUE(tokenizer->adds_leading_space());
  for (std::int32_t id = 0; id < 3; ++id) EXPECT_EQ(tokenizer->id_to_bytes(id), "");
  for (std::int32_t byte = 0; byte < 256; ++byte) {
    EXPECT_EQ(tokenizer->id_to_bytes(3 + byte), std::string(1, static_cast<char>(byte)));
  }
  expect_error(ExitCode::kCorruptInput, {"token -1", model()},
               [&] { static_cast<void>(tokenizer->id_to_bytes(-1)); });
}

TEST_F(SentencePiece, EncodesAsTheLibraryDoesAndDecodesExactly) {
  const auto tokenizer = open_tokenizer(model());
  sentencepiece::SentencePieceProcessor processor;
  ASSERT_TRUE(processor.Load(model()).ok());
  auto texts = training_texts();
  texts.insert(texts.end(), samples().begin(), samples().end());
  for (const std::string& text : texts) {
    const auto ids = tokenizer->encode(text);
    std::vector<std::string> pieces;
    ASSERT_TRUE(processor.Encode(text, &pieces).ok());
    std::vector<std::int32_t> piece_ids;
    for (const std::string& piece : pieces) {
      piece_ids.push_back(processor.PieceToId(piece));
    }
    EXPECT_EQ(ids.size(), pieces.size());
    // Pieces of characters outside the model are theirs, the ids those of their bytes.
    if (text.find('\xf0') == std::string::npos) {
      EXPECT_EQ(ids, piece_ids) << text;
    }
    EXPECT_EQ(tokenizer->decode(ids), text);
    EXPECT_EQ(processor.DecodeIds(ids), text);
  }
}

// Cut in parts at places that no piece spans; U+2581 is the library's own space.
TEST_F(SentencePiece, LongTextsAreEncodedAsTheLibraryDoes) {
  sentencepiece::SentencePieceProcessor processor;
  ASSERT_TRUE(processor.Load(model()).ok());
  const auto tokenizer = open_tokenizer(model());
  const std::vector<std::string> parts = {"katomi",       " ",    "  ",       "rensolu", "\n",
                                          "\xe2\x96\x81", "lube", "\xc3\xa9", "   ",     "so",
                                          "dor",          " ka"};
  std::uint32_t state = 7;
  for (const std::size_t size : {65'536UL, 65'537UL, 300'000UL}) {
    std::string text;
    while (text.size() < size) {
      state = state * 1664525U + 1013904223U;
      text += parts[(state >> 20U) % parts.size()];
    }
    for (const char* end : {"", " ", "  ", "\xe2\x96\x81 ", " a"}) {
      std::vector<int> expected;
      ASSERT_TRUE(processor.Encode(text + end, &expected).ok());
      ASSERT_EQ(tokenizer->encode(text + end), expected) << size << '"' << end << '"';
    }
  }
}

// Llama's models have pieces of several spaces: no cut may lie in a run of them, wherever the run lies.
TEST_F(SentencePiece, RunsOfSpacesAreNotCut) {
  const TemporaryDirectory directory;
  std::string sample;
  for (int i = 0; i < 200; ++i) sample += "    katomi        rensolu\n";
  const std::string arguments =
      "--input=" + directory.write("sample.txt", sample) +
      " --model_prefix=" + directory.path("spaces") +
      " --model_type=bpe --vocab_size=300 --hard_vocab_limit=false --byte_fallback=true"
      " --normalization_rule_name=identity --remove_extra_whitespaces=false"
      " --allow_whitespace_only_pieces=true --minloglevel=2";
  ASSERT_TRUE(sentencepiece::SentencePieceTrainer::Train(arguments).ok());
  sentencepiece::SentencePieceProcessor processor;
  ASSERT_TRUE(processor.Load(directory.path("spaces.model")).ok());
  const std::string space = "\xe2\x96\x81";
  ASSERT_NE(processor.PieceToId(space + space), processor.unk_id());
  const auto tokenizer = open_tokenizer(directory.path("spaces.model"));
  for (const std::string& run : {std::string(9, ' '), space + "  " + space + " "}) {
    for (std::size_t before = 0; before <= run.size(); ++before) {
      std::string text(65'536 - before, 'a');
      text += run + "katomi " + run + "rensolu";
      std::vector<int> expected;
      ASSERT_TRUE(processor.Encode(text, &expected).ok());
      EXPECT_EQ(tokenizer->encode(text), expected) << before;
    }
  }
}

// Where a piece goes on behind a space, a cut at that space changes the tokens: such models get every text whole.
TEST_F(SentencePiece, TextsAreNotCutWherePiecesSpanSpaces) {
  const TemporaryDirectory directory;
  std::string sample;
  for (int i = 0; i < 300; ++i) sample += "katomi rensolu lube sodor\nlube sodor katomi rensolu\n";
  const auto input = directory.write("sample.txt", sample);
  std::string text;
  while (text.size() < 70'000) text += "katomi rensolu lube sodor ";
  for (const char* type : {"unigram", "bpe"}) {
    const std::string arguments =
        "--input=" + input + " --model_prefix=" + directory.path(type) + " --model_type=" + type +
        " --vocab_size=330 --hard_vocab_limit=false --byte_fallback=true "
        "--split_by_whitespace=false"
        " --normalization_rule_name=identity --remove_extra_whitespaces=false --minloglevel=2";
    ASSERT_TRUE(sentencepiece::SentencePieceTrainer::Train(arguments).ok());
    sentencepiece::SentencePieceProcessor processor;
    ASSERT_TRUE(processor.Load(directory.path(type) + ".model").ok());
    std::vector<std::string> pieces;
    std::vector<int> expected;
    ASSERT_TRUE(processor.Encode(text, &pieces).ok());
    ASSERT_TRUE(processor.Encode(text, &expected).ok());
    ASSERT_THAT(pieces, testing::Contains(testing::ContainsRegex("[a-z]\xe2\x96\x81[a-z]")))
        << type;
    EXPECT_EQ(open_tokenizer(directory.path(type) + ".model")->encode(text), expected) << type;
  }
}

TEST_F(SentencePiece, TrainingIsDeterministic) {
  const std::string again = directory_->path("again.model");
  train_sentencepiece({350, training_texts()}, again);
  EXPECT_EQ(contents_of(again), contents_of(model()));
}

TEST_F(SentencePiece, StreamsTheSameTextPieceByPiece) {
  const auto tokenizer = open_tokenizer(model());
  for (const std::string& text : samples()) {
    StreamingDecoder decoder(*tokenizer);
    std::string streamed = decoder.push(tokenizer->bos_id());
    for (const std::int32_t id : tokenizer->encode(text)) streamed += decoder.push(id);
    EXPECT_EQ(streamed + decoder.finish(), text);
  }
  StreamingDecoder continuation(*tokenizer, false);
  std::string streamed;
  for (const std::int32_t id : tokenizer->encode("ka")) streamed += continuation.push(id);
  EXPECT_EQ(streamed, " ka");
}

TEST_F(SentencePiece, DamagedModelsAreCorruptInput) {
  expect_error(ExitCode::kMissingInput, {"missing.model"},
               [&] { open_tokenizer(directory_->path("missing.model")); });
  for (const std::string& bytes :
       {std::string(), std::string("not a model"), contents_of(model()).substr(0, 1000)}) {
    const auto path = directory_->write("bad.model", bytes);
    expect_error(ExitCode::kCorruptInput, {path}, [&] { open_tokenizer(path); });
  }
}

TEST_F(SentencePiece, ImpossibleTrainingIsRefused) {
  const std::string path = directory_->path("none.model");
  expect_error(ExitCode::kUsage, {"no text"}, [&] {
    train_sentencepiece({350, {"", "\n"}}, path);
  });
  expect_error(ExitCode::kUsage, {"100000 pieces"}, [&] {
    train_sentencepiece({100'000, training_texts()}, path);
  });
  expect_error(ExitCode::kUsage, {"100 pieces"}, [&] {
    train_sentencepiece({100, training_texts()}, path);
  });
  EXPECT_FALSE(std::filesystem::exists(path));
}

TEST(StreamingDecoder, HoldsBackIncompleteSequencesAndReplacesImpossibleOnes) {
  const auto tokenizer = open_tokenizer("bytes");
  const auto push_all = [&](std::string_view bytes) {
    StreamingDecoder decoder(*tokenizer);
    std::vector<std::string> out;
    for (const std::int32_t id : tokenizer->encode(bytes)) out.push_back(decoder.push(id));
    out.push_back(decoder.finish());
    return out;
  };
  using Texts = std::vector<std::string>;
  const std::string bad = "\xef\xbf\xbd";
  EXPECT_EQ(push_all("a\xf0\x9f\x98\x80"), (Texts{"a", "", "", "", "\xf0\x9f\x98\x80", ""}));
  EXPECT_EQ(push_all("\xe2\x82z"), (Texts{"", "", bad + bad + "z", ""}));
  EXPECT_EQ(push_all("\xe2\xe2\x82\xac"), (Texts{"", bad, "", "\xe2\x82\xac", ""}));
  EXPECT_EQ(push_all("\xff\x80"), (Texts{bad, bad, ""}));
  EXPECT_EQ(push_all("\xed\xa0"), (Texts{"", bad + bad, ""}));  // a surrogate
  EXPECT_EQ(push_all("\xe2\x82"), (Texts{"", "", bad + bad}));
}

}  // namespace
}  // namespace ttt::data
