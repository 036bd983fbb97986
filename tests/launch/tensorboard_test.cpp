#include "launch/tensorboard.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <cmath>
#include <cstring>
#include <filesystem>
#include <limits>
#include <vector>

#include "core/base/error.h"
#include "tests/launch/temporary_directory.h"

namespace ttt::launch {
namespace {

using test::TemporaryDirectory;
using testing::HasSubstr;

/// Bit by bit, from the polynomial: shares nothing with the table under test.
std::uint32_t slow_crc32c(const std::string& bytes) {
  std::uint32_t crc = 0xffffffffU;
  for (const char byte : bytes) {
    for (unsigned bit = 0; bit < 8; ++bit) {
      const std::uint32_t in = (static_cast<std::uint8_t>(byte) >> bit) & 1U;
      crc = ((crc ^ in) & 1U) != 0 ? (crc >> 1U) ^ 0x82f63b78U : crc >> 1U;
    }
  }
  return ~crc;
}

TEST(Crc32c, KnownVectors) {
  EXPECT_EQ(crc32c("123456789"), 0xe3069283U);
  EXPECT_EQ(crc32c(""), 0U);
  EXPECT_EQ(crc32c(std::string(32, '\0')), 0x8a9136aaU);    // RFC 3720, B.4
  EXPECT_EQ(crc32c(std::string(32, '\xff')), 0x62a8ab43U);  // RFC 3720, B.4
  EXPECT_EQ(crc32c("some bytes"), slow_crc32c("some bytes"));
}

template <typename T>
T take(std::string& bytes) {
  T value;
  EXPECT_GE(bytes.size(), sizeof value);
  std::memcpy(&value, bytes.data(), sizeof value);
  bytes.erase(0, sizeof value);
  return value;
}

std::uint64_t take_varint(std::string& bytes) {
  std::uint64_t value = 0;
  for (unsigned shift = 0;; shift += 7) {
    const auto byte = take<std::uint8_t>(bytes);
    value |= static_cast<std::uint64_t>(byte & 0x7fU) << shift;
    if ((byte & 0x80U) == 0) {
      return value;
    }
  }
}

std::string take_bytes(std::string& bytes, std::uint64_t count) {
  EXPECT_GE(bytes.size(), count);
  std::string taken = bytes.substr(0, count);
  bytes.erase(0, count);
  return taken;
}

/// A message's field: which one, and its value in the form of its wire type.
struct Field {
  std::uint64_t number;
  std::uint64_t varint = 0;
  double fixed64 = 0;
  float fixed32 = 0;
  std::string bytes = {};
};

std::vector<Field> parse_message(std::string bytes) {
  std::vector<Field> fields;
  while (!bytes.empty()) {
    const std::uint64_t key = take_varint(bytes);
    Field field{key >> 3U};
    switch (key & 7U) {
      case 0:
        field.varint = take_varint(bytes);
        break;
      case 1:
        field.fixed64 = take<double>(bytes);
        break;
      case 2:
        field.bytes = take_bytes(bytes, take_varint(bytes));
        break;
      case 5:
        field.fixed32 = take<float>(bytes);
        break;
      default:
        ADD_FAILURE() << "wire type " << (key & 7U);
        return fields;
    }
    fields.push_back(field);
  }
  return fields;
}

void expect_masked_crc(std::uint32_t masked, const std::string& bytes) {
  const std::uint32_t rotated = masked - 0xa282ead8U;
  EXPECT_EQ((rotated >> 17U) | (rotated << 15U), slow_crc32c(bytes));
}

std::vector<std::vector<Field>> read_events(const std::string& path) {
  std::string bytes = read_file(path);
  std::vector<std::vector<Field>> events;
  while (!bytes.empty()) {
    const std::string length_bytes = bytes.substr(0, 8);
    const auto length = take<std::uint64_t>(bytes);
    expect_masked_crc(take<std::uint32_t>(bytes), length_bytes);
    const std::string data = take_bytes(bytes, length);
    expect_masked_crc(take<std::uint32_t>(bytes), data);
    events.push_back(parse_message(data));
  }
  return events;
}

TEST(TensorBoard, EventsReadBack) {
  const TemporaryDirectory directory;
  TensorBoardWriter writer(directory.path(), 0);
  const std::vector<std::pair<std::string, double>> first = {{"train/loss", 3.25},
                                                             {"train/learning_rate", 1e-3}};
  writer.write(300, first);
  const std::vector<std::pair<std::string, double>> second = {
      {"eval/loss", std::numeric_limits<double>::quiet_NaN()}};
  writer.write(std::int64_t{1} << 40U, second);

  const auto events = read_events(writer.path());  // before the writer is gone: each is flushed
  ASSERT_EQ(events.size(), 3U);
  EXPECT_EQ(events[0][0].number, 1U);
  EXPECT_GT(events[0][0].fixed64, 1.6e9);
  EXPECT_EQ(events[0][2].number, 3U);
  EXPECT_EQ(events[0][2].bytes, "brain.Event:2");

  EXPECT_EQ(events[1][1].number, 2U);
  EXPECT_EQ(events[1][1].varint, 300U);
  ASSERT_EQ(events[1][2].number, 5U);
  const auto values = parse_message(events[1][2].bytes);
  ASSERT_EQ(values.size(), 2U);
  const auto loss = parse_message(values[0].bytes);
  EXPECT_EQ(loss[0].bytes, "train/loss");
  EXPECT_EQ(loss[1].number, 2U);
  EXPECT_EQ(loss[1].fixed32, 3.25F);
  EXPECT_EQ(parse_message(values[1].bytes)[1].fixed32, 1e-3F);

  EXPECT_EQ(events[2][1].varint, std::uint64_t{1} << 40U);
  EXPECT_TRUE(std::isnan(parse_message(parse_message(events[2][2].bytes)[0].bytes)[1].fixed32));
}

TEST(TensorBoard, ResumeForgetsLaterSteps) {
  const TemporaryDirectory directory;
  const TensorBoardWriter writer(directory.path(), 500);
  const auto events = read_events(writer.path());
  ASSERT_EQ(events.size(), 2U);
  EXPECT_EQ(events[1][1].varint, 501U);
  EXPECT_EQ(events[1][2].number, 7U);  // session_log
  const auto session = parse_message(events[1][2].bytes);
  EXPECT_EQ(session[0].number, 1U);
  EXPECT_EQ(session[0].varint, 1U);  // START
}

TEST(TensorBoard, FileNameIsWhatTensorBoardLooksFor) {
  const TemporaryDirectory directory;
  const TensorBoardWriter writer(directory.path(), 0);
  const std::string name = std::filesystem::path(writer.path()).filename().string();
  EXPECT_THAT(name, testing::StartsWith("events.out.tfevents."));
  EXPECT_THAT(name, testing::EndsWith("." + std::to_string(getpid())));
}

TEST(TensorBoard, MissingDirectoryIsNamed) {
  try {
    const TensorBoardWriter writer("/nonexistent/run", 0);
    ADD_FAILURE();
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ExitCode::kIo);
    EXPECT_THAT(error.what(), HasSubstr("/nonexistent/run/events"));
  }
}

}  // namespace
}  // namespace ttt::launch
