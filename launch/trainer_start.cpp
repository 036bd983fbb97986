// How a trainer comes to its start: resumed, from other weights or random, and all that follows from it.

#include "core/base/log.h"
#include "core/base/memory.h"
#include "launch/agreement.h"
#include "launch/trainer.h"

namespace ttt::launch {
namespace {

constexpr memory::Purpose kBatch{"batches", "lower train.micro_batch_size"};

}  // namespace

void Trainer::start(const std::string& resume) {
  if (!this->resume(resume)) {
    if (config_.train().init_from().empty()) {
      model_->parameters().initialize(config_.seed());
    } else {
      run_together(grid_.world(), [&] { take_weights(); });
      gather_parameters();
      log::info("initialised weights={}", config_.train().init_from());
    }
  }
  take_up();
  make_saver();
}

bool Trainer::resume(const std::string& which) {
  if (!resume_checkpoint(which, config_, *model_, optimizer_, state_, grid_.world())) return false;
  gather_parameters();
  return true;
}

void Trainer::take_weights() {
  const ModelSource source = open_model_source(config_.train().init_from());
  for (const std::string& difference : differences_from(source, config_, tokenizer_)) {
    log::warning("event=init_from {}: {}", config_.train().init_from(), difference);
  }
  load_weights(source, *model_, optimizer_.ranges());
}

void Trainer::gather_parameters() {
  gradient_sum_->gather_parameters(model_->parameters().values(), stream_);
  gradient_sum_->wait_for_parameters(stream_);
}

void Trainer::take_up() {
  guard_.restore(state_.guard);
  optimizer_.set_num_updates(state_.step - state_.guard.skipped_steps());
  last_saved_step_ = state_.step > 0 ? state_.step : -1;
  const dist::Communicator& communicator = grid_.world();
  const bool rounds = keeps_rounded(config_, stream_.device());
  if (rounds) model_->parameters().keep_rounded(stream_);
  rounds_gathered_ = rounds && communicator.size() > 1 &&
                     config_.parallel().zero() == config::ParallelConfig::ZERO_OPTIMIZER;
  start_reading();
  if (communicator.rank() == 0) {
    output_.reset();  // an earlier one writes the same files
    output_ = std::make_unique<RunOutput>(
        config_, state_.step, communicator.size(), model_->parameters().num_parameters(),
        3.0 * model_->flops_per_token(config_.data().context_length()));
  }
}

void Trainer::make_saver() {
  CheckpointSaver::Options options;
  options.run_directory = config_.output_directory();
  options.keep_last = config_.checkpoint().keep_last();
  options.asynchronous = is_saved_asynchronously(config_);
  options.tokenizer = tokenizer_;
  if (output_) options.before_commit = [this] { output_->before_checkpoint(); };
  saver_ = std::make_unique<CheckpointSaver>(options, flat_state(*model_, optimizer_),
                                             gradient_sum_->owned(), grid_.world());
}

void Trainer::start_reading() {
  const std::int64_t batch = config_.train().batch_size();
  const std::int64_t rows = config_.train().micro_batch_size();
  const std::int64_t local_rows = batch / grid_.data().size();
  const std::int64_t per_step = local_rows / rows;
  const std::int64_t num_steps = config_.train().steps() - state_.step;
  const std::int64_t first_step = state_.step + guard_.state().passed_over_steps();
  const std::int64_t first_row = grid_.data().rank() * local_rows;
  results_ = Tensor(
      {grid_.sequence().size() * batch + std::int64_t{grid_.world().size()} * kRankReportSize},
      DType::kF64);
  const memory::Scope scope(kBatch, memory::Place::kDevice);
  batch_ = train_reader_.make_buffers(rows);
  nll_ = Tensor(batch_.ids.shape(), DType::kF64);
  prefetcher_.emplace(train_reader_, rows, batch, num_steps * per_step, [=](std::int64_t i) {
    return (first_step + i / per_step) * batch + first_row + i % per_step * rows;
  });
}

}  // namespace ttt::launch
