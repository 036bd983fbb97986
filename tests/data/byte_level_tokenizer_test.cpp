// Byte-level BPE against ids that Hugging Face's tokenizers made (tests/data/tokenizers/make_golden.py).

#include <nlohmann/json.hpp>

#include "data/tokenizer/tokenizer.h"
#include "tests/data/temporary_directory.h"

namespace ttt::data {
namespace {

using Json = nlohmann::json;

std::string golden_path(const std::string& name) {
  return std::string(TTT_SOURCE_DIR) + "/tests/data/tokenizers/" + name + ".json";
}

Json golden_file(const std::string& name) { return Json::parse(contents_of(golden_path(name))); }

class ByteLevel : public testing::TestWithParam<const char*> {};
INSTANTIATE_TEST_SUITE_P(All, ByteLevel, testing::Values("gpt2", "neox", "llama3"),
                         [](const auto& test) { return std::string(test.param); });

TEST_P(ByteLevel, IdsAreThoseOfHuggingFace) {
  const Json expected = golden_file("expected");
  ASSERT_GT(expected["texts"].size(), 150U);
  for (const bool parse_special : {false, true}) {
    const auto tokenizer =
        open_tokenizer(golden_path(GetParam()), {.parse_special = parse_special});
    const Json& ids = expected[GetParam()][parse_special ? "parsed" : "as_text"];
    for (std::size_t i = 0; i < ids.size(); ++i) {
      const auto text = expected["texts"][i].get<std::string>();
      EXPECT_EQ(tokenizer->encode(text), ids[i].get<std::vector<std::int32_t>>())
          << Json(text) << " parse_special " << parse_special;
    }
  }
}

TEST_P(ByteLevel, DecodingUndoesEncoding) {
  const auto tokenizer = open_tokenizer(golden_path(GetParam()));
  const Json expected = golden_file("expected");
  for (const Json& text : expected["texts"]) {
    const auto bytes = text.get<std::string>();
    const std::string decoded = tokenizer->decode(tokenizer->encode(bytes));
    // NFC may have composed it; then at least the tokens come back.
    if (std::string(GetParam()) != "neox") {
      EXPECT_EQ(decoded, bytes);
    }
    EXPECT_EQ(tokenizer->encode(decoded), tokenizer->encode(bytes)) << text;
  }
}

TEST(ByteLevelTokenizer, KnowsItsVocabularyAndItsEnds) {
  const auto gpt2 = open_tokenizer(golden_path("gpt2"));
  EXPECT_EQ(gpt2->vocab_size(), 701);
  EXPECT_EQ(gpt2->bos_id(), 700);
  EXPECT_EQ(gpt2->eos_id(), 700);
  EXPECT_EQ(gpt2->id_to_bytes(700), "");
  const auto llama3 = open_tokenizer(golden_path("llama3"));
  EXPECT_EQ(llama3->vocab_size(), 706);
  EXPECT_EQ(llama3->bos_id(), 701);
  EXPECT_EQ(llama3->eos_id(), 702);
  EXPECT_EQ(llama3->id_to_bytes(700), " zqzq");
  expect_error(ExitCode::kCorruptInput, {"706", "llama3.json"}, [&] { llama3->id_to_bytes(706); });
}

// Long words are where a quadratic merge or a regular expression's backtracking would not end.
TEST(ByteLevelTokenizer, LongRunsEnd) {
  for (const char* name : {"gpt2", "neox", "llama3"}) {
    const auto tokenizer = open_tokenizer(golden_path(name));
    for (const char* unit : {" ", "a", "\n", "7", "- ", "\xe4\xbd\xa0"}) {
      std::string text;
      while (text.size() < 60'000) text += unit;
      EXPECT_TRUE(tokenizer->decode(tokenizer->encode(text)) == text) << name << Json(unit);
    }
  }
}

TEST(ByteLevelTokenizer, OtherFilesAreRefusedByTheirPart) {
  const TemporaryDirectory directory;
  const Json good = golden_file("gpt2");
  const auto refuse = [&](const std::string& word, auto change) {
    Json file = good;
    change(file);
    const auto path = directory.write("tokenizer.json", file.dump());
    expect_error(ExitCode::kCorruptInput, {path, word}, [&] { open_tokenizer(path); });
  };
  refuse("BPE", [](Json& file) { file["model"]["type"] = "Unigram"; });
  refuse("tokenizer.model", [](Json& file) { file["model"]["byte_fallback"] = true; });
  refuse("model.dropout", [](Json& file) { file["model"]["dropout"] = 0.1; });
  refuse("normalizer Lowercase", [](Json& file) { file["normalizer"] = {{"type", "Lowercase"}}; });
  refuse("pre_tokenizer Whitespace", [](Json& file) {
    file["pre_tokenizer"] = {{"type", "Whitespace"}};
  });
  refuse("no ByteLevel", [](Json& file) {
    file["pre_tokenizer"] = {{"type", "Sequence"}, {"pretokenizers", Json::array()}};
  });
  refuse("add_prefix_space", [](Json& file) { file["pre_tokenizer"]["add_prefix_space"] = true; });
  const auto split = [](const char* pattern, const char* behavior) {
    return [=](Json& file) {
      file["pre_tokenizer"] = {
          {"type", "Sequence"},
          {"pretokenizers",
           {{{"type", "Split"}, {"pattern", {{"Regex", pattern}}}, {"behavior", behavior}},
            {{"type", "ByteLevel"}, {"add_prefix_space", false}, {"use_regex", false}}}}};
    };
  };
  refuse("Isolated", split("a", "Removed"));
  refuse("cannot be compiled", split("(", "Isolated"));
  refuse("byte 0x41", [](Json& file) { file["model"]["vocab"].erase("A"); });
  refuse("id 5 twice", [](Json& file) { file["model"]["vocab"]["A"] = 5; });
  refuse("id of \"A\" is -1", [](Json& file) { file["model"]["vocab"]["A"] = -1; });
  refuse("is 999999999", [](Json& file) { file["model"]["vocab"]["A"] = 999'999'999; });
  refuse("merge 0", [](Json& file) { file["model"]["merges"][0] = {"A", "\xc4\x80"}; });
  refuse("the merge", [](Json& file) { file["model"]["merges"][0] = "nospace"; });
  refuse("has lstrip", [](Json& file) { file["added_tokens"][0]["lstrip"] = true; });
  refuse("<|endoftext|>", [](Json& file) { file["added_tokens"] = Json::array(); });
  refuse("not a tokenizer.json", [](Json& file) { file = {{"model", 3}}; });
  const auto broken = directory.write("tokenizer.json", "{");
  expect_error(ExitCode::kCorruptInput, {broken}, [&] { open_tokenizer(broken); });
  expect_error(ExitCode::kMissingInput, {"none.json"},
               [&] { open_tokenizer(directory.path("none.json")); });
  // Merges as older files have them are the same tokenizer.
  Json old = good;
  for (Json& merge : old["model"]["merges"]) {
    merge = merge[0].get<std::string>() + " " + merge[1].get<std::string>();
  }
  EXPECT_EQ(open_tokenizer(directory.write("old.json", old.dump()))->encode("the words of it"),
            open_tokenizer(golden_path("gpt2"))->encode("the words of it"));
}

TEST(SentencePieceSpecial, LiteralControlTokensAreTextOrParsed) {
  const TemporaryDirectory directory;
  const std::string model = directory.path("bpe.model");
  train_sentencepiece({290, {"the words of it </s> and <s> of the words"}}, model);
  const auto as_text = open_tokenizer(model);
  const auto parsed = open_tokenizer(model, {.parse_special = true});
  const auto part = [&](const std::string& text) { return as_text->encode(text); };
  const auto join = [](std::initializer_list<std::vector<std::int32_t>> parts) {
    std::vector<std::int32_t> all;
    for (const auto& ids : parts) all.insert(all.end(), ids.begin(), ids.end());
    return all;
  };
  EXPECT_THAT(as_text->encode("a</s>b"), testing::Not(testing::Contains(2)));
  EXPECT_EQ(parsed->encode("a</s>b"), join({part("a"), {2}, part("b")}));
  EXPECT_EQ(parsed->encode("<s><unk> b</s>"), join({{1, 0}, part(" b"), {2}}));
  EXPECT_EQ(parsed->encode("a </ s>"), part("a </ s>"));
}

}  // namespace
}  // namespace ttt::data
