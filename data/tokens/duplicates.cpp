#include "data/tokens/duplicates.h"

#include <fcntl.h>
#include <xxhash.h>

#include <algorithm>
#include <functional>
#include <span>
#include <tuple>

#include "core/base/error.h"
#include "data/files.h"

namespace ttt::data {
namespace {

struct Digest {
  std::uint64_t high, low;
};

std::string_view bytes_of(const auto& values) {
  return {reinterpret_cast<const char*>(values.data()), values.size() * sizeof(values[0])};
}

template <typename T>
void read_records(const std::string& path, const std::function<void(const T&)>& visit) {
  constexpr std::int64_t kBlock = 1 << 16;
  const FileDescriptor file(path, O_RDONLY);
  const std::int64_t count = file.size_bytes() / static_cast<std::int64_t>(sizeof(T));
  std::vector<T> block;
  for (std::int64_t begin = 0; begin < count; begin += kBlock) {
    block.resize(static_cast<std::size_t>(std::min(kBlock, count - begin)));
    file.read_at(begin * static_cast<std::int64_t>(sizeof(T)),
                 std::as_writable_bytes(std::span(block)));
    for (const T& record : block) visit(record);
  }
}

}  // namespace

void write_digests(const PreparePart& part, const PrepareOptions& options,
                   const std::string& path) {
  std::vector<Digest> digests;
  read_part(part, options, [&](CorpusItem&& item) {
    if (!item.rejected.empty()) return;
    judge_item(part, options, item);
    const std::string& text = item.document.text;
    const XXH128_hash_t hash = XXH3_128bits(text.data(), text.size());
    digests.push_back(item.left_out.empty() ? Digest{hash.high64, hash.low64} : Digest{0, 0});
  });
  write_file_atomically(path, bytes_of(digests));
}

void find_duplicates(const std::vector<std::string>& digest_paths,
                     const std::vector<std::string>& duplicate_paths, std::size_t max_in_memory) {
  struct Entry {
    Digest digest;
    std::size_t part;
    std::int64_t number;
  };
  const auto key = [](const Entry& e) {
    return std::tie(e.digest.high, e.digest.low, e.part, e.number);
  };
  std::size_t total = 0;
  for (const std::string& path : digest_paths) {
    total += static_cast<std::size_t>(file_size_bytes(path)) / sizeof(Digest);
  }
  const std::size_t passes = total / max_in_memory + 1;  // each takes the digests of one residue
  std::vector<std::vector<std::int64_t>> duplicates(digest_paths.size());
  std::vector<Entry> entries;
  for (std::size_t pass = 0; pass < passes; ++pass) {
    entries.clear();
    for (std::size_t part = 0; part < digest_paths.size(); ++part) {
      std::int64_t number = 0;
      read_records<Digest>(digest_paths[part], [&](const Digest& digest) {
        const bool is_left_out = digest.high == 0 && digest.low == 0;
        if (!is_left_out && digest.low % passes == pass) entries.push_back({digest, part, number});
        ++number;
      });
    }
    std::ranges::sort(entries, std::less<>{}, key);
    for (std::size_t i = 1; i < entries.size(); ++i) {
      if (entries[i].digest.high == entries[i - 1].digest.high &&
          entries[i].digest.low == entries[i - 1].digest.low) {
        duplicates[entries[i].part].push_back(entries[i].number);
      }
    }
  }
  for (std::size_t part = 0; part < duplicates.size(); ++part) {
    std::ranges::sort(duplicates[part]);
    write_file_atomically(duplicate_paths[part], bytes_of(duplicates[part]));
  }
}

std::unordered_set<std::int64_t> read_duplicates(const std::string& path) {
  std::unordered_set<std::int64_t> numbers;
  read_records<std::int64_t>(path, [&](const std::int64_t& number) { numbers.insert(number); });
  return numbers;
}

}  // namespace ttt::data
