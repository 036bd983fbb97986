// Attention through cuDNN's fused kernels, in the graphs that NVIDIA's frontend builds (CMakeLists.txt finds its headers).
// The library is loaded when TTT_ATTENTION=cudnn asks for it: the program starts without it.

#include <cstdlib>
#include <string_view>

#include "kernels/cuda/attention_library.h"

#ifdef TTT_CUDNN
#include <cudnn_frontend.h>
#include <dlfcn.h>

#include <algorithm>
#include <compare>
#include <map>
#include <memory>
#include <unordered_map>

#include "core/base/log.h"

void* cudnn_frontend::cudnn_dlhandle = nullptr;

namespace ttt::kernels::cuda {
namespace {

namespace fe = cudnn_frontend;
using fe::graph::Graph;
using fe::graph::Tensor_attributes;
using Attributes = std::shared_ptr<Tensor_attributes>;

void check(fe::error_t status, const char* what) {
  TTT_CHECK(status.is_good(), "cuDNN, {}: {}; TTT_ATTENTION=own does without", what,
            status.get_message());
}
void check(cudnnStatus_t status, const char* what) {
  TTT_CHECK(status == CUDNN_STATUS_SUCCESS, "cuDNN, {}: {}", what,
            fe::detail::get_error_string(status));
}

// Names of the tensors in a graph and in its calls.
enum Uid : std::int64_t { kQ = 1, kK, kV, kOut, kLse, kDOut, kDQ, kDK, kDV };

/// What a graph and its plan depend on.
struct Key {
  std::int64_t batch, tokens, heads, key_heads, dim;
  double scale;
  bool has_lse, is_backward;

  // NOLINTNEXTLINE(modernize-use-nullptr): clang 14 takes the comparison's own zero for a pointer
  auto operator<=>(const Key&) const = default;
};

Key key_of(TensorView q, TensorView k, double scale, bool has_lse, bool is_backward) {
  return {q.size(0), q.size(1), q.size(2), k.size(2), q.size(3), scale, has_lse, is_backward};
}

// Ours lie as [B, T, H, F]; cuDNN's order of dims is B, H, T, F.
Attributes& shape(Attributes& tensor, Uid uid, const Key& key, std::int64_t heads) {
  tensor->set_uid(uid)
      .set_dim({key.batch, heads, key.tokens, key.dim})
      .set_stride({key.tokens * heads * key.dim, key.dim, heads * key.dim, 1});
  return tensor;
}
Attributes& shape_lse(Attributes& tensor, const Key& key) {
  tensor->set_uid(kLse)
      .set_dim({key.batch, key.heads, key.tokens, 1})
      .set_stride({key.heads * key.tokens, key.tokens, 1, 1})
      .set_data_type(fe::DataType_t::FLOAT);
  return tensor;
}

/// The causal mask: query i sees keys up to i.
template <typename Options>
Options options_of(const char* name, const Key& key) {
  Options options;
  options.set_name(name)
      .set_attn_scale(static_cast<float>(key.scale))
      .set_diagonal_alignment(fe::DiagonalAlignment_t::TOP_LEFT)
      .set_diagonal_band_right_bound(0);
  return options;
}

std::unique_ptr<Graph> describe(const Key& key) {
  auto graph = std::make_unique<Graph>();
  graph->set_io_data_type(fe::DataType_t::BFLOAT16)
      .set_intermediate_data_type(fe::DataType_t::FLOAT)
      .set_compute_data_type(fe::DataType_t::FLOAT);
  const auto input = [&](Uid uid, std::int64_t heads) {
    auto tensor = std::make_shared<Tensor_attributes>();
    return graph->tensor(*shape(tensor, uid, key, heads));
  };
  const Attributes q = input(kQ, key.heads);
  const Attributes k = input(kK, key.key_heads);
  const Attributes v = input(kV, key.key_heads);
  if (!key.is_backward) {
    auto options = options_of<fe::graph::SDPA_attributes>("attention", key);
    options.set_generate_stats(key.has_lse);
    auto [out, lse] = graph->sdpa(q, k, v, options);
    shape(out, kOut, key, key.heads)->set_output(true);
    if (key.has_lse) shape_lse(lse, key)->set_output(true);
    return graph;
  }
  auto options = options_of<fe::graph::SDPA_backward_attributes>("attention_backward", key);
  options.set_deterministic_algorithm(true);  // equal calls give equal bits
  const Attributes out = input(kOut, key.heads);
  const Attributes d_out = input(kDOut, key.heads);
  auto row_lse = std::make_shared<Tensor_attributes>();
  const Attributes lse = graph->tensor(*shape_lse(row_lse, key));
  auto [d_q, d_k, d_v] = graph->sdpa_backward(q, k, v, out, d_out, lse, options);
  shape(d_q, kDQ, key, key.heads)->set_output(true);
  shape(d_k, kDK, key, key.key_heads)->set_output(true);
  shape(d_v, kDV, key, key.key_heads)->set_output(true);
  return graph;
}

// The deterministic backward keeps B H T^2 numbers on compute capability 9.0: 26 GB at T = 32,768 with 12 heads.
// cuDNN from 9.25 on has another, whose workspace grows with T, for what would take more than kLargeWorkspace.
constexpr std::int64_t kMostWorkspace = std::int64_t{2} << 30;
constexpr const char* kLargeWorkspace = "1073741824";

/// The library's handle and the plans made so far. One a process: one thread starts kernels.
class Cudnn {
 public:
  Cudnn() { check(fe::detail::create_handle(&handle_), "a handle"); }

