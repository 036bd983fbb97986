#include "launch/probe.h"

#include <algorithm>
#include <optional>
#include <set>

#include "configs/run_config.h"
#include "core/decoder.h"
#include "core/mixers/ttt_core.h"
#include "core/optimizer.h"
#include "core/schedule.h"
#include "data/interchange/huggingface.h"
#include "kernels/copy.h"
#include "kernels/device_ops.h"
#include "launch/device.h"
#include "launch/model_source.h"

namespace ttt::launch {
namespace {

constexpr std::int64_t kIgnoredLabel = -100;  // Hugging Face's convention

struct Arithmetic {
  DType dtype;
  kernels::Precision precision;
};

Arithmetic arithmetic_of(const std::string& name) {
  if (name == "f64") return {DType::kF64, kernels::Precision::kNative};
  if (name == "f32") return {DType::kF32, kernels::Precision::kNative};
  if (name == "bf16") return {DType::kF32, kernels::Precision::kBF16};
  fail(ExitCode::kUsage, "--dtype {}: must be f64, f32 or bf16", name);
}

// The tensors of a result file, with the storage behind them.
class Results {
 public:
  explicit Results(DType dtype) : dtype_(dtype == DType::kF64 ? DType::kF64 : DType::kF32) {}

  /// Floating-point results are written as F64 for f64 and F32 otherwise.
  void add(const std::string& name, TensorView view) {
    const bool integral = view.dtype() == DType::kI64;
    owned_.push_back(integral ? copy_of(view) : to_dtype(view, dtype_));
    tensors_.emplace_back(name, owned_.back());
  }
  void add_numbers(const std::string& name, const std::vector<double>& numbers) {
    const Tensor tensor({static_cast<std::int64_t>(numbers.size())}, DType::kF64);
    std::ranges::copy(numbers, tensor.data<double>());
    add(name, tensor);
  }
  void write(const std::string& path) const { data::write_safetensors(path, tensors_); }

 private:
  static Tensor copy_of(TensorView view) {
    Tensor tensor(view.shape(), view.dtype());
    copy(view, tensor);
    return tensor;
  }

  DType dtype_;
  std::vector<Tensor> owned_;
  std::vector<data::NamedTensor> tensors_;
};

class Inputs {
 public:
  explicit Inputs(const std::string& path)
      : path_(path), file_(data::SafetensorsFile::open(path)) {}

  [[nodiscard]] bool has(const std::string& name) const { return file_.has(name); }
  /// An integer tensor as I64, of the given rank.
  [[nodiscard]] Tensor integers(const std::string& name, int rank) const {
    Tensor tensor = file_.read(name);
    expect_rank(name, tensor, rank);
    if (tensor.dtype() == DType::kI64) return tensor;
    if (tensor.dtype() != DType::kI32) {
      fail(ExitCode::kCorruptInput, "{}: tensor {} is {}, expected I64 or I32", path_, name,
           name_of(tensor.dtype()));
    }
    Tensor wide(tensor.shape(), DType::kI64);
    std::ranges::copy(tensor.span<std::int32_t>(), wide.data<std::int64_t>());
    return wide;
  }
  /// Integers inside the vocabulary, or `ignored`.
  [[nodiscard]] Tensor tokens(const std::string& name, int rank, std::int64_t vocab,
                              std::optional<std::int64_t> ignored = {}) const {
    Tensor tensor = integers(name, rank);
    for (const std::int64_t id : tensor.span<std::int64_t>()) {
      if ((id < 0 || id >= vocab) && id != ignored) {
        fail(ExitCode::kCorruptInput, "{}: tensor {} has token {}, outside the vocabulary [0, {})",
             path_, name, id, vocab);
      }
    }
    return tensor;
  }
  [[nodiscard]] Tensor reals(const std::string& name, int rank, DType dtype) const {
    const Tensor tensor = file_.read(name);
    expect_rank(name, tensor, rank);
    return to_dtype(tensor, dtype);
  }
  void expect(const std::string& name, const Tensor& tensor, const Shape& shape) const {
    if (tensor.shape() != shape) {
      fail(ExitCode::kCorruptInput, "{}: tensor {} has shape {}, expected {}", path_, name,
           tensor.shape().str(), shape.str());
    }
  }

