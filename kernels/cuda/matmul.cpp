// The products of kernels/matmul.h through cuBLASLt, which is column-major: a row-major [rows, columns] matrix is its
// transpose there.

#include "kernels/matmul.h"

#include <cublasLt.h>

#include <array>
#include <map>
#include <memory>

#include "core/base/memory.h"
#include "kernels/copy.h"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/ops.h"

namespace ttt::kernels::cuda {
namespace {

constexpr std::int64_t kWorkspaceBytes = kProductWorkspaceBytes;

// The library does not tell a lost device from a mistake of ours; CUDA does.
void check_cublas(cublasStatus_t status, const char* what) {
  if (status == CUBLAS_STATUS_SUCCESS) return;
  const cudaError_t cause = cudaGetLastError();
  fail(status == CUBLAS_STATUS_ALLOC_FAILED ? ExitCode::kOutOfMemory : exit_code_of(cause),
       "cuBLASLt, {}: {} (CUDA: {})", what, cublasLtGetStatusString(status),
       cudaGetErrorString(cause));
}

cudaDataType_t cuda_type(DType dtype) { return dtype == DType::kBF16 ? CUDA_R_16BF : CUDA_R_32F; }

struct Destroy {
  void operator()(cublasLtMatmulDescOpaque_t* p) const { cublasLtMatmulDescDestroy(p); }
  void operator()(cublasLtMatrixLayoutOpaque_t* p) const { cublasLtMatrixLayoutDestroy(p); }
  void operator()(cublasLtMatmulPreferenceOpaque_t* p) const { cublasLtMatmulPreferenceDestroy(p); }
};
using MatmulDesc = std::unique_ptr<cublasLtMatmulDescOpaque_t, Destroy>;
using Layout = std::unique_ptr<cublasLtMatrixLayoutOpaque_t, Destroy>;
using Preference = std::unique_ptr<cublasLtMatmulPreferenceOpaque_t, Destroy>;

/// Bytes that divide the addresses of a, b, c and d, in a stack of all of them. Parameters lie one behind the other, so those
/// of a weight may be few, and cuBLASLt takes 256 for granted unless it is told.
using Alignments = std::array<std::uint32_t, 4>;

std::uint32_t alignment_of(const void* pointer, std::int64_t bytes_to_next) {
  constexpr std::uintptr_t kMost = 256;
  const auto address = reinterpret_cast<std::uintptr_t>(pointer) |
                       static_cast<std::uintptr_t>(bytes_to_next) | kMost;
  return static_cast<std::uint32_t>(address & (~address + 1));
}

/// d [m, n] = op(a) op(b) (+ c), column-major; op transposes where asked. Of a stack `count` times, with one b for all and
/// a, c and d one behind the other.
struct Product {
  std::int64_t m, n, k;
  bool transpose_a, transpose_b;
  DType operands, result;
  std::int64_t count = 1;
  Alignments alignments{};  // of the call

