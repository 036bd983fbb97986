#include "launch/trainer.h"

#include <algorithm>
#include <filesystem>

#include "core/base/log.h"
#include "core/schedule.h"
#include "data/tokens/prepare.h"
#include "launch/device.h"
#include "launch/evaluation.h"
#include "launch/stop_signal.h"

namespace ttt::launch {
namespace {

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

std::unique_ptr<dist::GradientSum> make_gradient_sum(const config::RunConfig& config,
                                                     const LanguageModel& model,
                                                     const Stream& stream,
                                                     const dist::ProcessGrid& grid) {
  dist::GradientSumOptions options;
  options.shard_optimizer = config.parallel().zero() == config::ParallelConfig::ZERO_OPTIMIZER;
  options.overlap = config.parallel().overlap();
  options.make_stream = [device = stream.device(), &world = grid.world()] {
    return another_stream(device, world);
  };
  return std::make_unique<dist::GradientSum>(
      model.buckets(config.parallel().bucket_elements()), model.parameters().dtype(), options,
      std::vector<dist::Communicator*>{&grid.data(), &grid.sequence()});
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
      grid_(communicator, config.parallel().sequence_ranks()),
      sequence_(dist::make_sequence_exchange(sequence_split(config), grid_.sequence())),
      stream_(std::move(stream)),
      train_reader_(config, data::Split::kTrain, sequence_.get()),
      tokenizer_(find_tokenizer(config)),
      model_(make_model(config)),
      gradient_sum_(make_gradient_sum(config, *model_, stream_, grid_)),
      optimizer_(config.optimizer(), config.train().steps(), gradient_sum_->updated(),
                 model_->parameters().dtype()) {
  if (!config.data().validation().empty())
    validation_reader_.emplace(config, data::Split::kValidation, sequence_.get());
  if (!resume_checkpoint(resume, config_, *model_, optimizer_, state_)) {
    if (config.train().init_from().empty()) {
      model_->parameters().initialize(config.seed());
    } else {
      load_weights(open_model_source(config.train().init_from()), *model_);
      log::info("initialised weights={}", config.train().init_from());
    }
  }
  last_saved_step_ = state_.step > 0 ? state_.step : -1;
  if (communicator.rank() == 0) {
    output_ = std::make_unique<RunOutput>(
        config_, state_.step, communicator.size(), model_->parameters().num_elements(),
        3.0 * model_->flops_per_token(config.data().context_length()));
  }
}

Context Trainer::context(double inner_multiplier) {
  return {stream_, precision_of(config_.train().precision()), inner_multiplier, nullptr,
          sequence_.get()};
}

void Trainer::run_shard(std::int64_t shard, bool is_last, std::span<double> row_losses,
                        double& data_seconds) {
  const std::int64_t batch = config_.train().batch_size();
  const std::int64_t micro_batch = config_.train().micro_batch_size();
  const std::int64_t shard_rows = batch / config_.parallel().virtual_shards();
  Context ctx = context(inner_lr_multiplier(config_.optimizer(), state_.step));
  ctx.observer = gradient_sum_.get();
  const BatchReader::Buffers buffers = train_reader_.make_buffers(micro_batch);
  const Tensor nll(buffers.ids.shape(), DType::kF64);
  const auto length = static_cast<std::size_t>(nll.size(1));
  for (std::int64_t row = shard * shard_rows; row < (shard + 1) * shard_rows; row += micro_batch) {
    const Timer timer;
    train_reader_.read(state_.step * batch + row, batch, buffers);
    data_seconds += timer.seconds();
    if (is_last && row + micro_batch == (shard + 1) * shard_rows) gradient_sum_->expect_final();
    model_->forward_backward(buffers.batch(), nll, config_.train().recompute_blocks(), ctx);
    stream_.synchronize();  // nll is read here, and the buffers are written again
    for (std::int64_t r = 0; r < micro_batch; ++r) {
      const double* row_nll = nll.data<double>() + static_cast<std::size_t>(r) * length;
      const double* weight = buffers.weight.data<double>() + static_cast<std::size_t>(r) * length;
      double sum = 0;
      for (std::size_t t = 0; t < length; ++t) sum += weight[t] * row_nll[t];
      row_losses[static_cast<std::size_t>(row + r)] = sum;
    }
  }
}

Trainer::StepResult Trainer::step() {
  const Timer step_timer;
  StepResult result;
  stream_.synchronize();  // the last update may still run on memory that is used again here
  const std::int64_t batch = config_.train().batch_size();
  const std::int64_t local_shards = config_.parallel().virtual_shards() / grid_.data().size();
  // For every segment of the sequences one value a row of the batch and the number of ranks that were asked to stop.
  const std::int64_t segments = grid_.sequence().size();
  const Tensor shared = Tensor::zeros({segments, batch + 1}, DType::kF64);
  const std::span<double> rows =
      shared.span<double>().subspan(static_cast<std::size_t>(grid_.sequence().rank() * (batch + 1)),
                                    static_cast<std::size_t>(batch + 1));
  for (std::int64_t s = 0; s < local_shards; ++s) {
    const bool is_last = s + 1 == local_shards;
    model_->parameters().bind_gradients(gradient_sum_->slot(stream_));
    run_shard(grid_.data().rank() * local_shards + s, is_last, rows, result.data_seconds);
    if (!is_last) gradient_sum_->push(stream_);
  }
  const TensorView gradients = gradient_sum_->finish(stream_);
  rows.back() = stop_requested() ? 1 : 0;

  const Timer communication_timer;
  grid_.world().all_reduce_sum(shared, stream_);  // each value comes from one rank: exact
  const double seconds = communication_timer.seconds();

  const double* value = shared.data<double>();
  for (std::int64_t row = 0; row < batch; ++row) {
    double loss = 0;
    for (std::int64_t s = 0; s < segments; ++s) loss += value[s * (batch + 1) + row];
    result.loss += loss;
  }
  for (std::int64_t s = 1; s <= segments; ++s) result.stop |= value[s * (batch + 1) - 1] > 0;
  const TensorView values = model_->parameters().values();
  result.grad_norm = optimizer_.update(values, gradients, gradient_sum_->sum_of_squares(stream_),
                                       state_.step, stream_);
  gradient_sum_->gather_parameters(values, stream_);
  result.communication = gradient_sum_->take_seconds();
  result.communication.total += seconds;
  result.communication.exposed += seconds;
  state_.step += 1;
  state_.tokens += batch * config_.data().context_length();
  result.seconds = step_timer.seconds();
  return result;
}

void Trainer::after_step(const StepResult& result) {
  if (output_) {
    RunOutput::Step row;
    row.step = state_.step;
    row.tokens = state_.tokens;
    row.loss = result.loss;
    row.learning_rate =
        learning_rate(config_.optimizer(), config_.train().steps(), state_.step - 1);
    row.grad_norm = result.grad_norm;
    row.seconds = result.seconds;
    row.data_seconds = result.data_seconds;
    row.communication_seconds = result.communication.total;
    row.exposed_seconds = result.communication.exposed;
    output_->train_step(row);
  }
  const bool last = state_.step == config_.train().steps();
  const auto due = [&](std::int64_t interval) {
    return last || (interval > 0 && state_.step % interval == 0);
  };
  if (due(config_.eval().interval_steps())) evaluate();
  if (due(config_.checkpoint().interval_steps()) || result.stop) checkpoint();
}

void Trainer::evaluate() {
  if (!validation_reader_ || config_.eval().num_windows() == 0) return;
  gradient_sum_->wait_for_parameters(stream_);
  Context ctx = context(1.0);
  const std::int64_t windows =
      std::min(config_.eval().num_windows(), validation_reader_->num_windows());
  const double loss = validation_loss(*model_, *validation_reader_, windows,
                                      config_.eval().micro_batch_size(), grid_, ctx);
  if (output_) output_->validation(state_.step, loss);
}

void Trainer::checkpoint() {
  if (last_saved_step_ == state_.step) return;
  if (output_) output_->before_checkpoint();
  gradient_sum_->wait_for_parameters(stream_);
  stream_.synchronize();
  save_checkpoint(config_, state_, *model_, optimizer_, gradient_sum_->owned(), tokenizer_,
                  grid_.world());
  last_saved_step_ = state_.step;
}

ExitCode Trainer::run() {
  bool stopped = false;
  while (state_.step < config_.train().steps() && !stopped) {
    const StepResult result = step();
    after_step(result);
    stopped = result.stop && state_.step < config_.train().steps();
  }
  if (output_) output_->finish();
  if (stopped)
    log::info("stopped on request step={} of {}; resume with the same command", state_.step,
              config_.train().steps());
  return stopped ? ExitCode::kStoppedEarly : ExitCode::kOk;
}

}  // namespace ttt::launch
