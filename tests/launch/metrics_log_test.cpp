#include "launch/metrics_log.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <limits>

#include "core/base/error.h"
#include "tests/launch/temporary_directory.h"

namespace ttt::launch {
namespace {

using test::TemporaryDirectory;
using testing::HasSubstr;

std::vector<std::int64_t> steps_of(const std::string& path) {
  std::vector<std::int64_t> steps;
  for (const MetricsRow& row : read_metrics(path)) {
    steps.push_back(row.step);
  }
  return steps;
}

TEST(MetricsLog, DoublesReadBackTheirBits) {
  const TemporaryDirectory directory;
  const std::string path = directory.file("metrics.jsonl");
  const std::vector<double> values = {0.1, 1.0 / 3.0, 5e-324, 1.7976931348623157e308, -0.0, 3.0};
  MetricsLog log(path, 0);
  MetricsRow row{1, "train", {}};
  for (std::size_t i = 0; i < values.size(); ++i) {
    row.values.emplace_back("v" + std::to_string(i), values[i]);
  }
  log.write(row);
  const auto rows = read_metrics(path);
  ASSERT_EQ(rows.size(), 1U);
  for (std::size_t i = 0; i < values.size(); ++i) {
    EXPECT_EQ(std::bit_cast<std::uint64_t>(rows[0].number("v" + std::to_string(i))),
              std::bit_cast<std::uint64_t>(values[i]));
  }
}

TEST(MetricsLog, KeepsOrderKindsAndTypes) {
  const MetricsRow row{
      7, "run", {{"z", std::int64_t{1} << 60U}, {"a", 2.5}, {"note", "a \"b\"\n"}}};
  EXPECT_EQ(format_row(row),
            R"({"step":7,"kind":"run","z":1152921504606846976,"a":2.5,"note":"a \"b\"\n"})");
  EXPECT_TRUE(std::isnan(row.number("missing")));
  EXPECT_TRUE(std::isnan(row.number("note")));
}

TEST(MetricsLog, NonFiniteNumbersAreNullAndReadAsNaN) {
  const TemporaryDirectory directory;
  const std::string path = directory.file("metrics.jsonl");
  MetricsLog(path, 0).write({1, "train", {{"loss", std::numeric_limits<double>::infinity()}}});
  EXPECT_EQ(read_file(path), "{\"step\":1,\"kind\":\"train\",\"loss\":null}\n");
  EXPECT_TRUE(std::isnan(read_metrics(path)[0].number("loss")));
}

TEST(MetricsLog, ResumeDropsLaterRowsAndContinues) {
  const TemporaryDirectory directory;
  const std::string path = directory.file("metrics.jsonl");
  {
    MetricsLog log(path, 0);
    for (std::int64_t step = 1; step <= 5; ++step) {
      log.write({step, "train", {{"loss", 1.0 / static_cast<double>(step)}}});
    }
    log.write({3, "eval", {{"loss", 2.0}}});
    log.sync();
  }
  MetricsLog log(path, 3);
  EXPECT_EQ(steps_of(path), (std::vector<std::int64_t>{1, 2, 3, 3}));
  log.write({4, "train", {{"loss", 0.25}}});
  EXPECT_EQ(steps_of(path), (std::vector<std::int64_t>{1, 2, 3, 3, 4}));
}

TEST(MetricsLog, ResumeDropsALineCutShort) {
  const TemporaryDirectory directory;
  const std::string path = directory.file("metrics.jsonl");
  directory.write("metrics.jsonl", "{\"step\":1,\"kind\":\"train\"}\n{\"step\":2,\"ki");
  EXPECT_EQ(steps_of(path), (std::vector<std::int64_t>{1}));
  MetricsLog log(path, 9);
  log.write({2, "train", {}});
  EXPECT_EQ(read_file(path), "{\"step\":1,\"kind\":\"train\"}\n{\"step\":2,\"kind\":\"train\"}\n");
}

TEST(MetricsLog, FreshRunStartsEmpty) {
  const TemporaryDirectory directory;
  directory.write("metrics.jsonl", "{\"step\":1,\"kind\":\"train\"}\n");
  const MetricsLog log(directory.file("metrics.jsonl"), 0);
  EXPECT_EQ(read_file(directory.file("metrics.jsonl")), "");
}

TEST(MetricsLog, DamageIsNamedByLine) {
  const TemporaryDirectory directory;
  for (const std::string bad : {"{\"step\":1}", "nonsense", "[]", "{\"step\":1.5,\"kind\":\"a\"}",
                                "{\"step\":1,\"kind\":\"a\",\"x\":[1]}"}) {
    directory.write("metrics.jsonl", "{\"step\":1,\"kind\":\"train\"}\n" + bad + "\n");
    try {
      read_metrics(directory.file("metrics.jsonl"));
      ADD_FAILURE() << bad << " was accepted";
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), ExitCode::kCorruptInput);
      EXPECT_THAT(error.what(), HasSubstr("metrics.jsonl:2: not a row"));
    }
  }
}

TEST(MetricsLog, MissingFilesAndDuplicateKeysAreErrors) {
  const TemporaryDirectory directory;
  try {
    read_metrics(directory.file("absent.jsonl"));
    ADD_FAILURE();
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ExitCode::kMissingInput);
  }
  try {
    MetricsLog(directory.file("absent/metrics.jsonl"), 0);
    ADD_FAILURE();
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ExitCode::kIo);
    EXPECT_THAT(error.what(), HasSubstr("absent/metrics.jsonl"));
  }
  EXPECT_THROW((void)format_row({1, "train", {{"step", 2.0}}}), Error);
}

}  // namespace
}  // namespace ttt::launch
