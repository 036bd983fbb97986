#include "data/corpus/reader.h"

#include <algorithm>
#include <array>
#include <filesystem>
#include <string_view>
#include <system_error>
#include <utility>

#include "core/base/error.h"
#include "data/corpus/line_reader.h"
#include "data/corpus/parquet_reader.h"
#include "data/corpus/tar_reader.h"
#include "data/files.h"

namespace ttt::data {
namespace {

namespace fs = std::filesystem;

constexpr const char* kSuffixes =
    ".txt, .jsonl, .json or .tar file, as it is or compressed (.zst, .gz, .tgz), or .parquet file";
constexpr const char* kConvertParquet =
    "this program was built without Arrow, which reads Parquet; `duckdb -c \"COPY 'in.parquet' TO "
    "'out.jsonl' (FORMAT json)\"` converts "
    "it";

enum class Kind { kNone, kText, kLines, kTar, kParquet };

Kind kind_of(std::string_view path) {
  if (path.ends_with(".tgz")) return Kind::kTar;
  if (path.ends_with(".parquet")) return Kind::kParquet;
  path = without_compression_suffix(path);
  if (path.ends_with(".txt")) return Kind::kText;
  if (path.ends_with(".jsonl") || path.ends_with(".json")) return Kind::kLines;
  return path.ends_with(".tar") ? Kind::kTar : Kind::kNone;
}

// Calls visit or reject for a whole file or archive member.
class WholeText {
 public:
  WholeText(const std::function<void(Document&&)>& visit,
            const std::function<void(const Rejection&)>& reject)
      : visit_(visit), reject_(reject) {}

  void take(std::string&& text, const std::string& name) const {
    if (text.empty()) return refuse(name, 0, "empty", "it is empty");
    if (const std::size_t at = find_invalid_utf8(text); at < text.size()) {
      return refuse(name, static_cast<std::int64_t>(at), "not UTF-8",
                    fmt::format("0x{:02x} is not UTF-8", static_cast<unsigned char>(text[at])));
    }
    visit_(Document{std::move(text), name, 0, ""});
  }
  void refuse_length(const std::string& name) const {
    refuse(name, kMaxDocumentBytes, "too long",
           fmt::format("it has more than {} bytes", kMaxDocumentBytes));
  }
  void refuse(const std::string& name, std::int64_t offset, std::string reason,
              std::string detail) const {
    reject_({name, 0, offset, std::move(reason), std::move(detail)});
  }

 private:
  const std::function<void(Document&&)>& visit_;
  const std::function<void(const Rejection&)>& reject_;
};

void read_text(const std::string& file, ByteSource& source, const WholeText& whole) {
  std::string text;
  std::array<char, 1U << 16U> block{};
  while (const std::size_t count = source.read(block)) {
    if (static_cast<std::int64_t>(text.size() + count) > kMaxDocumentBytes) {
      return whole.refuse_length(file);
    }
    text.append(block.data(), count);
  }
  whole.take(std::move(text), file);
}

void read_archive(const std::string& file, ByteSource& source, const WholeText& whole) {
  read_tar(source, file, [&](TarEntry& entry) {
    const std::string name = file + ":" + entry.name;
    if (!entry.irregular.empty()) {
      whole.refuse(name, 0, "not a regular file", "it is " + entry.irregular);
    } else if (entry.is_file && entry.name.ends_with(".txt")) {
      if (entry.num_bytes > kMaxDocumentBytes) return whole.refuse_length(name);
      whole.take(entry.read(), name);
    }
  });
}

void read_lines(const std::string& file, std::unique_ptr<ByteSource> source,
                const RecordFields& fields, const std::function<void(Document&&)>& visit,
                const std::function<void(const Rejection&)>& reject) {
  LineReader lines(std::move(source), static_cast<std::size_t>(kMaxDocumentBytes));
  std::string line;
  while (lines.next(line)) {
    if (lines.is_too_long()) {
      reject({file, lines.number(), lines.offset(), "too long",
              fmt::format("the line has more than {} bytes", kMaxDocumentBytes)});
      continue;
    }
    JsonRecord record = parse_json_record(line, fields);
    if (record.reason.empty()) {
      visit(Document{std::move(record.text), file, lines.number(), std::move(record.subset)});
    } else {
      reject({file, lines.number(), lines.offset() + static_cast<std::int64_t>(record.at),
              std::move(record.reason), std::move(record.detail)});
    }
  }
}

void append_directory(const std::string& path, std::vector<std::string>& files) {
  std::vector<std::string> found;
  try {
    for (const auto& entry : fs::recursive_directory_iterator(path)) {
      const std::string& name = entry.path().native();
      if (entry.is_regular_file() && kind_of(name) != Kind::kNone) found.push_back(name);
    }
  } catch (const fs::filesystem_error& error) {
    fail_with_errno("search", error.path1().string(), error.code().value());
  }
  if (found.empty()) {
    fail(ExitCode::kMissingInput, "{} has no {}", path, kSuffixes);
  }
  std::sort(found.begin(), found.end());
  files.insert(files.end(), found.begin(), found.end());
}

}  // namespace

std::string Rejection::message() const {
  return fmt::format("{}{}: byte {}: {}", file, line > 0 ? fmt::format(":{}", line) : "", offset,
                     detail);
}

std::vector<std::string> list_corpus_files(const std::vector<std::string>& paths) {
  std::vector<std::string> files;
  for (const std::string& path : paths) {
    std::error_code error;
    const fs::file_status status = fs::status(path, error);
    if (!fs::exists(status)) fail_with_errno("open", path, error.value());
    if (fs::is_directory(status)) {
      append_directory(path, files);
    } else if (kind_of(path) != Kind::kNone) {
      files.push_back(path);
    } else {
      fail(ExitCode::kUsage, "{} is not a {}", path, kSuffixes);
    }
  }
  for (const std::string& file : files) {
    if (kind_of(file) == Kind::kParquet && !reads_parquet()) {
      fail(ExitCode::kUsage, "{} is a Parquet file, and {}", file, kConvertParquet);
    }
  }
  return files;
}

void read_file_documents(const std::string& file, const RecordFields& fields,
                         const std::function<void(Document&&)>& visit,
                         const std::function<void(const Rejection&)>& reject,
                         std::atomic<std::int64_t>* bytes_read) {
  const Kind kind = kind_of(file);
  if (kind == Kind::kParquet) return read_parquet(file, fields, visit, reject, bytes_read);
  const WholeText whole(visit, reject);
  auto source = open_byte_source(file, bytes_read);
  if (kind == Kind::kLines) return read_lines(file, std::move(source), fields, visit, reject);
  if (kind == Kind::kTar) return read_archive(file, *source, whole);
  read_text(file, *source, whole);
}

void read_documents(const std::vector<std::string>& paths, const RecordFields& fields,
                    const std::function<void(Document&&)>& visit) {
  for (const std::string& file : list_corpus_files(paths)) {
    read_file_documents(file, fields, visit, [](const Rejection& rejection) {
      fail(ExitCode::kCorruptInput, "{}", rejection.message());
    });
  }
}

}  // namespace ttt::data
