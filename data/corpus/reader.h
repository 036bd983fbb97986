#pragma once
// Documents from text files: .txt (one document a file), .jsonl and .json (one JSON object a line),
// .jsonl.zst and .json.zst (the same, compressed; any number of frames, windows up to 2^31).
//
// Text is passed on as it is: CRLF, NUL and spaces are kept. Nothing is skipped: whatever cannot be
// read ends the reading with the file and line.

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

namespace ttt::data {

struct Document {
  std::string text;  // UTF-8
  std::string file;
  std::int64_t line = 0;  // from 1; 0 for .txt
};

/// The files `paths` stand for: files as given, directories searched recursively in the byte order
/// of the paths for the suffixes above. 66 if a path is missing or a directory has no such file; 64
/// for a file of another suffix.
std::vector<std::string> list_corpus_files(const std::vector<std::string>& paths);

/// Visits every document in order. `text_field` is the member of the JSON objects that has the text;
/// an empty text is a document in .jsonl, an error in .txt.
/// Errors: 66 for a missing file; 65 for broken JSON, a missing or non-string field, a lone
/// surrogate, invalid UTF-8 (with the byte offset), a line or .txt file over 64 MiB, nesting deeper
/// than 64, and a damaged or truncated .zst.
void read_documents(const std::vector<std::string>& paths, const std::string& text_field,
                    const std::function<void(Document&&)>& visit);

}  // namespace ttt::data
