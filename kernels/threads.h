#pragma once
// How many threads the CPU kernels of this process use.
//
// Dims: none.
// Numerics: results do not depend on the number.
// Errors: kInternal for a number below one.
// Source: none.

namespace ttt::kernels {

void set_num_threads(int num_threads);
int num_threads();

/// Processors this process may run on (its affinity mask).
int num_usable_processors();

}  // namespace ttt::kernels
