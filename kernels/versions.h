#pragma once
// What the CPU kernels stand on.
//
// Dims: none.
// Numerics: none.
// Errors: none.
// Source: none.

#include <string>

namespace ttt::kernels {

/// The BLAS library's name, version and the kernels it has chosen.
std::string blas_version();

}  // namespace ttt::kernels
