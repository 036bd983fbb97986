#pragma once
// The contract checks that the entry points of kernels/ttt.h share, and the loop over (batch, head) pairs.

#include <omp.h>

#include <algorithm>
#include <cstdint>
#include <memory>
#include <vector>

#include "kernels/cpu/ttt_block.h"
#include "kernels/cpu/ttt_linear.h"
#include "kernels/cpu/ttt_mlp.h"

namespace ttt::kernels::ttt_cpu {

/// Shapes and element types of `inputs` and `initial`; throws what does not fit.
Extents checked_extents(const TttInputs& inputs, const TttOptions& options,
                        const TttState& initial);
/// Throws unless `view` is a tensor of this shape and element type.
void check_tensor(const char* name, const TensorView& view, const Shape& shape, DType dtype);
/// `state` must have all members that `e` asks for; with `may_be_empty` it may have none at all.
void check_state(const char* name, const Extents& e, const TttState& state, DType dtype,
                 bool may_be_empty);

/// f(double{} or float{}, the learner's type as a null pointer).
template <typename T, typename F>
void visit_learner(const Extents& e, F&& f) {
  if (e.mlp) {
    f(static_cast<MlpLearner<T>*>(nullptr));
  } else {
    f(static_cast<LinearLearner<T>*>(nullptr));
  }
}

/// run(worker, pair) for every pair. One thread computes a pair from start to end, so that bits do not depend on
/// how many threads there are. Workers are made before the threads start: their allocation may throw.
template <typename Worker, typename Make, typename Run>
void for_each_pair(const Extents& e, Make&& make, Run&& run) {
  const std::int64_t pairs = e.num_pairs();
  const int threads = static_cast<int>(
      std::max<std::int64_t>(1, std::min<std::int64_t>(omp_get_max_threads(), pairs)));
  std::vector<std::unique_ptr<Worker>> workers;
  workers.reserve(static_cast<std::size_t>(threads));
  for (int i = 0; i < threads; ++i) workers.push_back(make());
#pragma omp parallel for num_threads(threads) schedule(dynamic, 1)
  for (std::int64_t pair = 0; pair < pairs; ++pair) {
    run(*workers[static_cast<std::size_t>(omp_get_thread_num())], pair);
  }
}

}  // namespace ttt::kernels::ttt_cpu
