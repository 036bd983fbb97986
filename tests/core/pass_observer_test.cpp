// What a pass reports about itself is true: gradients that it calls final are, and it reads no parameter that it has not
// asked for.

#include <limits>

#include "tests/core/model_cases.h"

namespace ttt {
namespace {

using test::ModelCase;
using test::SmallModel;

class Watch final : public PassObserver {
 public:
  Watch(TensorView values, TensorView gradients) : values_(values), gradients_(gradients) {
    true_values_ = to_dtype(values, values.dtype());
    fill(values, std::numeric_limits<double>::quiet_NaN());
  }
  void before_reading(std::int64_t end, Stream& /*stream*/) override {
    EXPECT_GE(end, num_readable_);
    num_readable_ = end;
    copy(true_values_.view().slice(0, end), values_.slice(0, end));
  }
  void after_gradients(std::int64_t begin, Stream& /*stream*/) override {
    EXPECT_EQ(num_readable_, values_.numel()) << "backward before forward has read everything";
    EXPECT_LE(begin, first_final_);
    first_final_ = begin;
    final_.push_back({begin, to_dtype(gradients_.slice(begin, gradients_.numel()), DType::kF64)});
  }
  void expect_all_was_final() const {
    EXPECT_EQ(first_final_, 0);
    for (const auto& [begin, reported] : final_) {
      EXPECT_TRUE(test::same_bits(reported, gradients_.slice(begin, gradients_.numel())))
          << "gradients from " << begin << " on changed after they were final";
    }
  }

 private:
  TensorView values_, gradients_;
  Tensor true_values_;
  std::int64_t num_readable_ = 0;
  std::int64_t first_final_ = std::numeric_limits<std::int64_t>::max();
  std::vector<std::pair<std::int64_t, Tensor>> final_;
};

class PassObserverTest : public testing::TestWithParam<ModelCase> {};

TEST_P(PassObserverTest, IsToldTheTruth) {
  SmallModel small(GetParam().model, DType::kF64);
  const Tensor nll = small.forward_backward();
  const Tensor gradients = to_dtype(small.gradients, DType::kF64);
  for (const bool recompute : {false, true}) {
    fill(small.gradients, 0);
    Watch watch(small.model.parameters().values(), small.gradients);
    small.context.observer = &watch;
    const Tensor again = test::unset(nll.shape(), DType::kF64);
    small.model.forward_backward(small.batch(), again, recompute, small.context);
    watch.expect_all_was_final();
    EXPECT_TRUE(test::same_bits(nll, again));
    EXPECT_TRUE(test::same_bits(gradients, small.gradients));
  }
}

TEST_P(PassObserverTest, BucketsAreWholeLayersThatCoverTheBuffer) {
  const LanguageModel model(GetParam().model, test::kTokens);
  const std::int64_t n = model.parameters().num_elements();
  for (const std::int64_t smallest : {std::int64_t{1}, std::int64_t{3000}, n + 1}) {
    std::int64_t end = 0;
    for (const FlatRange& bucket : model.buckets(smallest)) {
      EXPECT_EQ(bucket.begin, end);
      EXPECT_TRUE(bucket.size() >= smallest || bucket.begin == 0) << bucket.size();
      end = bucket.end;
    }
    EXPECT_EQ(end, n);
  }
  EXPECT_EQ(model.buckets(n + 1).size(), 1U);
  EXPECT_EQ(model.buckets(1).size(), 4U);  // embedding, two blocks, what follows
}

/// All mixers, tied and untied: what is reported does not depend on a mixer's switches.
std::vector<ModelCase> some_cases() {
  std::vector<ModelCase> cases;
  const std::vector<ModelCase> all = test::model_cases();
  for (std::size_t i = 0; i < all.size(); i += 7) cases.push_back(all[i]);
  return cases;
}

INSTANTIATE_TEST_SUITE_P(Models, PassObserverTest, testing::ValuesIn(some_cases()),
                         test::case_name);

}  // namespace
}  // namespace ttt
