// The Parquet module, the only file that sees Arrow. It reads columns by values, not as Arrow's tables, so that a page of
// each column is all it holds.

#include <arrow/memory_pool.h>
#include <fmt/format.h>
#include <parquet/column_reader.h>
#include <parquet/exception.h>
#include <parquet/file_reader.h>
#include <parquet/metadata.h>
#include <parquet/properties.h>
#include <parquet/schema.h>

#include <algorithm>
#include <cstring>
#include <memory>
#include <new>
#include <stdexcept>
#include <utility>
#include <vector>

#include "data/corpus/parquet_rows.h"

namespace ttt::data {
namespace {

constexpr std::int64_t kReadBytes = std::int64_t{1} << 20;
constexpr int kMaxNamedColumns = 20;
// Far above what writers make: pyarrow's largest are of 1,024 texts.
constexpr std::int64_t kMaxPageBytes = std::int64_t{1} << 30;

// Larger ones lie in temporary files, compressed and not: Books3 as pyarrow writes it has pages of 550 MB.
constexpr std::int64_t kMostInMemory = std::int64_t{64} << 20;

// Arrow holds a page whole. It asks for the memory by what the page's header says, before it decompresses.
class PageMemory final : public arrow::ProxyMemoryPool {
 public:
  // malloc gives a page's memory back when the page goes; Arrow's own pools keep it.
  explicit PageMemory(LargeBlocks& large)
      : ProxyMemoryPool(arrow::system_memory_pool()), large_(large) {}

  arrow::Status Allocate(std::int64_t size, std::int64_t alignment, std::uint8_t** out) override {
    if (size > kMaxPageBytes) {
      return arrow::Status::Invalid(
          fmt::format("a page takes {} bytes, and at most {} are held: write the file again with "
                      "smaller pages",
                      size, kMaxPageBytes));
    }
    if (size > kMostInMemory) {
      *out = static_cast<std::uint8_t*>(large_.map(static_cast<std::size_t>(size)));
      if (*out != nullptr) return arrow::Status::OK();
    }
    arrow::Status status = ProxyMemoryPool::Allocate(size, alignment, out);
    if (status.IsOutOfMemory()) throw std::bad_alloc();  // Arrow would blame the file
    return status;
  }
  arrow::Status Reallocate(std::int64_t old_size, std::int64_t new_size, std::int64_t alignment,
                           std::uint8_t** block) override {
    if (old_size <= kMostInMemory && new_size <= kMostInMemory) {
      return ProxyMemoryPool::Reallocate(old_size, new_size, alignment, block);
    }
    std::uint8_t* const old = *block;
    ARROW_RETURN_NOT_OK(Allocate(new_size, alignment, block));
    std::memcpy(*block, old, static_cast<std::size_t>(std::min(old_size, new_size)));
    Free(old, old_size, alignment);
    return arrow::Status::OK();
  }
  void Free(std::uint8_t* block, std::int64_t size, std::int64_t alignment) override {
    if (size <= kMostInMemory || !large_.unmap(block))
      ProxyMemoryPool::Free(block, size, alignment);
  }

 private:
  LargeBlocks& large_;
};

parquet::ReaderProperties reader_properties(arrow::MemoryPool& memory) {
  parquet::ReaderProperties properties(&memory);
  properties.enable_buffered_stream();  // else a whole column of a row group is read at once
  properties.set_buffer_size(kReadBytes);
  properties.set_page_checksum_verification(true);
  return properties;
}

bool is_string(const parquet::ColumnDescriptor& column) {
  if (column.physical_type() != parquet::Type::BYTE_ARRAY || column.max_repetition_level() > 0) {
    return false;
  }
  switch (column.converted_type()) {
    case parquet::ConvertedType::NONE:
    case parquet::ConvertedType::UTF8:
    case parquet::ConvertedType::ENUM:
    case parquet::ConvertedType::JSON:
      return true;
    default:
      return false;
  }
}

std::string type_of(const parquet::ColumnDescriptor& column) {
  std::string type = parquet::TypeToString(column.physical_type());
  const auto& logical = column.logical_type();
  if (logical != nullptr && !logical->is_none()) type += " (" + logical->ToString() + ")";
  return column.max_repetition_level() > 0 ? "a list of " + type : type;
}

// The columns at `path`; names that contain points can make several.
std::vector<int> find_columns(const parquet::SchemaDescriptor& schema, const std::string& path) {
  std::vector<int> found;
  for (int i = 0; i < schema.num_columns(); ++i) {
    if (schema.Column(i)->path()->ToDotString() == path) found.push_back(i);
  }
  return found;
}

int find_text_column(const parquet::SchemaDescriptor& schema, const std::string& path) {
  const std::vector<int> found = find_columns(schema, path);
  if (found.empty()) {
    std::string names;
    for (int i = 0; i < schema.num_columns() && i < kMaxNamedColumns; ++i) {
      names += (i > 0 ? ", " : "") + schema.Column(i)->path()->ToDotString();
    }
    if (schema.num_columns() > kMaxNamedColumns) names += ", ...";
    throw std::runtime_error(fmt::format("no column \"{}\"; there are: {}", path, names));
  }
  if (found.size() > 1) {
    throw std::runtime_error(fmt::format("column \"{}\" {} times", path, found.size()));
  }
  const parquet::ColumnDescriptor& column = *schema.Column(found[0]);
  if (!is_string(column)) {
    throw std::runtime_error(
        fmt::format("column \"{}\" is {}, not a string", path, type_of(column)));
  }
  return found[0];
}

// One column of one row group, value by value.
class StringColumn {
 public:
  StringColumn(parquet::RowGroupReader& group, int column)
      : reader_(std::static_pointer_cast<parquet::ByteArrayReader>(group.Column(column))) {}

