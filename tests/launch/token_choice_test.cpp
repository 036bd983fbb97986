#include "launch/token_choice.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <vector>

#include "core/base/error.h"

namespace ttt::launch {
namespace {

using Logits = std::vector<double>;

constexpr double kInfinity = std::numeric_limits<double>::infinity();

const CounterRng& rng() {
  static const CounterRng generator(1, "test");
  return generator;
}

// Probabilities 0.5, 0.3 and 0.2, not in order of size.
Logits three_logits() { return {std::log(0.2), std::log(0.5), std::log(0.3)}; }

// Share of each token among many choices.
std::vector<double> frequencies(const Logits& logits, const TokenChoice& choice) {
  constexpr int kCount = 40000;
  std::vector<double> shares(logits.size());
  for (int i = 0; i < kCount; ++i) {
    const std::int64_t id = choose_token(logits, choice, rng(), static_cast<std::uint64_t>(i));
    shares.at(static_cast<std::size_t>(id)) += 1.0 / kCount;
  }
  return shares;
}

void expect_frequencies(const TokenChoice& choice, const std::vector<double>& expected) {
  const std::vector<double> found = frequencies(three_logits(), choice);
  for (std::size_t id = 0; id < expected.size(); ++id) {
    if (expected[id] == 0) {
      EXPECT_EQ(found[id], 0) << "token " << id;
    } else {
      // Four standard deviations of a share of 40000 are at most 0.01.
      EXPECT_NEAR(found[id], expected[id], 0.01) << "token " << id;
    }
  }
}

ExitCode code_of(const TokenChoice& choice) {
  try {
    check_token_choice(choice);
  } catch (const Error& error) {
    return error.code();
  }
  return ExitCode::kOk;
}

TEST(TokenChoice, FrequenciesAreTheSoftmax) { expect_frequencies({}, {0.2, 0.5, 0.3}); }

TEST(TokenChoice, TemperatureDividesLogits) {
  const double sum = std::sqrt(0.2) + std::sqrt(0.5) + std::sqrt(0.3);
  expect_frequencies({.temperature = 2},
                     {std::sqrt(0.2) / sum, std::sqrt(0.5) / sum, std::sqrt(0.3) / sum});
}

TEST(TokenChoice, TemperatureZeroIsTheMostLikely) {
  expect_frequencies({.temperature = 0}, {0, 1, 0});
  expect_frequencies({.temperature = 0, .top_k = 3, .top_p = 0.1}, {0, 1, 0});
}

TEST(TokenChoice, TopKKeepsTheMostLikely) {
  expect_frequencies({.top_k = 1}, {0, 1, 0});
  expect_frequencies({.top_k = 2}, {0, 0.625, 0.375});
  expect_frequencies({.top_k = 3}, {0.2, 0.5, 0.3});
  expect_frequencies({.top_k = 100}, {0.2, 0.5, 0.3});
}

TEST(TokenChoice, TopPKeepsTheFewestThatReachIt) {
  expect_frequencies({.top_p = 1e-9}, {0, 1, 0});
  expect_frequencies({.top_p = 0.49}, {0, 1, 0});
  expect_frequencies({.top_p = 0.51}, {0, 0.625, 0.375});
  expect_frequencies({.top_p = 0.79}, {0, 0.625, 0.375});
  expect_frequencies({.top_p = 0.81}, {0.2, 0.5, 0.3});
}

TEST(TokenChoice, TopPIsAShareOfWhatTopKLeft) {
  expect_frequencies({.top_k = 2, .top_p = 0.6}, {0, 1, 0});  // 0.625 of the two
  expect_frequencies({.top_k = 2, .top_p = 0.7}, {0, 0.625, 0.375});
}

TEST(TokenChoice, TiesGoToTheSmallerId) {
  const Logits logits = {0, 2, 2, 2, 1};
  EXPECT_EQ(choose_token(logits, {.temperature = 0}, rng(), 0), 1);
  const std::vector<double> two = frequencies(logits, {.top_k = 2});
  EXPECT_GT(two[1], 0);
  EXPECT_GT(two[2], 0);
  EXPECT_EQ(two[3], 0);
}

TEST(TokenChoice, IsAFunctionOfSeedAndIndex) {
  const Logits logits(50, 0.0);
  int equal = 0;
  for (std::uint64_t index = 0; index < 200; ++index) {
    const std::int64_t id = choose_token(logits, {}, rng(), index);
    EXPECT_EQ(id, choose_token(logits, {}, CounterRng(1, "test"), index));
    equal += id == choose_token(logits, {}, CounterRng(2, "test"), index) ? 1 : 0;
  }
  EXPECT_LT(equal, 20);  // of 200, 4 are expected by chance
}

TEST(TokenChoice, LargeLogitsAndSmallTemperaturesDoNotOverflow) {
  EXPECT_EQ(choose_token(Logits{-1e5, 1e5, 0}, {}, rng(), 0), 1);
  EXPECT_EQ(choose_token(Logits{1, 3, 2}, {.temperature = 1e-300}, rng(), 0), 1);
}

TEST(TokenChoice, ImpossibleTokensAreNeverChosen) {
  const std::vector<double> found = frequencies({-kInfinity, 0, -kInfinity, 0}, {});
  EXPECT_EQ(found[0] + found[2], 0);
}

TEST(TokenChoice, ALogitThatIsNotANumberIsAnError) {
  for (const double temperature : {0.0, 1.0}) {
    try {
      choose_token(Logits{0, std::nan("")}, {.temperature = temperature}, rng(), 0);
      ADD_FAILURE() << "no error";
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), ExitCode::kNumerical);
    }
  }
}

TEST(TokenChoice, OptionsAreChecked) {
  EXPECT_EQ(code_of({}), ExitCode::kOk);
  EXPECT_EQ(code_of({.temperature = 0, .top_k = 5, .top_p = 0.5}), ExitCode::kOk);
  EXPECT_EQ(code_of({.temperature = -0.1}), ExitCode::kUsage);
  EXPECT_EQ(code_of({.temperature = std::nan("")}), ExitCode::kUsage);
  EXPECT_EQ(code_of({.top_k = -1}), ExitCode::kUsage);
  EXPECT_EQ(code_of({.top_p = 0}), ExitCode::kUsage);
  EXPECT_EQ(code_of({.top_p = 1.01}), ExitCode::kUsage);
  EXPECT_EQ(code_of({.top_p = std::nan("")}), ExitCode::kUsage);
}

}  // namespace
}  // namespace ttt::launch
