#include "launch/inspect_data.h"

#include <algorithm>
#include <bit>
#include <filesystem>
#include <iostream>
#include <memory>
#include <vector>

#include "core/base/error.h"
#include "data/tokenizer/tokenizer.h"
#include "data/tokens/prepare.h"
#include "data/tokens/window_layout.h"
#include "launch/batch_reader.h"

namespace ttt::launch {
namespace {

namespace fs = std::filesystem;

std::unique_ptr<data::Tokenizer> tokenizer_of(const DataInspection& inspection) {
  if (!inspection.tokenizer.empty()) return data::open_tokenizer(inspection.tokenizer);
  // A shard lies in the directory that has its tokenizer.
  const fs::path path = inspection.path;
  const std::string directory =
      fs::is_directory(path) ? path.string() : path.parent_path().string();
  if (!fs::exists(fs::path(directory) / "manifest.textproto")) return nullptr;
  return data::open_tokenizer(
      data::corpus_tokenizer_path(data::read_corpus_manifest(directory), directory));
}

void print_files(const data::TokenArray& tokens) {
  for (const data::TokenFileInfo& file : tokens.files()) {
    std::cout << fmt::format(
        "{}: {}, {} tokens of {} bytes, {} documents, vocabulary {}\n", file.path, file.format,
        file.num_tokens, file.token_bytes,
        file.num_documents > 0 ? std::to_string(file.num_documents) : "unknown",
        file.vocab_size > 0 ? std::to_string(file.vocab_size) : "not stated");
  }
}

void print_window(const DataInspection& inspection, const data::TokenArray& tokens) {
  const data::WindowLayout layout =
      inspection.by_documents
          ? data::WindowLayout::documents(tokens, inspection.context_length)
          : data::WindowLayout::stride(tokens.num_tokens(), inspection.context_length,
                                       tokens.describe());
  if (inspection.window >= layout.num_windows()) {
    fail(ExitCode::kUsage, "window {} of {}: there are {} windows of {} tokens", inspection.window,
         inspection.path, layout.num_windows(), inspection.context_length);
  }
  const auto length = static_cast<std::size_t>(inspection.context_length);
  std::vector<std::int64_t> inputs(length);
  std::vector<std::int64_t> targets(length);
  std::vector<double> weight(length);
  data::read_window(tokens, layout, inspection.window, inspection.masked_target, inputs, targets,
                    weight);
  std::cout << fmt::format("window {} of {}: tokens {} to {}, {} of {} targets masked\n",
                           inspection.window, layout.num_windows(), layout.begin(inspection.window),
                           layout.end(inspection.window), std::ranges::count(weight, 0.0), length);
  const auto tokenizer = tokenizer_of(inspection);
  if (inspection.shows_ids || tokenizer == nullptr) {
    for (const std::int64_t id : inputs) std::cout << id << ' ';
    std::cout << targets.back() << '\n';
    return;
  }
  data::StreamingDecoder decoder(*tokenizer, false);
  for (std::size_t t = 0; t < length; ++t) {
    if (inputs[t] == tokenizer->bos_id() || inputs[t] == tokenizer->eos_id()) {
      const bool is_bos = inputs[t] == tokenizer->bos_id();
      std::cout << decoder.finish() << fmt::format("[{} at {}]", is_bos ? "BOS" : "EOS", t);
    } else {
      std::cout << decoder.push(static_cast<std::int32_t>(inputs[t]));
    }
    if (weight[t] == 0) std::cout << fmt::format("[target {} masked]", t);
  }
  std::cout << decoder.finish() << '\n';
}

// Documents by length, in powers of two.
void print_lengths(const data::TokenArray& tokens) {
  std::vector<std::int64_t> counts;
  for (const data::TokenFileInfo& file : tokens.files()) {
    if (!file.path.ends_with(".h5")) {
      fail(ExitCode::kUsage, "{} does not say where its documents begin", file.path);
    }
    const auto offsets = data::read_document_offsets(file.path);
    for (std::size_t i = 0; i + 1 < offsets.size(); ++i) {
      const auto bin = static_cast<std::size_t>(std::bit_width(offsets[i + 1] - offsets[i])) - 1;
      if (bin >= counts.size()) counts.resize(bin + 1);
      ++counts[bin];
    }
  }
  std::cout << "documents by length in tokens\n";
  const std::int64_t most = std::max<std::int64_t>(1, std::ranges::max(counts));
  for (std::size_t bin = 0; bin < counts.size(); ++bin) {
    const std::int64_t width = (50 * counts[bin] + most - 1) / most;  // one mark for a few
    std::cout << fmt::format("{:>10} to {:<10} {:>10} {}\n", std::int64_t{1} << bin,
                             (std::int64_t{2} << bin) - 1, counts[bin],
                             std::string(static_cast<std::size_t>(width), '#'));
  }
}

bool print_comparison(const data::TokenArray& tokens, const data::TokenArray& other) {
  constexpr std::int64_t kBlock = 1 << 16;
  const std::int64_t common = std::min(tokens.num_tokens(), other.num_tokens());
  for (std::int64_t begin = 0; begin < common; begin += kBlock) {
    std::vector<std::int64_t> here(static_cast<std::size_t>(std::min(kBlock, common - begin)));
    std::vector<std::int64_t> there(here.size());
    tokens.read(begin, here);
    other.read(begin, there);
    const auto [a, b] = std::ranges::mismatch(here, there);
    if (a == here.end()) continue;
    std::cout << fmt::format("token {} differs: {} and {}\n", begin + (a - here.begin()), *a, *b);
    return false;
  }
  if (tokens.num_tokens() != other.num_tokens()) {
    std::cout << fmt::format("the first {} tokens are equal; {} and {} in all\n", common,
                             tokens.num_tokens(), other.num_tokens());
    return false;
  }
  std::cout << fmt::format("all {} tokens are equal\n", common);
  return true;
}

}  // namespace

bool is_token_data(const std::string& path) {
  if (!fs::is_directory(path)) {
    const auto suffixes = {".h5", ".npy", ".bin", ":u16", ":u32"};
    return std::ranges::any_of(suffixes, [&](const char* end) { return path.ends_with(end); });
  }
  if (fs::exists(path + "/manifest.textproto")) return false;
  // ttt-lm-jax's arrays may lie deeper, as where they are opened.
  const fs::recursive_directory_iterator entries(path,
                                                 fs::directory_options::skip_permission_denied);
  return std::any_of(begin(entries), end(entries), [](const fs::directory_entry& entry) {
    const fs::path name = entry.path().filename();
    return name == "train.npy" || name == "validation.npy";
  });
}

void inspect_samples(const config::RunConfig& config, std::int64_t count) {
  const BatchReader reader(config, data::Split::kTrain);
  const auto name = [](const BatchReader::Source& source) {
    return source.name.empty() ? "data.train" : source.name.c_str();
  };
  for (std::int64_t sample = 0; sample < count; ++sample) {
    const BatchReader::Place place = reader.place_of(sample);
    std::cout << fmt::format("sample {} | {} | epoch {} | window {} | tokens {} to {}\n", sample,
                             name(place.source), place.source.sampler.epoch_of(place.position),
                             place.window, place.source.layout.begin(place.window),
                             place.source.layout.end(place.window));
  }
  const auto counts = reader.counts(count);
  for (std::size_t s = 0; s < counts.size(); ++s) {
    const BatchReader::Source& source = reader.sources()[s];
    std::cout << fmt::format("{}: {} of {} samples, {} windows an epoch, {}\n", name(source),
                             counts[s], count, source.layout.num_windows(),
                             source.tokens.describe());
  }
}

bool inspect_data(const DataInspection& inspection) {
  const data::TokenArray tokens = data::TokenArray::open({inspection.path}, inspection.split);
  print_files(tokens);
  if (inspection.window >= 0) print_window(inspection, tokens);
  if (inspection.shows_lengths) print_lengths(tokens);
  if (inspection.other.empty()) return true;
  return print_comparison(tokens, data::TokenArray::open({inspection.other}, inspection.split));
}

}  // namespace ttt::launch
