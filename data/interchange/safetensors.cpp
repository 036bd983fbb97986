#include "data/interchange/safetensors.h"

#include <fcntl.h>

#include <algorithm>
#include <bit>
#include <filesystem>
#include <limits>
#include <nlohmann/json.hpp>
#include <optional>
#include <set>

#include "data/file_name.h"
#include "data/files.h"

namespace ttt::data {
namespace {

static_assert(std::endian::native == std::endian::little, "safetensors data is little-endian");

using Json = nlohmann::json;

constexpr std::uint64_t kMaxHeaderBytes = std::uint64_t{16} << 20U;
constexpr std::int64_t kMaxIndexBytes = std::int64_t{64} << 20U;
constexpr int kMaxDepth = 4;

template <typename... Args>
[[noreturn]] void damaged(fmt::format_string<Args...> format, Args&&... args) {
  fail(ExitCode::kCorruptInput, format, std::forward<Args>(args)...);
}

// Parses an object; unlike nlohmann's default a key that occurs twice or deep nesting is an error.
Json parse_strictly(const std::string& text, const std::string& path) {
  std::vector<std::set<std::string>> keys;
  const auto check = [&](int depth, Json::parse_event_t event, Json& parsed) {
    if (event == Json::parse_event_t::object_start) {
      if (depth >= kMaxDepth) damaged("{}: the JSON header is nested too deeply", path);
      keys.emplace_back();
    } else if (event == Json::parse_event_t::array_start && depth >= kMaxDepth) {
      damaged("{}: the JSON header is nested too deeply", path);
    } else if (event == Json::parse_event_t::object_end) {
      keys.pop_back();
    } else if (event == Json::parse_event_t::key) {
      const auto& key = parsed.get_ref<const std::string&>();
      if (!keys.back().insert(key).second) damaged("{}: '{}' occurs twice", path, key);
    }
    return true;
  };
  try {
    Json json = Json::parse(text, check);
    if (!json.is_object()) damaged("{}: the JSON header is not an object", path);
    return json;
  } catch (const Json::exception& error) {
    damaged("{}: the JSON header is malformed: {}", path, error.what());
  }
}

struct FileType {
  DType dtype;
  std::int64_t file_bytes;  // of one element in the file
  bool is_f16;
};

std::optional<FileType> type_of(const std::string& name) {
  if (name == "F16") return FileType{DType::kF32, 2, true};
  for (const DType dtype : {DType::kF64, DType::kF32, DType::kBF16, DType::kI64, DType::kI32,
                            DType::kU16, DType::kU8}) {
    if (name == name_of(dtype)) return FileType{dtype, size_of(dtype), false};
  }
  return std::nullopt;
}

// Checks one header entry in itself; returns its type, shape and [begin, end) in the data.
struct ParsedEntry {
  FileType type{};
  Shape shape;
  std::uint64_t begin = 0;
  std::uint64_t end = 0;
};

Shape parse_shape(const Json& json, std::int64_t element_bytes, const std::string& where,
                  std::int64_t& num_bytes) {
  if (!json.is_array() || json.size() > Shape::kMaxRank) {
    damaged("{}: shape must be a list of at most {} extents", where, Shape::kMaxRank);
  }
  std::vector<std::int64_t> dims;
  num_bytes = element_bytes;
  for (const Json& extent : json) {
    if (!extent.is_number_unsigned() ||
        extent.get<std::uint64_t>() > std::numeric_limits<std::int64_t>::max()) {
      damaged("{}: shape has the extent {}", where, extent.dump());
    }
    dims.push_back(extent.get<std::int64_t>());
    if (__builtin_mul_overflow(num_bytes, dims.back(), &num_bytes)) {
      damaged("{}: shape {} is too large", where, json.dump());
    }
  }
  return Shape(dims);
}

ParsedEntry parse_entry(const Json& json, const std::string& where) {
  if (!json.is_object() || json.size() != 3 || !json.contains("dtype") || !json.contains("shape") ||
      !json.contains("data_offsets")) {
    damaged("{}: must have exactly dtype, shape and data_offsets", where);
  }
  ParsedEntry entry;
  const Json& dtype = json["dtype"];
  const auto type = dtype.is_string() ? type_of(dtype.get<std::string>()) : std::nullopt;
  if (!type) damaged("{}: dtype {} is not supported", where, dtype.dump());
  entry.type = *type;
  std::int64_t num_bytes = 0;
  entry.shape = parse_shape(json["shape"], entry.type.file_bytes, where, num_bytes);

  const Json& offsets = json["data_offsets"];
  if (!offsets.is_array() || offsets.size() != 2 || !offsets[0].is_number_unsigned() ||
      !offsets[1].is_number_unsigned()) {
    damaged("{}: data_offsets must be [begin, end]", where);
  }
  entry.begin = offsets[0].get<std::uint64_t>();
  entry.end = offsets[1].get<std::uint64_t>();
  if (entry.end < entry.begin) damaged("{}: data_offsets end before they begin", where);
  if (entry.end - entry.begin != static_cast<std::uint64_t>(num_bytes)) {
    damaged("{}: data_offsets span {} bytes, but {} of {} are {}", where, entry.end - entry.begin,
            entry.shape.str(), dtype.get<std::string>(), num_bytes);
  }
  return entry;
}

// The tensors must cover the data exactly: otherwise a file could hide bytes or alias weights.
void check_coverage(const std::vector<std::pair<std::string, ParsedEntry>>& entries,
                    std::uint64_t data_bytes, const std::string& path) {
  std::vector<const std::pair<std::string, ParsedEntry>*> order;
  order.reserve(entries.size());
  for (const auto& entry : entries) order.push_back(&entry);
  std::ranges::sort(order, {}, [](const auto* entry) {
    return std::pair(entry->second.begin, entry->second.end);
  });
  std::uint64_t position = 0;
  for (const auto* entry : order) {
    const auto& [begin, end] = std::pair(entry->second.begin, entry->second.end);
    if (end > data_bytes) {
      damaged("{}: tensor '{}': ends at byte {} of {}", path, entry->first, end, data_bytes);
    }
    if (begin < position) {
      damaged("{}: tensor '{}': overlaps the tensor before it", path, entry->first);
    }
    if (begin > position) damaged("{}: tensor '{}': a hole is before it", path, entry->first);
    position = end;
  }
  if (position != data_bytes) {
    damaged("{}: {} bytes after the last tensor", path, data_bytes - position);
  }
}

float float_of_half(std::uint16_t bits) {
  const std::uint32_t sign = static_cast<std::uint32_t>(bits & 0x8000U) << 16U;
  const std::uint32_t exponent = (bits >> 10U) & 0x1fU;
  const std::uint32_t mantissa = bits & 0x3ffU;
  if (exponent == 0) {  // zero or subnormal: mantissa * 2^-24 is exact in float
    const float magnitude = static_cast<float>(mantissa) * 0x1p-24F;
    return sign != 0 ? -magnitude : magnitude;
  }
  const std::uint32_t float_exponent = exponent == 31 ? 255 : exponent + 112;
  return std::bit_cast<float>(sign | (float_exponent << 23U) | (mantissa << 13U));
}

}  // namespace

SafetensorsFile SafetensorsFile::open(const std::string& path) {
  const FileDescriptor file(path, O_RDONLY);
  const auto file_bytes = static_cast<std::uint64_t>(file.size_bytes());
  std::uint64_t header_bytes = 0;
  if (file_bytes < sizeof(header_bytes)) damaged("{}: {} bytes are no file", path, file_bytes);
  file.read_at(0, std::as_writable_bytes(std::span(&header_bytes, 1)));
  if (header_bytes > kMaxHeaderBytes || header_bytes > file_bytes - sizeof(header_bytes)) {
    damaged("{}: a header of {} bytes (the limit is {}, the file has {})", path, header_bytes,
            kMaxHeaderBytes, file_bytes);
  }
  std::string header(header_bytes, '\0');
  file.read_at(sizeof(header_bytes), std::as_writable_bytes(std::span(header)));
  if (!header.starts_with('{')) damaged("{}: the header does not begin with '{{'", path);
  const Json json = parse_strictly(header, path);

  SafetensorsFile result;
  result.path_ = path;
  std::vector<std::pair<std::string, ParsedEntry>> parsed;
  for (const auto& [name, value] : json.items()) {
    if (name == "__metadata__") {
      if (!value.is_object()) damaged("{}: __metadata__ is not an object", path);
      for (const auto& [key, text] : value.items()) {
        if (!text.is_string()) damaged("{}: __metadata__ '{}' is not a string", path, key);
        result.metadata_[key] = text.get<std::string>();
      }
    } else {
      parsed.emplace_back(name, parse_entry(value, fmt::format("{}: tensor '{}'", path, name)));
    }
  }
  const std::uint64_t data_begin = sizeof(header_bytes) + header_bytes;
  check_coverage(parsed, file_bytes - data_begin, path);
  for (const auto& [name, entry] : parsed) {
    result.entries_[name] = {path,
                             data_begin + entry.begin,
                             entry.end - entry.begin,
                             entry.type.is_f16,
                             {entry.type.dtype, entry.shape}};
  }
  return result;
}

std::vector<std::string> SafetensorsFile::names() const {
  std::vector<std::string> result;
  for (const auto& [name, entry] : entries_) result.push_back(name);
  return result;
}

const SafetensorsFile::Entry& SafetensorsFile::entry(const std::string& name) const {
  const auto found = entries_.find(name);
  if (found == entries_.end()) damaged("{}: there is no tensor '{}'", path_, name);
  return found->second;
}

SafetensorsInfo SafetensorsFile::info(const std::string& name) const { return entry(name).info; }

Tensor SafetensorsFile::read(const std::string& name) const {
  const Entry& source = entry(name);
  const FileDescriptor file(source.path, O_RDONLY);
  const auto begin = static_cast<std::int64_t>(source.begin);
  Tensor result(source.info.shape, source.info.dtype);
  if (!source.is_f16) {
    file.read_at(begin, {static_cast<std::byte*>(result.view().raw()), source.num_bytes});
    return result;
  }
  std::vector<std::uint16_t> halves(static_cast<std::size_t>(result.numel()));
  file.read_at(begin, std::as_writable_bytes(std::span(halves)));
  std::ranges::transform(halves, result.data<float>(), float_of_half);
  return result;
}

SafetensorsFile open_model(const std::string& directory) {
  const std::filesystem::path root(directory);
  const std::string index_path = root / "model.safetensors.index.json";
  if (!std::filesystem::exists(index_path)) {
    return SafetensorsFile::open(root / "model.safetensors");
  }
  const Json index = parse_strictly(read_text_file(index_path, kMaxIndexBytes), index_path);
  if (!index.contains("weight_map") || !index["weight_map"].is_object()) {
    damaged("{}: there is no weight_map", index_path);
  }
  SafetensorsFile result;
  result.path_ = index_path;
  std::set<std::string> shards;
  for (const auto& [name, shard] : index["weight_map"].items()) {
    const std::string file = shard.is_string() ? shard.get<std::string>() : "";
    if (!is_plain_file_name(file)) {
      damaged("{}: tensor '{}': {} is not a file name", index_path, name, shard.dump());
    }
    shards.insert(file);
  }
  for (const std::string& shard : shards) {
    const SafetensorsFile part = SafetensorsFile::open(root / shard);
    result.metadata_.insert(part.metadata_.begin(), part.metadata_.end());
    for (const auto& [name, entry] : part.entries_) {
      if (index["weight_map"].value(name, "") != shard) {
        damaged("{}: tensor '{}': the index does not place it here", part.path_, name);
      }
      result.entries_[name] = entry;
    }
  }
  for (const auto& [name, shard] : index["weight_map"].items()) {
    if (!result.has(name)) damaged("{}: tensor '{}' is not in {}", index_path, name, shard.dump());
  }
  return result;
}

void write_safetensors(const std::string& path, std::span<const NamedTensor> tensors,
                       const std::map<std::string, std::string>& metadata) {
  Json header = Json::object();
  header["__metadata__"] = metadata;
  header["__metadata__"]["format"] = "pt";
  std::int64_t offset = 0;
  for (const auto& [name, view] : tensors) {
    TTT_CHECK(!header.contains(name), "tensor '{}' is given twice for {}", name, path);
    TTT_CHECK(!view.empty() || view.numel() == 0, "tensor '{}' has no data", name);
    header[name] = {{"dtype", name_of(view.dtype())},
                    {"shape", view.shape().dims()},
                    {"data_offsets", {offset, offset + view.num_bytes()}}};
    offset += view.num_bytes();
  }
  std::string text = header.dump();
  text.resize((text.size() + 7) / 8 * 8, ' ');
  const std::uint64_t header_bytes = text.size();

  const std::string temporary = path + ".tmp";
  FileDescriptor file(temporary, O_WRONLY | O_CREAT | O_TRUNC);
  file.write(std::as_bytes(std::span(&header_bytes, 1)));
  file.write(std::as_bytes(std::span(text)));
  for (const auto& [name, view] : tensors) {
    file.write(
        {static_cast<const std::byte*>(view.raw()), static_cast<std::size_t>(view.num_bytes())});
  }
  file.sync();
  file.close();
  rename_durably(temporary, path);
}

}  // namespace ttt::data
