#pragma once
// Random damage to a file's bytes.

#include <algorithm>
#include <cstddef>
#include <random>
#include <string>

namespace ttt {

// Damage as storage, networks and editors do it: flipped bits, bytes of all ones, truncation, a zero page, an 8-byte
// field, pieces moved, repeated or dropped.
inline std::string damaged(std::string bytes, std::mt19937_64& random) {
  const auto below = [&](std::size_t limit) { return limit == 0 ? 0 : random() % limit; };
  const std::size_t rounds = 1 + below(3);
  for (std::size_t round = 0; round < rounds && !bytes.empty(); ++round) {
    const std::size_t at = below(bytes.size());
    const std::size_t length = std::min(bytes.size() - at, 1 + below(64));
    switch (below(8)) {
      case 0:
        bytes[at] = static_cast<char>(bytes[at] ^ (1 << below(8)));
        break;
      case 1:
        bytes[at] = static_cast<char>(random());
        break;
      case 2:
        bytes.resize(at);
        break;
      case 3:
        std::fill_n(bytes.begin() + std::ptrdiff_t(at), length, '\0');
        break;
      case 4:
        std::fill_n(bytes.begin() + std::ptrdiff_t(at), std::min(length, std::size_t{8}), '\xff');
        break;
      case 5:
        bytes.insert(below(bytes.size()), bytes.substr(at, length));
        break;
      case 6:
        bytes.erase(at, length);
        break;
      default:
        std::swap(bytes[at], bytes[below(bytes.size())]);
        break;
    }
  }
  return bytes;
}

}  // namespace ttt
