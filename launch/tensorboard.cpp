#include "launch/tensorboard.h"

#include <fmt/format.h>
#include <unistd.h>

#include <array>
#include <bit>
#include <chrono>

#include "dist/launch_environment.h"

namespace ttt::launch {
namespace {

static_assert(std::endian::native == std::endian::little, "records are written in memory order");

constexpr std::array<std::uint32_t, 256> make_crc_table() {
  std::array<std::uint32_t, 256> table{};
  for (std::uint32_t byte = 0; byte < 256; ++byte) {
    std::uint32_t crc = byte;
    for (int bit = 0; bit < 8; ++bit) {
      crc = (crc >> 1U) ^ ((crc & 1U) != 0 ? 0x82f63b78U : 0U);
    }
    table[byte] = crc;
  }
  return table;
}

constexpr std::array<std::uint32_t, 256> kCrcTable = make_crc_table();

/// Records hold CRCs of data that may hold CRCs; masking keeps these from cancelling.
std::uint32_t masked_crc(std::string_view bytes) {
  const std::uint32_t crc = crc32c(bytes);
  return std::rotr(crc, 15) + 0xa282ead8U;
}

template <typename T>
std::string bytes_of(T value) {
  const auto bytes = std::bit_cast<std::array<char, sizeof(T)>>(value);
  return {bytes.begin(), bytes.end()};
}

std::string varint(std::uint64_t value) {
  std::string bytes;
  for (; value >= 0x80U; value >>= 7U) {
    bytes += static_cast<char>((value & 0x7fU) | 0x80U);
  }
  bytes += static_cast<char>(value);
  return bytes;
}

// A field of a message is its number and wire type, then its value.
enum WireType : std::uint32_t { kVarint = 0, kFixed64 = 1, kBytes = 2, kFixed32 = 5 };

std::string key(std::uint32_t field, WireType type) { return varint((field << 3U) | type); }

std::string bytes_field(std::uint32_t field, std::string_view value) {
  return key(field, kBytes) + varint(value.size()) + std::string(value);
}

std::string event(std::int64_t step, const std::string& content) {
  const double wall_time =
      std::chrono::duration<double>(std::chrono::system_clock::now().time_since_epoch()).count();
  return key(1, kFixed64) + bytes_of(wall_time) + key(2, kVarint) +
         varint(static_cast<std::uint64_t>(step)) + content;
}

std::string file_name() {
  const auto now = std::chrono::system_clock::now().time_since_epoch();
  return fmt::format("events.out.tfevents.{}.{}.{}",
                     std::chrono::duration_cast<std::chrono::seconds>(now).count(),
                     dist::host_name(), ::getpid());
}

}  // namespace

std::uint32_t crc32c(std::string_view bytes) {
  std::uint32_t crc = 0xffffffffU;
  for (const char byte : bytes) {
    crc = (crc >> 8U) ^ kCrcTable[(crc ^ static_cast<std::uint8_t>(byte)) & 0xffU];
  }
  return ~crc;
}

TensorBoardWriter::TensorBoardWriter(const std::string& directory, std::int64_t resume_step)
    : path_(directory + "/" + file_name()), file_(path_) {
  append_record(event(0, bytes_field(3, "brain.Event:2")));  // Event.file_version
  if (resume_step > 0) {
    const std::string start = key(1, kVarint) + varint(1);         // SessionLog.status: START
    append_record(event(resume_step + 1, bytes_field(7, start)));  // Event.session_log
  }
}

void TensorBoardWriter::write(std::int64_t step,
                              std::span<const std::pair<std::string, double>> scalars) {
  std::string summary;
  for (const auto& [tag, value] : scalars) {
    const std::string item = bytes_field(1, tag) + key(2, kFixed32) +
                             bytes_of(static_cast<float>(value));  // Value.tag, .simple_value
    summary += bytes_field(1, item);                               // Summary.value
  }
  append_record(event(step, bytes_field(5, summary)));  // Event.summary
}

void TensorBoardWriter::append_record(const std::string& event) {
  const std::string length = bytes_of(static_cast<std::uint64_t>(event.size()));
  file_.append(length + bytes_of(masked_crc(length)) + event + bytes_of(masked_crc(event)));
}

}  // namespace ttt::launch
