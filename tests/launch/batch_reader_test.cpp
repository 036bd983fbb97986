// Windows, masks, order and losses against tests/data/windows/golden.json, which a script makes from ttt-lm-jax's rules.

#include "launch/batch_reader.h"

#include <gtest/gtest.h>

#include <fstream>
#include <nlohmann/json.hpp>

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

}  // namespace
}  // namespace ttt::launch
