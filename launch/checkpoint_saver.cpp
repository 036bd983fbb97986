#include "launch/checkpoint_saver.h"

#include <google/protobuf/text_format.h>

#include <algorithm>
#include <utility>

#include "core/base/log.h"
#include "core/base/memory.h"
#include "kernels/copy.h"
#include "kernels/threads.h"

namespace ttt::launch {
namespace {

constexpr int kMaxFailures = 3;
constexpr memory::Purpose kSnapshot{"the copy that checkpoints are written from",
                                    "set checkpoint.asynchronous = false"};

std::int64_t num_elements(const std::vector<FlatRange>& ranges) {
  std::int64_t count = 0;
  for (const FlatRange& range : ranges) count += range.size();
  return count;
}

// `from` has the elements of `have` one range after the other (none: all), `to` those of `want`, which are among them.
void copy_ranges(TensorView from, const std::vector<FlatRange>& have, TensorView to,
                 const std::vector<FlatRange>& want, Stream& stream) {
  const std::vector<FlatRange> all = {{0, from.numel()}};
  std::int64_t to_begin = 0;
  for (const FlatRange& wanted : want) {
    std::int64_t from_begin = 0;
    std::int64_t missing = wanted.size();
    for (const FlatRange& range : have.empty() ? all : have) {
      const std::int64_t begin = std::max(range.begin, wanted.begin);
      const std::int64_t end = std::min(range.end, wanted.end);
      if (begin < end) {
        const std::int64_t source = from_begin + begin - range.begin;
        const std::int64_t target = to_begin + begin - wanted.begin;
        kernels::copy(from.slice(source, source + end - begin),
                      to.slice(target, target + end - begin), stream);
        missing -= end - begin;
      }
      from_begin += range.size();
    }
    TTT_CHECK(missing == 0, "{} elements of [{}, {}) are not on this rank", missing, wanted.begin,
              wanted.end);
    to_begin += wanted.size();
  }
}

double mebibytes(const config::CheckpointManifest& manifest) {
  double bytes = 0;
  for (const config::FileDigest& file : manifest.files()) {
    bytes += static_cast<double>(file.num_bytes());
  }
  return bytes / 1048576;
}

}  // namespace

CheckpointSaver::CheckpointSaver(Options options, const data::FlatState& live,
                                 std::vector<FlatRange> owned, dist::Communicator& communicator)
    : options_(std::move(options)),
      live_(live),
      owned_(std::move(owned)),
      communicator_(communicator),
      source_(live),
      thread_([] { kernels::set_num_threads(1); }) {  // the others compute
  if (!options_.asynchronous) return;
  const memory::Scope scope(kSnapshot, memory::Place::kPinned);
  const std::int64_t count = num_elements(owned_);
  for (Tensor* part : {&values_, &m_, &v_}) {
    *part = Tensor::zeros(
        {count},
        live_.values.dtype());  // pages are the system's to give now, not at the first save
  }
  source_ = {live_.tensors, values_, m_, v_, owned_, owned_};
}

void CheckpointSaver::begin(const config::CheckpointManifest& run, Stream& stream) {
  if (is_writing_ || !thread_.is_done(num_jobs_)) {
    const Timer timer;
    wait_for_commit();
    log::info(
        "checkpoint_waited step={} seconds={:.3f} reason=\"the one before was still being "
        "written\"",
        run.step(), timer.seconds());
  }
  save_ = {run,
           data::begin_checkpoint(options_.run_directory, run.step(), communicator_.rank()),
           {},
           {},
           0};
  data::describe_state(live_, save_.manifest);
  communicator_.barrier();
  if (options_.asynchronous) copy_state(stream);
  stream.synchronize();
  save_.copy_seconds = save_.clock.seconds();
  is_writing_ = true;
  num_jobs_ = thread_.add([this] { write(); });
  if (!options_.asynchronous) wait();
}

void CheckpointSaver::copy_state(Stream& stream) {
  copy_ranges(live_.values, live_.held, values_, owned_, stream);
  copy_ranges(live_.m, live_.moments, m_, owned_, stream);
  copy_ranges(live_.v, live_.moments, v_, owned_, stream);
}

void CheckpointSaver::write() {
  try {
    google::protobuf::TextFormat::PrintToString(
        data::write_shard(save_.directory, communicator_.rank(), owned_, source_), &save_.answer);
  } catch (const Error& error) {
    save_.answer = fmt::format("!{}", error.what());
  }
}

void CheckpointSaver::poll() {
  const bool is_done = thread_.is_done(num_jobs_);  // throws what a commit threw
  if (!is_writing_) return;
  const std::vector<std::string> done = communicator_.gather_strings(is_done ? "+" : "");
  if (std::ranges::all_of(done, [](const std::string& mine) { return !mine.empty(); })) agree();
}

void CheckpointSaver::agree() {
  const std::vector<std::string> answers = communicator_.gather_strings(save_.answer);
  is_writing_ = false;
  for (std::size_t rank = 0; rank < answers.size(); ++rank) {
    if (answers[rank].starts_with("!")) {
      return give_up(fmt::format("checkpoint of step {} failed on rank {}: {}",
                                 save_.manifest.step(), rank, answers[rank].substr(1)));
    }
    google::protobuf::TextFormat::ParseFromString(answers[rank], save_.manifest.add_files());
  }
  failure_.clear();
  num_failures_ = 0;
  if (communicator_.rank() != 0) return;
  num_jobs_ = thread_.add([this, save = std::move(save_)] { commit(save); });
}

// Every rank has ended its writing; nobody reads a temporary directory.
void CheckpointSaver::give_up(const std::string& failure) {
  if (communicator_.rank() == 0) data::abandon_checkpoint(save_.directory);
  failure_ = failure;
  num_failures_ += 1;
  if (num_failures_ >= kMaxFailures) fail(ExitCode::kIo, "{}", failure);
  log::warning("event=checkpoint_failed {} of {} in a row: {}", num_failures_, kMaxFailures,
               failure);
}

void CheckpointSaver::commit(const Save& save) {
  options_.before_commit();
  config::CheckpointManifest manifest = save.manifest;
  if (!options_.tokenizer.empty()) {
    *manifest.add_files() = data::add_file(save.directory, options_.tokenizer);
    manifest.set_tokenizer(manifest.files().rbegin()->name());
  }
  const std::string& run = options_.run_directory;
  data::commit_checkpoint(save.directory, data::checkpoint_directory(run, manifest.step()),
                          manifest);
  log::info(
      "checkpoint step={} mebibytes={:.1f} stopped_seconds={:.4f} written_after_seconds={:.3f}",
      manifest.step(), mebibytes(manifest),
      options_.asynchronous ? save.copy_seconds : save.clock.seconds(), save.clock.seconds());
  data::remove_old_checkpoints(run, options_.keep_last);
}

void CheckpointSaver::wait_for_commit() {
  thread_.wait(num_jobs_);
  if (is_writing_) {
    agree();
    thread_.wait(num_jobs_);
  }
}

void CheckpointSaver::wait() {
  wait_for_commit();
  communicator_.barrier();
}

void CheckpointSaver::finish() {
  wait();
  if (!failure_.empty()) fail(ExitCode::kIo, "{}", failure_);
}

}  // namespace ttt::launch
