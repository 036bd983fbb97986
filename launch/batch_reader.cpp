#include "launch/batch_reader.h"

#include <algorithm>
#include <filesystem>
#include <memory>
#include <utility>
#include <vector>

#include "core/base/rng.h"
#include "data/tokens/prepare.h"

namespace ttt::launch {
namespace {

using Paths = google::protobuf::RepeatedPtrField<std::string>;

data::TokenArray open_tokens(const config::RunConfig& config, const Paths& paths,
                             data::Split split) {
  if (paths.empty()) {
    fail(ExitCode::kUsage, "data.{} names no token files; `ttt prepare` makes them from text",
         name_of(split));
  }
  data::TokenArray tokens = data::TokenArray::open({paths.begin(), paths.end()}, split);
  const std::int64_t vocab = config.model().vocab_size();
  if (tokens.vocab_size() > vocab) {
    fail(ExitCode::kCorruptInput,
         "{} has a vocabulary of {} tokens, more than model.vocab_size = {}", tokens.describe(),
         tokens.vocab_size(), vocab);
  }
  // Files without a stated vocabulary (.npy, .bin) may have been made for any.
  if (tokens.vocab_size() == 0) tokens.require_vocabulary(vocab);
  return tokens;
}

data::WindowLayout layout_of(const config::DataConfig& config, const data::TokenArray& tokens) {
  return config.windows() == config::DataConfig::DOCUMENTS
             ? data::WindowLayout::documents(tokens, config.context_length())
             : data::WindowLayout::stride(tokens.num_tokens(), config.context_length(),
                                          tokens.describe());
}

data::WindowSampler replay(const config::RunConfig& config, std::int64_t num_windows) {
  const std::string& path = config.data().order_file();
  auto file = std::make_shared<const data::OrderFile>(path, num_windows);
  const std::int64_t needed = config.train().steps() * config.train().batch_size();
  if (file->num_samples() < needed) {
    fail(ExitCode::kUsage, "{} has {} samples; train.steps = {} of train.batch_size = {} need {}",
         path, file->num_samples(), config.train().steps(), config.train().batch_size(), needed);
  }
  return {num_windows, std::move(file)};
}

data::WindowSampler sampler_of(const config::RunConfig& config, data::Split split,
                               const std::string& source, std::int64_t num_windows) {
  // Validation is the first windows of the file, whatever the training order.
  if (split == data::Split::kValidation) return {num_windows, data::Order::kSequential, 0};
  if (!config.data().order_file().empty()) return replay(config, num_windows);
  const bool is_permuted = config.data().order() == config::DataConfig::PERMUTED;
  // A source's order depends on its name, not on which others there are.
  const std::uint64_t seed =
      source.empty() ? config.seed() : CounterRng(config.seed(), "source " + source).bits(0);
  return {num_windows, is_permuted ? data::Order::kPermuted : data::Order::kSequential, seed};
}

BatchReader::Source open_source(const config::RunConfig& config, data::Split split,
                                const std::string& name, const Paths& paths) {
  data::TokenArray tokens = open_tokens(config, paths, split);
  data::WindowLayout layout = layout_of(config.data(), tokens);
  data::WindowSampler sampler = sampler_of(config, split, name, layout.num_windows());
  return {name, std::move(tokens), std::move(layout), std::move(sampler)};
}

// What made the tokens of a prepared corpus: its tokenizer's digest, or "bytes"; empty: other files do not say.
std::string tokenizer_digest(const std::string& path) {
  if (!std::filesystem::exists(path + "/manifest.textproto")) return {};
  const config::CorpusManifest manifest = data::read_corpus_manifest(path);
  for (const config::FileDigest& file : manifest.files()) {
    if (file.name() == manifest.tokenizer()) return file.xxh3_128();
  }
  return "bytes";
}

// The same ids of two tokenizers mean different text, though their vocabularies be as large.
void expect_one_tokenizer(const config::DataConfig& config) {
  std::string first;  // that tells its tokenizer
  for (const std::string& path : training_paths(config)) {
    const std::string digest = tokenizer_digest(path);
    if (digest.empty()) continue;
    if (first.empty()) first = path;
    const std::string expected = tokenizer_digest(first);
    if (digest != expected) {
      fail(ExitCode::kCorruptInput,
           "{} was made with another tokenizer ({}) than {} ({}); prepare both with one", path,
           digest, first, expected);
    }
  }
}

std::vector<BatchReader::Source> open_sources(const config::RunConfig& config, data::Split split) {
  const config::DataConfig& data = config.data();
  std::vector<BatchReader::Source> sources;
  if (split == data::Split::kValidation || data.sources().empty()) {
    const Paths& paths = split == data::Split::kTrain ? data.train() : data.validation();
    sources.push_back(open_source(config, split, "", paths));
    if (split == data::Split::kTrain) expect_one_tokenizer(data);
    return sources;
  }
  std::int64_t vocab_size = 0;
  for (const config::DataSource& source : data.sources()) {
    sources.push_back(open_source(config, split, source.name(), source.train()));
    const data::TokenArray& tokens = sources.back().tokens;
    if (vocab_size != 0 && tokens.vocab_size() != 0 && tokens.vocab_size() != vocab_size) {
      fail(ExitCode::kCorruptInput,
           "source {} has a vocabulary of {}, a source before it one of {}: their tokens mean "
           "different text",
           source.name(), tokens.vocab_size(), vocab_size);
    }
    if (tokens.vocab_size() != 0) vocab_size = tokens.vocab_size();
  }
  expect_one_tokenizer(data);
  return sources;
}

data::Mixture mixture_of(const config::DataConfig& config, data::Split split) {
  std::vector<double> weights;
  if (split == data::Split::kTrain) {
    for (const config::DataSource& source : config.sources()) weights.push_back(source.weight());
  }
  if (weights.empty()) weights.push_back(1);
  return data::Mixture(weights);
}

}  // namespace

std::vector<std::string> training_paths(const config::DataConfig& config) {
  std::vector<std::string> paths(config.train().begin(), config.train().end());
  for (const config::DataSource& source : config.sources()) {
    paths.insert(paths.end(), source.train().begin(), source.train().end());
  }
  return paths;
}

std::vector<HeldOut> held_out_sets(const config::RunConfig& config) {
  std::vector<HeldOut> sets;
  if (!config.data().validation().empty()) sets.push_back({"", 1, config});
  for (const config::DataSource& source : config.data().sources()) {
    if (source.validation().empty()) continue;
    sets.push_back({source.name(), source.weight(), config});
    *sets.back().config.mutable_data()->mutable_validation() = source.validation();
  }
  return sets;
}

BatchReader::BatchReader(const config::RunConfig& config, data::Split split,
                         const SequenceExchange* sequence)
    : sources_(open_sources(config, split)),
      mixture_(mixture_of(config.data(), split)),
      context_length_(config.data().context_length()),
      masked_target_(config.data().masked_target()),
      resets_at_bos_(config.data().reset_at_bos()),
      sharing_(document_sharing(config)),
      begin_(0),
      end_(context_length_) {
  TTT_CHECK((sequence != nullptr ? sequence->size() : 1) == sharing_.ranks,
            "batches for {} ranks that hold windows together", sharing_.ranks);
  if (sequence == nullptr) return;
  rank_ = sequence->rank();
  bounds_ = sequence->bounds();
  if (resets_at_bos_) return;
  begin_ = sequence->begin();
  end_ = sequence->end();
}

std::int64_t BatchReader::num_windows() const {
  std::int64_t count = 0;
  for (const Source& source : sources_) count += source.layout.num_windows();
  return count;
}

BatchReader::Place BatchReader::place_of(std::int64_t sample) const {
  const data::Mixture::Place place = mixture_.place_of(sample);
  const Source& source = sources_[place.source];
  return {source, place.position, source.sampler.window_at(place.position)};
}

std::vector<SequenceRange> BatchReader::sequences(TensorView ids) const {
  if (!resets_at_bos_) return {{0, ids.size(0), 0, ids.size(1), bounds_}};
  return share_of_rank(documents_of(ids, masked_target_), sharing_, rank_);
}

BatchReader::Buffers BatchReader::make_buffers(std::int64_t rows) const {
  const Shape shape{rows, end_ - begin_};
  return {Tensor(shape, DType::kI64), Tensor(shape, DType::kI64), Tensor(shape, DType::kF64),
          Tensor(shape, DType::kF64)};
}

void BatchReader::read(std::int64_t position, std::int64_t global_rows,
                       const Buffers& buffers) const {
  // No tensors: they would be a device's memory, and of another device on a thread that has not chosen one.
  const auto length = static_cast<std::size_t>(context_length());
  std::vector<std::int64_t> ids(length), targets(length);
  std::vector<double> mask(length), weight(length);
  for (std::int64_t row = 0; row < buffers.ids.size(0); ++row) {
    const Place place = place_of(position + row);
    data::read_window(place.source.tokens, place.source.layout, place.window, masked_target_, ids,
                      targets, mask);
    set_row_weights(mask, global_rows, weight);
    const auto take = [&]<typename T>(const std::vector<T>& from, const Tensor& to) {
      std::copy(from.begin() + begin_, from.begin() + end_, to.data<T>() + row * (end_ - begin_));
    };
    take(ids, buffers.ids);
    take(targets, buffers.targets);
    take(mask, buffers.mask);
    take(weight, buffers.weight);
  }
}

}  // namespace ttt::launch
