// Windows, masks, order and losses against tests/data/windows/golden.json, which a script makes from ttt-lm-jax's rules.

#include "launch/batch_reader.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <fstream>
#include <nlohmann/json.hpp>

#include "tests/launch/temporary_directory.h"
#include "tests/support/tensors.h"

namespace ttt::launch {
namespace {

using Ids = std::vector<std::int64_t>;

std::string golden_file(const std::string& name) {
  return std::string(TTT_SOURCE_DIR) + "/tests/data/windows/" + name;
}

nlohmann::json golden() { return nlohmann::json::parse(std::ifstream(golden_file("golden.json"))); }

config::RunConfig golden_config(const nlohmann::json& golden) {
  config::RunConfig config;
  config.mutable_model()->set_vocab_size(golden["vocab_size"]);
  config.mutable_data()->add_train(golden_file("tokens.npy"));
  config.mutable_data()->set_context_length(golden["context_length"]);
  config.mutable_data()->set_masked_target(golden["bos_id"]);
  config.mutable_data()->set_order(config::DataConfig::SEQUENTIAL);
  return config;
}

template <typename T>
std::vector<T> row_of(const Tensor& tensor, std::int64_t row) {
  const auto values = tensor.view().slice(row, row + 1).span<T>();
  return {values.begin(), values.end()};
}

TEST(BatchReaderGolden, WindowsAreThoseOfTheAuthors) {
  const nlohmann::json expected = golden();
  const BatchReader reader(golden_config(expected), data::Split::kTrain);
  const auto count = static_cast<std::int64_t>(expected["windows"].size());
  ASSERT_EQ(reader.num_windows(), count);
  const BatchReader::Buffers buffers = reader.make_buffers(count);
  reader.read(0, count, buffers);
  for (std::int64_t i = 0; i < count; ++i) {
    const auto& window = expected["windows"][static_cast<std::size_t>(i)];
    EXPECT_EQ(row_of<std::int64_t>(buffers.ids, i), window["inputs"].get<Ids>()) << i;
    EXPECT_EQ(row_of<std::int64_t>(buffers.targets, i), window["targets"].get<Ids>()) << i;
  }
}

TEST(BatchReaderGolden, MasksAndLossesAreThoseOfTheAuthors) {
  const nlohmann::json expected = golden();
  const BatchReader reader(golden_config(expected), data::Split::kTrain);
  const std::int64_t rows = expected["batch_size"];
  for (const auto& batch : expected["batches"]) {
    double loss = 0;
    for (std::int64_t row = 0; row < rows; ++row) {
      const auto at = static_cast<std::size_t>(row);
      const BatchReader::Buffers buffers = reader.make_buffers(1);
      reader.read(batch["windows"][at].get<std::int64_t>(), rows, buffers);
      EXPECT_EQ(row_of<double>(buffers.mask, 0), batch["masks"][at].get<std::vector<double>>());
      double row_loss = 0;  // this row's term of the batch's loss
      for (std::int64_t t = 0; t < reader.context_length(); ++t) {
        const double nll = 1 + static_cast<double>((7 * row + 3 * t) % 11) / 8;
        row_loss += buffers.weight.data<double>()[t] * nll;
      }
      // A few roundings of numbers near one.
      EXPECT_NEAR(row_loss * static_cast<double>(rows), batch["row_losses"][at].get<double>(),
                  1e-14);
      loss += row_loss;
    }
    EXPECT_NEAR(loss, batch["loss"].get<double>(), 1e-14);
  }
}

TEST(BatchReaderGolden, AnOrderIsReplayed) {
  const nlohmann::json expected = golden();
  config::RunConfig config = golden_config(expected);
  config.mutable_data()->set_order_file(golden_file("order.npy"));
  const std::int64_t rows = expected["batch_size"];
  const auto batches = static_cast<std::int64_t>(expected["batches"].size());
  config.mutable_train()->set_batch_size(rows);
  config.mutable_train()->set_steps(batches);
  const BatchReader reader(config, data::Split::kTrain);
  const BatchReader::Buffers buffers = reader.make_buffers(rows);
  for (std::int64_t step = 0; step < batches; ++step) {
    reader.read(step * rows, rows, buffers);
    for (std::int64_t row = 0; row < rows; ++row) {
      const auto& batch = expected["batches"][static_cast<std::size_t>(step)];
      const std::size_t window = batch["windows"][static_cast<std::size_t>(row)];
      EXPECT_EQ(row_of<std::int64_t>(buffers.ids, row),
                expected["windows"][window]["inputs"].get<Ids>());
      EXPECT_EQ(row_of<double>(buffers.mask, row),
                batch["masks"][static_cast<std::size_t>(row)].get<std::vector<double>>());
    }
  }
  config.mutable_train()->set_steps(batches + 1);
  ExitCode code = ExitCode::kOk;
  const std::string error =
      test::error_of([&] { const BatchReader wanting(config, data::Split::kTrain); }, &code);
  EXPECT_EQ(code, ExitCode::kUsage);
  EXPECT_THAT(error,
              testing::HasSubstr("30 samples; train.steps = 11 of train.batch_size = 3 need 33"));
}

// Three sources whose tokens tell which they are: source s has the ids 10 s + 3 to 10 s + 9.
class MixedReaderTest : public testing::Test {
 protected:
  MixedReaderTest() {
    config_.mutable_model()->set_vocab_size(40);
    config_.mutable_data()->set_context_length(4);
    for (std::int32_t s = 0; s < 3; ++s) {
      const std::string path = directory_.file(fmt::format("{}.h5", s));
      data::TokenShardWriter writer(path, 40, 1, 2);
      std::vector<std::int32_t> ids;
      for (std::int32_t i = 0; i < 41 + 20 * s; ++i) ids.push_back(10 * s + 3 + i % 7);
      writer.append_document(ids);
      writer.finish();
      config::DataSource& source = *config_.mutable_data()->add_sources();
      source.set_name(std::string(1, static_cast<char>('a' + s)));
      source.add_train(path);
      source.set_weight(s + 1);
    }
  }

