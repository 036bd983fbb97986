#include "data/tokens/prepare_stats.h"

#include <bit>
#include <nlohmann/json.hpp>

namespace ttt::data {
namespace {

constexpr std::size_t kMaxExamples = 20;

}  // namespace

void PrepareStats::add_document(const std::string& subset, std::int64_t text_bytes,
                                std::int64_t num_tokens, bool is_validation) {
  Subset& counts = subsets[subset];
  ++counts.documents;
  counts.text_bytes += text_bytes;
  (is_validation ? counts.validation_tokens : counts.train_tokens) += num_tokens;
  const auto bin =
      static_cast<std::size_t>(std::bit_width(static_cast<std::uint64_t>(num_tokens))) - 1;
  if (bin >= length_histogram.size()) length_histogram.resize(bin + 1);
  ++length_histogram[bin];
}

void PrepareStats::add_rejected(const std::string& reason, const std::string& message) {
  ++rejected[reason];
  if (examples.size() < kMaxExamples) examples.push_back(message);
}

void PrepareStats::add(const PrepareStats& other) {
  for (const auto& [name, counts] : other.subsets) {
    Subset& sum = subsets[name];
    sum.documents += counts.documents;
    sum.text_bytes += counts.text_bytes;
    sum.train_tokens += counts.train_tokens;
    sum.validation_tokens += counts.validation_tokens;
  }
  for (const auto& [reason, count] : other.left_out) left_out[reason] += count;
  for (const auto& [reason, count] : other.rejected) rejected[reason] += count;
  for (const std::string& example : other.examples) {
    if (examples.size() < kMaxExamples) examples.push_back(example);
  }
  if (other.length_histogram.size() > length_histogram.size()) {
    length_histogram.resize(other.length_histogram.size());
  }
  for (std::size_t i = 0; i < other.length_histogram.size(); ++i) {
    length_histogram[i] += other.length_histogram[i];
  }
}

PrepareStats::Subset PrepareStats::total() const {
  Subset sum;
  for (const auto& [name, counts] : subsets) {
    sum.documents += counts.documents;
    sum.text_bytes += counts.text_bytes;
    sum.train_tokens += counts.train_tokens;
    sum.validation_tokens += counts.validation_tokens;
  }
  return sum;
}

nlohmann::json PrepareStats::to_json() const {
  nlohmann::json json = {{"subsets", nlohmann::json::object()},
                         {"left_out", left_out},
                         {"rejected", rejected},
                         {"examples", examples},
                         {"length_histogram", length_histogram}};
  for (const auto& [name, counts] : subsets) {
    json["subsets"][name] = {{"documents", counts.documents},
                             {"text_bytes", counts.text_bytes},
                             {"train_tokens", counts.train_tokens},
                             {"validation_tokens", counts.validation_tokens}};
  }
  return json;
}

PrepareStats PrepareStats::from_json(const nlohmann::json& json) {
  PrepareStats stats;
  for (const auto& [name, counts] : json.at("subsets").items()) {
    stats.subsets[name] = {counts.at("documents"), counts.at("text_bytes"),
                           counts.at("train_tokens"), counts.at("validation_tokens")};
  }
  json.at("left_out").get_to(stats.left_out);
  json.at("rejected").get_to(stats.rejected);
  json.at("examples").get_to(stats.examples);
  json.at("length_histogram").get_to(stats.length_histogram);
  return stats;
}

}  // namespace ttt::data
