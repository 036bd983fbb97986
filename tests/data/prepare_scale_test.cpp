// `ttt prepare` on many files: ranks, going on, duplicates, and what is left out.

#include <memory>
#include <nlohmann/json.hpp>
#include <numeric>
#include <unordered_set>

#include "data/files.h"
#include "data/tokens/duplicates.h"
#include "tests/data/prepare_fixture.h"

namespace ttt::data {
namespace {

// All phases as `num_ranks` ranks do them; they share nothing but the directory.
config::CorpusManifest prepare_on_ranks(const PrepareOptions& options, int num_ranks) {
  std::vector<std::unique_ptr<PrepareJob>> jobs;
  for (int rank = 0; rank < num_ranks; ++rank)
    jobs.push_back(std::make_unique<PrepareJob>(options));
  jobs[0]->begin();
  for (int rank = 0; rank < num_ranks; ++rank) jobs[rank]->scan(rank, num_ranks);
  jobs[0]->compare_digests();
  for (int rank = num_ranks - 1; rank >= 0; --rank) jobs[rank]->tokenize(rank, num_ranks, {});
  return jobs[0]->finish();
}

void expect_same_files(const std::string& directory, const std::string& other) {
  const auto names = names_in(other);
  ASSERT_EQ(names_in(directory), names);
  for (const std::string& name : names) {
    EXPECT_TRUE(contents_of(directory + "/" + name) == contents_of(other + "/" + name)) << name;
  }
}

// Five files in three parts, with duplicates across them, broken lines, subsets and many shards.
PrepareOptions options_of_everything(const TemporaryDirectory& directory) {
  for (int file = 0; file < 5; ++file) {
    std::string lines;
    for (int i = 0; i < 150; ++i) {
      std::string text;
      for (int word = 0; word < i; ++word)
        text += "w" + std::to_string(i * word * (file + 1)) + " ";
      lines += R"({"meta": {"pile_set_name": ")" + std::string(i % 3 == 0 ? "A" : "B") +
               R"("}, "text": ")" + text + "\"}\n";
      if (i % 50 == 7) lines += "{\"text\": broken}\n{\"no\": 1}\n";
    }
    directory.write_over("in/" + std::to_string(file) + ".jsonl", lines);
  }
  PrepareOptions options = options_for(directory.path("in"), "");
  options.part_bytes = file_size_bytes(directory.path("in/0.jsonl")) + 1;
  options.shard_tokens = 20'000;
  options.validation_fraction = 0.1;
  options.skip_rejected = true;
  options.remove_duplicates = true;
  options.filter.subset_shares = {{"A", 0.5}, {"*", 1}};
  return options;
}

TEST(Prepare, OutputDoesNotDependOnTheNumbersOfThreadsAndRanks) {
  const TemporaryDirectory directory;
  PrepareOptions options = options_of_everything(directory);
  options.train_vocab_size = 400;
  options.tokenizer_training_bytes = 50'000;
  int number = 0;
  for (const auto& [threads, ranks] : {std::pair{1, 1}, {7, 1}, {2, 2}, {1, 4}}) {
    options.output_directory = directory.path("out-" + std::to_string(number++));
    options.num_threads = threads;
    const auto manifest = prepare_on_ranks(options, ranks);
    EXPECT_EQ(manifest.tokenizer(), "tokenizer.model");
    EXPECT_EQ(manifest.vocab_size(), 400);
    expect_same_files(options.output_directory, directory.path("out-0"));
  }
  EXPECT_THAT(names_in(directory.path("out-0")), testing::Contains("train-00003.h5"));
  verify_corpus(directory.path("out-0"));
}

TEST(Prepare, WhatIsLeftOutIsCounted) {
  const TemporaryDirectory directory;
  PrepareOptions options = options_of_everything(directory);
  options.output_directory = directory.path("out");
  PrepareJob job(options);
  job.begin();
  job.scan(0, 1);
  job.compare_digests();
  PrepareProgress last;
  job.tokenize(0, 1, [&](const PrepareProgress& progress) { last = progress; });
  const auto manifest = job.finish();
  const PrepareStats& stats = job.stats();
  EXPECT_EQ(last.documents, manifest.train_documents() + manifest.validation_documents());
  EXPECT_EQ(last.tokens, manifest.train_tokens() + manifest.validation_tokens());
  EXPECT_EQ(stats.rejected.at("broken JSON"), 15);
  EXPECT_EQ(stats.rejected.at("no text"), 15);
  EXPECT_EQ(stats.examples.size(), 20U);
  EXPECT_THAT(stats.examples[0], testing::StartsWith(directory.path("in/0.jsonl:9: byte ")));
  // Texts of no and one word are the same in all five files; the empty one is of subset A, half of which is taken.
  EXPECT_GE(stats.left_out.at("duplicate"), 4);
  EXPECT_NEAR(static_cast<double>(stats.left_out.at("not drawn")), 125,
              40);  // 250 draws, five standard deviations
  const PrepareStats::Subset total = stats.total();
  EXPECT_EQ(total.documents + stats.left_out.at("duplicate") + stats.left_out.at("not drawn"), 750);
  EXPECT_EQ(total.documents, last.documents);
  EXPECT_EQ(total.train_tokens, manifest.train_tokens());
  EXPECT_EQ(total.validation_tokens, manifest.validation_tokens());
  EXPECT_EQ(std::accumulate(stats.length_histogram.begin(), stats.length_histogram.end(), 0),
            total.documents);
  const auto report = nlohmann::json::parse(contents_of(directory.path("out/prepare.json")));
  EXPECT_EQ(report["subsets"]["B"]["documents"], stats.subsets.at("B").documents);
  EXPECT_EQ(report["rejected"]["no text"], 15);
  EXPECT_EQ(report["train_tokens"], manifest.train_tokens());
}