  /// The next row's value, none if it is null.
  std::optional<std::string_view> next() {
    parquet::ByteArray value;
    std::int16_t definition_level = 0;
    std::int64_t num_values = 0;
    const std::int64_t num_levels =
        reader_->ReadBatch(1, &definition_level, nullptr, &value, &num_values);
    if (num_levels != 1) throw std::runtime_error("a column ends before its row group");
    if (num_values == 0) return std::nullopt;
    return std::string_view(reinterpret_cast<const char*>(value.ptr), value.len);
  }
  bool is_at_end() { return !reader_->HasNext(); }

 private:
  std::shared_ptr<parquet::ByteArrayReader> reader_;
};

class ArrowRows final : public ParquetRows {
 public:
  ArrowRows(const std::string& path, const RecordFields& fields, LargeBlocks& large)
      : memory_(large),
        file_(parquet::ParquetFileReader::OpenFile(path, false, reader_properties(memory_))),
        metadata_(file_->metadata()) {
    const parquet::SchemaDescriptor& schema = *metadata_->schema();
    columns_.push_back(find_text_column(schema, fields.text));
    // As in lines of JSON, what is no string names no subset.
    for (const std::string& field : fields.subset) {
      for (const int i : find_columns(schema, field)) {
        if (is_string(*schema.Column(i))) columns_.push_back(i);
      }
    }
    for (int i = 0; i < metadata_->num_row_groups(); ++i) {
      const std::int64_t count = metadata_->RowGroup(i)->num_rows();
      if (count < 0) throw std::runtime_error(fmt::format("row group {} has {} rows", i, count));
    }
  }

  [[nodiscard]] std::int64_t num_rows() const override { return metadata_->num_rows(); }

  bool next(ParquetRow& row) override {
    while (rows_left_ == 0) {
      for (StringColumn& column : open_columns_) {
        if (!column.is_at_end()) throw std::runtime_error("a column goes on behind its row group");
      }
      open_columns_.clear();
      if (next_group_ == metadata_->num_row_groups()) return false;
      group_ = file_->RowGroup(next_group_++);
      rows_left_ = group_->metadata()->num_rows();
      for (const int column : columns_) open_columns_.emplace_back(*group_, column);
    }
    --rows_left_;
    row.text = open_columns_[0].next();
    row.subset = {};
    for (std::size_t i = 1; i < open_columns_.size(); ++i) {
      const std::optional<std::string_view> name = open_columns_[i].next();  // all stay in step
      if (row.subset.empty() && name) row.subset = *name;
    }
    return true;
  }

 private:
  PageMemory memory_;  // outlives all that Arrow makes
  std::unique_ptr<parquet::ParquetFileReader> file_;
  std::shared_ptr<parquet::FileMetaData> metadata_;
  std::vector<int> columns_;  // the text's, then the subset's
  int next_group_ = 0;
  std::int64_t rows_left_ = 0;  // of the open row group
  std::shared_ptr<parquet::RowGroupReader> group_;
  std::vector<StringColumn> open_columns_;
};

}  // namespace
}  // namespace ttt::data

extern "C" __attribute__((visibility("default"))) ttt::data::ParquetRows* ttt_open_parquet(
    const std::string& path, const ttt::data::RecordFields& fields, ttt::data::LargeBlocks& large) {
  return new ttt::data::ArrowRows(path, fields, large);
}
