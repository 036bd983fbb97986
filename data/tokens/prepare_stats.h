#pragma once
// What `ttt prepare` counts, by piece of work and summed up.

#include <cstdint>
#include <map>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <vector>

namespace ttt::data {

struct PrepareStats {
  struct Subset {
    std::int64_t documents = 0, text_bytes = 0, train_tokens = 0, validation_tokens = 0;
  };
  std::map<std::string, Subset> subsets;  // of what was tokenized; "" if a document names none
  std::map<std::string, std::int64_t> left_out;  // documents not taken, by reason
  std::map<std::string, std::int64_t> rejected;  // what is no document, by reason
  std::vector<std::string> examples;             // of these, the first few
  /// [i]: documents of 2^i to 2^(i+1) - 1 tokens, BOS and EOS among them.
  std::vector<std::int64_t> length_histogram;

  void add_document(const std::string& subset, std::int64_t text_bytes, std::int64_t num_tokens,
                    bool is_validation);
  void add_rejected(const std::string& reason, const std::string& message);
  void add(const PrepareStats& other);
  /// Of all subsets.
  [[nodiscard]] Subset total() const;

  [[nodiscard]] nlohmann::json to_json() const;
  static PrepareStats from_json(const nlohmann::json& json);
};

}  // namespace ttt::data