 private:
  void expect_rank(const std::string& name, const Tensor& tensor, int rank) const {
    if (tensor.shape().rank() != rank) {
      fail(ExitCode::kCorruptInput, "{}: tensor {} has shape {}, expected {} dimensions", path_,
           name, tensor.shape().str(), rank);
    }
  }

  std::string path_;
  data::SafetensorsFile file_;
};

// labels[:, t+1] are the targets of position t; the mean is over all that count.
struct ShiftedLabels {
  Tensor targets, weight;

  explicit ShiftedLabels(const Tensor& labels)
      : targets(Tensor::zeros(labels.shape(), DType::kI64)),
        weight(Tensor::zeros(labels.shape(), DType::kF64)) {
    const std::int64_t length = labels.size(1);
    std::int64_t count = 0;
    for (std::int64_t i = 0; i < labels.numel(); ++i) {
      if (i % length == length - 1) continue;
      const std::int64_t label = labels.data<std::int64_t>()[i + 1];
      if (label == kIgnoredLabel) continue;
      targets.data<std::int64_t>()[i] = label;
      weight.data<double>()[i] = 1;
      ++count;
    }
    for (double& w : weight.span<double>())
      w /= static_cast<double>(std::max<std::int64_t>(1, count));
  }
};

double weighted_sum(const Tensor& weight, const Tensor& values) {
  double sum = 0;
  for (std::int64_t i = 0; i < weight.numel(); ++i) {
    sum += weight.data<double>()[i] * values.data<double>()[i];
  }
  return sum;
}

// What every verb begins with.
struct Session {
  Arithmetic arithmetic;
  Stream stream;
  Inputs inputs;
  Results results;
  Context context;

  explicit Session(const ProbeOptions& options)
      : arithmetic(arithmetic_of(options.dtype)),
        stream(kernels::make_stream(device_of(options.device, arithmetic.dtype), 0)),
        inputs(options.input),
        results(arithmetic.dtype),
        context{stream, arithmetic.precision} {}
  Session(const Session&) = delete;  // the context has the stream's address
  Session& operator=(const Session&) = delete;
  ~Session() = default;

