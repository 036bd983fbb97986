#include <cmath>
#include <initializer_list>

#include "core/base/memory.h"
#include "core/base/rng.h"
#include "kernels/attention.h"
#include "kernels/copy.h"
#include "kernels/random.h"
#include "kernels/ttt.h"
#include "tests/bench/device/cases.h"

namespace ttt::bench {
namespace {

constexpr std::int64_t kFeatures = 64;
constexpr std::int64_t kMiniBatch = 16;

struct Sizes {
  std::int64_t batch, tokens;
  std::int64_t heads = 12;  // of the models of 125M parameters

  [[nodiscard]] Shape rows() const { return {batch, tokens, heads, kFeatures}; }
  [[nodiscard]] double count() const { return static_cast<double>(batch * tokens); }
  [[nodiscard]] double head_rows() const { return static_cast<double>(batch * tokens * heads); }
  [[nodiscard]] std::string text() const {
    return fmt::format("B={} H={} F={} T={}", batch, heads, kFeatures, tokens);
  }
};

/// Activations: bf16 on a device, where memory traffic counts, and fp32 on the CPU.
Tensor random_activation(const char* name, const Shape& shape, Stream& stream) {
  const Tensor wide(shape, DType::kF32);
  kernels::random_normal(CounterRng(1, name), 1, wide, stream);
  if (stream.device() == Device::kCpu) return wide;
  return kernels::to_dtype(wide, DType::kBF16, stream);
}

Tensor constant(const Shape& shape, double value, Stream& stream) {
  Tensor tensor(shape, DType::kF32);
  kernels::fill(tensor, value, stream);
  return tensor;
}

double bytes_of(std::initializer_list<TensorView> tensors) {
  double bytes = 0;
  for (const TensorView& tensor : tensors) {
    if (!tensor.empty()) bytes += static_cast<double>(tensor.num_bytes());
  }
  return bytes;
}

/// Inputs of one TTT layer, or their gradients.
struct TttLayer {
  kernels::TttOptions options;
  Tensor q, k, v, token_lr, token_scale, norm_weight, norm_bias, w1, b1, w2, b2;

  TttLayer(kernels::InnerModel model, const Sizes& sizes, Stream& stream)
      : q(random_activation("q", sizes.rows(), stream)),
        k(random_activation("k", sizes.rows(), stream)),
        v(random_activation("v", sizes.rows(), stream)),
        token_lr(constant({sizes.batch, sizes.tokens, sizes.heads}, 0.5 / kFeatures, stream)),
        token_scale(constant({kMiniBatch}, 1.0 / kMiniBatch, stream)),
        norm_weight(constant({sizes.heads, kFeatures}, 1, stream)),
        norm_bias(constant({sizes.heads, kFeatures}, 0, stream)) {
    options.model = model;
    options.mini_batch_size = kMiniBatch;
    const bool is_mlp = model == kernels::InnerModel::kMlp;
    const std::int64_t width = is_mlp ? 4 * kFeatures : kFeatures;
    const auto weight = [&](const char* name, std::int64_t rows, std::int64_t columns) {
      Tensor tensor({sizes.batch, sizes.heads, rows, columns}, DType::kF32);
      kernels::random_normal(CounterRng(1, name), 0.02, tensor, stream);
      return tensor;
    };
    w1 = weight("w1", kFeatures, width);
    b1 = constant({sizes.batch, sizes.heads, 1, width}, 0, stream);
    if (!is_mlp) return;
    w2 = weight("w2", width, kFeatures);
    b2 = constant({sizes.batch, sizes.heads, 1, kFeatures}, 0, stream);
  }

