#include <unistd.h>

#include <CLI/CLI.hpp>
#include <charconv>
#include <iostream>
#include <memory>

#include "core/base/timer.h"
#include "data/files.h"
#include "data/tokens/prepare.h"
#include "launch/commands.h"
#include "launch/progress_line.h"
#include "launch/stop_signal.h"
#include "launch/svg_plot.h"

namespace ttt::launch {
namespace {

// Twice a second in place on a terminal; elsewhere a line now and then, for logs.
class PrepareDisplay {
 public:
  explicit PrepareDisplay(int num_ranks) : num_ranks_(num_ranks) {}
  PrepareDisplay(const PrepareDisplay&) = delete;
  PrepareDisplay& operator=(const PrepareDisplay&) = delete;
  ~PrepareDisplay() {
    if (is_open_) std::cerr << std::endl;
  }
  void show(const data::PrepareProgress& progress) {
    const bool in_place = columns_ > 0;
    if (since_shown_.seconds() < (in_place ? 0.5 : 30)) return;
    since_shown_.restart();
    const double seconds = since_begun_.seconds();
    const auto rate = [&](std::int64_t count) { return static_cast<double>(count) / seconds; };
    const double left = static_cast<double>(progress.total_input_bytes - progress.input_bytes) /
                        std::max(1.0, rate(progress.input_bytes));
    std::cerr << fmt::format(
        "{}{}{} documents, {} tokens, {:.1f} MB/s, {} tokens/s, {:.0f} % of the input, {} left{}",
        in_place ? "\r\x1b[2K" : "", num_ranks_ > 1 ? "rank 0: " : "",
        format_count(static_cast<double>(progress.documents)),
        format_count(static_cast<double>(progress.tokens)), rate(progress.text_bytes) * 1e-6,
        format_count(rate(progress.tokens)),
        100 * static_cast<double>(progress.input_bytes) /
            static_cast<double>(std::max<std::int64_t>(1, progress.total_input_bytes)),
        format_duration(left), in_place ? "" : "\n");
    is_open_ = in_place;
  }

