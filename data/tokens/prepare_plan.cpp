#include "data/tokens/prepare_plan.h"

#include <filesystem>
#include <nlohmann/json.hpp>
#include <span>
#include <system_error>
#include <utility>

#include "core/base/error.h"
#include "core/base/rng.h"
#include "data/files.h"

namespace ttt::data {
namespace {

namespace fs = std::filesystem;

constexpr std::int64_t kMaxDigestBytes = 4096;

void append_parts(const std::vector<std::string>& inputs, bool is_validation,
                  std::int64_t part_bytes, nlohmann::json& files, PreparePlan& plan) {
  PreparePart part;
  part.is_validation = is_validation;
  const auto close = [&] {
    if (part.files.empty()) return;
    plan.parts.push_back(std::move(part));
    part = {};
    part.is_validation = is_validation;
  };
  for (const std::string& file : list_corpus_files(inputs)) {
    const std::int64_t size = file_size_bytes(file);
    std::error_code error;
    const auto time = fs::last_write_time(file, error).time_since_epoch().count();
    files.push_back({file, size, time});
    part.files.push_back(file);
    part.num_bytes += size;
    if (part.num_bytes >= part_bytes) close();
  }
  close();
}

std::string digest_path(const std::string& output) { return output + "/plan.xxh3"; }

std::string digest_text(const PreparePlan& plan) {
  return xxh3_128_hex(std::as_bytes(std::span(plan.fingerprint))) + "\n";
}

}  // namespace

PreparePlan plan_preparation(const PrepareOptions& options) {
  PreparePlan plan;
  nlohmann::json held_out = nlohmann::json::array();
  nlohmann::json files = nlohmann::json::array();
  append_parts(options.validation_inputs, true, options.part_bytes, held_out, plan);
  append_parts(options.inputs, false, options.part_bytes, files, plan);
  const bool has_file = options.train_vocab_size == 0 && !is_byte_tokenizer(options.tokenizer);
  const DocumentFilter& filter = options.filter;
  const nlohmann::json fingerprint = {
      {"format", 1},
      {"files", files},
      {"held_out_files", held_out},
      {"part_bytes", options.part_bytes},
      {"text_field", options.fields.text},
      {"subset_fields", options.fields.subset},
      {"subset_shares", filter.subset_shares},
      {"sample", filter.sample},
      {"document_bytes", {filter.min_bytes, filter.max_bytes}},
      {"remove_duplicates", options.remove_duplicates},
      {"seed", options.seed},
      {"validation", {options.validation_fraction, options.validation_every}},
      {"shard_tokens", options.shard_tokens},
      {"tokenizer", has_file ? xxh3_128_hex_of_file(options.tokenizer) : "bytes"},
      {"train_tokenizer", {options.train_vocab_size, options.tokenizer_training_bytes}},
      {"parse_special", options.parse_special}};
  using Handler = nlohmann::json::error_handler_t;  // a path need not be UTF-8
  plan.fingerprint = fingerprint.dump(1, ' ', false, Handler::replace) + "\n";
  return plan;
}

void write_plan_digest(const PreparePlan& plan, const std::string& output) {
  write_file_atomically(digest_path(output), digest_text(plan));
}

bool holds_plan_digest(const std::string& output) {
  std::error_code error;
  return fs::exists(digest_path(output), error);
}

bool is_output_of(const PreparePlan& plan, const std::string& output) {
  return read_text_file(digest_path(output), kMaxDigestBytes) == digest_text(plan);
}

void read_part(const PreparePart& part, const PrepareOptions& options,
               const std::function<void(CorpusItem&&)>& push,
               std::atomic<std::int64_t>* bytes_read) {
  std::int64_t items = 0;
  std::int64_t documents = 0;
  const auto visit = [&](Document&& document) {
    CorpusItem item;
    item.document = std::move(document);
    item.number = items++;
    item.document_number = documents++;
    item.text_bytes = static_cast<std::int64_t>(item.document.text.size());
    push(std::move(item));
  };
  const auto reject = [&](const Rejection& rejection) {
    if (!options.skip_rejected) fail(ExitCode::kCorruptInput, "{}", rejection.message());
    CorpusItem item;
    item.rejected = rejection.message();
    item.left_out = rejection.reason;
    item.number = items++;
    push(std::move(item));
  };
  for (const std::string& file : part.files) {
    read_file_documents(file, options.fields, visit, reject, bytes_read);
  }
}

void judge_item(const PreparePart& part, const PrepareOptions& options, CorpusItem& item) {
  if (!item.left_out.empty()) return;
  item.left_out = options.filter.reason_to_leave_out(item.document);
  item.is_validation = part.is_validation ||
                       is_validation_document(options, item.document_number, item.document.text);
}

bool is_validation_document(const PrepareOptions& options, std::int64_t number,
                            std::string_view text) {
  if (!options.validation_inputs.empty()) return false;
  if (options.validation_every > 0) return (number + 1) % options.validation_every == 0;
  return uniform_of_text(options.seed, "validation split", text) < options.validation_fraction;
}

}  // namespace ttt::data