  // NOLINTNEXTLINE(modernize-use-nullptr,readability-implicit-bool-conversion): clang 14 sees into the comparison
  auto operator<=>(const Product&) const = default;
};

/// `count` matrices, `offset` elements from one to the next: 0 is one matrix for all.
Layout make_layout(DType dtype, std::int64_t rows, std::int64_t columns, std::int64_t count,
                   std::int64_t offset) {
  cublasLtMatrixLayout_t layout = nullptr;
  check_cublas(
      cublasLtMatrixLayoutCreate(&layout, cuda_type(dtype), static_cast<std::uint64_t>(rows),
                                 static_cast<std::uint64_t>(columns), rows),
      "a matrix layout");
  Layout owned(layout);
  if (count == 1) return owned;
  const auto batch = static_cast<std::int32_t>(count);
  check_cublas(cublasLtMatrixLayoutSetAttribute(layout, CUBLASLT_MATRIX_LAYOUT_BATCH_COUNT, &batch,
                                                sizeof(batch)),
               "the number of matrices");
  check_cublas(cublasLtMatrixLayoutSetAttribute(layout, CUBLASLT_MATRIX_LAYOUT_STRIDED_BATCH_OFFSET,
                                                &offset, sizeof(offset)),
               "the way from one matrix to the next");
  return owned;
}

/// What cuBLASLt needs to run one shape of product; the algorithm is chosen once, so equal calls give equal bits.
class Plan {
 public:
  Plan(cublasLtHandle_t handle, const Product& p)
      : a_(p.transpose_a ? make_layout(p.operands, p.k, p.m, p.count, p.m * p.k)
                         : make_layout(p.operands, p.m, p.k, p.count, p.m * p.k)),
        b_(p.transpose_b ? make_layout(p.operands, p.n, p.k, p.count, 0)
                         : make_layout(p.operands, p.k, p.n, p.count, 0)),
        c_(make_layout(p.result, p.m, p.n, p.count, p.m * p.n)) {
    cublasLtMatmulDesc_t desc = nullptr;
    check_cublas(cublasLtMatmulDescCreate(&desc, CUBLAS_COMPUTE_32F, CUDA_R_32F), "a descriptor");
    desc_.reset(desc);
    const cublasOperation_t op_a = p.transpose_a ? CUBLAS_OP_T : CUBLAS_OP_N;
    const cublasOperation_t op_b = p.transpose_b ? CUBLAS_OP_T : CUBLAS_OP_N;
    check_cublas(
        cublasLtMatmulDescSetAttribute(desc, CUBLASLT_MATMUL_DESC_TRANSA, &op_a, sizeof(op_a)),
        "transposing a");
    check_cublas(
        cublasLtMatmulDescSetAttribute(desc, CUBLASLT_MATMUL_DESC_TRANSB, &op_b, sizeof(op_b)),
        "transposing b");
    cublasLtMatmulPreference_t preference = nullptr;
    check_cublas(cublasLtMatmulPreferenceCreate(&preference), "a preference");
    const Preference owned(preference);
    const auto bytes = static_cast<std::uint64_t>(kWorkspaceBytes);
    check_cublas(cublasLtMatmulPreferenceSetAttribute(
                     preference, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, &bytes, sizeof(bytes)),
                 "the workspace's size");
    constexpr std::array kAlignments = {
        CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES,
        CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES};
    for (std::size_t i = 0; i < kAlignments.size(); ++i) {
      check_cublas(cublasLtMatmulPreferenceSetAttribute(preference, kAlignments[i],
                                                        &p.alignments[i], sizeof(p.alignments[i])),
                   "the alignment of a matrix");
    }
    cublasLtMatmulHeuristicResult_t found{};
    int count = 0;
    const cublasStatus_t status = cublasLtMatmulAlgoGetHeuristic(
        handle, desc, a_.get(), b_.get(), c_.get(), c_.get(), preference, 1, &found, &count);
    TTT_CHECK(
        status != CUBLAS_STATUS_NOT_SUPPORTED && (status != CUBLAS_STATUS_SUCCESS || count == 1),
        "cuBLASLt has no algorithm for {} x {} x {} x {} of {} to {}", p.count, p.m, p.n, p.k,
        name_of(p.operands), name_of(p.result));
    check_cublas(status, "an algorithm");
    algorithm_ = found.algo;
  }

  /// Without `c` nothing is added.
  void run(cublasLtHandle_t handle, const void* a, const void* b, const void* c, void* d,
           void* workspace, Stream& stream) const {
    const float alpha = 1.0F;
    const float beta = c != nullptr ? 1.0F : 0.0F;
    check_cublas(cublasLtMatmul(handle, desc_.get(), &alpha, a, a_.get(), b, b_.get(), &beta,
                                c != nullptr ? c : d, c_.get(), d, c_.get(), &algorithm_, workspace,
                                static_cast<std::size_t>(kWorkspaceBytes),
                                static_cast<cudaStream_t>(stream.native())),
                 "a product");
  }

