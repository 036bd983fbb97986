#include "configs/run_config.h"

#include <google/protobuf/descriptor.h>
#include <google/protobuf/io/tokenizer.h>
#include <google/protobuf/io/zero_copy_stream_impl_lite.h>
#include <google/protobuf/text_format.h>

#include <algorithm>
#include <fstream>
#include <regex>
#include <sstream>

#include "configs/fault.h"
#include "core/base/error.h"

namespace ttt::config {
namespace {

using google::protobuf::Descriptor;
using google::protobuf::EnumDescriptor;
using google::protobuf::FieldDescriptor;
using google::protobuf::Message;
using google::protobuf::TextFormat;

constexpr int kMaxNesting = 64;
constexpr std::size_t kMaxProblems = 32;
constexpr std::streamsize kMaxFileBytes = std::streamsize{1} << 20;

std::vector<std::string> field_names(const Descriptor& message) {
  std::vector<std::string> names;
  names.reserve(static_cast<std::size_t>(message.field_count()));
  for (int i = 0; i < message.field_count(); ++i) names.push_back(message.field(i)->name());
  return names;
}

std::string enum_values(const EnumDescriptor& type) {
  std::string values;
  for (int i = 0; i < type.value_count(); ++i) {
    values += (i > 0 ? ", " : "") + type.value(i)->name();
  }
  return values;
}

std::string did_you_mean(const std::string& word, const std::vector<std::string>& candidates) {
  const std::string name = nearest_name(word, candidates);
  return name.empty() ? std::string() : fmt::format("; did you mean \"{}\"?", name);
}

// Keeps what the parser says, with the names it knows added.
class Collector final : public google::protobuf::io::ErrorCollector {
 public:
  struct Entry {
    int line;
    int column;
    std::string text;
    std::string value;  // what is at fault where the parser reports it at the token after it, or ""
  };
  void AddError(int line, google::protobuf::io::ColumnNumber column,
                const std::string& message) override {
    errors.push_back(explain(line, column, message));
  }
  void AddWarning(int line, google::protobuf::io::ColumnNumber column,
                  const std::string& message) override {
    warnings.push_back(explain(line, column, message));
  }
  std::vector<Entry> errors, warnings;

