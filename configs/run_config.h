#pragma once
// Reading, overriding and checking a run's configuration (configs/run.proto).

#include <string>
#include <string_view>
#include <vector>

#include "configs/run.pb.h"

namespace ttt::config {

/// Reads `path` (Protobuf text format; empty: all defaults), applies overrides "optimizer.beta1=0.9",
/// and checks what needs no data. `world_size` is the number of ranks; 0: not known. Throws kUsage with one line for
/// every problem: field, value, reason and, for a misspelt name, the nearest one; 66 if the file is
/// missing.
RunConfig load_run_config(const std::string& path, const std::vector<std::string>& overrides,
                          int world_size);

/// The text format; problems of syntax, names and types are appended to `problems`.
RunConfig parse_run_config(const std::string& text, const std::string& source,
                           std::vector<std::string>& problems);

/// Sets one field from "path.to.field=value"; repeated fields take "a,b". Returns the problem, or "".
std::string apply_override(RunConfig& config, const std::string& assignment);

/// Everything that is wrong with the values themselves; empty if nothing.
std::vector<std::string> find_problems(const RunConfig& config, int world_size);
std::vector<std::string> find_model_problems(const ModelConfig& model);
/// Only of how sequences are cut over parallel.sequence_ranks.
std::vector<std::string> find_sequence_problems(const RunConfig& config, int world_size);

/// Throws kUsage listing the problems, unless there are none.
void throw_problems(const std::string& source, const std::vector<std::string>& problems);

/// The field, enum value or other word of `candidates` nearest to `word`; "" if none is near.
std::string nearest_name(const std::string& word, const std::vector<std::string>& candidates);

/// The configuration with every field written out, defaults included.
std::string complete_text(const RunConfig& config);

/// configs/run.proto as the program was built with it, comments and defaults included.
std::string_view schema_text();

}  // namespace ttt::config