  /// False when it would take more than kMostWorkspace.
  bool run(const Key& key, std::unordered_map<std::int64_t, void*> tensors, Stream& stream) {
    const Plan& plan = plan_of(key);
    if (plan.workspace > kMostWorkspace) return false;
    check(fe::detail::set_stream(handle_, static_cast<cudaStream_t>(stream.native())), "a stream");
    const Tensor workspace({std::max<std::int64_t>(plan.workspace, 1)}, DType::kU8);
    check(plan.graph->execute(handle_, tensors, workspace.view().raw()), "attention");
    return true;
  }

 private:
  struct Plan {
    std::unique_ptr<Graph> graph;
    std::int64_t workspace = 0;  // bytes
  };

  const Plan& plan_of(const Key& key) {
    Plan& plan = plans_[key];
    if (plan.graph) return plan;
    std::unique_ptr<Graph> fresh = describe(key);
    check(fresh->build(handle_, {fe::HeurMode_t::A}), "a plan");
    check(fresh->get_workspace_size(plan.workspace), "the workspace's size");
    plan.graph = std::move(fresh);
    if (plan.workspace > kMostWorkspace) {
      log::warning("event=attention_without_cudnn batch={} tokens={} heads={} workspace_bytes={}",
                   key.batch, key.tokens, key.heads, plan.workspace);
    }
    return plan;
  }

  cudnnHandle_t handle_ = nullptr;
  std::map<Key, Plan> plans_;
};

Cudnn& cudnn() {
  static Cudnn* instance = new Cudnn;  // never destroyed: the driver may be gone by then
  return *instance;
}

void forward(TensorView q, TensorView k, TensorView v, TensorView out, TensorView lse, double scale,
             Stream& stream) {
  std::unordered_map<std::int64_t, void*> tensors{
      {kQ, q.raw()}, {kK, k.raw()}, {kV, v.raw()}, {kOut, out.raw()}};
  if (!lse.empty()) tensors[kLse] = lse.raw();
  const bool is_done =
      cudnn().run(key_of(q, k, scale, !lse.empty(), false), std::move(tensors), stream);
  TTT_CHECK(is_done,
            "cuDNN's forward of {} tokens keeps a workspace; TTT_ATTENTION=own does without",
            q.size(1));
}

bool backward(TensorView q, TensorView k, TensorView v, TensorView out, TensorView lse,
              TensorView d_out, TensorView d_q, TensorView d_k, TensorView d_v, double scale,
              Stream& stream) {
  return cudnn().run(key_of(q, k, scale, true, true),
                     {{kQ, q.raw()},
                      {kK, k.raw()},
                      {kV, v.raw()},
                      {kOut, out.raw()},
                      {kLse, lse.raw()},
                      {kDOut, d_out.raw()},
                      {kDQ, d_q.raw()},
                      {kDK, d_k.raw()},
                      {kDV, d_v.raw()}},
                     stream);
}

const AttentionLibrary* load_cudnn() {
  // What the frontend reads; a user's own settings stay.
  ::setenv("CUDNN_FRONTEND_ATTN_DP_WORKSPACE_LIMIT", kLargeWorkspace, 0);
  ::setenv("CUDNN_FRONTEND_CUDART_LIB_NAME",
           fmt::format("libcudart.so.{}", CUDART_VERSION / 1000).c_str(), 0);
  fe::cudnn_dlhandle = dlopen("libcudnn.so.9", RTLD_NOW | RTLD_LOCAL);
  if (fe::cudnn_dlhandle == nullptr) {
    fail(ExitCode::kUsage, "TTT_ATTENTION=cudnn: cuDNN 9 cannot be loaded: {}", dlerror());
  }
  static const AttentionLibrary library{&forward, &backward};
  return &library;
}

}  // namespace
}  // namespace ttt::kernels::cuda
#endif

namespace ttt::kernels::cuda {

const AttentionLibrary* attention_library() {
  static const AttentionLibrary* const chosen = []() -> const AttentionLibrary* {
    const char* const value = std::getenv("TTT_ATTENTION");
    const std::string_view name = value == nullptr ? "own" : value;
    if (name == "own") return nullptr;
    if (name != "cudnn") fail(ExitCode::kUsage, "TTT_ATTENTION={}: must be own or cudnn", name);
#ifdef TTT_CUDNN
    return load_cudnn();
#else
    fail(ExitCode::kUsage, "TTT_ATTENTION=cudnn: this program was built without cuDNN's frontend");
#endif
  }();
  return chosen;
}

}  // namespace ttt::kernels::cuda
