#pragma once
// Contiguous elements as MPI takes them. Internal to the MPI communicator.

#include <mpi.h>

#include <cstring>

#include "core/base/tensor.h"
#include "dist/mpi_check.h"

namespace ttt::dist {

inline MPI_Datatype mpi_type(DType dtype) {
  switch (dtype) {
    case DType::kF64:
      return MPI_DOUBLE;
    case DType::kF32:
      return MPI_FLOAT;
    case DType::kBF16:
      return MPI_UINT16_T;  // only moved, never added
    case DType::kI64:
      return MPI_INT64_T;
    case DType::kI32:
      return MPI_INT32_T;
    case DType::kU16:
      return MPI_UINT16_T;
    case DType::kU8:
      return MPI_UINT8_T;
  }
  fail(ExitCode::kInternal, "dtype {}", static_cast<int>(dtype));
}

/// Contiguous elements of one type; the unit of all transfers below.
struct Elements {
  std::byte* data;
  std::int64_t count;
  DType dtype;

  [[nodiscard]] Elements part(std::int64_t begin, std::int64_t number) const {
    return {data + begin * size_of(dtype), number, dtype};
  }
  [[nodiscard]] int mpi_count() const { return static_cast<int>(count); }
};

inline Elements elements_of(const TensorView& view) {
  return {static_cast<std::byte*>(view.raw()), view.numel(), view.dtype()};
}

inline void copy_elements(const Elements& from, const Elements& to) {
  if (from.count > 0) {
    std::memcpy(to.data, from.data, static_cast<std::size_t>(from.count * size_of(from.dtype)));
  }
}

template <typename T>
void add_elements(const Elements& term, const Elements& sum) {
  const T* x = reinterpret_cast<const T*>(term.data);
  T* y = reinterpret_cast<T*>(sum.data);
  for (std::int64_t i = 0; i < sum.count; ++i) {
    y[i] += x[i];
  }
}

inline void add_into(const Elements& term, const Elements& sum) {
  switch (sum.dtype) {
    case DType::kF64:
      return add_elements<double>(term, sum);
    case DType::kF32:
      return add_elements<float>(term, sum);
    default:
      return add_elements<std::int64_t>(term, sum);
  }
}

inline void expect_received(const MPI_Status& status, const Elements& elements, int peer) {
  int count = 0;
  TTT_MPI_CHECK(MPI_Get_count(&status, mpi_type(elements.dtype), &count));
  TTT_CHECK(count == elements.count, "rank {} sent {} elements, {} of {} were expected", peer,
            count, elements.count, name_of(elements.dtype));
}

}  // namespace ttt::dist