TEST(Prepare, OfEqualDocumentsTheFirstIsKeptAndHeldOutOnesWin) {
  const TemporaryDirectory directory;
  const auto a =
      directory.write("a.jsonl", "{\"text\": \"x\"}\n{\"text\": \"y\"}\n{\"text\": \"x\"}\n");
  const auto b =
      directory.write("b.jsonl", "{\"text\": \"y\"}\n{\"text\": \"z\"}\n{\"text\": \"v\"}\n");
  auto options = options_for(a, directory.path("out"));
  options.inputs.push_back(b);
  options.validation_inputs = {directory.write("c.txt", "z")};
  options.remove_duplicates = true;
  options.part_bytes = 1;
  prepare_on_ranks(options, 2);
  const auto byte = [](char c) { return std::int64_t{c} + 3; };
  EXPECT_EQ(tokens_of(directory.path("out"), Split::kTrain),
            (std::vector<std::int64_t>{1, byte('x'), 2, 1, byte('y'), 2, 1, byte('v'), 2}));
  EXPECT_EQ(tokens_of(directory.path("out"), Split::kValidation),
            (std::vector<std::int64_t>{1, byte('z'), 2}));
}

TEST(Duplicates, AreTheSameInAnyNumberOfPasses) {
  const TemporaryDirectory directory;
  PrepareOptions options;
  PreparePart part;
  std::string lines;
  for (int i = 0; i < 500; ++i) lines += "{\"text\": \"" + std::to_string(i * i % 97) + "\"}\n";
  part.files = {directory.write("a.jsonl", lines)};
  write_digests(part, options, directory.path("digests"));
  std::unordered_set<std::string> seen;
  std::unordered_set<std::int64_t> expected;
  for (int i = 0; i < 500; ++i) {
    if (!seen.insert(std::to_string(i * i % 97)).second) expected.insert(i);
  }
  for (const std::size_t max_in_memory : {1000U, 100U, 7U}) {
    find_duplicates({directory.path("digests")}, {directory.path("found")}, max_in_memory);
    EXPECT_EQ(read_duplicates(directory.path("found")), expected) << max_in_memory;
  }
}

// Stops at a document as a killed process does, with nothing unwound but what the kernel would drop.
class Killed : public std::exception {};

TEST(Prepare, GoesOnAfterTheLastFinishedSegment) {
  const TemporaryDirectory directory;
  PrepareOptions options = options_of_everything(directory);
  options.output_directory = directory.path("whole");
  options.num_threads = 2;
  prepare_corpus(options);
  options.output_directory = directory.path("out");
  std::int64_t total = 0;
  int restarts = 0;
  for (std::int64_t stop_after = 40; true; stop_after += 60) {
    std::int64_t documents = 0;
    try {
      prepare_corpus(options, [&](const PrepareProgress& progress) {
        documents = progress.documents;
        if (documents == stop_after) throw Killed();
      });
      break;
    } catch (const Killed&) {
      ++restarts;
      total += documents;
      EXPECT_FALSE(std::filesystem::exists(directory.path("out")));
      for (const char* const place :
           {"out.partial/part-00000-00000.json", "out.partial/result/validation-00000.h5"}) {
        directory.write_over(std::string(place) + ".tmp-1", "half of");
      }
    }
  }
  EXPECT_GE(restarts, 3);
  expect_same_files(directory.path("out"), directory.path("whole"));
  EXPECT_THAT(names_in(directory.str()), testing::ElementsAre("in", "out", "whole"));
}

TEST(Prepare, AnUnfinishedPreparationOfOtherOptionsIsNotTouched) {
  const TemporaryDirectory directory;
  PrepareOptions options = options_of_everything(directory);
  options.output_directory = directory.path("out");
  const auto stop = [](const PrepareProgress& progress) {
    if (progress.documents == 500) throw Killed();
  };
  EXPECT_THROW(prepare_corpus(options, stop), Killed);
  const auto before = names_in(directory.path("out.partial"));
  EXPECT_THAT(before, testing::Contains("part-00000-00000.json"));
  PrepareOptions other = options;
  other.seed = 3;
  expect_error(ExitCode::kResumeMismatch, {"out.partial", "remove it"},
               [&] { prepare_corpus(other); });
  EXPECT_EQ(names_in(directory.path("out.partial")), before);
  {
    PrepareJob owner(options);
    owner.begin();
    expect_error(ExitCode::kLocked, {"out.partial"}, [&] { prepare_corpus(options); });
  }
  // A file that grew is another corpus.
  std::ofstream(directory.path("in/0.jsonl"), std::ios::app) << "{\"text\": \"new\"}\n";
  expect_error(ExitCode::kResumeMismatch, {"out.partial"}, [&] { prepare_corpus(options); });
}

}  // namespace
}  // namespace ttt::data
