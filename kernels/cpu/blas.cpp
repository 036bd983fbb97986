#include "kernels/cpu/blas.h"

#include <cblas.h>
#include <fmt/format.h>
#include <sys/mman.h>

#include <atomic>
#include <cstdlib>
#include <cstring>
#include <mutex>
#include <string>
#include <vector>

#include "core/base/error.h"
#include "kernels/versions.h"

// Exported by OpenBLAS when it is built for many CPUs (Debian's is); absent otherwise, hence weak.
extern "C" {
__attribute__((weak)) void gotoblas_dynamic_init();
__attribute__((weak)) void gotoblas_dynamic_quit();
// NOLINTNEXTLINE(readability-redundant-declaration): again, to make it weak
__attribute__((weak)) char* openblas_get_corename();
__attribute__((weak)) void* blas_memory_alloc(int position);
__attribute__((weak)) void blas_memory_free(void* buffer);
}

namespace ttt::kernels::cpu {
namespace {

// OpenBLAS chooses kernels by CPU model number. Models newer than the library get the oldest kernels (SSE2), a fifth of
// the speed, although the CPU says that it has AVX-512. Then choose again by features, unless the user has chosen.
void choose_kernels() {
  if (gotoblas_dynamic_init == nullptr || gotoblas_dynamic_quit == nullptr ||
      openblas_get_corename == nullptr || std::getenv("OPENBLAS_CORETYPE") != nullptr) {
    return;
  }
  const char* wanted = nullptr;
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) wanted = "Haswell";
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
      __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl")) {
    wanted = "SkylakeX";
  }
  if (wanted == nullptr || std::strcmp(openblas_get_corename(), "Prescott") != 0) return;
  setenv("OPENBLAS_CORETYPE", wanted, 1);
  gotoblas_dynamic_quit();
  gotoblas_dynamic_init();
  unsetenv("OPENBLAS_CORETYPE");
}

// Every thread inside a product has a buffer of this size, which OpenBLAS keeps.
constexpr std::size_t kBufferBytes = std::size_t{128} << 20;

bool has_room_for_buffer() {
  void* const room =
      mmap(nullptr, kBufferBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  return room != MAP_FAILED && munmap(room, kBufferBytes) == 0;
}

// OpenBLAS asks for ever when the system refuses it a buffer. So it takes them here, where a refusal can be told.
void take_buffers(int count) {
  if (blas_memory_alloc == nullptr || blas_memory_free == nullptr) return;
  std::vector<void*> buffers;
  while (std::ssize(buffers) < count && has_room_for_buffer()) {
    buffers.push_back(blas_memory_alloc(0));
  }
  for (void* const buffer : buffers) blas_memory_free(buffer);
  if (std::ssize(buffers) == count) return;
  fail(ExitCode::kOutOfMemory,
       "out of memory: 128 MiB asked for (matrix products, for each of {} threads). Lower "
       "train.num_threads or raise the process's limit (ulimit -d, -v)",
       count);
}

CBLAS_TRANSPOSE cblas_op(Op op) { return op == Op::kNone ? CblasNoTrans : CblasTrans; }

}  // namespace

void prepare_blas() {
  static std::once_flag once;
  std::call_once(once, [] {
    const int num_threads = omp_get_max_threads();
    choose_kernels();
    openblas_set_num_threads(1);
    omp_set_num_threads(num_threads);  // OpenBLAS sets OpenMP's number as well
  });
  static std::atomic<int> num_buffers = 0;
  const int num_threads = omp_get_max_threads();
  if (num_threads <= num_buffers) return;
  take_buffers(num_threads);
  num_buffers = num_threads;
}

void gemm(Op op_a, Op op_b, std::int64_t m, std::int64_t n, std::int64_t k, float alpha,
          const float* a, std::int64_t ld_a, const float* b, std::int64_t ld_b, float beta,
          float* c, std::int64_t ld_c) {
  cblas_sgemm(CblasRowMajor, cblas_op(op_a), cblas_op(op_b), static_cast<blasint>(m),
              static_cast<blasint>(n), static_cast<blasint>(k), alpha, a,
              static_cast<blasint>(ld_a), b, static_cast<blasint>(ld_b), beta, c,
              static_cast<blasint>(ld_c));
}

void gemm(Op op_a, Op op_b, std::int64_t m, std::int64_t n, std::int64_t k, double alpha,
          const double* a, std::int64_t ld_a, const double* b, std::int64_t ld_b, double beta,
          double* c, std::int64_t ld_c) {
  cblas_dgemm(CblasRowMajor, cblas_op(op_a), cblas_op(op_b), static_cast<blasint>(m),
              static_cast<blasint>(n), static_cast<blasint>(k), alpha, a,
              static_cast<blasint>(ld_a), b, static_cast<blasint>(ld_b), beta, c,
              static_cast<blasint>(ld_c));
}

}  // namespace ttt::kernels::cpu

namespace ttt::kernels {

std::string blas_version() {
  cpu::prepare_blas();
  const std::string config =
      openblas_get_config();  // "OpenBLAS 0.3.21 NO_LAPACK ... SkylakeX MAX_THREADS=64"
  const auto version_end = config.find(' ', config.find(' ') + 1);
  return fmt::format("{}, kernels {}", config.substr(0, version_end),
                     openblas_get_corename == nullptr ? "of its build" : openblas_get_corename());
}

}  // namespace ttt::kernels
