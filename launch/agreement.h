#pragma once
// What all ranks must agree on before a run: one message when they do not, instead of one a rank.

#include <functional>
#include <string>

#include "dist/communicator.h"

namespace ttt::launch {

/// Runs `action` on every rank. If it throws an Error on any, every rank throws that of the lowest such
/// rank, whose name the message begins with unless all ranks say the same. Collective.
void run_together(dist::Communicator& communicator, const std::function<void()>& action);

/// Throws kUsage on every rank when `text` is not the same on all: `what`, the first rank that differs, its
/// host, the first line that differs, and `remedy`. Collective.
void expect_same(dist::Communicator& communicator, const std::string& what, const std::string& text,
                 const std::string& remedy);

/// Digest of the program this process runs: it is the program, not its name or version, that decides the bits.
std::string program_digest();

}  // namespace ttt::launch