  [[nodiscard]] std::unique_ptr<LanguageModel> load(const std::string& model) const {
    return load_model(open_model_source(model), arithmetic.dtype);
  }
};

// Index of the largest logit of the last position of every sequence.
Tensor greedy(const Tensor& logits) {
  const std::int64_t vocab = logits.size(2);
  const Tensor wide = to_dtype(logits, DType::kF64);
  Tensor ids({logits.size(0), 1}, DType::kI64);
  for (std::int64_t b = 0; b < logits.size(0); ++b) {
    const double* row = wide.data<double>() + ((b + 1) * logits.size(1) - 1) * vocab;
    ids.data<std::int64_t>()[b] = std::max_element(row, row + vocab) - row;
  }
  return ids;
}

}  // namespace

void probe_loss(const ProbeOptions& options) {
  Session session(options);
  auto& [arithmetic, stream, inputs, results, context] = session;
  const auto model = session.load(options.model);
  const std::int64_t vocab = model->config().vocab_size();
  const Tensor ids = inputs.tokens("input_ids", 2, vocab);
  const Tensor labels = inputs.tokens("labels", 2, vocab, kIgnoredLabel);
  inputs.expect("labels", labels, ids.shape());
  const ShiftedLabels shifted(labels);

  const Tensor logits = model->logits(ids, context);
  stream.synchronize();
  results.add("logits", logits);
  const TokenBatch batch{ids, shifted.targets, shifted.weight};
  const Tensor nll(ids.shape(), DType::kF64);
  if (options.gradients) {
    const Tensor gradients = Tensor::zeros({model->parameters().num_elements()}, arithmetic.dtype);
    model->parameters().bind_gradients(gradients);
    model->forward_backward(batch, nll, false, context);
    stream.synchronize();
    for (const Parameter& parameter : model->parameters().all()) {
      results.add("grad." + data::hf_name(model->config(), parameter.name), parameter.grad);
    }
  } else {
    model->evaluate(batch, nll, context);
  }
  stream.synchronize();
  results.add_numbers("loss", {weighted_sum(shifted.weight, nll)});
  results.write(options.output);
}

void probe_layer(const ProbeOptions& options) {
  Session session(options);
  auto& [arithmetic, stream, inputs, results, context] = session;
  const config::ModelConfig config = data::read_hf_config(options.model);
  if (config.mixer() != config::TTT_LINEAR && config.mixer() != config::TTT_MLP) {
    fail(ExitCode::kUsage, "ttt probe layer needs a TTT layer; {} has another", options.model);
  }
  const Tensor x = inputs.reals("hidden_states", 3, arithmetic.dtype);
  const Tensor d_y = inputs.reals("grad_output", 3, arithmetic.dtype);
  inputs.expect("grad_output", d_y, x.shape());
  inputs.expect("hidden_states", x, {x.size(0), x.size(1), config.hidden_size()});

  const std::string prefix = "layer";  // a lone layer's tensors have no prefix in the file
  ParameterStore store;
  const QkvMixer layer(store, prefix, config, x.size(1), 0);
  store.allocate(arithmetic.dtype);
  std::vector<data::NamedTensor> weights;
  for (const Parameter& parameter : store.all()) {
    weights.emplace_back(parameter.name.substr(prefix.size() + 1), parameter.value);
  }
  data::load_hf_weights(options.model, config, weights);
  const Tensor gradients = Tensor::zeros({store.num_elements()}, arithmetic.dtype);
  store.bind_gradients(gradients);

  const Tensor y(x.shape(), x.dtype());
  const Tensor d_x(x.shape(), x.dtype());
  const std::unique_ptr<Saved> saved = layer.forward(x, y, context);
  layer.backward(*saved, x, d_y, d_x, context);
  stream.synchronize();

  results.add("output", y);
  results.add("grad.hidden_states", d_x);
  for (const Parameter& parameter : store.all()) {
    results.add("grad." + parameter.name.substr(prefix.size() + 1), parameter.grad);
  }
  const kernels::TttState& final_state = TttCore::final_state(QkvMixer::core_saved(*saved)).views;
  results.add("final.W1", final_state.w1);
  results.add("final.b1", final_state.b1);
  if (!final_state.w2.empty()) {
    results.add("final.W2", final_state.w2);
    results.add("final.b2", final_state.b2);
  }
  results.write(options.output);
}

void probe_generate(const ProbeOptions& options) {
  Session session(options);
  auto& [arithmetic, stream, inputs, results, context] = session;
  const auto model = session.load(options.model);
  const std::int64_t vocab = model->config().vocab_size();
  const Tensor prompt = inputs.tokens("input_ids", 2, vocab);
  const std::int64_t batch = prompt.size(0);
  const std::int64_t steps = options.max_new_tokens;
  if (steps < 1) fail(ExitCode::kUsage, "--max-new-tokens {}: must be at least 1", steps);

  Decoder decoder(*model, batch, context);
  Tensor logits = decoder.prefill(prompt, true);
  results.add("prefill_logits", logits);
  const Tensor ids({batch, steps + 1}, DType::kI64);
  const Tensor decoded({batch, steps, vocab}, arithmetic.dtype);
  for (std::int64_t n = 0; n <= steps; ++n) {
    const Tensor next = greedy(logits);
    for (std::int64_t b = 0; b < batch; ++b) {
      ids.data<std::int64_t>()[b * (steps + 1) + n] = next.data<std::int64_t>()[b];
    }
    if (n == steps) break;
    logits = decoder.step(next);
    for (std::int64_t b = 0; b < batch; ++b) {
      const std::int64_t row = b * steps + n;
      copy(logits.view().reshape({batch, vocab}).slice(b, b + 1),
           decoded.view().reshape({batch * steps, vocab}).slice(row, row + 1));
    }
  }
  results.add("generated_ids", ids);
  results.add("decode_logits", decoded);
  results.write(options.output);
}

namespace {

config::OptimizerConfig optimizer_config(const std::vector<std::string>& overrides) {
  config::RunConfig config;
  std::vector<std::string> problems;
  for (const std::string& assignment : overrides) {
    const std::string problem = config::apply_override(config, assignment);
    if (!problem.empty()) problems.push_back(problem);
  }
  config::throw_problems("ttt probe train", problems);
  return config.optimizer();
}

// The batches of all steps.
struct GivenBatches {
  Tensor tokens;       // [S, B, L+1] I64
  Tensor masks;        // [S, B, L] F64
  Tensor multipliers;  // [S] F64, or empty: 1
  std::int64_t steps, rows, length;

