#include "data/checkpoint/shard_numbers.h"

#include <algorithm>
#include <cstring>

#include "core/base/log.h"
#include "core/base/timer.h"
#include "data/direct_file.h"
#include "data/files.h"

namespace ttt::data {
namespace {

constexpr std::int64_t kBlockBytes = std::int64_t{1} << 20;

void expect_numbers(std::span<const Place> places, std::int64_t begin,
                    std::span<const std::byte> block) {
  const std::int64_t end = begin + std::ssize(block);
  auto place = std::ranges::upper_bound(places, begin, {}, &Place::end);
  for (; place != places.end() && place->offset < end; ++place) {
    const std::int64_t from = std::max(begin, place->offset);
    const std::int64_t to = std::min(end, place->end());
    if (std::memcmp(block.data() + (from - begin), place->content.data() + (from - place->offset),
                    static_cast<std::size_t>(to - from)) != 0) {
      fail(ExitCode::kCorruptInput, "{} is not what was written", place->name);
    }
  }
}

}  // namespace

void write_numbers(const std::string& path, std::span<const Place> places) {
  DirectFile file(path, DirectFile::Use::kWrite);
  for (const Place& place : places) file.write_at(place.offset, place.content);
  file.sync();
}

std::string read_back(const std::string& path, std::span<const Place> places) {
  DirectFile file(path, DirectFile::Use::kRead);
  const std::int64_t num_bytes = file_size_bytes(path);
  Xxh3Digest digest;
  std::vector<std::byte> memory(kBlockBytes);
  for (std::int64_t begin = 0; begin < num_bytes; begin += kBlockBytes) {
    const std::int64_t count = std::min(kBlockBytes, num_bytes - begin);
    const std::span block = std::span(memory).first(static_cast<std::size_t>(count));
    file.read_at(begin, block);
    expect_numbers(places, begin, block);
    digest.update(block);
  }
  return digest.hex();
}

}  // namespace ttt::data
