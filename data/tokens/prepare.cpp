#include "data/tokens/prepare.h"

#include <filesystem>
#include <nlohmann/json.hpp>
#include <system_error>
#include <utility>

#include "core/base/error.h"
#include "core/base/log.h"
#include "data/checkpoint/run_lock.h"
#include "data/files.h"
#include "data/tokens/corpus_assembly.h"
#include "data/tokens/duplicates.h"
#include "data/tokens/prepare_plan.h"
#include "data/tokens/prepare_segments.h"

namespace ttt::data {
namespace {

namespace fs = std::filesystem;

constexpr std::int64_t kMaxTokenizerBytes = std::int64_t{64} << 20;
constexpr std::int64_t kMaxPlanBytes = std::int64_t{256} << 20;

bool has_tokenizer_file(const PrepareOptions& options) {
  return options.train_vocab_size > 0 || !is_byte_tokenizer(options.tokenizer);
}

void check_options(const PrepareOptions& options) {
  const auto require = [](bool holds, const std::string& what) {
    if (!holds) fail(ExitCode::kUsage, "prepare: {}", what);
  };
  const auto is_share = [](double share) { return share >= 0 && share <= 1; };
  require(!options.inputs.empty(), "no input files are named");
  require(!options.output_directory.empty(), "no output directory is named");
  require(
      options.validation_fraction >= 0 && options.validation_fraction < 1,
      fmt::format("validation_fraction is {}, it must lie in [0, 1)", options.validation_fraction));
  require(options.validation_every >= 0 && options.validation_every != 1,
          fmt::format("validation_every is {}, it must be 0 (off) or at least 2",
                      options.validation_every));
  require(options.validation_inputs.empty() || options.validation_every == 0,
          "validation_every and validation inputs exclude each other");
  require(options.shard_tokens >= 1,
          fmt::format("shard_tokens is {}, it must be positive", options.shard_tokens));
  require(options.part_bytes >= 1,
          fmt::format("part_bytes is {}, it must be positive", options.part_bytes));
  require(options.num_threads >= 1,
          fmt::format("num_threads is {}, it must be positive", options.num_threads));
  require(options.train_vocab_size >= 0,
          fmt::format("train_vocab_size is {}, it must be 0 (off) or positive",
                      options.train_vocab_size));
  require(options.train_vocab_size == 0 || is_byte_tokenizer(options.tokenizer),
          fmt::format("a tokenizer is to be trained, and {} is to be used", options.tokenizer));
  require(is_share(options.filter.sample),
          fmt::format("sample is {}, it must lie in [0, 1]", options.filter.sample));
  for (const auto& [name, share] : options.filter.subset_shares) {
    require(is_share(share),
            fmt::format("subset {} has the share {}, it must lie in [0, 1]", name, share));
  }
  require(options.filter.min_bytes >= 0 && options.filter.max_bytes >= 0,
          fmt::format("documents of {} to {} bytes are asked for", options.filter.min_bytes,
                      options.filter.max_bytes));
}

void train_tokenizer(const PrepareOptions& options, const PreparePlan& plan,
                     const std::string& model_path) {
  SentencePieceTraining training;
  training.vocab_size = options.train_vocab_size;
  std::int64_t num_bytes = 0;
  for (const PreparePart& part : plan.parts) {
    if (part.is_validation || num_bytes >= options.tokenizer_training_bytes) continue;
    read_part(part, options, [&](CorpusItem&& item) {
      judge_item(part, options, item);
      const bool is_full = num_bytes >= options.tokenizer_training_bytes;
      if (is_full || !item.left_out.empty() || item.is_validation) return;
      num_bytes += item.text_bytes;
      training.texts.push_back(std::move(item.document.text));
    });
  }
  log::info("event=tokenizer_training documents={} text_bytes={} vocab_size={}",
            training.texts.size(), num_bytes, training.vocab_size);
  train_sentencepiece(training, model_path);
}

std::string report_text(const PrepareStats& stats, const config::CorpusManifest& manifest) {
  const PrepareStats::Subset total = stats.total();
  nlohmann::json report = stats.to_json();
  report["documents"] = total.documents;
  report["text_bytes"] = total.text_bytes;
  report["train_tokens"] = manifest.train_tokens();
  report["validation_tokens"] = manifest.validation_tokens();
  report["train_documents"] = manifest.train_documents();
  report["validation_documents"] = manifest.validation_documents();
  const std::int64_t tokens = total.train_tokens + total.validation_tokens;
  report["bytes_per_token"] = static_cast<double>(total.text_bytes) / static_cast<double>(tokens);
  return report.dump(2, ' ', false, nlohmann::json::error_handler_t::replace) + "\n";
}

// What a killed run was writing (write_file_atomically, TokenShardWriter); the lock says that nobody is now.
void remove_temporaries(const std::string& directory) {
  for (const fs::directory_entry& entry : fs::directory_iterator(directory)) {
    if (entry.path().filename().native().find(".tmp-") != std::string::npos) {
      fs::remove(entry.path());
    }
  }
}

}  // namespace

class PrepareJob::Work {
 public:
  explicit Work(const PrepareOptions& given) : options(given) {
    check_options(options);
    options.filter.seed = options.seed;
    while (options.output_directory.size() > 1 && options.output_directory.ends_with('/')) {
      options.output_directory.pop_back();
    }
    const std::string& output = options.output_directory;
    std::error_code error;
    const bool is_free = !fs::exists(output, error) ||
                         (fs::is_directory(output, error) && fs::is_empty(output, error));
    if (!is_free && !holds_plan_digest(output)) {
      fail(ExitCode::kLocked, "{} exists and is not an empty directory", output);
    }
    plan = plan_preparation(options);  // what is missing is told before anything is made
    is_done = !is_free;
    if (is_done && !is_output_of(plan, output)) {
      fail(ExitCode::kLocked, "{} exists, prepared from other inputs or with other options",
           output);
    }
    directory = output + ".partial";
    result = directory + "/result";
  }
  ~Work() {
    if (lock && !has_segments()) remove_directory();
  }
  Work(const Work&) = delete;
  Work& operator=(const Work&) = delete;

