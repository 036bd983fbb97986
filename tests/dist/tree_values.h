#pragma once
// Gradients whose sum shows the order of its additions, and the definition of that order.

#include <cmath>
#include <string>
#include <vector>

#include "core/base/rng.h"

namespace ttt::dist {

/// Shard gradients of many magnitudes, so that another order of additions gives other bits.
template <typename T>
std::vector<T> shard_gradient(std::int64_t shard, std::int64_t count) {
  const CounterRng rng(7, "shard " + std::to_string(shard));
  std::vector<T> gradient(static_cast<std::size_t>(count));
  for (std::size_t i = 0; i < gradient.size(); ++i) {
    gradient[i] = static_cast<T>(rng.normal(2 * i) * std::exp(4.0 * rng.normal(2 * i + 1)));
  }
  return gradient;
}

/// The definition: pair adjacent nodes, an odd one out passes up, until one is left.
template <typename T>
std::vector<T> tree_sum(std::vector<std::vector<T>> nodes) {
  while (nodes.size() > 1) {
    std::vector<std::vector<T>> parents;
    for (std::size_t i = 0; i + 1 < nodes.size(); i += 2) {
      std::vector<T> sum(nodes[i].size());
      for (std::size_t k = 0; k < sum.size(); ++k) {
        sum[k] = nodes[i][k] + nodes[i + 1][k];
      }
      parents.push_back(sum);
    }
    if (nodes.size() % 2 == 1) {
      parents.push_back(nodes.back());
    }
    nodes = parents;
  }
  return nodes.front();
}

/// Of shards 0 to V - 1.
template <typename T>
std::vector<T> plain_tree(std::int64_t virtual_shards, std::int64_t count) {
  std::vector<std::vector<T>> leaves;
  for (std::int64_t shard = 0; shard < virtual_shards; ++shard) {
    leaves.push_back(shard_gradient<T>(shard, count));
  }
  return tree_sum(leaves);
}

}  // namespace ttt::dist
