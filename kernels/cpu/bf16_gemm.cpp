#include "kernels/cpu/bf16_gemm.h"

#include <algorithm>
#include <array>
#include <dnnl.hpp>
#include <map>

namespace ttt::kernels::cpu {
namespace {

using dnnl::memory;
using Key = std::array<std::int64_t, 8>;

const dnnl::engine& engine() {
  static const dnnl::engine instance(dnnl::engine::kind::cpu, 0);
  return instance;
}

struct Primitive {
  memory::desc a, b, c;
  dnnl::matmul matmul;
};

memory::desc describe(Op op, std::int64_t rows, std::int64_t cols, std::int64_t ld,
                      memory::data_type type) {
  const memory::dims strides = op == Op::kNone ? memory::dims{ld, 1} : memory::dims{1, ld};
  return {memory::dims{rows, cols}, type, strides};
}

Primitive make_primitive(Op op_a, Op op_b, const Key& key) {
  const auto [m, n, k, ld_a, ld_b, ld_c, transposes, accumulate] = key;
  (void)transposes;
  Primitive primitive;
  primitive.a = describe(op_a, m, k, ld_a, memory::data_type::bf16);
  primitive.b = describe(op_b, k, n, ld_b, memory::data_type::bf16);
  primitive.c = describe(Op::kNone, m, n, ld_c, memory::data_type::f32);
  dnnl::primitive_attr attributes;
  if (accumulate != 0) {
    dnnl::post_ops sum;
    sum.append_sum(1.0F);
    attributes.set_post_ops(sum);
  }
  const dnnl::matmul::desc desc(primitive.a, primitive.b, primitive.c);
  primitive.matmul = dnnl::matmul(dnnl::matmul::primitive_desc(desc, attributes, engine()));
  return primitive;
}

// One table a thread needs no lock. A run meets a few dozen shapes; dropping all of them when there are more keeps the
// table bounded, and oneDNN's own cache makes the rebuilding cheap.
const Primitive& find_primitive(Op op_a, Op op_b, const Key& key) {
  constexpr std::size_t kMostPrimitives = 256;
  static thread_local std::map<Key, Primitive> primitives;
  const auto found = primitives.find(key);
  if (found != primitives.end()) return found->second;
  if (primitives.size() >= kMostPrimitives) primitives.clear();
  return primitives.emplace(key, make_primitive(op_a, op_b, key)).first->second;
}

template <typename To, typename From>
void round_all(const From* from, To* to, std::int64_t count) {
  constexpr std::int64_t kChunk = std::int64_t{1} << 15;
  for_each_block((count + kChunk - 1) / kChunk, [&](std::int64_t chunk) {
    const std::int64_t end = std::min(count, (chunk + 1) * kChunk);
    for (std::int64_t i = chunk * kChunk; i < end; ++i) {
      to[i] = static_cast<To>(BFloat16(static_cast<float>(from[i])));
    }
  });
}

template <typename To>
Tensor rounded(const TensorView& from) {
  Tensor to(from.shape(), kDType<To>);
  if (from.dtype() == DType::kBF16) {
    round_all(from.data<BFloat16>(), to.data<To>(), from.numel());
  } else {
    round_all(from.data<float>(), to.data<To>(), from.numel());
  }
  return to;
}

}  // namespace

bool prefers_bf16_gemm() {
  static const bool prefers = [] {
    const auto isa = static_cast<unsigned>(dnnl::get_effective_cpu_isa());
    const auto amx = static_cast<unsigned>(dnnl::cpu_isa::avx512_core_amx);
    return (isa & amx) == amx;
  }();
  return prefers;
}

void bf16_gemm(Op op_a, Op op_b, std::int64_t m, std::int64_t n, std::int64_t k, const BFloat16* a,
               std::int64_t ld_a, const BFloat16* b, std::int64_t ld_b, bool accumulate, float* c,
               std::int64_t ld_c) {
  const std::int64_t transposes =
      (op_a == Op::kTranspose ? 1 : 0) + (op_b == Op::kTranspose ? 2 : 0);
  const Key key{m, n, k, ld_a, ld_b, ld_c, transposes, accumulate ? 1 : 0};
  const Primitive& primitive = find_primitive(op_a, op_b, key);
  static thread_local dnnl::stream stream(engine());
  // oneDNN's interface takes mutable pointers; sources are only read.
  const memory memory_a(primitive.a, engine(), const_cast<BFloat16*>(a));
  const memory memory_b(primitive.b, engine(), const_cast<BFloat16*>(b));
  const memory memory_c(primitive.c, engine(), c);
  primitive.matmul.execute(
      stream, {{DNNL_ARG_SRC, memory_a}, {DNNL_ARG_WEIGHTS, memory_b}, {DNNL_ARG_DST, memory_c}});
}

Tensor to_bf16(const TensorView& from) { return rounded<BFloat16>(from); }
Tensor to_bf16_values(const TensorView& from) { return rounded<float>(from); }
void round_to_bf16(const TensorView& values) {
  round_all(values.data<float>(), values.data<float>(), values.numel());
}

}  // namespace ttt::kernels::cpu
