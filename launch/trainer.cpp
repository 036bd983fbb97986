#include "launch/trainer.h"

#include <algorithm>
#include <filesystem>

#include "core/base/log.h"
#include "core/base/memory.h"
#include "core/schedule.h"
#include "data/tokens/prepare.h"
#include "kernels/copy.h"
#include "kernels/row_losses.h"
#include "launch/evaluation.h"
#include "launch/stop_signal.h"

namespace ttt::launch {
namespace {

constexpr memory::Purpose kBatch{"batches", "lower train.micro_batch_size"};
constexpr memory::Purpose kResults{"results"};
constexpr memory::Purpose kGradients{"gradients"};

// The tokenizer of the training data, so that checkpoints and exports stand on their own.
std::string find_tokenizer(const config::RunConfig& config) {
  for (const std::string& path : config.data().train()) {
    const std::string candidate = path + "/tokenizer.model";
    if (std::filesystem::exists(candidate)) return candidate;
  }
  return {};
}

std::unique_ptr<LanguageModel> make_model(const config::RunConfig& config) {
  auto model = std::make_unique<LanguageModel>(config.model(), config.data().context_length());
  model->parameters().allocate(dtype_of(config.train().precision()));
  return model;
}

Tensor make_gradients(const ParameterStore& parameters) {
  const memory::Scope scope(kGradients);
  return {{parameters.num_elements()}, parameters.dtype()};
}

}  // namespace

DType dtype_of(config::PrecisionPreset precision) {
  return precision == config::FP64 ? DType::kF64 : DType::kF32;
}

kernels::Precision precision_of(config::PrecisionPreset precision) {
  return precision == config::BF16 ? kernels::Precision::kBF16 : kernels::Precision::kNative;
}

Trainer::Trainer(const config::RunConfig& config, const std::string& resume, Stream stream,
                 dist::Communicator& communicator)
    : config_(config),
      communicator_(communicator),
      stream_(std::move(stream)),
      train_reader_(config, data::Split::kTrain),
      tokenizer_(find_tokenizer(config)),
      model_(make_model(config)),
      optimizer_(config.optimizer(), config.train().steps(), model_->parameters().num_elements(),
                 model_->parameters().dtype()),
      accumulator_({model_->parameters().num_elements()}, model_->parameters().dtype()),
      gradients_(make_gradients(model_->parameters())) {
  if (!config.data().validation().empty())
    validation_reader_.emplace(config, data::Split::kValidation);
  if (!resume_checkpoint(resume, config_, *model_, optimizer_, state_)) {
    if (config.train().init_from().empty()) {
      model_->parameters().initialize(config.seed());
    } else {
      load_weights(open_model_source(config.train().init_from()), *model_);
      log::info("initialised weights={}", config.train().init_from());
    }
  }
  last_saved_step_ = state_.step > 0 ? state_.step : -1;
  const bool rounds_on_device =
      stream_.device() == Device::kCuda &&
      precision_of(config.train().precision()) == kernels::Precision::kBF16;
  if (rounds_on_device) model_->parameters().keep_rounded(stream_);
  start_reading();
  if (communicator.rank() == 0) {
    output_ = std::make_unique<RunOutput>(
        config_, state_.step, communicator.size(), model_->parameters().num_elements(),
        3.0 * model_->flops_per_token(config.data().context_length()));
  }
}

void Trainer::start_reading() {
  const std::int64_t batch = config_.train().batch_size();
  const std::int64_t rows = config_.train().micro_batch_size();
  const std::int64_t local_rows = batch / communicator_.size();
  const std::int64_t per_step = local_rows / rows;
  const std::int64_t first_step = state_.step;
  const std::int64_t first_row = communicator_.rank() * local_rows;
  results_ = Tensor({batch + 1}, DType::kF64);
  const memory::Scope scope(kBatch, memory::Place::kDevice);
  batch_ = train_reader_.make_buffers(rows);
  nll_ = Tensor(batch_.ids.shape(), DType::kF64);
  prefetcher_.emplace(train_reader_, rows, batch, (config_.train().steps() - first_step) * per_step,
                      [=](std::int64_t i) {
                        return (first_step + i / per_step) * batch + first_row +
                               i % per_step * rows;
                      });
}

Context Trainer::context(double inner_multiplier) {
  return {stream_, precision_of(config_.train().precision()), inner_multiplier, nullptr};
}

void Trainer::run_shard(std::int64_t shard, TensorView row_losses, double& data_seconds) {
  const std::int64_t micro_batch = config_.train().micro_batch_size();
  const std::int64_t shard_rows =
      config_.train().batch_size() / config_.parallel().virtual_shards();
  Context ctx = context(inner_lr_multiplier(config_.optimizer(), state_.step));
  for (std::int64_t row = shard * shard_rows; row < (shard + 1) * shard_rows; row += micro_batch) {
    const Timer timer;
    const BatchReader::Buffers read = prefetcher_->next();
    data_seconds += timer.seconds();
    kernels::copy(read.ids, batch_.ids, stream_);
    kernels::copy(read.targets, batch_.targets, stream_);
    kernels::copy(read.weight, batch_.weight, stream_);
    prefetcher_->give_back(stream_.record());
    model_->forward_backward(batch_.batch(), nll_, config_.train().recompute_blocks(), ctx);
    kernels::row_losses(batch_.weight, nll_, row_losses.slice(row, row + micro_batch), stream_);
  }
}

Trainer::QueuedStep Trainer::queue_step() {
  QueuedStep step;
  step.queued_at = clock_.seconds();
  const std::int64_t batch = config_.train().batch_size();
  const std::int64_t local_shards = config_.parallel().virtual_shards() / communicator_.size();
  kernels::fill(results_, 0, stream_);
  for (std::int64_t s = 0; s < local_shards; ++s) {
    model_->parameters().bind_gradients(accumulator_.slot(stream_));
    run_shard(communicator_.rank() * local_shards + s, results_, step.row.data_seconds);
    accumulator_.push(stream_);
  }
  kernels::fill(results_.view().slice(batch, batch + 1), stop_requested() ? 1 : 0, stream_);

  const Timer communication_timer;
  accumulator_.finish(communicator_, gradients_, stream_);
  communicator_.all_reduce_sum(results_, stream_);  // each row comes from one rank: exact
  step.row.communication_seconds = communication_timer.seconds();

  step.row.learning_rate = learning_rate(config_.optimizer(), config_.train().steps(), state_.step);
  optimizer_.update(model_->parameters().values(), model_->parameters().rounded(), gradients_,
                    state_.step, stream_);
  const memory::Scope scope(kResults, memory::Place::kPinned);
  step.results = Tensor({batch + 2}, DType::kF64);
  kernels::copy(results_, step.results.view().slice(0, batch + 1), stream_);
  kernels::copy(optimizer_.squares(), step.results.view().slice(batch + 1, batch + 2), stream_);
  step.is_done = stream_.record();
  state_.step += 1;
  state_.tokens += batch * config_.data().context_length();
  step.row.step = state_.step;
  step.row.tokens = state_.tokens;
  return step;
}

bool Trainer::finish_step(QueuedStep& step) {
  step.is_done.wait();
  const std::span<double> results = step.results.span<double>();
  const std::size_t batch = results.size() - 2;
  for (const double loss : results.first(batch)) step.row.loss += loss;
  step.row.grad_norm = gradient_norm(results[batch + 1], step.row.step - 1);
  // Steps are queued while the one before runs; none begins before that has ended.
  const double now = clock_.seconds();
  step.row.seconds = now - std::max(step.queued_at, finished_at_);
  finished_at_ = now;
  if (output_) output_->train_step(step.row);
  return results[batch] > 0;
}

bool Trainer::is_due(std::int64_t interval) const {
  return state_.step == config_.train().steps() || (interval > 0 && state_.step % interval == 0);
}

void Trainer::evaluate() {
  if (!validation_reader_ || config_.eval().num_windows() == 0) return;
  Context ctx = context(1.0);
  const std::int64_t windows =
      std::min(config_.eval().num_windows(), validation_reader_->num_windows());
  const double loss = validation_loss(*model_, *validation_reader_, windows,
                                      config_.eval().micro_batch_size(), communicator_, ctx);
  if (output_) output_->validation(state_.step, loss);
}

void Trainer::checkpoint() {
  if (last_saved_step_ == state_.step) return;
  if (output_) output_->before_checkpoint();
  stream_.synchronize();
  save_checkpoint(config_, state_, *model_, optimizer_, tokenizer_, communicator_);
  last_saved_step_ = state_.step;
}

ExitCode Trainer::run() {
  const std::int64_t steps = config_.train().steps();
  // On a device the host reads a step's results while the next one runs.
  const bool reads_late = stream_.device() == Device::kCuda;
  std::optional<QueuedStep> unfinished;
  bool is_stopping = false;
  while (state_.step < steps && !is_stopping) {
    QueuedStep step = queue_step();
    if (unfinished) is_stopping = finish_step(*unfinished);
    unfinished = std::move(step);
    const bool evaluates = is_due(config_.eval().interval_steps());
    const bool saves = is_due(config_.checkpoint().interval_steps());
    if (reads_late && !evaluates && !saves && !is_stopping) continue;
    is_stopping =
        finish_step(*unfinished) || is_stopping;  // before anything is made of its numbers
    unfinished.reset();
    if (evaluates) evaluate();
    if (saves || is_stopping) checkpoint();
  }
  if (output_) output_->finish();
  const bool stopped = is_stopping && state_.step < steps;
  if (stopped)
    log::info("stopped on request step={} of {}; resume with the same command", state_.step, steps);
  return stopped ? ExitCode::kStoppedEarly : ExitCode::kOk;
}

}  // namespace ttt::launch
