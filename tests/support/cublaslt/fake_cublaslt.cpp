#include "tests/support/cublaslt/fake_cublaslt.h"

#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <type_traits>
#include <utility>

#include "core/base/dtype.h"
#include "tests/support/cudart/fake_cudart.h"

namespace {

constexpr std::uint32_t kAssumedAlignment = 256;  // of a matrix of which nothing is said

// The library's descriptors are opaque to its callers.
struct Layout : cublasLtMatrixLayoutOpaque_t {
  cudaDataType_t type;
  std::int64_t rows, columns, stride;
  std::int32_t batch = 1;
  std::int64_t batch_stride = 0;  // elements

  [[nodiscard]] std::int64_t batch_bytes() const {
    return batch_stride * (type == CUDA_R_32F ? 4 : 2);
  }
};
struct Description : cublasLtMatmulDescOpaque_t {
  cublasComputeType_t compute;
  cudaDataType_t scale;
  cublasOperation_t a, b;
};
struct Preference : cublasLtMatmulPreferenceOpaque_t {
  std::uint64_t workspace_bytes;
  std::array<std::uint32_t, 4> alignments;  // of A, B, C, D
};
struct Algorithm {  // in the caller's cublasLtMatmulAlgo_t
  std::uint64_t workspace_bytes;
  std::array<std::uint32_t, 4> alignments;
};

int num_asked = 0;
int num_multiplied = 0;
cublasStatus_t next_status = CUBLAS_STATUS_SUCCESS;

template <typename Inner, typename Opaque>
Inner& inside(Opaque* opaque) {
  return static_cast<Inner&>(*opaque);
}

template <typename Inner, typename Opaque>
cublasStatus_t create(Opaque** result, const Inner& value) {
  *result = new Inner(value);
  return CUBLAS_STATUS_SUCCESS;
}

template <typename Inner, typename Opaque>
cublasStatus_t destroy(Opaque* opaque) {
  delete static_cast<Inner*>(opaque);
  return CUBLAS_STATUS_SUCCESS;
}

template <typename T>
cublasStatus_t assign(T& to, const void* from, std::size_t bytes) {
  if (bytes != sizeof(T)) return CUBLAS_STATUS_INVALID_VALUE;
  std::memcpy(&to, from, bytes);
  return CUBLAS_STATUS_SUCCESS;
}

bool is_served(const Description& product, const Layout& a, const Layout& b, const Layout& c,
               const Layout& d) {
  if (product.compute != CUBLAS_COMPUTE_32F || product.scale != CUDA_R_32F) return false;
  if (a.type != b.type || c.type != d.type) return false;
  if (a.type == CUDA_R_32F) return c.type == CUDA_R_32F;
  return a.type == CUDA_R_16BF && (c.type == CUDA_R_16BF || c.type == CUDA_R_32F);
}

bool is_valid(const Layout& layout) {
  return layout.rows > 0 && layout.columns > 0 && layout.stride >= layout.rows;
}

// Rows and columns of op(x).
std::pair<std::int64_t, std::int64_t> size_of(const Layout& x, cublasOperation_t op) {
  return op == CUBLAS_OP_N ? std::pair(x.rows, x.columns) : std::pair(x.columns, x.rows);
}

double read(const void* data, const Layout& layout, std::int64_t row, std::int64_t column) {
  const std::int64_t at = row + column * layout.stride;
  if (layout.type == CUDA_R_32F) return static_cast<const float*>(data)[at];
  return static_cast<float>(static_cast<const ttt::BFloat16*>(data)[at]);
}

void write(void* data, const Layout& layout, std::int64_t row, std::int64_t column, double value) {
  const std::int64_t at = row + column * layout.stride;
  const auto rounded = static_cast<float>(value);
  if (layout.type == CUDA_R_32F) {
    static_cast<float*>(data)[at] = rounded;
  } else {
    static_cast<ttt::BFloat16*>(data)[at] = ttt::BFloat16(rounded);
  }
}

// Every matrix of the batch.
bool is_aligned(const void* pointer, const Layout& layout, std::uint32_t bytes) {
  return reinterpret_cast<std::uintptr_t>(pointer) % bytes == 0 &&
         layout.batch_bytes() % bytes == 0;
}

template <typename T>
T* in_batch(T* first, const Layout& layout, std::int32_t i) {
  using Byte = std::conditional_t<std::is_const_v<T>, const std::byte, std::byte>;
  return reinterpret_cast<Byte*>(first) + i * layout.batch_bytes();
}

// d = scale op(a) op(b) + kept c of one matrix each.
void multiply(const Description& op, double scale, const void* a, const Layout& of_a, const void* b,
              const Layout& of_b, double kept, const void* c, const Layout& of_c, void* d,
              const Layout& of_d) {
  const std::int64_t inner = size_of(of_a, op.a).second;
  for (std::int64_t j = 0; j < of_d.columns; ++j) {
    for (std::int64_t i = 0; i < of_d.rows; ++i) {
      double sum = 0;
      for (std::int64_t n = 0; n < inner; ++n) {
        sum += (op.a == CUBLAS_OP_N ? read(a, of_a, i, n) : read(a, of_a, n, i)) *
               (op.b == CUBLAS_OP_N ? read(b, of_b, n, j) : read(b, of_b, j, n));
      }
      write(d, of_d, i, j, scale * sum + (kept == 0 ? 0 : kept * read(c, of_c, i, j)));
    }
  }
}

}  // namespace

