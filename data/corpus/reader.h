#pragma once
// Documents from the files of a corpus, in a stream.
//
//   .txt            one document a file
//   .jsonl, .json   one JSON object a line
//   .tar            every regular file NAME.txt in it is a document; nothing is extracted
//
// each also compressed (.zst, .gz; .tgz), and
//
//   .parquet        one document a row, where the program was built with Arrow
//
// Text is passed on as it is: CRLF, NUL and spaces are kept.

#include <atomic>
#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "data/corpus/json_record.h"

namespace ttt::data {

/// A longer line, file or archive member is no document.
inline constexpr std::int64_t kMaxDocumentBytes = std::int64_t{64} << 20;

struct Document {
  std::string text;       // UTF-8
  std::string file;       // ARCHIVE:MEMBER in an archive
  std::int64_t line = 0;  // or row; from 1; 0 if the document is neither
  std::string subset;
};

/// Something that stands where a document should and is none.
struct Rejection {
  std::string file;
  std::int64_t line = 0;
  // Of what is wrong, in bytes of the decompressed file, member or row's text.
  std::int64_t offset = 0;
  std::string reason;  // a few words, the same for every case of a kind
  std::string detail;

  /// "FILE:LINE: byte OFFSET: DETAIL".
  [[nodiscard]] std::string message() const;
};

/// The files `paths` stand for: files as given, directories searched recursively in the byte order
/// of the paths for the suffixes above. 66 if a path is missing or a directory has no such file; 64
/// for a file of another suffix, and for a Parquet file where none can be read.
std::vector<std::string> list_corpus_files(const std::vector<std::string>& paths);

/// Visits every document of one file in order, and what is rejected in its place among them. An empty
/// text is a document in a line or row, rejected as a file.
/// Errors: 66 for a missing file; 65 for a damaged or truncated container, of which no rest can be read.
/// `bytes_read` as for open_byte_source.
void read_file_documents(const std::string& file, const RecordFields& fields,
                         const std::function<void(Document&&)>& visit,
                         const std::function<void(const Rejection&)>& reject,
                         std::atomic<std::int64_t>* bytes_read = nullptr);

/// Visits every document of `paths`; the first rejection is an error: 65.
void read_documents(const std::vector<std::string>& paths, const RecordFields& fields,
                    const std::function<void(Document&&)>& visit);

}  // namespace ttt::data
