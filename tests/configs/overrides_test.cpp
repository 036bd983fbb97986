// `--set field=value`.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "configs/run_config.h"

namespace ttt::config {
namespace {

using testing::AllOf;
using testing::HasSubstr;

// What is said of a bad assignment.
std::string problem_of(const std::string& assignment) {
  RunConfig config;
  return apply_override(config, assignment);
}

TEST(Overrides, SetEveryTypeOfField) {
  RunConfig config;
  for (const char* assignment :
       {"name=a run", "seed=18446744073709551615", "train.steps=-7", "optimizer.beta1=1e-3",
        "optimizer.learning_rate=3", "model.use_gate=true", "model.tie_embeddings=false",
        "model.mixer=TTT_MLP", "train.precision=BF16", "model.ttt.token_scale=ONE",
        "data.train=a,b/c d,e=f", "output_directory=x=\"y\"\\z"}) {
    EXPECT_EQ(apply_override(config, assignment), "");
  }
  EXPECT_EQ(config.name(), "a run");
  EXPECT_EQ(config.seed(), 18446744073709551615U);
  EXPECT_EQ(config.train().steps(), -7);
  EXPECT_EQ(config.optimizer().beta1(), 1e-3);
  EXPECT_EQ(config.optimizer().learning_rate(), 3);
  EXPECT_TRUE(config.model().use_gate());
  EXPECT_FALSE(config.model().tie_embeddings());
  EXPECT_EQ(config.model().mixer(), TTT_MLP);
  EXPECT_EQ(config.train().precision(), BF16);
  EXPECT_EQ(config.model().ttt().token_scale(), TttConfig::ONE);
  EXPECT_THAT(config.data().train(), testing::ElementsAre("a", "b/c d", "e=f"));
  EXPECT_EQ(config.output_directory(), "x=\"y\"\\z");
}

TEST(Overrides, TheLastOneWins) {
  RunConfig config;
  for (const char* assignment :
       {"train.steps=1", "train.steps=2", "data.train=a,b", "data.train=c", "name=x", "name="}) {
    EXPECT_EQ(apply_override(config, assignment), "");
  }
  EXPECT_EQ(config.train().steps(), 2);
  EXPECT_THAT(config.data().train(), testing::ElementsAre("c"));
  EXPECT_EQ(config.name(), "");
  EXPECT_EQ(apply_override(config, "data.train="), "");
  EXPECT_EQ(config.data().train_size(), 0);
}

TEST(Overrides, OverrideTheFile) {
  const std::string path = std::string(TTT_SOURCE_DIR) + "/configs/tiny.textproto";
  const RunConfig config = load_run_config(path, {"train.steps=7", "optimizer.decay_steps=9"}, 1);
  EXPECT_EQ(config.train().steps(), 7);
  EXPECT_EQ(config.optimizer().decay_steps(), 9);
  EXPECT_EQ(config.model().vocab_size(), 259);
}

TEST(Overrides, ThatAreNoAssignmentAreExplained) {
  EXPECT_THAT(problem_of("train.steps"), HasSubstr("write it as field=value"));
  EXPECT_THAT(problem_of("=3"), HasSubstr("write it as field=value"));
  EXPECT_THAT(problem_of(""), HasSubstr("write it as field=value"));
}

TEST(Overrides, OfUnknownFieldsNameTheNearest) {
  EXPECT_THAT(problem_of("optimiser.beta1=0.9"),
              AllOf(HasSubstr("unknown field \"optimiser\" in ttt.config.RunConfig"),
                    HasSubstr("did you mean \"optimizer\"?")));
  EXPECT_THAT(problem_of("model.ttt.minibatch_size=4"),
              AllOf(HasSubstr("\"minibatch_size\" in ttt.config.TttConfig"),
                    HasSubstr("did you mean \"mini_batch_size\"?")));
  EXPECT_THAT(problem_of("zzzzzzzz=4"), testing::Not(HasSubstr("did you mean")));
}

TEST(Overrides, OfNestedPathsAreChecked) {
  EXPECT_THAT(problem_of("train.steps.more=1"), HasSubstr("\"steps\" has no fields inside"));
  EXPECT_THAT(problem_of("model=1"), HasSubstr("one of its fields: model.vocab_size=..."));
  EXPECT_THAT(problem_of("model.ttt="), HasSubstr("one of its fields"));
  EXPECT_THAT(problem_of("model..use_gate=true"), HasSubstr("unknown field \"\""));
  EXPECT_THAT(problem_of(".seed=1"), HasSubstr("unknown field \"\""));
  EXPECT_THAT(problem_of("optimizer.=3"), HasSubstr("unknown field \"\""));
  EXPECT_THAT(problem_of("seed.=3"), HasSubstr("\"seed\" has no fields inside"));
}

TEST(Overrides, OfTheWrongTypeSayWhatIsExpected) {
  EXPECT_THAT(problem_of("train.steps=1.5"), HasSubstr("\"1.5\" is not a whole number"));
  EXPECT_THAT(problem_of("train.steps="), HasSubstr("is not a whole number"));
  EXPECT_THAT(problem_of("train.steps=1 2"), HasSubstr("is not a whole number"));
  EXPECT_THAT(problem_of("train.steps=5 name: \"x\""), HasSubstr("is not a whole number"));
  EXPECT_THAT(problem_of("train.steps=9223372036854775808"), HasSubstr("is not a whole number"));
  EXPECT_THAT(problem_of("seed=-1"), HasSubstr("is not a whole number"));
  EXPECT_THAT(problem_of("optimizer.beta1=fast"), HasSubstr("\"fast\" is not a number"));
  EXPECT_THAT(problem_of("model.use_gate=yes"), HasSubstr("\"yes\" is not true or false"));
  EXPECT_THAT(problem_of("model.mixer=MAMBA"),
              HasSubstr("is not one of TTT_LINEAR, TTT_MLP, ATTENTION, LINEAR_ATTENTION"));
  EXPECT_THAT(problem_of("name=two\nlines"), HasSubstr("is not text"));
}

TEST(NearestName, IsNearOrEmpty) {
  const std::vector<std::string> names{"steps", "batch_size", "precision"};
  EXPECT_EQ(nearest_name("step", names), "steps");
  EXPECT_EQ(nearest_name("batchsize", names), "batch_size");
  EXPECT_EQ(nearest_name("colour", names), "");
  EXPECT_EQ(nearest_name("", names), "");
  EXPECT_EQ(nearest_name("x", {}), "");
}

}  // namespace
}  // namespace ttt::config
