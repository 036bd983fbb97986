// data.reset_at_bos: a window's documents are what they would be alone, for every mixer, in training and in decoding.

#include <gtest/gtest.h>

#include <cmath>
#include <optional>

#include "launch/batch_reader.h"
#include "tests/core/model_cases.h"
#include "tests/launch/temporary_directory.h"

namespace ttt::launch {
namespace {

constexpr std::int64_t kBos = 1;
constexpr std::int64_t kLength = 16;
constexpr std::int64_t kRows = 3;

class DocumentReset : public testing::TestWithParam<test::ModelCase> {
 protected:
  DocumentReset() {
    // A document of BOS alone, one that ends with a window, one that is longer than a window; mini-batches are 4.
    const std::vector<std::int64_t> lengths = {5, 1, 6, 4, 24, 2, 7};
    data::TokenShardWriter writer(directory_.file("train.h5"), test::kVocabulary, kBos, 2);
    const CounterRng rng(3, "documents");
    for (const std::int64_t length : lengths) {
      const auto first = static_cast<std::size_t>(ids_.size());
      ids_.push_back(kBos);
      while (ids_.size() < first + static_cast<std::size_t>(length)) {
        ids_.push_back(2 + static_cast<std::int64_t>(rng.bits(ids_.size()) % 15));
      }
      writer.append_document(
          std::vector<std::int32_t>(ids_.begin() + static_cast<std::ptrdiff_t>(first), ids_.end()));
    }
    writer.finish();
    *config_.mutable_model() = GetParam().model;
    config_.mutable_data()->add_train(directory_.file("train.h5"));
    config_.mutable_data()->set_context_length(kLength);
    config_.mutable_data()->set_order(config::DataConfig::SEQUENTIAL);
    config_.mutable_data()->set_reset_at_bos(true);
    model_.emplace(config_.model(), kLength);
    model_->parameters().allocate(DType::kF64);
    model_->parameters().initialize(7);
  }