  test::TemporaryDirectory directory_;
  config::RunConfig config_;
};

TEST_F(MixedReaderTest, EverySourceGoesThroughItsOwnEpochs) {
  const BatchReader reader(config_, data::Split::kTrain);
  const BatchReader::Buffers buffers = reader.make_buffers(1);
  std::vector<std::vector<std::int64_t>> windows(3);
  for (std::int64_t n = 0; n < 180; ++n) {
    reader.read(n, 1, buffers);
    const auto source = static_cast<std::size_t>(buffers.ids.data<std::int64_t>()[0] / 10);
    const BatchReader::Place place = reader.place_of(n);
    EXPECT_EQ(&place.source, &reader.sources()[source]);
    EXPECT_EQ(place.position, std::ssize(windows[source]));
    windows[source].push_back(place.window);
  }
  EXPECT_EQ(reader.counts(180), (std::vector<std::int64_t>{30, 60, 90}));
  for (std::size_t s = 0; s < 3; ++s) {
    const std::int64_t epoch = reader.sources()[s].layout.num_windows();
    ASSERT_EQ(epoch, 10 + 5 * static_cast<std::int64_t>(s));
    for (std::int64_t begin = 0; begin + epoch <= std::ssize(windows[s]); begin += epoch) {
      std::vector<std::int64_t> seen(windows[s].begin() + begin,
                                     windows[s].begin() + begin + epoch);
      std::ranges::sort(seen);
      for (std::int64_t i = 0; i < epoch; ++i) EXPECT_EQ(seen[static_cast<std::size_t>(i)], i);
    }
  }
}

TEST_F(MixedReaderTest, ASourcesOrderDependsOnNoOther) {
  const BatchReader all(config_, data::Split::kTrain);
  config_.mutable_data()->mutable_sources()->DeleteSubrange(0, 1);
  const BatchReader two(config_, data::Split::kTrain);
  for (std::int64_t i = 0; i < 40; ++i) {
    EXPECT_EQ(all.sources()[1].sampler.window_at(i), two.sources()[0].sampler.window_at(i));
  }
}

TEST_F(MixedReaderTest, SourcesOfTheSameTokensHaveTheirOwnOrders) {
  config_.mutable_data()->mutable_sources(1)->set_train(0, config_.data().sources(0).train(0));
  const BatchReader reader(config_, data::Split::kTrain);
  Ids first;
  Ids second;
  for (std::int64_t i = 0; i < 10; ++i) {
    first.push_back(reader.sources()[0].sampler.window_at(i));
    second.push_back(reader.sources()[1].sampler.window_at(i));
  }
  EXPECT_NE(first, second);
}

TEST_F(MixedReaderTest, VocabulariesMustAgree) {
  const std::string path = directory_.file("other.h5");
  data::TokenShardWriter writer(path, 39, 1, 2);
  writer.append_document(std::vector<std::int32_t>(9, 3));
  writer.finish();
  config_.mutable_data()->mutable_sources(2)->set_train(0, path);
  const std::string error =
      test::error_of([&] { const BatchReader reader(config_, data::Split::kTrain); });
  EXPECT_THAT(error, testing::HasSubstr("source c has a vocabulary of 39"));
}

}  // namespace
}  // namespace ttt::launch
