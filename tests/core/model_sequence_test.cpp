// What a model does along the sequence: causality, independence of a batch's rows, and generation.

#include <set>

#include "tests/core/model_cases.h"

namespace ttt {
namespace {

using test::kTokens;
using test::ModelCase;
using test::SmallModel;
using test::tokens_of;

// One is the whole sequence at once, the other one token after another: sums are taken in another order,
// with logits of order one. 1e-11 is thousands of roundings.
constexpr double kGenerationTolerance = 1e-11;

class ModelSequence : public testing::TestWithParam<ModelCase> {
 protected:
  // Feeds chunks of these sizes and compares all logits with those of the whole sequence.
  void expect_generation(const std::vector<std::int64_t>& sizes) {
    const Tensor whole = small_.model.logits(small_.ids, small_.context);
    const auto state = small_.model.make_decode_state(test::kBatch, small_.context);
    std::int64_t begin = 0;
    for (const std::int64_t size : sizes) {
      const Tensor logits = small_.model.extend(tokens_of(small_.ids, begin, begin + size), *state,
                                                true, small_.context);
      test::expect_close(
          fmt::format("logits of {} tokens after {}", size, begin), logits.span<double>(),
          tokens_of(whole, begin, begin + size).span<double>(), kGenerationTolerance);
      begin += size;
    }
    ASSERT_EQ(begin, kTokens);
  }

  SmallModel small_{GetParam().model, DType::kF64};
};

TEST_P(ModelSequence, LaterTokensDoNotChangeEarlierLogits) {
  const Tensor before = small_.model.logits(small_.ids, small_.context);
  for (const std::int64_t t : {0, 2, 3, 4, 11}) {
    const Tensor ids = tokens_of(small_.ids, 0, kTokens);
    for (std::int64_t later = t + 1; later < kTokens; ++later) {
      std::int64_t& id = ids.data<std::int64_t>()[later];
      id = (id + 1 + later) % test::kVocabulary;
    }
    const Tensor after = small_.model.logits(ids, small_.context);
    EXPECT_TRUE(test::same_bits(tokens_of(after, 0, t + 1), tokens_of(before, 0, t + 1)))
        << "token " << t << " sees later ones";
    EXPECT_FALSE(
        test::same_bits(tokens_of(after, t + 1, kTokens), tokens_of(before, t + 1, kTokens)));
  }
}

TEST_P(ModelSequence, EarlierTokensReachTheLast) {
  const Tensor before = small_.model.logits(small_.ids, small_.context);
  for (const std::int64_t t : {0, 6, 11}) {
    const Tensor ids = tokens_of(small_.ids, 0, kTokens);
    std::int64_t& id = ids.data<std::int64_t>()[t];
    id = (id + 1) % test::kVocabulary;
    const Tensor after = small_.model.logits(ids, small_.context);
    EXPECT_FALSE(test::same_bits(tokens_of(after, kTokens - 1, kTokens),
                                 tokens_of(before, kTokens - 1, kTokens)));
  }
}

TEST_P(ModelSequence, SequencesOfABatchDoNotInteract) {
  const Tensor before = small_.model.logits(small_.ids, small_.context);
  const Tensor ids = tokens_of(small_.ids, 0, kTokens);
  for (std::int64_t t = 0; t < kTokens; ++t) {
    std::int64_t& id = ids.data<std::int64_t>()[kTokens + t];
    id = (id + 1 + t) % test::kVocabulary;
  }
  const Tensor after = small_.model.logits(ids, small_.context);
  EXPECT_TRUE(test::same_bits(after.view().slice(0, 1), before.view().slice(0, 1)));
  EXPECT_FALSE(test::same_bits(after.view().slice(1, 2), before.view().slice(1, 2)));
}

TEST_P(ModelSequence, PrefillAndSingleTokensEqualTheWhole) {
  const std::int64_t grid = GetParam().mini_batch;
  for (const std::int64_t prefill : std::set<std::int64_t>{1, grid - 1, grid, grid + 1, 2 * grid}) {
    if (prefill < 1 || prefill >= kTokens) continue;
    std::vector<std::int64_t> sizes(static_cast<std::size_t>(kTokens - prefill + 1), 1);
    sizes[0] = prefill;
    expect_generation(sizes);
  }
}

TEST_P(ModelSequence, ChunksEqualTheWhole) {
  expect_generation({kTokens});
  expect_generation({2, 3, 5, 1, 2});  // from within mini-batches of 4, over boundaries
  expect_generation({1, 12});          // over two boundaries
  expect_generation({6, 2, 5});        // up to a boundary, then from it
}

TEST_P(ModelSequence, ExtendEqualsAcrossBatchSizes) {
  const auto both = small_.model.make_decode_state(test::kBatch, small_.context);
  const Tensor first =
      small_.model.extend(tokens_of(small_.ids, 0, 5), *both, false, small_.context);
  const Tensor next = small_.model.extend(tokens_of(small_.ids, 5, 6), *both, true, small_.context);
  ASSERT_EQ(first.shape(), Shape({test::kBatch, 1, test::kVocabulary}));
  const Tensor whole = small_.model.logits(small_.ids, small_.context);
  test::expect_close("logits of the prompt's last token", first.span<double>(),
                     tokens_of(whole, 4, 5).span<double>(), kGenerationTolerance);
  for (std::int64_t b = 0; b < test::kBatch; ++b) {
    const Tensor ids({1, kTokens}, DType::kI64);
    std::ranges::copy(small_.ids.view().slice(b, b + 1).span<std::int64_t>(),
                      ids.data<std::int64_t>());
    const auto one = small_.model.make_decode_state(1, small_.context);
    const Tensor of_one = small_.model.extend(tokens_of(ids, 0, 5), *one, false, small_.context);
    test::expect_close("last logits of the prompt", of_one.span<double>(),
                       first.view().slice(b, b + 1).span<double>(), kGenerationTolerance);
    const Tensor next_of_one =
        small_.model.extend(tokens_of(ids, 5, 6), *one, true, small_.context);
    test::expect_close("logits of the next token", next_of_one.span<double>(),
                       next.view().slice(b, b + 1).span<double>(), kGenerationTolerance);
  }
}

INSTANTIATE_TEST_SUITE_P(Models, ModelSequence, testing::ValuesIn(test::model_cases()),
                         test::case_name);

}  // namespace
}  // namespace ttt
