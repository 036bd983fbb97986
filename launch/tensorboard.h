#pragma once
// Scalars for TensorBoard: events.out.tfevents.<unix time>.<host>.<pid>.
//
// A file is a sequence of records (length, masked CRC-32C of the length, data, masked CRC-32C of
// the data), each an Event message. The three messages needed are encoded by hand.
// Source: tensorflow/core/lib/io/record_writer.h, tensorflow/core/util/event.proto.

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <utility>

#include "launch/append_file.h"

namespace ttt::launch {

/// CRC-32C (Castagnoli), reflected: crc32c("123456789") is 0xe3069283.
std::uint32_t crc32c(std::string_view bytes);

class TensorBoardWriter {
 public:
  /// Starts a file in `directory`, which exists. On resume after `resume_step` > 0 finished steps
  /// TensorBoard is told to forget what earlier files say about later steps.
  TensorBoardWriter(const std::string& directory, std::int64_t resume_step);

  /// One event; on the disk's side when it returns. Tags group by the part before a slash.
  void write(std::int64_t step, std::span<const std::pair<std::string, double>> scalars);

  [[nodiscard]] const std::string& path() const { return path_; }

 private:
  void append_record(const std::string& event);

  std::string path_;
  AppendFile file_;
};

}  // namespace ttt::launch
