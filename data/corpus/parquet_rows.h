#pragma once
// What the program and its Parquet module have in common. The module alone is linked with Arrow, whose libraries
// would otherwise be loaded at every start and be missing where only the program was copied to.

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

#include "data/corpus/json_record.h"
#include "data/corpus/large_blocks.h"

namespace ttt::data {

struct ParquetRow {
  std::optional<std::string_view> text;  // none if it is null
  std::string_view subset;               // "" if no column names it
};

/// Everything throws std::bad_alloc without memory, another std::exception for what is wrong with the file; its words do not
/// name the file.
class ParquetRows {
 public:
  virtual ~ParquetRows() = default;
  [[nodiscard]] virtual std::int64_t num_rows() const = 0;
  /// The next row in order, false at the end. Its views hold until the next call.
  virtual bool next(ParquetRow& row) = 0;
};

/// What the module exports under kOpenParquetName; the caller owns the result, which `large` must outlive.
using OpenParquet = ParquetRows*(const std::string& path, const RecordFields& fields,
                                 LargeBlocks& large);
inline constexpr const char* kOpenParquetName = "ttt_open_parquet";
inline constexpr const char* kParquetModule = "libttt_parquet.so";  // beside the program

}  // namespace ttt::data