 private:
  MatmulDesc desc_;
  Layout a_, b_, c_;
  cublasLtMatmulAlgo_t algorithm_{};
};

/// The library's handle, the plans made so far and the workspace. One a process: one thread starts kernels.
class Products {
 public:
  Products() {
    const memory::Scope scope({"workspaces"}, memory::Place::kDevice);
    workspace_ = Tensor({kWorkspaceBytes}, DType::kU8);
    check_cublas(cublasLtCreate(&handle_), "a handle");
  }

  void run(Product product, const void* a, const void* b, const void* c, void* d, Stream& stream) {
    if (product.m == 0 || product.n == 0 || product.count == 0) return;
    if (product.k == 0 && c == d) return;  // nothing to add
    const std::int64_t has_next = product.count > 1 ? 1 : 0;
    const std::int64_t to_next_a = has_next * product.m * product.k * size_of(product.operands);
    const std::int64_t to_next_d = has_next * product.m * product.n * size_of(product.result);
    product.alignments = {alignment_of(a, to_next_a), alignment_of(b, 0),
                          alignment_of(c != nullptr ? c : d, to_next_d),
                          alignment_of(d, to_next_d)};
    auto& plan = plans_[product];
    if (!plan) plan = std::make_unique<Plan>(handle_, product);
    plan->run(handle_, a, b, c, d, workspace_.view().raw(), stream);
  }

 private:
  cublasLtHandle_t handle_ = nullptr;
  std::map<Product, std::unique_ptr<Plan>> plans_;
  Tensor workspace_;
};

Products& products() {
  static Products* instance = new Products;  // never destroyed: the driver may be gone by then
  return *instance;
}

/// `x` in `dtype`, converted into `scratch` where it is of another type.
TensorView converted(TensorView x, DType dtype, Tensor& scratch, Stream& stream) {
  if (x.dtype() == dtype) return x;
  scratch = kernels::to_dtype(x, dtype, stream);
  return scratch;
}

DType operand_type(Precision precision) {
  return precision == Precision::kBF16 ? DType::kBF16 : DType::kF32;
}

}  // namespace

void linear_forward(TensorView x, TensorView w, TensorView residual, TensorView y,
                    Precision precision, Stream& stream) {
  const DType type = operand_type(precision);
  Tensor x_scratch, w_scratch;
  const TensorView a = converted(w, type, w_scratch, stream);
  const TensorView b = converted(x, type, x_scratch, stream);
  const std::int64_t count = w.shape().rank() == 3 ? w.size(0) : 1;
  products().run({w.size(-2), x.size(0), x.size(1), true, false, type, y.dtype(), count}, a.raw(),
                 b.raw(), residual.raw(), y.raw(), stream);
}

void linear_backward_input(TensorView d_y, TensorView w, TensorView d_x, Accumulate accumulate,
                           Precision precision, Stream& stream) {
  const DType type = operand_type(precision);
  Tensor d_y_scratch, w_scratch;
  const TensorView a = converted(w, type, w_scratch, stream);
  const TensorView b = converted(d_y, type, d_y_scratch, stream);
  products().run({w.size(1), d_y.size(0), w.size(0), false, false, type, d_x.dtype()}, a.raw(),
                 b.raw(), accumulate == Accumulate::kYes ? d_x.raw() : nullptr, d_x.raw(), stream);
}

void linear_backward_weight(TensorView d_y, TensorView x, TensorView d_w, Precision precision,
                            Stream& stream) {
  const DType type = operand_type(precision);
  Tensor d_y_scratch, x_scratch;
  const TensorView a = converted(x, type, x_scratch, stream);
  const TensorView b = converted(d_y, type, d_y_scratch, stream);
  products().run({x.size(1), d_y.size(1), x.size(0), false, true, type, d_w.dtype()}, a.raw(),
                 b.raw(), d_w.raw(), d_w.raw(), stream);
}

}  // namespace ttt::kernels::cuda
