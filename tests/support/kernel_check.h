#pragma once
// What the tests of kernels/*.h share: tensors made of doubles, thread counts, contract errors.

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <omp.h>

#include <cstdlib>
#include <cstring>
#include <span>
#include <string>
#include <type_traits>
#include <vector>

#include "core/base/error.h"
#include "core/base/tensor.h"
#include "tests/support/complex_step.h"
#ifdef TTT_TEST_CUDA
#include "kernels/cuda/ops.h"
#endif

namespace ttt::test {

#ifdef TTT_TEST_CUDA
// Before main, while no tensor is alive: the first stream decides where tensors lie. Kernels must end before a call
// returns, since tests read at once: on a device CUDA_LAUNCH_BLOCKING=1 (tests/gpu.sh sets it).
inline const bool kCudaIsReady = [] {
  kernels::set_cuda_backend(kernels::cuda::backend());
  try {
    (void)kernels::make_stream(Device::kCuda, 0);
  } catch (const Error& error) {  // nobody else is there yet to catch it
    fmt::print(stderr, "{}\n", error.what());
    std::_Exit(static_cast<int>(error.code()));
  }
  return true;
}();
#endif

/// The queue that comparisons with the reference run on: the CPU, or in the programs compiled with TTT_TEST_CUDA a CUDA
/// device or its emulator.
inline Stream stream() {
#ifdef TTT_TEST_CUDA
  return kernels::make_stream(Device::kCuda, 0);
#else
  return {};
#endif
}

/// What a parameter's elements are beside activations of type T.
template <typename T>
using ParameterOf = std::conditional_t<std::is_same_v<T, BFloat16>, float, T>;

/// A tensor of type T holding these values, rounded.
template <typename T>
Tensor tensor_of(const Shape& shape, const std::vector<double>& values) {
  TTT_CHECK(static_cast<std::size_t>(shape.numel()) == values.size(), "{} values for shape {}",
            values.size(), shape.str());
  Tensor result(shape, kDType<T>);
  for (std::size_t i = 0; i < values.size(); ++i) {
    if constexpr (std::is_same_v<T, BFloat16>) {
      result.data<T>()[i] = T(static_cast<float>(values[i]));
    } else {
      result.data<T>()[i] = static_cast<T>(values[i]);
    }
  }
  return result;
}

/// The values as double; what a reference in double sees of rounded inputs.
template <typename T>
std::vector<double> values_of(const Tensor& tensor) {
  std::vector<double> values;
  values.reserve(tensor.span<T>().size());
  for (const T value : tensor.span<T>()) values.push_back(as_double(value));
  return values;
}

/// Runs `outputs() -> std::vector<Tensor>` on 1, 2 and 3 OpenMP threads; all bits must agree.
template <typename Outputs>
void expect_same_bits_for_any_thread_count(Outputs&& outputs) {
  const int before = omp_get_max_threads();
  omp_set_num_threads(1);
  const std::vector<Tensor> expected = outputs();
  for (const int threads : {2, 3}) {
    omp_set_num_threads(threads);
    const std::vector<Tensor> actual = outputs();
    ASSERT_EQ(actual.size(), expected.size());
    for (std::size_t i = 0; i < expected.size(); ++i) {
      const auto bytes = static_cast<std::size_t>(expected[i].view().num_bytes());
      EXPECT_EQ(std::memcmp(actual[i].view().raw(), expected[i].view().raw(), bytes), 0)
          << "output " << i << " differs on " << threads << " threads";
    }
  }
  omp_set_num_threads(before);
}

/// `statement` must throw Error with this code and a message that contains `text`.
template <typename Statement>
void expect_error(ExitCode code, const std::string& text, Statement&& statement) {
  try {
    statement();
    ADD_FAILURE() << "no error; expected: " << text;
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), code);
    EXPECT_THAT(error.what(), ::testing::HasSubstr(text));
  }
}

}  // namespace ttt::test
