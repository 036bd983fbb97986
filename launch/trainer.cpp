#include "launch/trainer.h"

#include <algorithm>
#include <cmath>
#include <filesystem>

#include "core/base/crash_report.h"
#include "core/base/fault_point.h"
#include "core/base/log.h"
#include "core/base/memory.h"
#include "core/schedule.h"
#include "data/files.h"
#include "data/tokens/prepare.h"
#include "kernels/copy.h"
#include "kernels/row_losses.h"
#include "launch/device.h"
#include "launch/stop_signal.h"

namespace ttt::launch {
namespace {

constexpr memory::Purpose kResults{"results"};
constexpr memory::Purpose kGradients{"gradients"};

// The tokenizer of the training data, so that checkpoints and exports stand on their own.
std::string find_tokenizer(const config::RunConfig& config) {
  for (const std::string& path : training_paths(config.data())) {
    for (const char* name : {"tokenizer.model", "tokenizer.json"}) {
      std::string candidate = path + "/" + name;
      if (std::filesystem::exists(candidate)) return candidate;
    }
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
  const memory::Scope scope(kGradients);
  dist::GradientSumOptions options;
  options.shard_optimizer = config.parallel().zero() == config::ParallelConfig::ZERO_OPTIMIZER;
  options.overlap = config.parallel().overlap();
  options.make_stream = [device = stream.device(), &grid] {
    return another_stream(device, grid.world());
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

bool keeps_rounded(const config::RunConfig& config, Device device) {
  return device == Device::kCuda && config.train().precision() == config::BF16;
}

Trainer::Trainer(const config::RunConfig& config, const std::string& resume, Stream stream,
                 dist::Communicator& communicator, dist::FlightRecord& record)
    : config_(config),
      grid_(communicator, config.parallel().sequence_ranks()),
      sequence_(dist::make_sequence_exchange(sequence_split(config), grid_.sequence())),
      record_(record),
      stream_(std::move(stream)),
      train_reader_(config, data::Split::kTrain, sequence_.get()),
      held_out_(held_out_sets(config)),
      tokenizer_(find_tokenizer(config)),
      model_(make_model(config)),
      gradient_sum_(make_gradient_sum(config, *model_, stream_, grid_)),
      optimizer_(config.optimizer(), config.train().steps(), gradient_sum_->updated(),
                 model_->parameters().dtype()),
      guard_(config.guard()),
      stragglers_(communicator.size(), config.guard().straggler_score()) {
  for (const HeldOut& set : held_out_) {
    held_out_readers_.emplace_back(set.config, data::Split::kValidation, sequence_.get());
  }
  if (!config_.data().order_file().empty()) {
    state_.order_digest = data::xxh3_128_hex_of_file(config_.data().order_file());
  }
  start(resume);
}

Context Trainer::context(double inner_multiplier) {
  return {.stream = stream_,
          .precision = precision_of(config_.train().precision()),
          .inner_lr_multiplier = inner_multiplier,
          .sequence = sequence_.get()};
}

void Trainer::run_shard(std::int64_t shard, bool is_last, TensorView row_losses,
                        double& data_seconds) {
  const std::int64_t micro_batch = config_.train().micro_batch_size();
  const std::int64_t shard_rows =
      config_.train().batch_size() / config_.parallel().virtual_shards();
  Context ctx = context(inner_lr_multiplier(config_.optimizer(), state_.step));
  ctx.observer = gradient_sum_.get();
  for (std::int64_t row = shard * shard_rows; row < (shard + 1) * shard_rows; row += micro_batch) {
    record_.mark_progress();
    const Timer timer;
    const BatchReader::Buffers read = prefetcher_->next();
    data_seconds += timer.seconds();
    const std::vector<SequenceRange> sequences = train_reader_.sequences(read.ids);
    kernels::copy(read.ids, batch_.ids, stream_);
    kernels::copy(read.targets, batch_.targets, stream_);
    kernels::copy(read.weight, batch_.weight, stream_);
    prefetcher_->give_back(stream_.record());
    if (config_.data().reset_at_bos()) kernels::fill(nll_, 0, stream_);  // what other ranks run
    for (std::size_t i = 0; i < sequences.size(); ++i) {
      const bool ends = row + micro_batch == (shard + 1) * shard_rows && i + 1 == sequences.size();
      if (is_last && ends) gradient_sum_->expect_final();
      SequenceContext of_sequence(ctx, sequences[i]);
      model_->forward_backward(batch_.batch(sequences[i]), sequences[i].of(nll_),
                               config_.train().recompute_blocks(), of_sequence.get());
    }
    kernels::row_losses(batch_.weight, nll_, row_losses.slice(row, row + micro_batch), stream_);
  }
}

TensorView Trainer::losses() const {
  return results_.view().slice(0, grid_.sequence().size() * config_.train().batch_size());
}

void Trainer::queue_shards(QueuedStep& step) {
  const std::int64_t batch = config_.train().batch_size();
  const std::int64_t local_shards = config_.parallel().virtual_shards() / grid_.data().size();
  const double exchanged_before = grid_.sequence().traffic().total().seconds;
  step.work.mark(stream_);
  gradient_sum_->time_waits(&step.work);
  fault_point("step_begin", {.step = state_.step + 1});
  const std::int64_t segment = grid_.sequence().rank();
  const TensorView mine = losses().slice(segment * batch, (segment + 1) * batch);
  kernels::fill(results_, 0, stream_);
  for (std::int64_t s = 0; s < local_shards; ++s) {
    const bool is_last = s + 1 == local_shards;
    model_->parameters().bind_gradients(gradient_sum_->slot(stream_));
    run_shard(grid_.data().rank() * local_shards + s, is_last, mine, step.row.data_seconds);
    if (!is_last) gradient_sum_->push(stream_);
  }
  fault_point("after_loss", {.values = [&] {
                stream_.synchronize();
                const std::int64_t rows = batch / grid_.data().size();
                return mine.slice(grid_.data().rank() * rows, (grid_.data().rank() + 1) * rows);
              }});
  gradient_sum_->time_waits(nullptr);
  step.work.mark(stream_);
  step.exchange_seconds = grid_.sequence().traffic().total().seconds - exchanged_before;
}

void Trainer::queue_update(QueuedStep& step) {
  const TensorView gradients = gradient_sum_->finish(stream_);
  const TensorView all_losses = losses();
  const std::int64_t report =
      all_losses.numel() + std::int64_t{grid_.world().rank()} * kRankReportSize;
  const auto reported = [&](std::int64_t which) {
    return results_.view().slice(report + which, report + which + 1);
  };
  kernels::fill(reported(kStops), stop_requested() ? 1 : 0, stream_);
  kernels::copy(gradient_sum_->first_non_finite(stream_), reported(kNonFinite), stream_);
  kernels::fill(reported(kComputeSeconds), compute_seconds_, stream_);

  const Timer communication_timer;
  grid_.world().all_reduce_sum(results_, stream_);  // each value comes from one rank: exact
  const double seconds = communication_timer.seconds();

  step.row.learning_rate = learning_rate(config_.optimizer(), config_.train().steps(), state_.step);
  const TensorView values = model_->parameters().values();
  const TensorView squares = gradient_sum_->sum_of_squares(stream_);
  step.limits = guard_.limits(state_.step + 1);
  optimizer_.update(values, model_->parameters().rounded(), gradients,
                    {squares, all_losses, step.limits}, state_.step, stream_);
  gradient_sum_->gather_parameters(values, stream_);
  if (rounds_gathered_) {  // other ranks' parts come in fp32 only
    gradient_sum_->wait_for_parameters(stream_);
    model_->parameters().keep_rounded(stream_);
  }
  fault_point("after_update", {.values = [&] {
                gradient_sum_->wait_for_parameters(stream_);
                stream_.synchronize();
                return values;
              }});
  const auto communication = gradient_sum_->take_seconds();
  step.row.communication_seconds = communication.total + seconds;
  step.row.exposed_seconds = communication.exposed + seconds;

  const memory::Scope scope(kResults, memory::Place::kPinned);
  const std::int64_t count = results_.numel();
  step.results = Tensor({count + 2}, DType::kF64);
  kernels::copy(results_, step.results.view().slice(0, count), stream_);
  kernels::copy(squares, step.results.view().slice(count, count + 1), stream_);
  kernels::copy(optimizer_.decision().slice(kernels::kIsMade, kernels::kIsMade + 1),
                step.results.view().slice(count + 1, count + 2), stream_);
  step.is_done = stream_.record();
}

Trainer::QueuedStep Trainer::queue_step() {
  crash::note_step(state_.step + 1);
  QueuedStep step;
  step.queued_at = clock_.seconds();
  queue_shards(step);
  queue_update(step);
  const std::int64_t batch = config_.train().batch_size();
  state_.step += 1;
  state_.tokens += batch * config_.data().context_length();
  const auto counts = train_reader_.counts(state_.step * batch);
  for (std::size_t s = 0; counts.size() > 1 && s < counts.size(); ++s) {
    step.row.source_tokens.emplace_back(train_reader_.sources()[s].name,
                                        counts[s] * config_.data().context_length());
  }
  step.row.step = state_.step;
  step.row.tokens = state_.tokens;
  return step;
}

Trainer::Outcome Trainer::finish_step(QueuedStep& step) {
  step.is_done.wait();
  // What a device waits in its own queue for other ranks' parts of a sequence, nobody can tell from work.
  const bool waits_unseen = grid_.sequence().size() > 1 && grid_.sequence().is_asynchronous();
  compute_seconds_ = waits_unseen ? 0 : step.work.seconds() - step.exchange_seconds;
  const double* const results = step.results.data<double>();
  const std::int64_t batch = config_.train().batch_size();
  const std::int64_t segments = grid_.sequence().size();
  for (std::int64_t row = 0; row < batch; ++row) {
    double loss = 0;
    for (std::int64_t s = 0; s < segments; ++s) loss += results[s * batch + row];
    step.row.loss += loss;
  }
  Outcome outcome;
  for (std::int64_t r = 0; r < grid_.world().size(); ++r) {
    outcome.is_stopping |= results[segments * batch + r * kRankReportSize + kStops] > 0;
  }
  const std::int64_t count = results_.numel();
  step.row.grad_norm = std::sqrt(results[count]);
  const Guard::Verdict verdict =
      guard_.observe(step.row.step, step.row.loss, step.row.grad_norm, results[count + 1] != 0);
  if (verdict != Guard::Verdict::kUpdated) {
    judge_skipped(step, verdict);
    step.row.skipped = verdict == Guard::Verdict::kSpike ? "spike" : "not finite";
    outcome.rolls_back = verdict == Guard::Verdict::kSpike && guard_.rolls_back();
    if (outcome.rolls_back) return outcome;
  }
  report_stragglers(step);
  // Steps are queued while the one before runs; none begins before that has ended.
  const double now = clock_.seconds();
  step.row.seconds = now - std::max(step.queued_at, finished_at_);
  finished_at_ = now;
  if (output_) output_->train_step(step.row);
  return outcome;
}

bool Trainer::is_due(std::int64_t interval) const {
  return state_.step == config_.train().steps() || (interval > 0 && state_.step % interval == 0);
}

void Trainer::checkpoint() {
  if (last_saved_step_ == state_.step) return;
  const dist::PhaseScope scope(record_, dist::Phase::kCheckpoint);
  compare_replicas();
  state_.guard = guard_.state();
  saver_->begin(describe_run(config_, state_, grid_.world().size()), stream_);
  last_saved_step_ = state_.step;
}

void Trainer::finish_checkpoint() {
  const dist::PhaseScope scope(record_, dist::Phase::kCheckpoint);
  saver_->finish();
}

ExitCode Trainer::run() {
  try {
    return run_steps();
  } catch (const Error& error) {
    // Thrown by all ranks together: what they agreed to save before is still good.
    if (error.code() == ExitCode::kNumerical) finish_checkpoint();
    throw;
  }
}

ExitCode Trainer::run_steps() {
  const dist::PhaseScope scope(record_, dist::Phase::kStep);
  const std::int64_t steps = config_.train().steps();
  // On a device the host reads a step's results while the next one runs.
  const bool reads_late = stream_.device() == Device::kCuda;
  std::optional<QueuedStep> unfinished;
  bool is_evaluated = !lacks_evaluation() || evaluate();
  bool is_stopping = !is_evaluated;
  while (state_.step < steps && !is_stopping) {
    QueuedStep step = queue_step();
    Outcome outcome;
    if (unfinished) outcome = finish_step(*unfinished);
    std::int64_t last = step.row.step - 1;  // that was finished
    unfinished = std::move(step);
    saver_->poll();
    const bool evaluates = is_due(config_.eval().interval_steps());
    const bool saves = is_due(config_.checkpoint().interval_steps());
    const bool compares = is_due(config_.guard().digest_interval_steps());
    const bool reads_now = !reads_late || evaluates || saves || compares || outcome.is_stopping;
    if (reads_now && !outcome.rolls_back) {  // before anything is made of its numbers
      const bool was_stopping = outcome.is_stopping;
      outcome = finish_step(*unfinished);
      outcome.is_stopping |= was_stopping;
      unfinished.reset();
      last += 1;
    }
    is_stopping = outcome.is_stopping;
    if (outcome.rolls_back) {
      unfinished.reset();
      roll_back(last);
    }
    if (unfinished || outcome.rolls_back) continue;
    if (evaluates) is_evaluated = evaluate();
    is_stopping |= !is_evaluated;
    if (compares && !saves && !is_stopping) compare_replicas();
    if (saves || is_stopping) checkpoint();
  }
  finish_checkpoint();
  if (output_) output_->finish();
  const bool stopped = is_stopping && (state_.step < steps || !is_evaluated);
  if (stopped)
    log::info("stopped on request step={} of {}; resume with the same command", state_.step, steps);
  return stopped ? ExitCode::kStoppedEarly : ExitCode::kOk;
}

}  // namespace ttt::launch