  GivenBatches(const Inputs& inputs, std::int64_t vocab)
      : tokens(inputs.tokens("tokens", 3, vocab)),
        masks(inputs.reals("loss_masks", 3, DType::kF64)),
        steps(tokens.size(0)),
        rows(tokens.size(1)),
        length(tokens.size(2) - 1) {
    inputs.expect("loss_masks", masks, {steps, rows, length});
    if (!inputs.has("ttt_lr_mult")) return;
    multipliers = inputs.reals("ttt_lr_mult", 1, DType::kF64);
    inputs.expect("ttt_lr_mult", multipliers, {steps});
  }

  // Step s's into the batch [B, L].
  void put(std::int64_t s, const TokenBatch& batch) const {
    const auto count = static_cast<std::size_t>(length);
    for (std::int64_t b = 0; b < rows; ++b) {
      const std::int64_t* row = tokens.data<std::int64_t>() + (s * rows + b) * (length + 1);
      const double* mask = masks.data<double>() + (s * rows + b) * length;
      std::copy_n(row, length, batch.ids.data<std::int64_t>() + b * length);
      std::copy_n(row + 1, length, batch.targets.data<std::int64_t>() + b * length);
      set_row_weights({mask, count}, rows, {batch.token_weight.data<double>() + b * length, count});
    }
  }
};

}  // namespace

void probe_train(const ProbeOptions& options) {
  Session session(options);
  auto& [arithmetic, stream, inputs, results, context] = session;
  const auto model = session.load(options.model);
  const GivenBatches given(inputs, model->config().vocab_size());
  const config::OptimizerConfig config = optimizer_config(options.overrides);

  const std::int64_t parameters = model->parameters().num_elements();
  Optimizer optimizer(config, given.steps, parameters, arithmetic.dtype);
  const Tensor gradients({parameters}, arithmetic.dtype);
  model->parameters().bind_gradients(gradients);
  const Shape shape{given.rows, given.length};
  const Tensor ids(shape, DType::kI64);
  const Tensor targets(shape, DType::kI64);
  const Tensor weight(shape, DType::kF64);
  const Tensor nll(shape, DType::kF64);
  std::vector<double> losses, norms, rates;
  for (std::int64_t s = 0; s < given.steps; ++s) {
    given.put(s, {ids, targets, weight});
    context.inner_lr_multiplier =
        given.multipliers.empty() ? 1.0 : given.multipliers.data<double>()[s];
    kernels::fill(gradients, 0, stream);
    model->forward_backward({ids, targets, weight}, nll, false, context);
    stream.synchronize();
    losses.push_back(weighted_sum(weight, nll));
    rates.push_back(learning_rate(config, given.steps, s));
    optimizer.update(model->parameters().values(), {}, gradients, s, stream);
    stream.synchronize();
    norms.push_back(gradient_norm(*optimizer.squares().data<double>(), s));
  }
  results.add_numbers("step_loss", losses);
  results.add_numbers("step_grad_norm", norms);
  results.add_numbers("step_lr", rates);
  for (const Parameter& parameter : model->parameters().all()) {
    results.add("final." + data::hf_name(model->config(), parameter.name), parameter.value);
  }
  results.write(options.output);
}

}  // namespace ttt::launch
