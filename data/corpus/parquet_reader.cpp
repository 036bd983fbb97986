#include "data/corpus/parquet_reader.h"

#include <dlfcn.h>
#include <fcntl.h>

#include <exception>
#include <filesystem>
#include <memory>
#include <new>
#include <system_error>

#include "core/base/error.h"
#include "data/corpus/parquet_rows.h"
#include "data/files.h"

namespace ttt::data {
namespace {

namespace fs = std::filesystem;

std::string module_path() {
  std::error_code error;
  return (fs::read_symlink("/proc/self/exe", error).parent_path() / kParquetModule).native();
}

OpenParquet* load_module() {
  const std::string path = module_path();
  void* const module = ::dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
  void* const function = module != nullptr ? ::dlsym(module, kOpenParquetName) : nullptr;
  if (function == nullptr) {
    fail(ExitCode::kMissingInput, "Parquet cannot be read here: {} cannot be loaded: {}", path,
         ::dlerror());
  }
  return reinterpret_cast<OpenParquet*>(function);
}

// What Arrow throws for a file that is damaged or made to harm.
auto blame(const std::string& file, const auto& step) {
  try {
    return step();
  } catch (const std::bad_alloc&) {
    fail(ExitCode::kOutOfMemory, "{}: no memory for its pages", file);
  } catch (const std::exception& error) {
    fail(ExitCode::kCorruptInput, "{}: {}", file, error.what());
  }
}

}  // namespace

bool reads_parquet() {
  std::error_code error;
  static const bool result = fs::exists(module_path(), error);
  return result;
}

void read_parquet(const std::string& file, const RecordFields& fields,
                  const std::function<void(Document&&)>& visit,
                  const std::function<void(const Rejection&)>& reject,
                  std::atomic<std::int64_t>* bytes_read) {
  static OpenParquet* const open = load_module();
  const std::int64_t num_bytes = FileDescriptor(file, O_RDONLY).size_bytes();
  LargeBlocks large;
  const auto rows =
      blame(file, [&] { return std::unique_ptr<ParquetRows>((*open)(file, fields, large)); });
  const std::int64_t num_rows = rows->num_rows();
  ParquetRow row;
  std::int64_t bytes_told = 0;
  for (std::int64_t number = 1; blame(file, [&] { return rows->next(row); }); ++number) {
    if (bytes_read != nullptr) {
      const double share = static_cast<double>(number) / static_cast<double>(num_rows);
      const auto bytes = static_cast<std::int64_t>(share * static_cast<double>(num_bytes));
      *bytes_read += bytes - bytes_told;
      bytes_told = bytes;
    }
    if (!row.text) {
      reject({file, number, 0, "no text", fmt::format("column \"{}\" is null", fields.text)});
    } else if (std::ssize(*row.text) > kMaxDocumentBytes) {
      reject({file, number, kMaxDocumentBytes, "too long",
              fmt::format("the text has more than {} bytes", kMaxDocumentBytes)});
    } else if (const std::size_t at = find_invalid_utf8(*row.text); at < row.text->size()) {
      const auto byte = static_cast<unsigned char>((*row.text)[at]);
      reject({file, number, static_cast<std::int64_t>(at), "not UTF-8",
              fmt::format("0x{:02x} is not UTF-8", byte)});
    } else {
      visit(Document{std::string(*row.text), file, number, std::string(row.subset)});
    }
  }
}

}  // namespace ttt::data
