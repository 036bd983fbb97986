#pragma once
// The text and the subset of one line of JSON.

#include <cstddef>
#include <string>
#include <string_view>
#include <vector>

namespace ttt::data {

/// Where in an object to look: member names joined by points, "meta.pile_set_name".
struct RecordFields {
  std::string text = "text";
  /// The first of these that is a string names the subset: the Pile's and SlimPajama's.
  std::vector<std::string> subset = {"meta.pile_set_name", "meta.redpajama_set_name"};
};

struct JsonRecord {
  std::string text;
  std::string subset;  // "" if no field of it is there
  /// What is wrong, in a few words for counting ("no text") and with particulars; "" if nothing is.
  std::string reason;
  std::string detail;
  std::size_t at = 0;  // byte of the line
};

/// Exactly one JSON object (RFC 8259, UTF-8), nested at most 64 deep, with a string at fields.text, once.
/// Lone surrogates and control characters are errors, "\u0000" is a NUL.
JsonRecord parse_json_record(std::string_view line, const RecordFields& fields);

}  // namespace ttt::data
