#include <algorithm>
#include <memory>

#include "configs/run_config.h"
#include "core/base/memory.h"
#include "core/base/rng.h"
#include "core/optimizer.h"
#include "kernels/copy.h"
#include "kernels/random.h"
#include "tests/bench/device/cases.h"

namespace ttt::bench {
namespace {

/// Random tokens; only the time counts.
struct Batch {
  Tensor ids, targets, weight, nll;

  Batch(std::int64_t rows, std::int64_t tokens, std::int64_t vocabulary)
      : ids({rows, tokens}, DType::kI64),
        targets({rows, tokens}, DType::kI64),
        weight({rows, tokens}, DType::kF64),
        nll({rows, tokens}, DType::kF64) {
    const CounterRng rng(1, "tokens");
    const std::int64_t count = rows * tokens;
    for (std::int64_t i = 0; i < count; ++i) {
      const auto draw = [&](std::int64_t index) {
        return static_cast<std::int64_t>(rng.bits(static_cast<std::uint64_t>(index)) %
                                         static_cast<std::uint64_t>(vocabulary));
      };
      ids.data<std::int64_t>()[i] = draw(i);
      targets.data<std::int64_t>()[i] = draw(count + i);
    }
    fill(weight, 1.0 / static_cast<double>(count));
  }

  [[nodiscard]] TokenBatch view() const { return {ids, targets, weight}; }
};

/// A model with all that training in bf16 keeps beside it (launch/trainer.h).
class TrainedModel {
 public:
  TrainedModel(const config::RunConfig& config, std::int64_t longest, Stream& stream)
      : model_(config.model(), longest) {
    model_.parameters().allocate(DType::kF32);
    draw_parameters(model_, stream);
    if (stream.device() == Device::kCuda) model_.parameters().keep_rounded(stream);
    gradients_ = Tensor::zeros({model_.parameters().num_elements()}, DType::kF32);
    model_.parameters().bind_gradients(gradients_);
    optimizer_ = std::make_unique<Optimizer>(config.optimizer(), config.train().steps(),
                                             model_.parameters().num_elements(), DType::kF32);
  }

  void step(const Batch& batch, bool recompute_blocks, Stream& stream) {
    kernels::fill(gradients_, 0, stream);
    Context context{stream, kernels::Precision::kBF16};
    model_.forward_backward(batch.view(), batch.nll, recompute_blocks, context);
    optimizer_->update(model_.parameters().values(), model_.parameters().rounded(), gradients_,
                       next_step_++, stream);
  }

  [[nodiscard]] const LanguageModel& model() const { return model_; }

 private:
  LanguageModel model_;
  Tensor gradients_;
  std::unique_ptr<Optimizer> optimizer_;
  std::int64_t next_step_ = 0;
};

struct StepCase {
  std::int64_t rows, tokens;
  bool recompute_blocks = false;

  [[nodiscard]] std::string text() const {
    return fmt::format("B={} T={}{}", rows, tokens, recompute_blocks ? " recomputed" : "");
  }
};

/// About how many more bytes a step needs than there are now: activations grow with tokens, as a short step shows.
std::int64_t bytes_of_step(TrainedModel& trained, const StepCase& step, Stream& stream) {
  const std::int64_t tokens = std::min<std::int64_t>(step.tokens, 2048);
  const Batch batch(1, tokens, trained.model().config().vocab_size());
  memory::release_free_blocks();
  memory::reset_peak();
  const std::int64_t before = memory::live_bytes();
  trained.step(batch, step.recompute_blocks, stream);
  stream.synchronize();
  const std::int64_t bytes = memory::peak_bytes() - before;
  memory::release_free_blocks();
  return (bytes + bytes / 8) * step.rows *
         (step.tokens / tokens);  // blocks of the pool are rounded up
}

/// Empty where the model has none.
std::string attention_of_model(const config::ModelConfig& config, std::int64_t tokens,
                               const Stream& stream) {
  if (config.mixer() != config::ATTENTION) return {};
  const std::int64_t heads = config.num_heads();
  const Shape queries{1, tokens, heads, config.hidden_size() / heads};
  return attention_of(TensorView(nullptr, queries, DType::kBF16), stream);
}

void measure_step(const Plan& plan, Report& report, const std::string& name, TrainedModel& trained,
                  StepCase step) {
  // The pool takes 31 parts in 32 of what was free at first (kernels/cuda/device.cpp).
  const auto fits = [&] {
    return bytes_of_step(trained, step, plan.stream) <
           report.device().free_bytes / 32 * 31 - memory::live_bytes();
  };
  if (!fits()) {
    step.recompute_blocks = true;
    if (!fits()) return report.skip(name, step.text(), "the device has too little memory");
  }
  const Batch batch(step.rows, step.tokens, trained.model().config().vocab_size());
  memory::reset_peak();
  Row row;
  row.work = name + " step";
  row.shape = step.text();
  row.times = time_work(plan.stream, plan.budget_ms,
                        [&] { trained.step(batch, step.recompute_blocks, plan.stream); });
  row.tokens = static_cast<double>(step.rows * step.tokens);
  row.model_flops = 3 * trained.model().flops_per_token(step.tokens) * row.tokens;
  row.peak_bytes = memory::peak_bytes();
  row.attention = attention_of_model(trained.model().config(), step.tokens, plan.stream);
  report.add(row);
}

void measure_preset(const Plan& plan, Report& report, const std::string& name,
                    std::int64_t tokens_of_step, std::initializer_list<std::int64_t> lengths) {
  const config::RunConfig config = config::load_run_config(
      fmt::format("{}/{}.textproto", plan.presets, name),
      {fmt::format("data.context_length={}", std::ranges::max(lengths)), "train.precision=BF16"},
      1);
  TrainedModel trained(config, std::ranges::max(lengths), plan.stream);
  for (const std::int64_t tokens : lengths) {
    const StepCase step{std::max<std::int64_t>(1, tokens_of_step / tokens), tokens};
    report.attempt(name + " step", step.text(),
                   [&] { measure_step(plan, report, name, trained, step); });
  }
  plan.stream.synchronize();
}

}  // namespace

void draw_parameters(LanguageModel& model, Stream& stream) {
  for (const Parameter& parameter : model.parameters().all()) {
    const Initializer& initializer = parameter.initializer;
    if (initializer.kind == Initializer::Kind::kConstant) {
      kernels::fill(parameter.value, initializer.value, stream);
    } else {
      kernels::random_normal(CounterRng(1, parameter.name), initializer.value, parameter.value,
                             stream);
    }
  }
}

void measure_steps(const Plan& plan, Report& report) {
  const auto preset = [&](const std::string& name, std::int64_t tokens,
                          std::initializer_list<std::int64_t> lengths) {
    report.attempt(name + " step", "",
                   [&] { measure_preset(plan, report, name, tokens, lengths); });
  };
  if (plan.is_smoke) return preset("../tiny", 32, {16, 32});
  for (const char* name : {"ttt_linear_m_125m_2k", "llama_125m_2k", "ttt_mlp_m_125m_2k"}) {
    preset(name, 65536, {2048, 8192, 32768});
  }
  for (const char* name : {"ttt_linear_m_1_3b_2k", "ttt_mlp_m_1_3b_2k", "llama_1_3b_2k"}) {
    preset(name, 32768, {2048, 8192, 32768});
  }
}

}  // namespace ttt::bench
