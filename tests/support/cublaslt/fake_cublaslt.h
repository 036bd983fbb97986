#pragma once
// cuBLASLt on the CPU, for tests of kernels/cuda/matmul.cpp, which the emulator does without. Work is done when a call
// returns. Only what the library documents is served: types that it combines, and matrices that are aligned as the
// algorithm was told.
// Source: cuBLAS 13.0 documentation, "cublasLtMatmul" and "cublasLtMatmulPreferenceAttributes_t".

#include <cublasLt.h>
#include <cuda_runtime_api.h>

namespace ttt::test {

/// How often an algorithm was asked for, in this process.
int num_algorithms_asked();
/// How often cublasLtMatmul has multiplied.
int num_products();
/// The next cublasLtMatmul does nothing but fail so, for a reason that cudaGetLastError tells.
void set_next_failure(cublasStatus_t status, cudaError_t reason);

}  // namespace ttt::test