 private:
  int num_ranks_;
  Timer since_begun_, since_shown_;
  int columns_ = terminal_columns(STDERR_FILENO);
  bool is_open_ = false;
};

// Documents by length, each bar between two powers of two.
std::string length_histogram_svg(const data::PrepareStats& stats) {
  Series bars;
  double begin = 1;
  for (const std::int64_t count : stats.length_histogram) {
    const auto height = static_cast<double>(count);
    bars.x.insert(bars.x.end(), {begin, begin, 2 * begin, 2 * begin});
    bars.y.insert(bars.y.end(), {0, height, height, 0});
    begin *= 2;
  }
  Plot plot;
  plot.title = "Documents by length";
  plot.x_label = "tokens";
  plot.y_label = "documents";
  plot.log_x = true;
  plot.series = {bars};
  return render_svg(plot);
}

void print_summary(const data::PrepareOptions& options, const config::CorpusManifest& manifest,
                   const data::PrepareStats& stats) {
  std::cout << fmt::format(
      "{}: {} training tokens in {} documents, {} validation tokens in {} documents, "
      "vocabulary {}\n",
      options.output_directory, manifest.train_tokens(), manifest.train_documents(),
      manifest.validation_tokens(), manifest.validation_documents(), manifest.vocab_size());
  for (const auto& [name, subset] : stats.subsets) {
    if (stats.subsets.size() == 1 && name.empty()) continue;
    std::cout << fmt::format("  subset {}: {} tokens in {} documents\n",
                             name.empty() ? "(none)" : name,
                             subset.train_tokens + subset.validation_tokens, subset.documents);
  }
  for (const auto& [reason, count] : stats.left_out) {
    std::cout << fmt::format("  left out: {} documents: {}\n", count, reason);
  }
  for (const auto& [reason, count] : stats.rejected) {
    std::cout << fmt::format("  rejected: {}: {}\n", count, reason);
  }
}

// Between two phases every rank waits: what one wrote, another reads.
void prepare(const data::PrepareOptions& options, dist::Communicator& communicator) {
  const bool is_first = communicator.rank() == 0;
  data::PrepareJob job(options);
  communicator.barrier();  // nothing is made before all have found nothing in the way
  if (job.is_done()) {
    if (!is_first) return;
    const config::CorpusManifest manifest = job.finish();
    std::cout << "already prepared\n";
    print_summary(options, manifest, {});
    return;
  }
  if (is_first) job.begin();
  communicator.barrier();
  job.scan(communicator.rank(), communicator.size());
  communicator.barrier();
  if (is_first) job.compare_digests();
  communicator.barrier();
  {
    // From here on there is something to keep: what is finished. Before, a signal ends the process at once.
    install_stop_handlers();
    PrepareDisplay display(communicator.size());
    job.tokenize(communicator.rank(), communicator.size(),
                 [&](const data::PrepareProgress& progress) {
                   if (is_first) display.show(progress);
                   stop_if_requested("preparing (the same command goes on)");
                 });
  }
  communicator.barrier();
  if (!is_first) return;
  const config::CorpusManifest manifest = job.finish([&](const std::string& directory) {
    data::write_file_atomically(directory + "/lengths.svg", length_histogram_svg(job.stats()));
  });
  print_summary(options, manifest, job.stats());
}

// "NAME=SHARE", or "NAME" for all of it.
void take_subset_share(const std::string& argument, data::PrepareOptions& options) {
  const std::size_t equals = argument.rfind('=');
  double share = 1;
  if (equals != std::string::npos) {
    const char* const begin = argument.data() + equals + 1;
    const char* const end = argument.data() + argument.size();
    const auto [rest, error] = std::from_chars(begin, end, share);
    if (error != std::errc() || rest != end) {
      fail(ExitCode::kUsage, "--subset {}: NAME=SHARE is expected, with a share from 0 to 1",
           argument);
    }
  }
  options.filter.subset_shares[argument.substr(0, equals)] = share;
}

void add_document_options(CLI::App& command, data::PrepareOptions& options) {
  command
      .add_option("--text-field", options.fields.text,
                  "Field of the JSON objects, or column; a.b for a nested one")
      ->capture_default_str();
  command
      .add_option("--subset-field", options.fields.subset,
                  "Fields that may name a document's subset; the first that does")
      ->capture_default_str();
  command
      .add_option_function<std::vector<std::string>>(
          "--subset",
          [&options](const std::vector<std::string>& arguments) {
            for (const std::string& argument : arguments) take_subset_share(argument, options);
          },
          "NAME=SHARE: take this share of the subset, of others that of \"*\" or none; may be "
          "repeated")
      ->expected(1)
      ->multi_option_policy(CLI::MultiOptionPolicy::TakeAll);
  command.add_option("--sample", options.filter.sample, "Share of all documents to take")
      ->capture_default_str();
  command.add_option("--min-bytes", options.filter.min_bytes, "Leave out shorter documents")
      ->capture_default_str();
  command
      .add_option("--max-bytes", options.filter.max_bytes, "Leave out longer documents; 0: none")
      ->capture_default_str();
  command.add_flag("--remove-duplicates", options.remove_duplicates,
                   "Of documents with the same text keep the first (reads everything once more)");
  command.add_flag("--skip-rejected", options.skip_rejected,
                   "Count broken lines, empty files and the like and go on; else they end the run");
}

}  // namespace

void add_prepare_command(CLI::App& app, Action& action) {
  auto options = std::make_shared<data::PrepareOptions>();
  CLI::App* command = app.add_subcommand(
      "prepare",
      "Text to token shards: .txt, .jsonl and .tar, also .zst and .gz, .parquet, or directories of "
      "them");
  command->add_option("inputs", options->inputs, "Files or directories")->required();
  command->add_option("-o,--output", options->output_directory, "Directory to make")->required();
  command->add_option("--validation", options->validation_inputs,
                      "Files or directories held out whole");
  command
      ->add_option("--validation-fraction", options->validation_fraction,
                   "Else: this share of the documents, by a seeded hash of the text")
      ->capture_default_str();
  command->add_option("--validation-every", options->validation_every, "Else: every N-th document");
  command->add_option("--seed", options->seed, "Of all draws")->capture_default_str();
  command
      ->add_option("--tokenizer", options->tokenizer,
                   "SentencePiece model, tokenizer.json, or \"bytes\"")
      ->capture_default_str();
  command->add_option("--train-tokenizer", options->train_vocab_size,
                      "Train a SentencePiece BPE model of this many pieces on the training text");
  command->add_flag("--parse-special", options->parse_special,
                    "Text that looks like a control token (</s>) becomes it, as in ttt-lm-jax");
  add_document_options(*command, *options);
  command->add_option("--shard-tokens", options->shard_tokens, "Tokens a shard")
      ->capture_default_str();
  command
      ->add_option("--part-bytes", options->part_bytes, "Files are shared out in groups of so much")
      ->capture_default_str();
  options->num_threads = 0;
  command->add_option("--threads", options->num_threads, "Tokenizing threads; 0: one a processor");
  command->callback([options, &action] {
    action = [options](dist::Communicator& communicator) {
      if (options->num_threads <= 0) options->num_threads = use_threads(0, communicator);
      prepare(*options, communicator);
      return ExitCode::kOk;
    };
  });
}

}  // namespace ttt::launch