  test::TemporaryDirectory directory_;
  std::vector<std::int64_t> ids_;  // all tokens
  config::RunConfig config_;
  std::optional<LanguageModel> model_;
  Stream stream_;
  Context context_{stream_};
};

TEST_P(DocumentReset, LossesAndGradientsAreThoseOfSeparateDocuments) {
  const BatchReader reader(config_, data::Split::kTrain);
  const BatchReader::Buffers buffers = reader.make_buffers(kRows);
  reader.read(0, kRows, buffers);
  const Tensor nll = test::unset({kRows, kLength}, DType::kF64);
  const Tensor gradients = Tensor::zeros({model_->parameters().num_elements()}, DType::kF64);
  model_->parameters().bind_gradients(gradients);
  for (const SequenceRange& range : reader.sequences(buffers.ids)) {
    model_->forward_backward(buffers.batch(range), range.of(nll), false, context_);
  }

  const Tensor expected = Tensor::zeros({model_->parameters().num_elements()}, DType::kF64);
  model_->parameters().bind_gradients(expected);
  for (std::int64_t begin = 0, end = 0; begin < kRows * kLength; begin = end) {
    end = begin + 1;
    while (end % kLength != 0 && ids_[static_cast<std::size_t>(end)] != kBos) ++end;
    const Tensor ids({1, end - begin}, DType::kI64);
    const Tensor targets({1, end - begin}, DType::kI64);
    const Tensor weight({1, end - begin}, DType::kF64);
    const Tensor alone({1, end - begin}, DType::kF64);
    for (std::int64_t t = begin; t < end; ++t) {
      ids.data<std::int64_t>()[t - begin] = ids_[static_cast<std::size_t>(t)];
      targets.data<std::int64_t>()[t - begin] = ids_[static_cast<std::size_t>(t + 1)];
      weight.data<double>()[t - begin] = buffers.weight.data<double>()[t];
    }
    model_->forward_backward({ids, targets, weight}, alone, false, context_);
    for (std::int64_t t = begin; t < end; ++t) {
      EXPECT_NEAR(nll.data<double>()[t], alone.data<double>()[t - begin], 1e-12) << t;
    }
  }
  test::expect_close("gradients", gradients.span<double>(), expected.span<double>(), 1e-12);
}

// The same numbers token by token from a fresh state at each BOS; the forms differ in rounding.
TEST_P(DocumentReset, DecodingFromAFreshStateGivesTheSameLosses) {
  const BatchReader reader(config_, data::Split::kTrain);
  const BatchReader::Buffers buffers = reader.make_buffers(1);
  reader.read(0, 1, buffers);
  const Tensor nll = test::unset({1, kLength}, DType::kF64);
  for (const SequenceRange& range : reader.sequences(buffers.ids)) {
    model_->evaluate(buffers.batch(range), range.of(nll), context_);
  }
  const Tensor unreset({1, kLength}, DType::kF64);
  model_->evaluate(buffers.batch(), unreset, context_);
  std::unique_ptr<DecodeState> state;
  double difference = 0;
  for (std::int64_t t = 0; t < kLength; ++t) {
    const Tensor id({1, 1}, DType::kI64);
    id.data<std::int64_t>()[0] = ids_[static_cast<std::size_t>(t)];
    if (t == 0 || ids_[static_cast<std::size_t>(t)] == kBos)
      state = model_->make_decode_state(1, context_);
    const Tensor logits = model_->extend(id, *state, false, context_);
    double sum = 0;
    for (const double logit : logits.span<double>()) sum += std::exp(logit);
    const double logit = logits.data<double>()[ids_[static_cast<std::size_t>(t + 1)]];
    EXPECT_NEAR(nll.data<double>()[t], std::log(sum) - logit, 1e-11) << t;
    difference += std::abs(nll.data<double>()[t] - unreset.data<double>()[t]);
  }
  EXPECT_GT(difference, 1e-9);  // without the reset they are others
}

using Tokens = std::vector<std::int64_t>;

std::vector<SequenceRange> documents_of_lengths(const Tokens& lengths) {
  std::vector<SequenceRange> documents;
  std::int64_t begin = 0;
  for (const std::int64_t length : lengths) {
    documents.push_back({0, 1, begin, begin + length});
    begin += length;
  }
  return documents;
}

// "begin:end", with "/" before the parts of documents that all ranks run.
std::vector<std::string> share(const Tokens& lengths, const DocumentSharing& sharing, int rank) {
  std::vector<std::string> text;
  for (const SequenceRange& range : share_of_rank(documents_of_lengths(lengths), sharing, rank)) {
    text.push_back(fmt::format("{}{}:{}", range.bounds.empty() ? "" : "/", range.begin, range.end));
  }
  return text;
}

using Share = std::vector<std::string>;

TEST(DocumentSharing, LongDocumentsAreCutOverAllRanksAndComeFirst) {
  const DocumentSharing two{2, 4, 8, 4};
  EXPECT_EQ(share({3, 9, 8, 17}, two, 0), (Share{"/3:7", "/20:28", "12:20"}));
  EXPECT_EQ(share({3, 9, 8, 17}, two, 1), (Share{"/7:12", "/28:37", "0:3"}));
}

TEST(DocumentSharing, OthersAreDealtTheLongestFirstToTheRankWithTheFewestTokens) {
  const DocumentSharing three{3, 1, 10, 2};
  EXPECT_EQ(share({2, 9, 5, 5, 4, 1}, three, 0), (Share{"2:11"}));
  EXPECT_EQ(share({2, 9, 5, 5, 4, 1}, three, 1), (Share{"11:16", "21:25"}));
  EXPECT_EQ(share({2, 9, 5, 5, 4, 1}, three, 2), (Share{"0:2", "16:21", "25:26"}));
  // The parts of long ones count: 2, 3 and 3 tokens of the first.
  EXPECT_EQ(share({8, 1, 1, 1}, {3, 1, 7, 2}, 0), (Share{"/0:2", "8:9", "9:10"}));
  EXPECT_EQ(share({8, 1, 1, 1}, {3, 1, 7, 2}, 1), (Share{"/2:5", "10:11"}));
}

TEST(DocumentSharing, DocumentsThatWouldGiveARankTooMuchAreCutWhereThatIsPossible) {
  // Whole, one rank would have 8 of 20 tokens.
  EXPECT_EQ(share({4, 4, 4, 4, 4}, {4, 1, 5, 3}, 0),
            (Share{"/0:1", "/4:5", "/8:9", "/12:13", "/16:17"}));
  EXPECT_EQ(share({4, 4, 4, 4, 4}, {4, 1, 5, 4}, 0), (Share{"0:4", "16:20"}));
  // An eighth more than 16 of 32 tokens is not too much, 19 are: documents of more than 8 are cut.
  EXPECT_EQ(share({10, 9, 9, 4}, {2, 1, 16, 1}, 1), (Share{"10:19", "19:28"}));
  EXPECT_EQ(share({10, 10, 9, 3}, {2, 1, 16, 1}, 0), (Share{"/0:5", "/10:15", "/20:24", "29:32"}));
  EXPECT_EQ(share({10, 10, 9, 3}, {2, 1, 16, 1}, 1), (Share{"/5:10", "/15:20", "/24:29"}));
}

TEST(DocumentSharing, ARankMayHaveNothing) {
  EXPECT_EQ(share({3, 2}, {3, 4, 8, 8}, 2), Share());
  EXPECT_EQ(share({3, 2}, {1, 4, 5, 0}, 0), (Share{"0:3", "3:5"}));
}

// What varies inside a mixer does not see where a sequence begins.
INSTANTIATE_TEST_SUITE_P(EveryMixer, DocumentReset, testing::ValuesIn(test::published_cases()),
                         test::case_name);

}  // namespace
}  // namespace ttt::launch