namespace ttt::test {

int num_algorithms_asked() { return num_asked; }
int num_products() { return num_multiplied; }
void set_next_failure(cublasStatus_t status, cudaError_t reason) {
  next_status = status;
  fake_device().last_error = reason;
}

}  // namespace ttt::test

extern "C" {

size_t cublasLtGetVersion() { return CUBLAS_VERSION; }

const char* cublasLtGetStatusString(cublasStatus_t status) {
  return status == CUBLAS_STATUS_ALLOC_FAILED ? "no memory" : "a failure";
}

cublasStatus_t cublasLtCreate(cublasLtHandle_t* handle) {
  static int anything = 0;
  *handle = reinterpret_cast<cublasLtHandle_t>(&anything);
  return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatmulDescCreate(cublasLtMatmulDesc_t* result, cublasComputeType_t compute,
                                        cudaDataType_t scale) {
  return create(result, Description{{}, compute, scale, CUBLAS_OP_N, CUBLAS_OP_N});
}
cublasStatus_t cublasLtMatmulDescDestroy(cublasLtMatmulDesc_t product) {
  return destroy<Description>(product);
}
cublasStatus_t cublasLtMatmulDescSetAttribute(cublasLtMatmulDesc_t product,
                                              cublasLtMatmulDescAttributes_t attribute,
                                              const void* value, size_t bytes) {
  auto& inner = inside<Description>(product);
  if (attribute == CUBLASLT_MATMUL_DESC_TRANSA) return assign(inner.a, value, bytes);
  if (attribute == CUBLASLT_MATMUL_DESC_TRANSB) return assign(inner.b, value, bytes);
  return CUBLAS_STATUS_INVALID_VALUE;
}

cublasStatus_t cublasLtMatrixLayoutCreate(cublasLtMatrixLayout_t* result, cudaDataType type,
                                          uint64_t rows, uint64_t columns, int64_t stride) {
  return create(
      result,
      Layout{
          {}, type, static_cast<std::int64_t>(rows), static_cast<std::int64_t>(columns), stride});
}
cublasStatus_t cublasLtMatrixLayoutSetAttribute(cublasLtMatrixLayout_t layout,
                                                cublasLtMatrixLayoutAttribute_t attribute,
                                                const void* value, size_t bytes) {
  auto& inner = inside<Layout>(layout);
  if (attribute == CUBLASLT_MATRIX_LAYOUT_BATCH_COUNT) return assign(inner.batch, value, bytes);
  if (attribute == CUBLASLT_MATRIX_LAYOUT_STRIDED_BATCH_OFFSET) {
    return assign(inner.batch_stride, value, bytes);
  }
  return CUBLAS_STATUS_INVALID_VALUE;
}
cublasStatus_t cublasLtMatrixLayoutDestroy(cublasLtMatrixLayout_t layout) {
  return destroy<Layout>(layout);
}

cublasStatus_t cublasLtMatmulPreferenceCreate(cublasLtMatmulPreference_t* result) {
  return create(
      result,
      Preference{
          {}, 0, {kAssumedAlignment, kAssumedAlignment, kAssumedAlignment, kAssumedAlignment}});
}
cublasStatus_t cublasLtMatmulPreferenceDestroy(cublasLtMatmulPreference_t preference) {
  return destroy<Preference>(preference);
}
cublasStatus_t cublasLtMatmulPreferenceSetAttribute(cublasLtMatmulPreference_t preference,
                                                    cublasLtMatmulPreferenceAttributes_t attribute,
                                                    const void* value, size_t bytes) {
  auto& inner = inside<Preference>(preference);
  switch (attribute) {
    case CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES:
      return assign(inner.workspace_bytes, value, bytes);
    case CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES:
      return assign(inner.alignments[0], value, bytes);
    case CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES:
      return assign(inner.alignments[1], value, bytes);
    case CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES:
      return assign(inner.alignments[2], value, bytes);
    case CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES:
      return assign(inner.alignments[3], value, bytes);
    default:
      return CUBLAS_STATUS_INVALID_VALUE;
  }
}

cublasStatus_t cublasLtMatmulAlgoGetHeuristic(cublasLtHandle_t /*handle*/,
                                              cublasLtMatmulDesc_t product,
                                              cublasLtMatrixLayout_t a, cublasLtMatrixLayout_t b,
                                              cublasLtMatrixLayout_t c, cublasLtMatrixLayout_t d,
                                              cublasLtMatmulPreference_t preference, int wanted,
                                              cublasLtMatmulHeuristicResult_t results[],
                                              int* found) {
  ++num_asked;
  *found = 0;
  if (wanted < 1 || !is_served(inside<Description>(product), inside<Layout>(a), inside<Layout>(b),
                               inside<Layout>(c), inside<Layout>(d))) {
    return CUBLAS_STATUS_NOT_SUPPORTED;
  }
  const auto& asked = inside<Preference>(preference);
  results[0] = {};
  const Algorithm chosen{asked.workspace_bytes, asked.alignments};
  static_assert(sizeof(chosen) <= sizeof(results[0].algo));
  std::memcpy(&results[0].algo, &chosen, sizeof(chosen));
  *found = 1;
  return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatmul(cublasLtHandle_t /*handle*/, cublasLtMatmulDesc_t product,
                              const void* alpha, const void* a, cublasLtMatrixLayout_t a_layout,
                              const void* b, cublasLtMatrixLayout_t b_layout, const void* beta,
                              const void* c, cublasLtMatrixLayout_t c_layout, void* d,
                              cublasLtMatrixLayout_t d_layout,
                              const cublasLtMatmulAlgo_t* algorithm, void* workspace,
                              size_t workspace_bytes, cudaStream_t /*stream*/) {
  const cublasStatus_t status = std::exchange(next_status, CUBLAS_STATUS_SUCCESS);
  if (status != CUBLAS_STATUS_SUCCESS) return status;
  const auto& op = inside<Description>(product);
  const auto& of_a = inside<Layout>(a_layout);
  const auto& of_b = inside<Layout>(b_layout);
  const auto& of_c = inside<Layout>(c_layout);
  const auto& of_d = inside<Layout>(d_layout);
  if (!is_served(op, of_a, of_b, of_c, of_d)) return CUBLAS_STATUS_NOT_SUPPORTED;
  if (!is_valid(of_a) || !is_valid(of_b) || !is_valid(of_d)) return CUBLAS_STATUS_INVALID_VALUE;
  const auto [rows, inner] = size_of(of_a, op.a);
  const auto [inner_of_b, columns] = size_of(of_b, op.b);
  if (inner != inner_of_b || rows != of_d.rows || columns != of_d.columns ||
      of_c.rows != of_d.rows || of_c.columns != of_d.columns) {
    return CUBLAS_STATUS_INVALID_VALUE;
  }
  const bool is_one_batch =
      of_a.batch == of_d.batch && of_b.batch == of_d.batch && of_c.batch == of_d.batch;
  const bool is_in_place = c == d;
  if (!is_one_batch ||
      (is_in_place && (of_c.stride != of_d.stride || of_c.batch_stride != of_d.batch_stride))) {
    return CUBLAS_STATUS_INVALID_VALUE;
  }
  Algorithm chosen{};
  std::memcpy(&chosen, algorithm, sizeof(chosen));
  const bool is_kept =
      is_aligned(a, of_a, chosen.alignments[0]) && is_aligned(b, of_b, chosen.alignments[1]) &&
      is_aligned(c, of_c, chosen.alignments[2]) && is_aligned(d, of_d, chosen.alignments[3]);
  if (!is_kept || workspace == nullptr || workspace_bytes < chosen.workspace_bytes) {
    return CUBLAS_STATUS_INVALID_VALUE;  // a device would end the context: misaligned address
  }
  const double scale = *static_cast<const float*>(alpha);
  const double kept = *static_cast<const float*>(beta);
  ++num_multiplied;
  for (std::int32_t i = 0; i < of_d.batch; ++i) {
    multiply(op, scale, in_batch(a, of_a, i), of_a, in_batch(b, of_b, i), of_b, kept,
             in_batch(c, of_c, i), of_c, in_batch(d, of_d, i), of_d);
  }
  return CUBLAS_STATUS_SUCCESS;
}
}