  [[nodiscard]] std::string part_path(std::size_t part, const char* suffix) const {
    return fmt::format("{}/part-{:05}.{}", directory, part, suffix);
  }
  [[nodiscard]] std::string plan_path() const { return directory + "/plan.json"; }
  [[nodiscard]] std::string tokenizer_path() const {
    if (!has_tokenizer_file(options)) return "bytes";
    return result + "/" + tokenizer_file_name(options.tokenizer);
  }
  [[nodiscard]] bool has_segments() const {
    std::error_code error;
    for (std::size_t part = 0; part < plan.parts.size(); ++part) {
      if (fs::exists(segment_stem(directory, part, 0) + ".json", error)) return true;
    }
    return false;
  }
  void remove_directory() const {
    std::error_code error;
    fs::remove_all(directory, error);
    if (error) log::warning("event=not_removed path={} error=\"{}\"", directory, error.message());
  }
  void open_tokenizer_once() {
    if (!tokenizer) tokenizer = open_tokenizer(tokenizer_path(), {options.parse_special});
  }
  void tokenize_part(std::size_t number, const std::vector<SegmentRecord>& finished,
                     PrepareProgress& progress, const OnProgress& on_progress) const;

  PrepareOptions options;
  PreparePlan plan;
  bool is_done = false;   // OUTPUT is there
  std::string directory;  // OUTPUT.partial
  std::string result;     // what becomes OUTPUT
  std::unique_ptr<RunLock> lock;
  std::unique_ptr<Tokenizer> tokenizer;
  PrepareStats stats;
};

PrepareJob::PrepareJob(const PrepareOptions& options) : work_(std::make_unique<Work>(options)) {}
PrepareJob::~PrepareJob() = default;

bool PrepareJob::is_done() const { return work_->is_done; }

void PrepareJob::begin() {
  Work& work = *work_;
  std::error_code error;
  make_output_directory(work.directory);
  work.lock = std::make_unique<RunLock>(work.directory);
  const bool resumes = fs::exists(work.plan_path(), error) &&
                       read_text_file(work.plan_path(), kMaxPlanBytes) == work.plan.fingerprint;
  if (!resumes) {
    if (work.has_segments()) {
      work.lock.reset();  // what is there is not ours to remove
      fail(ExitCode::kResumeMismatch,
           "{} is an unfinished preparation with other inputs or options; remove it to begin anew",
           work.directory);
    }
    for (const auto& entry : fs::directory_iterator(work.directory)) {
      if (entry.path().filename() != "run.lock") fs::remove_all(entry.path());
    }
    write_file_atomically(work.plan_path(), work.plan.fingerprint);
  }
  make_output_directory(work.result);
  for (const std::string& directory : {work.directory, work.result}) remove_temporaries(directory);
  if (has_tokenizer_file(work.options) && !fs::exists(work.tokenizer_path(), error)) {
    if (work.options.train_vocab_size > 0) {
      train_tokenizer(work.options, work.plan, work.tokenizer_path());
    } else {
      // A bad one is told now, by the name that the user gave it.
      work.tokenizer = open_tokenizer(work.options.tokenizer, {work.options.parse_special});
      write_file_atomically(work.tokenizer_path(),
                            read_text_file(work.options.tokenizer, kMaxTokenizerBytes));
    }
  }
  work.open_tokenizer_once();
}

void PrepareJob::scan(int rank, int num_ranks) {
  const Work& work = *work_;
  if (!work.options.remove_duplicates) return;
  std::error_code error;
  for (auto part = static_cast<std::size_t>(rank); part < work.plan.parts.size();
       part += static_cast<std::size_t>(num_ranks)) {
    const std::string path = work.part_path(part, "digests");
    if (!fs::exists(path, error)) write_digests(work.plan.parts[part], work.options, path);
  }
}

void PrepareJob::compare_digests() {
  const Work& work = *work_;
  if (!work.options.remove_duplicates) return;
  std::vector<std::string> digests;
  std::vector<std::string> duplicates;
  for (std::size_t part = 0; part < work.plan.parts.size(); ++part) {
    digests.push_back(work.part_path(part, "digests"));
    duplicates.push_back(work.part_path(part, "duplicates"));
  }
  find_duplicates(digests, duplicates);
}

void PrepareJob::Work::tokenize_part(std::size_t number, const std::vector<SegmentRecord>& finished,
                                     PrepareProgress& progress,
                                     const OnProgress& on_progress) const {
  const PreparePart& part = plan.parts[number];
  SegmentWriter writer(directory, number, finished, *tokenizer, options.shard_tokens);
  const std::int64_t first_item = writer.next_item();
  std::unordered_set<std::int64_t> duplicates;
  if (options.remove_duplicates) duplicates = read_duplicates(part_path(number, "duplicates"));
  std::atomic<std::int64_t> bytes_read = 0;
  const std::int64_t bytes_before = progress.input_bytes;
  TokenizeSteps steps;
  steps.produce = [&](const PushItem& push) {
    read_part(
        part, options,
        [&](CorpusItem&& item) {
          if (item.number >= first_item) push(std::move(item));
        },
        &bytes_read);
  };
  steps.judge = [&](CorpusItem& item) {
    judge_item(part, options, item);
    if (item.left_out.empty() && duplicates.contains(item.document_number))
      item.left_out = "duplicate";
  };
  steps.consume = [&](const CorpusItem& item, std::span<const std::int32_t> ids) {
    const std::int64_t tokens = writer.append(item, ids);
    if (tokens == 0) return;
    ++progress.documents;
    progress.tokens += tokens;
    progress.text_bytes += item.text_bytes;
    progress.input_bytes = bytes_before + bytes_read;
    if (on_progress) on_progress(progress);
  };
  tokenize_in_order(*tokenizer, options.num_threads, steps);
  writer.finish();
  progress.input_bytes = bytes_before + part.num_bytes;
}

void PrepareJob::tokenize(int rank, int num_ranks, const OnProgress& on_progress) {
  Work& work = *work_;
  work.open_tokenizer_once();
  const auto each_part = [&](const auto& visit) {
    for (auto part = static_cast<std::size_t>(rank); part < work.plan.parts.size();
         part += static_cast<std::size_t>(num_ranks)) {
      visit(part);
    }
  };
  PrepareProgress progress;
  each_part(
      [&](std::size_t part) { progress.total_input_bytes += work.plan.parts[part].num_bytes; });
  each_part([&](std::size_t part) {
    const auto finished = read_segments(work.directory, part);
    if (!finished.empty() && finished.back().is_last) {
      progress.total_input_bytes -= work.plan.parts[part].num_bytes;
    } else {
      work.tokenize_part(part, finished, progress, on_progress);
    }
  });
}

config::CorpusManifest PrepareJob::finish(
    const std::function<void(const std::string& directory)>& add_files) {
  Work& work = *work_;
  if (work.is_done) {
    if (std::error_code error; fs::exists(work.directory, error)) {
      work.lock = std::make_unique<RunLock>(work.directory);
      work.remove_directory();
      work.lock.reset();
    }
    return read_corpus_manifest(work.options.output_directory);
  }
  CorpusAssembly corpus(work.result);
  config::CorpusManifest& manifest = corpus.manifest();
  manifest.set_format_version(static_cast<std::uint32_t>(kShardFormatVersion));
  manifest.set_vocab_size(work.tokenizer->vocab_size());
  manifest.set_bos_id(work.tokenizer->bos_id());
  manifest.set_eos_id(work.tokenizer->eos_id());
  if (work.options.parse_special) manifest.set_parse_special(true);
  if (has_tokenizer_file(work.options)) {
    manifest.set_tokenizer(tokenizer_file_name(work.options.tokenizer));
    corpus.add(manifest.tokenizer());
  }
  corpus.take_segments(work.directory, work.plan.parts.size(), work.options.shard_tokens);
  work.stats = corpus.stats();
  if (manifest.train_documents() == 0) {
    work.remove_directory();
    fail(ExitCode::kUsage, "prepare: none of the {} documents is in the training split",
         manifest.validation_documents());
  }
  if (manifest.validation_documents() == 0) {
    log::warning("event=no_validation_documents documents={} validation_fraction={}",
                 manifest.train_documents(), work.options.validation_fraction);
  }
  write_file_atomically(work.result + "/prepare.json", report_text(work.stats, manifest));
  corpus.add("prepare.json");
  write_corpus_manifest(work.result, manifest);
  write_plan_digest(work.plan, work.result);
  if (add_files) add_files(work.result);
  rename_durably(work.result, work.options.output_directory);
  work.remove_directory();
  work.lock.reset();
  return manifest;
}

const PrepareStats& PrepareJob::stats() const { return work_->stats; }

config::CorpusManifest prepare_corpus(const PrepareOptions& options,
                                      const OnProgress& on_progress) {
  PrepareJob job(options);
  if (job.is_done()) return job.finish();
  job.begin();
  job.scan(0, 1);
  job.compare_digests();
  job.tokenize(0, 1, on_progress);
  return job.finish();
}

}  // namespace ttt::data