 private:
  static Entry explain(int line, int column, const std::string& message) {
    std::smatch match;
    static const std::regex no_field(R"re(Message type "([^"]+)" has no field named "([^"]+)")re");
    if (std::regex_search(message, match, no_field)) {
      const Descriptor* type =
          google::protobuf::DescriptorPool::generated_pool()->FindMessageTypeByName(match[1]);
      const std::string hint =
          type == nullptr ? std::string() : did_you_mean(match[2], field_names(*type));
      return {line, column,
              fmt::format("unknown field \"{}\" in {}{}", match[2].str(), match[1].str(), hint),
              ""};
    }
    static const std::regex no_value(
        R"re(Unknown enumeration value of "([^"]+)" for field "([^"]+)")re");
    if (std::regex_search(message, match, no_value)) {
      return {line, column,
              fmt::format("unknown value \"{}\" of field \"{}\"{}", match[1].str(), match[2].str(),
                          values_of(match[2], match[1])),
              match[1]};
    }
    static const std::regex no_bool(
        R"re(Invalid value for boolean field "([^"]+)"\. Value: "([^"]+)")re");
    if (std::regex_search(message, match, no_bool)) {
      return {line, column,
              fmt::format("unknown value \"{}\" of field \"{}\"; allowed: true, false",
                          match[2].str(), match[1].str()),
              match[2]};
    }
    return {line, column, message, ""};
  }
  // The field's enumeration is not in the message; any of that name in the schema will do.
  static std::string values_of(const std::string& field, const std::string& value) {
    const auto* file = RunConfig::descriptor()->file();
    for (int m = 0; m < file->message_type_count(); ++m) {
      const FieldDescriptor* found = file->message_type(m)->FindFieldByName(field);
      if (found == nullptr || found->enum_type() == nullptr) continue;
      std::vector<std::string> names;
      names.reserve(static_cast<std::size_t>(found->enum_type()->value_count()));
      for (int i = 0; i < found->enum_type()->value_count(); ++i) {
        names.push_back(found->enum_type()->value(i)->name());
      }
      return fmt::format("; allowed: {}{}", enum_values(*found->enum_type()),
                         did_you_mean(value, names));
    }
    return {};
  }
};

// Position of the first byte that is not UTF-8 (RFC 3629), or npos. Names end up in JSON, which must be.
std::size_t find_invalid_utf8(const std::string& text) {
  const auto byte = [&](std::size_t i) {
    return i < text.size() ? static_cast<unsigned char>(text[i]) : 0U;
  };
  for (std::size_t i = 0; i < text.size();) {
    const unsigned first = byte(i);
    const std::size_t length = first < 0x80U ? 1 : first < 0xe0U ? 2 : first < 0xf0U ? 3 : 4;
    if (length > 1 && (first < 0xc2U || first > 0xf4U)) return i;
    for (std::size_t j = 1; j < length; ++j) {
      if ((byte(i + j) & 0xc0U) != 0x80U) return i;
    }
    const unsigned second = byte(i + 1);  // overlong, surrogate, beyond U+10FFFF
    if ((first == 0xe0U && second < 0xa0U) || (first == 0xedU && second > 0x9fU) ||
        (first == 0xf0U && second < 0x90U) || (first == 0xf4U && second > 0x8fU)) {
      return i;
    }
    i += length;
  }
  return std::string::npos;
}

std::string quoted_if_string(const FieldDescriptor& field, const std::string& value) {
  if (field.cpp_type() != FieldDescriptor::CPPTYPE_STRING) return value;
  std::string quoted = "\"";
  for (const char c : value) {
    if (c == '"' || c == '\\') quoted += '\\';
    quoted += c;
  }
  return quoted + "\"";
}

std::string expected(const FieldDescriptor& field) {
  switch (field.cpp_type()) {
    case FieldDescriptor::CPPTYPE_ENUM:
      return "one of " + enum_values(*field.enum_type());
    case FieldDescriptor::CPPTYPE_BOOL:
      return "true or false";
    case FieldDescriptor::CPPTYPE_DOUBLE:
      return "a number";
    case FieldDescriptor::CPPTYPE_STRING:
      return "text";
    case FieldDescriptor::CPPTYPE_MESSAGE:
      return "one of its fields: " + field.name() + "." +
             field_names(*field.message_type()).front() + "=...";
    default:
      return "a whole number";
  }
}

bool set_field(Message& message, const FieldDescriptor& field, const std::string& value) {
  TextFormat::Parser parser;
  Collector silent;
  parser.RecordErrorsTo(&silent);
  if (!field.is_repeated()) {
    return parser.ParseFieldValueFromString(quoted_if_string(field, value), &field, &message);
  }
  message.GetReflection()->ClearField(&message, &field);
  std::stringstream items(value);
  for (std::string item; std::getline(items, item, ',');) {
    if (!parser.ParseFieldValueFromString(quoted_if_string(field, item), &field, &message)) {
      return false;
    }
  }
  return true;
}

void write_defaults(Message& message) {
  const auto* reflection = message.GetReflection();
  const Descriptor* type = message.GetDescriptor();
  for (int i = 0; i < type->field_count(); ++i) {
    const FieldDescriptor* field = type->field(i);
    if (field->is_repeated()) {
      if (field->cpp_type() != FieldDescriptor::CPPTYPE_MESSAGE) continue;
      for (int j = 0; j < reflection->FieldSize(message, field); ++j) {
        write_defaults(*reflection->MutableRepeatedMessage(&message, field, j));
      }
      continue;
    }
    switch (field->cpp_type()) {
      case FieldDescriptor::CPPTYPE_MESSAGE:
        write_defaults(*reflection->MutableMessage(&message, field));
        break;
      case FieldDescriptor::CPPTYPE_INT64:
        reflection->SetInt64(&message, field, reflection->GetInt64(message, field));
        break;
      case FieldDescriptor::CPPTYPE_UINT64:
        reflection->SetUInt64(&message, field, reflection->GetUInt64(message, field));
        break;
      case FieldDescriptor::CPPTYPE_DOUBLE:
        reflection->SetDouble(&message, field, reflection->GetDouble(message, field));
        break;
      case FieldDescriptor::CPPTYPE_BOOL:
        reflection->SetBool(&message, field, reflection->GetBool(message, field));
        break;
      case FieldDescriptor::CPPTYPE_ENUM:
        reflection->SetEnum(&message, field, reflection->GetEnum(message, field));
        break;
      case FieldDescriptor::CPPTYPE_STRING:
        reflection->SetString(&message, field, reflection->GetString(message, field));
        break;
      default:
        TTT_CHECK(false, "the schema has a field of a type that is not handled: {}",
                  field->full_name());
    }
  }
}

std::string read_config_file(const std::string& path) {
  std::ifstream file(path, std::ios::binary | std::ios::ate);
  if (!file) fail(ExitCode::kMissingInput, "configuration {} cannot be opened", path);
  const std::streamsize size = file.tellg();
  if (size > kMaxFileBytes) {
    fail(ExitCode::kUsage, "configuration {} has {} bytes; at most {} are read", path, size,
         kMaxFileBytes);
  }
  std::string text(static_cast<std::size_t>(size), '\0');
  file.seekg(0);
  file.read(text.data(), size);
  if (!file) fail(ExitCode::kIo, "configuration {} cannot be read", path);
  return text;
}

}  // namespace

std::string nearest_name(const std::string& word, const std::vector<std::string>& candidates) {
  std::string best;
  std::size_t best_distance = std::max<std::size_t>(2, word.size() / 3) + 1;
  for (const std::string& name : candidates) {
    // Levenshtein distance, one row at a time.
    std::vector<std::size_t> row(name.size() + 1);
    for (std::size_t j = 0; j <= name.size(); ++j) row[j] = j;
    for (std::size_t i = 1; i <= word.size(); ++i) {
      std::size_t diagonal = row[0];
      row[0] = i;
      for (std::size_t j = 1; j <= name.size(); ++j) {
        const std::size_t substituted = diagonal + (word[i - 1] == name[j - 1] ? 0 : 1);
        diagonal = row[j];
        row[j] = std::min({substituted, row[j] + 1, row[j - 1] + 1});
      }
    }
    if (row.back() < best_distance) {
      best_distance = row.back();
      best = name;
    }
  }
  return best;
}

// The parser stops at the first error; what is at fault is blanked and the rest is read again, so that one run shows
// everything that is wrong.
RunConfig parse_run_config(const std::string& text, const std::string& source,
                           std::vector<std::string>& problems) {
  std::string remaining = text;
  RunConfig config;
  const std::size_t invalid = find_invalid_utf8(text);
  if (invalid != std::string::npos) {
    const auto before = text.begin() + static_cast<std::ptrdiff_t>(invalid);
    problems.push_back(fmt::format("{}:{}: this line is not UTF-8", source,
                                   std::count(text.begin(), before, '\n') + 1));
    return config;
  }
  while (true) {
    Collector collector;
    TextFormat::Parser parser;
    parser.RecordErrorsTo(&collector);
    parser.SetRecursionLimit(kMaxNesting);
    parser.AllowUnknownField(true);
    config.Clear();
    const bool parsed = parser.ParseFromString(remaining, &config);
    std::vector<Collector::Entry>& found = parsed ? collector.warnings : collector.errors;
    Fault fault;
    for (const Collector::Entry& entry : found) {
      fault = find_fault(remaining, entry.line, entry.column, entry.value);
      problems.push_back(fmt::format("{}:{}: {}", source, fault.line + 1, entry.text));
      if (problems.size() < kMaxProblems) continue;
      problems.push_back(source + ": there may be more problems; these are the first");
      return config;
    }
    if (parsed || collector.errors.empty()) break;
    const std::string before = remaining;
    std::fill_n(remaining.begin() + static_cast<std::ptrdiff_t>(fault.begin),
                fault.end - fault.begin, ' ');
    if (remaining == before) break;
  }
  return config;
}

std::string apply_override(RunConfig& config, const std::string& assignment) {
  const std::size_t equals = assignment.find('=');
  if (equals == std::string::npos || equals == 0) {
    return fmt::format("--set {}: write it as field=value", assignment);
  }
  const std::string value = assignment.substr(equals + 1);
  if (find_invalid_utf8(assignment) != std::string::npos) {
    return fmt::format("--set {}...: this is not UTF-8", assignment.substr(0, equals));
  }
  const std::string path = assignment.substr(0, equals);
  Message* message = &config;
  for (std::size_t begin = 0;;) {
    const std::size_t dot = path.find('.', begin);
    const std::string name = path.substr(begin, dot - begin);
    const Descriptor* type = message->GetDescriptor();
    const FieldDescriptor* field = type->FindFieldByName(name);
    if (field == nullptr) {
      return fmt::format("--set {}: unknown field \"{}\" in {}{}", assignment, name,
                         type->full_name(), did_you_mean(name, field_names(*type)));
    }
    if (dot != std::string::npos) {
      if (field->cpp_type() != FieldDescriptor::CPPTYPE_MESSAGE) {
        return fmt::format("--set {}: \"{}\" has no fields inside", assignment, name);
      }
      if (field->is_repeated()) {
        return fmt::format("--set {}: \"{}\" is a list; write it in the configuration file",
                           assignment, name);
      }
      message = message->GetReflection()->MutableMessage(message, field);
      begin = dot + 1;
      continue;
    }
    if (field->cpp_type() == FieldDescriptor::CPPTYPE_MESSAGE ||
        !set_field(*message, *field, value)) {
      return fmt::format("--set {}: \"{}\" is not {}", assignment, value, expected(*field));
    }
    return {};
  }
}

RunConfig load_run_config(const std::string& path, const std::vector<std::string>& overrides,
                          int world_size) {
  std::vector<std::string> problems;
  RunConfig config;
  if (!path.empty()) config = parse_run_config(read_config_file(path), path, problems);
  for (const std::string& assignment : overrides) {
    const std::string problem = apply_override(config, assignment);
    if (!problem.empty()) problems.push_back(problem);
  }
  const std::vector<std::string> wrong_values = find_problems(config, world_size);
  problems.insert(problems.end(), wrong_values.begin(), wrong_values.end());
  throw_problems(path.empty() ? "the configuration" : path, problems);
  return config;
}

void throw_problems(const std::string& source, const std::vector<std::string>& problems) {
  if (problems.empty()) return;
  fail(ExitCode::kUsage, "{} has {} problem{}:\n  {}", source, problems.size(),
       problems.size() == 1 ? "" : "s", fmt::join(problems, "\n  "));
}

std::string complete_text(const RunConfig& config) {
  RunConfig complete = config;
  write_defaults(complete);
  std::string text;
  TextFormat::PrintToString(complete, &text);
  return text;
}

}  // namespace ttt::config
