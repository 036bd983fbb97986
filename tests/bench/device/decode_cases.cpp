#include <algorithm>
#include <array>
#include <memory>

#include "configs/run_config.h"
#include "core/base/timer.h"
#include "core/decoder.h"
#include "tests/bench/device/cases.h"

namespace ttt::bench {
namespace {

/// The same tokens again and again; only the time counts.
class Generation {
 public:
  Generation(const LanguageModel& model, std::int64_t batch, DecodeSteps steps, Stream& stream)
      : decoder_(model, batch, Context{stream, kernels::Precision::kBF16}, steps),
        ids_({batch, 1}, DType::kI64) {
    std::ranges::fill(ids_.span<std::int64_t>(), 1);
  }

  /// By the clock, since the host waits for every token.
  double ms_of(std::int64_t tokens) {
    const Timer timer;
    for (std::int64_t i = 0; i < tokens; ++i) (void)decoder_.step(ids_);
    return 1e3 * timer.seconds();
  }
  [[nodiscard]] bool has_graphs() const { return decoder_.num_graphs() > 0; }

 private:
  Decoder decoder_;
  Tensor ids_;
};

/// Inner weights and biases of one sequence, in fp32.
double state_bytes(const config::ModelConfig& config) {
  const auto dim = static_cast<double>(config.hidden_size() / config.num_heads());
  const auto width = dim * static_cast<double>(config.ttt().mlp_expansion());
  const double head =
      config.mixer() == config::TTT_MLP ? 2 * dim * width + width + dim : dim * dim + dim;
  return 4 * static_cast<double>(config.num_layers() * config.num_heads()) * head;
}

void measure_batch(const Plan& plan, Report& report, const std::string& name,
                   const LanguageModel& model, std::int64_t batch) {
  constexpr double kMostRepeats = 50;
  const std::int64_t period = model.decode_period().value_or(1);
  std::array<std::unique_ptr<Generation>, 2> generations;
  std::array<std::vector<double>, 2> ms;
  double once = 0;
  for (const std::size_t i : {0U, 1U}) {
    generations[i] = std::make_unique<Generation>(
        model, batch, i == 0 ? DecodeSteps::kQueued : DecodeSteps::kReplayed, plan.stream);
    (void)generations[i]->ms_of(2 * period);  // all graphs are captured
    once += generations[i]->ms_of(period);
  }
  const double repeats = std::clamp(plan.budget_ms / once, 3.0, kMostRepeats);
  for (std::int64_t repeat = 0; static_cast<double>(repeat) < repeats; ++repeat) {
    for (const std::size_t i : {0U, 1U}) ms[i].push_back(generations[i]->ms_of(period));
  }
  for (const std::size_t i : {0U, 1U}) {
    if (i == 1 && !generations[i]->has_graphs()) continue;  // the CPU, and TTT_GRAPHS=off
    Row row;
    row.work = name + " decode";
    row.shape = fmt::format("B={} T={} {}", batch, period, i == 0 ? "queued" : "replayed");
    row.times = times_of(ms[i]);
    row.tokens = static_cast<double>(batch * period);
    // Each token reads the weights in bf16 once, and of every sequence's state what a decode step does.
    row.bytes = static_cast<double>(period) *
                (2 * static_cast<double>(model.parameters().num_parameters()) +
                 static_cast<double>(batch) * 3 * state_bytes(model.config()));
    report.add(row);
  }
}

void measure_preset(const Plan& plan, Report& report, const std::string& name,
                    const std::vector<std::string>& overrides,
                    std::initializer_list<std::int64_t> batches) {
  const config::RunConfig config =
      config::load_run_config(fmt::format("{}/{}.textproto", plan.presets, name), overrides, 1);
  LanguageModel model(config.model(), config.data().context_length());
  model.parameters().allocate(DType::kF32);
  draw_parameters(model, plan.stream);
  if (plan.stream.device() == Device::kCuda) model.parameters().keep_rounded(plan.stream);
  for (const std::int64_t batch : batches) {
    report.attempt(name + " decode", fmt::format("B={}", batch),
                   [&] { measure_batch(plan, report, name, model, batch); });
  }
}

}  // namespace

void measure_decoding(const Plan& plan, Report& report) {
  const auto preset = [&](const std::string& name, const std::vector<std::string>& overrides,
                          std::initializer_list<std::int64_t> batches) {
    report.attempt(name + " decode", "",
                   [&] { measure_preset(plan, report, name, overrides, batches); });
  };
  if (plan.is_smoke) return preset("../tiny", {"model.ttt.mini_batch_size=2"}, {1, 2});
  for (const char* name :
       {"ttt_linear_m_125m_2k", "ttt_mlp_m_125m_2k", "ttt_linear_m_1_3b_2k", "ttt_mlp_m_1_3b_2k"}) {
    preset(name, {}, {1, 64});
  }
}

}  // namespace ttt::bench