  [[nodiscard]] kernels::TttInputs inputs() const {
    return {q, k, v, token_lr, token_scale, norm_weight, norm_bias};
  }
  [[nodiscard]] kernels::TttInputGradients gradients() const {
    return {q, k, v, token_lr, token_scale, norm_weight, norm_bias};
  }
  [[nodiscard]] kernels::TttState state() const { return {w1, b1, w2, b2}; }
};

std::string name_of(kernels::InnerModel model) {
  return model == kernels::InnerModel::kLinear ? "ttt_linear" : "ttt_mlp";
}

/// The products of one token and head, forward: as in TttCore::flops_per_token without the learning rate.
double ttt_flops(kernels::InnerModel model) {
  constexpr double kDim = kFeatures;
  if (model == kernels::InnerModel::kLinear) return 6 * kDim * kDim + 4 * kMiniBatch * kDim;
  return 56 * kDim * kDim + 20 * kMiniBatch * kDim;
}

void measure_ttt_layer(const Plan& plan, Report& report, kernels::InnerModel model,
                       const Sizes& sizes) {
  Stream& stream = plan.stream;
  const std::string name = name_of(model);
  const TttLayer layer(model, sizes, stream);
  const Tensor out(sizes.rows(), layer.q.dtype());
  const double flops = sizes.head_rows() * ttt_flops(model);
  const double inputs = bytes_of({layer.q, layer.k, layer.v, layer.token_lr});

  Row row;
  row.shape = sizes.text();
  row.tokens = sizes.count();
  row.work = name + " forward";
  report.attempt(row.work, row.shape, [&] {
    row.times = time_work(stream, plan.budget_ms, [&] {
      kernels::ttt_forward(layer.inputs(), layer.options, layer.state(), out, {}, nullptr, stream);
    });
    row.flops = flops;
    row.bytes = inputs + bytes_of({out});
    report.add(row);
  });
  row.work = name + " forward+backward";
  report.attempt(row.work, row.shape, [&] {
    const TttLayer gradients(model, sizes, stream);
    const Tensor d_out = random_activation("d_out", sizes.rows(), stream);
    row.times = time_work(stream, plan.budget_ms, [&] {
      kernels::TttSaved saved;
      kernels::ttt_forward(layer.inputs(), layer.options, layer.state(), out, {}, &saved, stream);
      kernels::ttt_backward(layer.inputs(), layer.options, layer.state(), saved, d_out, {},
                            gradients.gradients(), gradients.state(), stream);
    });
    row.flops = 3 * flops;
    // Backward reads the inputs and d_out and writes as many gradients as there are inputs.
    row.bytes = 3 * inputs + bytes_of({out, d_out});
    report.add(row);
  });
}

/// A decode step of one token, inside a mini-batch: state and sums are read and the sums written.
void measure_ttt_decode(const Plan& plan, Report& report, kernels::InnerModel model,
                        const Sizes& sizes) {
  constexpr std::int64_t kPlace = 7;
  Stream& stream = plan.stream;
  const bool is_linear = model == kernels::InnerModel::kLinear;
  const TttLayer layer(model, sizes, stream);
  const TttLayer sums(model, sizes, stream);
  const Tensor out(sizes.rows(), layer.q.dtype());
  const double state = bytes_of({layer.w1, layer.b1, layer.w2, layer.b2});

  Row row;
  row.work = name_of(model) + " decode";
  row.shape = sizes.text();
  row.times = time_work(stream, plan.budget_ms, [&] {
    kernels::ttt_step(layer.inputs(), layer.options, kPlace, layer.state(), sums.state(), out,
                      stream);
  });
  row.tokens = sizes.count();
  // Three products with vectors and one outer product for each matrix of the state.
  constexpr double kDim = kFeatures;
  row.flops = sizes.head_rows() * (is_linear ? 8 : 64) * kDim * kDim;
  row.bytes = 3 * state + bytes_of({layer.q, layer.k, layer.v, layer.token_lr, out});
  report.add(row);
}

void measure_attention_layer(const Plan& plan, Report& report, const Sizes& sizes) {
  Stream& stream = plan.stream;
  const Tensor q = random_activation("q", sizes.rows(), stream);
  const Tensor k = random_activation("k", sizes.rows(), stream);
  const Tensor v = random_activation("v", sizes.rows(), stream);
  const Tensor out(sizes.rows(), q.dtype());
  const Tensor lse({sizes.batch, sizes.heads, sizes.tokens}, DType::kF32);
  const double scale = 1 / std::sqrt(static_cast<double>(kFeatures));
  // Two products of the causal half: T^2 / 2 pairs, two operations each, F features.
  const double flops = 2 * sizes.head_rows() * static_cast<double>(sizes.tokens) * kFeatures;
  const auto forward = [&] { kernels::attention_forward(q, k, v, out, lse, scale, stream); };

  Row row;
  row.shape = sizes.text();
  row.tokens = sizes.count();
  row.attention = attention_of(q, stream);
  row.work = "attention forward";
  report.attempt(row.work, row.shape, [&] {
    row.times = time_work(stream, plan.budget_ms, forward);
    row.flops = flops;
    row.bytes = bytes_of({q, k, v, out, lse});
    report.add(row);
  });
  row.work = "attention forward+backward";
  report.attempt(row.work, row.shape, [&] {
    const Tensor d_out = random_activation("d_out", sizes.rows(), stream);
    const Tensor d_q(sizes.rows(), q.dtype());
    const Tensor d_k(sizes.rows(), q.dtype());
    const Tensor d_v(sizes.rows(), q.dtype());
    row.times = time_work(stream, plan.budget_ms, [&] {
      forward();
      kernels::attention_backward(q, k, v, out, lse, d_out, d_q, d_k, d_v, scale, stream);
    });
    row.flops = 3.5 * flops;  // five more products
    row.bytes = 2 * bytes_of({q, k, v, out, lse}) + bytes_of({d_out, d_q, d_k, d_v});
    report.add(row);
  });
}

}  // namespace

void measure_ttt(const Plan& plan, Report& report) {
  using kernels::InnerModel;
  const memory::Scope scope(memory::Purpose{}, memory::Place::kDevice);  // kernels fill all
  const auto layer = [&](InnerModel model, const Sizes& sizes) {
    report.attempt(name_of(model), sizes.text(),
                   [&] { measure_ttt_layer(plan, report, model, sizes); });
  };
  const auto decode = [&](InnerModel model, const Sizes& sizes) {
    report.attempt(name_of(model) + " decode", sizes.text(),
                   [&] { measure_ttt_decode(plan, report, model, sizes); });
  };
  if (plan.is_smoke) {
    layer(InnerModel::kLinear, {1, 20, 2});
    layer(InnerModel::kMlp, {1, 20, 1});
    decode(InnerModel::kLinear, {1, 1, 2});
    decode(InnerModel::kMlp, {1, 1, 1});
    return;
  }
  for (const std::int64_t tokens : {2048, 8192, 32768}) {
    layer(InnerModel::kLinear, {22, tokens});  // 264 pairs: two a multiprocessor
  }
  for (const std::int64_t batch : {1, 11, 44}) layer(InnerModel::kLinear, {batch, 2048});
  for (const std::int64_t tokens : {2048, 8192, 32768}) {
    layer(InnerModel::kMlp, {11, tokens});  // 132 pairs: one a multiprocessor
  }
  // One sequence, and so many that no cache holds their states (200 and 400 MB with the sums).
  for (const std::int64_t batch : {1, 512}) decode(InnerModel::kLinear, {batch, 1});
  for (const std::int64_t batch : {1, 128}) decode(InnerModel::kMlp, {batch, 1});
}

void measure_attention(const Plan& plan, Report& report) {
  const memory::Scope scope(memory::Purpose{}, memory::Place::kDevice);  // kernels fill all
  const auto layer = [&](const Sizes& sizes) {
    report.attempt("attention", sizes.text(),
                   [&] { measure_attention_layer(plan, report, sizes); });
  };
  if (plan.is_smoke) return layer({1, 40, 2});
  for (const std::int64_t tokens : {2048, 8192, 32768}) layer({22, tokens});
}

}  // namespace ttt::bench
